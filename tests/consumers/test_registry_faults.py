"""Records that refer to a schema registry, broken ones and ones that must wait, through the real loop on a real Kafka."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.cluster.registry import RegistryIds
from kinguin_streams.cluster.registry_encoder import EncoderOnDemand
from kinguin_streams.cluster.registry_plan import subject_of
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.consumers import reader
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import Record, RecordName
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import KafkaCluster
from tests.consumers.deliveries import order_complete, order_status
from tests.consumers.kafka_streams import Streams, running_loop, wait_until
from tests.registries import Front, StandIn, running

pytestmark = pytest.mark.kafka

NOT_IN_THE_REGISTRY = 901
SOMEBODY_ELSES = 902
ORDER_TOPICS: tuple[RecordName, ...] = ("order.status", "order.complete")


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


@pytest.fixture
def registry(streams: Streams) -> Iterator[StandIn]:
    """A registry that has our schemas, and one of somebody else."""
    stand_in = StandIn()
    for record in RECORD_NAMES:
        for schema in shipped().versions(record):
            stand_in.register(subject_of(streams.name(record)), schema.text)
    stand_in.schemas[SOMEBODY_ELSES] = '{"type": "record", "name": "Stranger", "fields": []}'
    with running(stand_in):
        yield stand_in


def ids_of(registry: StandIn, streams: Streams, *, cache_file: Path | None = None, **more: Any) -> RegistryIds:
    return RegistryIds(RegistrySettings(url=registry.url, timeout_s=2, cache_file=cache_file), streams.topics, **more)


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\x00" + schema_id.to_bytes(4, "big") + body


def with_id(schema_id: int, *records: Record) -> list[bytes]:
    """Return the records' values under another id than theirs."""
    return [framed(schema_id, Encoder().encode(record)[10:]) for record in records]


def test_row_44_of_10000_bad_records_the_broken_are_dead_lettered_and_unknown_ids_wait(
    streams: Streams, registry: StandIn, tmp_path: Path, settings: StateSettings
) -> None:
    interval_s = 1.0
    ids = ids_of(registry, streams, ask_again_s=interval_s, ask_again_max_s=interval_s)
    status = Encoder(ids=ids).encode(order_status("completed"))
    complete = Encoder(ids=ids).encode(order_complete())
    kinds: dict[str, tuple[bytes | None, str]] = {
        "no value": (None, "no_value"),
        "empty": (b"", "unknown_frame"),
        "magic byte alone": (b"\x00", "truncated"),
        "four bytes": (status[:4], "truncated"),
        "header alone": (status[:5], "truncated"),
        "half a body": (status[:-3], "truncated"),
        "one byte more": (status + b"\x00", "trailing_bytes"),
        "another magic byte": (b"\x01" + status[1:], "unknown_frame"),
        "JSON": (b'{"orderId": "A"}', "unknown_frame"),
        "another record's id": (complete, "unexpected_record"),
    }
    broken = [value for value, _ in kinds.values()]
    rounds = 800
    streams.write_bytes("order.status", broken * rounds, partition=0)
    streams.write_bytes("order.status", with_id(NOT_IN_THE_REGISTRY, order_status("refunded", 5)) * 1_000, partition=1)
    streams.write_bytes("order.complete", with_id(SOMEBODY_ELSES, order_complete(6)) * 1_000, partition=1)
    streams.write(order_status("processing", order_id="behind"), encoder=Encoder(ids=ids))
    registry.asked.clear()

    start_s = time.monotonic()
    decoder = Decoder(ids_of(registry, streams, ask_again_s=interval_s, ask_again_max_s=interval_s))
    topic, other = streams.name("order.status"), streams.name("order.complete")
    with running_loop(
        streams, tmp_path, state=settings, decoder=decoder, schema_retry_s=0.05, schema_retry_max_s=0.05
    ) as running_:
        ends = streams.ends(*ORDER_TOPICS)
        done = {(topic, 0): ends[topic, 0]}
        wait_until(
            lambda: running_.failure is not None or running_.stored() == done, "8,000 dead letters", timeout_s=120
        )
        wait_until(lambda: registry.asked_about_ids()[NOT_IN_THE_REGISTRY] >= 3, "the third question")
        asked = registry.asked_about_ids()
        intervals = (time.monotonic() - start_s) / interval_s + 1
        assert asked.keys() == {NOT_IN_THE_REGISTRY, SOMEBODY_ELSES, *(int.from_bytes(v[1:5], "big") for v in (status, complete))}  # fmt: skip
        assert max(asked.values()) <= intervals
        assert running_.loop.dead_lettered == len(broken) * rounds

        registry.schemas[NOT_IN_THE_REGISTRY] = shipped().newest("order.status").text
        running_.catch_up({(topic, 0): ends[topic, 0], (topic, 1): ends[topic, 1]})
        assert (other, 1) not in running_.stored()
    letters = streams.dead_letters()
    assert Counter(letter.reason for letter in letters) == {
        reason: rounds * times for reason, times in Counter(reason for _, reason in kinds.values()).items()
    }
    assert len({letter.dead_letter_id for letter in letters}) == len(letters) == len(broken) * rounds
    assert {letter.detail for letter in letters if letter.reason == "unexpected_record"} == {
        "a order.complete in a topic of order.status"
    }


@pytest.mark.parametrize(
    ("events", "down_s"),
    [
        pytest.param(5_000, 3.0, id="for a moment"),
        pytest.param(5_000, 60.0, id="for a minute", marks=pytest.mark.faults),
    ],
)
def test_row_45_while_the_registry_is_down_known_ids_go_on_and_unknown_ones_wait(
    *, streams: Streams, registry: StandIn, tmp_path: Path, settings: StateSettings, events: int, down_s: float
) -> None:
    writer = Encoder(ids=ids_of(registry, streams))
    ids = ids_of(registry, streams, ask_again_s=0.2, ask_again_max_s=1.0)
    other = streams.name("order.complete")
    with running_loop(
        streams,
        tmp_path,
        state=settings,
        decoder=Decoder(ids),
        schema_retry_s=0.2,
        schema_retry_max_s=0.5,
        batch_wait_s=0.1,
    ) as running_:
        streams.write(order_status("pending", order_id="first"), encoder=writer)
        running_.catch_up(streams.ends("order.status"))

        registry.stop()
        stopped_s = time.monotonic()
        streams.write_bytes(
            "order.complete", with_id(NOT_IN_THE_REGISTRY, order_complete(order_id="unknown")), partition=1
        )
        for chunk in range(10):
            streams.write(
                *(order_status("processing", order_id=f"O{chunk}-{n}") for n in range(events // 10)), encoder=writer
            )
            running_.catch_up(streams.ends("order.status"))  # while it is down
            time.sleep(max(0.0, stopped_s + down_s * (chunk + 1) / 10 - time.monotonic()))
        assert running_.loop.applied == events + 1
        assert (other, 1) not in running_.stored()

        registry.schemas[NOT_IN_THE_REGISTRY] = shipped().newest("order.complete").text
        registry.start()
        running_.catch_up(streams.ends(*ORDER_TOPICS))
        assert running_.loop.dead_lettered == 0
    assert reader.orders_by_status(running_.state.url) == {"pending": 1, "processing": events, "completed": 1}
    assert streams.dead_letters() == []


def test_row_45_the_same_with_a_real_registry_behind_a_line_that_is_cut(
    streams: Streams, apicurio: str, tmp_path: Path
) -> None:
    """Its id of order.complete is unknown to a reader that has not met one before the line was cut."""
    line = Front(apicurio)
    with running(line):
        settings = RegistrySettings(url=line.url, timeout_s=5, auto_register=True)
        writer = Encoder(ids=RegistryIds(settings, streams.topics))
        ids = RegistryIds(settings, streams.topics, ask_again_s=0.2, ask_again_max_s=1.0)
        with running_loop(
            streams, tmp_path, decoder=Decoder(ids), schema_retry_s=0.2, schema_retry_max_s=0.5
        ) as running_:
            streams.write(order_status("pending", order_id="A"), encoder=writer)
            running_.catch_up(streams.ends("order.status"))
            line.stop()
            streams.write(order_complete(2, order_id="A"), order_status("processing", 1, order_id="A"), encoder=writer)
            running_.catch_up(streams.ends("order.status"))
            assert reader.orders_by_status(running_.state.url) == {"processing": 1}
            line.start()
            running_.catch_up(streams.ends(*ORDER_TOPICS))
            assert running_.loop.dead_lettered == 0
    assert reader.orders_by_status(running_.state.url) == {"completed": 1}


def test_a_registry_that_hangs_keeps_no_consumer_from_its_other_records(
    streams: Streams, registry: StandIn, tmp_path: Path
) -> None:
    """max.poll.interval.ms is 5 minutes: a consumer that waited for every question would lose its partitions."""
    writer = Encoder(ids=ids_of(registry, streams))
    ids = ids_of(registry, streams)
    topic = streams.name("order.status")
    with running_loop(streams, tmp_path, decoder=Decoder(ids), schema_retry_s=0.1, schema_retry_max_s=0.1) as running_:
        streams.write(order_status("pending", order_id="first"), encoder=writer)
        running_.catch_up(streams.ends("order.status"))
        registry.silent_s = 60.0
        for schema_id, partition in ((910, 0), (911, 1)):
            streams.write_bytes("order.complete", with_id(schema_id, order_complete()), partition=partition)
        start_s = time.monotonic()
        for n in range(20):
            streams.write(order_status("processing", order_id=f"O{n}"), encoder=writer)
            time.sleep(0.1)
        running_.catch_up({part: end for part, end in streams.ends("order.status").items() if part[0] == topic})
        assert time.monotonic() - start_s < 12  # 2 s a question, and one question in 5 s, then 10
        assert running_.failure is None
        registry.go_on.set()


def test_row_45_a_start_while_the_registry_is_down_goes_on_with_the_ids_of_the_file(
    streams: Streams, registry: StandIn, tmp_path: Path
) -> None:
    kept = tmp_path / "ids.json"
    before = Encoder(ids=ids_of(registry, streams, cache_file=kept))
    streams.write(order_status("pending", order_id="A"), encoder=before)
    registry.stop()
    ids = ids_of(registry, streams, cache_file=kept, ask_again_s=0.2, ask_again_max_s=0.5)
    again = Encoder(ids=ids)
    streams.write(order_status("processing", 1, order_id="A"), order_complete(2, order_id="A"), encoder=again)
    streams.write_bytes("order.status", [b"\x00\x00"])
    with running_loop(streams, tmp_path, decoder=Decoder(ids), encoder=EncoderOnDemand(lambda: again)) as running_:
        running_.catch_up(streams.ends(*ORDER_TOPICS))
    assert reader.orders_by_status(running_.state.url) == {"completed": 1}
    registry.start()
    assert [letter.reason for letter in streams.dead_letters(Decoder(ids))] == ["truncated"]


def test_row_45_a_consumer_that_starts_while_the_registry_is_down_and_knows_no_id_waits_for_it(
    streams: Streams, registry: StandIn, tmp_path: Path
) -> None:
    streams.write(
        *(order_status("processing", order_id=f"O{n}") for n in range(100)),
        encoder=Encoder(ids=ids_of(registry, streams)),
    )
    streams.write_bytes("order.status", [b"\x00\x00"], partition=1)
    registry.stop()
    ids = ids_of(registry, streams, ask_again_s=0.2, ask_again_max_s=0.5)
    encoder = EncoderOnDemand(lambda: Encoder(ids=ids))
    with running_loop(
        streams, tmp_path, decoder=Decoder(ids), encoder=encoder, schema_retry_s=0.2, schema_retry_max_s=0.5
    ) as running_:
        time.sleep(2.0)
        assert running_.failure is None
        assert running_.loop.applied == 0
        registry.start()
        running_.catch_up(streams.ends("order.status"))
    assert reader.orders_by_status(running_.state.url) == {"processing": 100}
    assert [letter.reason for letter in streams.dead_letters(Decoder(ids))] == ["truncated"]


def test_a_registry_that_is_rebuilt_stops_a_consumer_before_it_misreads(
    streams: Streams, registry: StandIn, tmp_path: Path
) -> None:
    kept = tmp_path / "ids.json"
    streams.write(order_status("pending"), encoder=Encoder(ids=ids_of(registry, streams, cache_file=kept)))
    texts = list(registry.schemas.values())
    for schema_id, text in zip(registry.schemas, [*texts[1:], texts[0]], strict=True):
        registry.schemas[schema_id] = text
    with running_loop(streams, tmp_path, decoder=Decoder(ids_of(registry, streams, cache_file=kept))) as running_:
        failure = running_.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code == "registry_contradicts"
    assert running_.stored() == {}
