"""The loop on a real Kafka: what takes effect, what is kept aside, and when it stops rather than skip."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import LostPartition
from kinguin_streams.schemas.codec import Decoder, Encoder, UnknownSchema
from kinguin_streams.schemas.events import Record, RecordName
from kinguin_streams.schemas.versions import SchemaVersion, shipped
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import KafkaCluster, StartBroker, free_port
from tests.consumers.deliveries import at, order_complete, order_status, product_update
from tests.consumers.kafka_streams import Streams, running_loop, wait_until

pytestmark = pytest.mark.kafka

ORDER_TOPICS: tuple[RecordName, ...] = ("order.status", "order.complete")


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


def statuses(url: str) -> dict[str, str | None]:
    return {view.order_id: view.status for view in reader.order_views(url)}


def test_events_of_both_order_topics_become_one_state(streams: Streams, tmp_path: Path) -> None:
    streams.write(order_complete(2, order_id="A"), order_status("processing", 1, order_id="A"), order_status("pending", order_id="B"))  # fmt: skip
    with running_loop(streams, tmp_path) as running:
        running.catch_up(streams.ends(*ORDER_TOPICS))
        assert statuses(running.state.url) == {"A": "completed", "B": "pending"}
        streams.write(order_status("refunded", 3, order_id="A"))
        running.catch_up(streams.ends(*ORDER_TOPICS))
        assert statuses(running.state.url) == {"A": "refunded", "B": "pending"}
    assert reader.orders_by_status(running.state.url) == {"pending": 1, "refunded": 1}
    evidence = reader.order_view(running.state.url, "default", "A")
    assert evidence is not None
    assert {fact.seen.topic for fact in evidence.facts} == {streams.name(name) for name in ORDER_TOPICS}


def test_product_changes_are_counted_once_each(streams: Streams, tmp_path: Path) -> None:
    retried = product_update(1, qty=5)
    streams.write(retried, retried, product_update(2, qty=5), product_update(1, kinguin_id=7))
    with running_loop(streams, tmp_path, PRODUCT_CHANGES) as running:
        running.catch_up(streams.ends("product.update"))
    assert [tuple(getattr(p, f) for f in ("kinguin_id", "changes")) for p in reader.busiest_products(running.state.url, 5)] == [(1949, 2), (7, 1)]  # fmt: skip
    assert reader.product_count(running.state.url) == 2
    view = reader.product_view(running.state.url, "default", 1949)
    assert view is not None
    assert (view.summary.changes, view.summary.updated_at_ms) == (2, at(2))
    assert reader.product_view(running.state.url, "default", 1) is None


def test_a_restart_goes_on_at_the_stored_offset(streams: Streams, tmp_path: Path) -> None:
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(50)))
    with running_loop(streams, tmp_path) as running:
        running.catch_up(streams.ends("order.status"))
        assert running.loop.applied == 50
    streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(10)))
    with running_loop(streams, tmp_path) as again:
        again.catch_up(streams.ends("order.status"))
        assert again.loop.applied == 10
    assert reader.orders_by_status(again.state.url) == {"processing": 40, "completed": 10}


def test_kafkas_own_offsets_are_never_read(streams: Streams, tmp_path: Path) -> None:
    """A new database starts at the beginning, though the group has committed: its offsets are for lag tools."""
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(20)))
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        with running_loop(streams, tmp_path / folder) as running:
            running.catch_up(streams.ends("order.status"))
            assert running.loop.applied == 20


def test_a_second_member_takes_its_share_and_leaves_it(streams: Streams, tmp_path: Path) -> None:
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(100)))
    with running_loop(streams, tmp_path) as first:
        first.catch_up(streams.ends("order.status"))
        with running_loop(streams, tmp_path) as second:
            streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(100)))
            second.catch_up(streams.ends("order.status"))
            wait_until(lambda: len(second.loop.assigned) == len(first.loop.assigned) == 2, "an even share")
            streams.write(*(order_status("refunded", 2, order_id=f"O{n}") for n in range(100)))
            second.catch_up(streams.ends("order.status"))
            assert second.loop.applied > 0
        streams.write(*(order_status("on_hold", 3, order_id=f"O{n}") for n in range(100)))
        first.catch_up(streams.ends("order.status"))
        assert first.loop.applied + second.loop.applied == 400
    assert reader.orders_by_status(first.state.url) == {"on_hold": 100}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"partition.assignment.strategy": "cooperative-sticky"}, id="cooperative-sticky"),
        pytest.param({"group.protocol": "consumer"}, id="consumer protocol", marks=pytest.mark.faults),
    ],
)
def test_partitions_may_move_one_by_one(streams: Streams, tmp_path: Path, config: dict[str, str]) -> None:
    streams.kafka = streams.kafka.model_copy(update={"config": config})
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(100)))
    with running_loop(streams, tmp_path) as first:
        first.catch_up(streams.ends("order.status"))
        with running_loop(streams, tmp_path) as second:
            wait_until(lambda: len(second.loop.assigned) == len(first.loop.assigned) == 2, "an even share")
            streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(100)))
            second.catch_up(streams.ends("order.status"))
        streams.write(*(order_status("refunded", 2, order_id=f"O{n}") for n in range(100)))
        first.catch_up(streams.ends("order.status"))
        assert first.loop.applied + second.loop.applied == 300
    assert reader.orders_by_status(first.state.url) == {"refunded": 100}


def test_a_consumer_that_has_lost_a_partition_stops(streams: Streams, tmp_path: Path) -> None:
    streams.write(order_status("processing"))
    with running_loop(streams, tmp_path) as running:
        running.catch_up(streams.ends("order.status"))
        with sqlite3.connect(tmp_path / "state.db") as other:  # a process that Kafka gave the partition to
            other.execute("UPDATE projection_offset SET next_offset = next_offset + 1")
        other.close()
        streams.write(order_status("completed", 1))
        assert isinstance(running.wait_for_failure(), LostPartition)
    assert reader.orders_by_status(running.state.url) == {"processing": 1}


# Records that cannot be read


def test_row_51_one_bad_record_in_a_thousand_is_dead_lettered_and_the_rest_applied(
    streams: Streams, tmp_path: Path, settings: StateSettings
) -> None:
    for part in (range(500), range(500, 999)):
        streams.write(*(order_status("processing", order_id=f"O{n}") for n in part))
        if part.start == 0:
            bad_offset = streams.ends("order.status")[streams.name("order.status"), 0]
            streams.write_bytes("order.status", [b"no Avro"])
    with running_loop(streams, tmp_path, state=settings) as running:
        running.catch_up(streams.ends("order.status"))
        assert (running.loop.applied, running.loop.dead_lettered) == (999, 1)
    assert reader.orders_by_status(running.state.url) == {"processing": 999}
    [letter] = streams.dead_letters()
    assert (letter.source_topic, letter.source_partition, letter.source_offset) == (streams.name("order.status"), 0, bad_offset)  # fmt: skip
    assert (letter.origin, letter.consumer, letter.reason) == ("consumer", "order-state", "unknown_frame")
    assert (letter.body, letter.source_key) == (b"no Avro", b"poison")


def test_row_51_a_dead_letter_that_nobody_takes_stops_the_consumer(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, settings: StateSettings
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make(*ORDER_TOPICS)
    streams.write_bytes("order.status", [b"no Avro"])
    with running_loop(streams, tmp_path, state=settings, publisher_wait_s=1.0) as running:
        failure = running.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code == "dead_letter_refused"
    assert running.stored() == {}
    streams.make()
    with running_loop(streams, tmp_path, state=settings) as again:
        again.catch_up(streams.ends("order.status"))
    # What had no report may have landed as well, and has the same id.
    assert len({(letter.dead_letter_id, letter.reason) for letter in streams.dead_letters()}) == 1


class RegistryThatIsAway:
    """A schema registry that cannot be asked until it is back."""

    def __init__(self) -> None:
        self.is_back = False
        self.asked = 0

    def id_of(self, _schema: SchemaVersion) -> int:
        return 7

    def schema_of(self, _schema_id: int) -> SchemaVersion:
        self.asked += 1
        if not self.is_back:
            raise UnknownSchema("the registry does not answer")
        return shipped().newest("order.status")


def test_an_unknown_schema_waits_while_other_partitions_go_on(streams: Streams, tmp_path: Path) -> None:
    registry = RegistryThatIsAway()
    in_confluent_format = Encoder(ids=registry)
    by_partition: dict[int, list[str]] = {0: [], 1: []}
    streams.write(*(order_status("pending", order_id=f"O{n}") for n in range(20)))
    with running_loop(streams, tmp_path, decoder=Decoder(registry), schema_retry_s=0.2, schema_retry_max_s=0.4) as running:  # fmt: skip
        topic = streams.name("order.status")
        running.catch_up(before := streams.ends("order.status"))
        for view in reader.order_views(running.state.url):
            by_partition[view.facts[0].seen.partition].append(view.order_id)
        waiting, going = by_partition[0], by_partition[1]
        streams.write(order_status("error", 1, order_id=waiting[0]))
        streams.write(order_status("processing", 2, order_id=waiting[0]), encoder=in_confluent_format)
        streams.write(*(order_status("completed", 3, order_id=order_id) for order_id in waiting + going))
        ends = streams.ends("order.status")
        # What precedes the unknown one has taken effect, and all of the other partition.
        running.catch_up({(topic, 0): before[topic, 0] + 1, (topic, 1): ends[topic, 1]})
        wait_until(lambda: registry.asked >= 3, "retries")
        assert statuses(running.state.url)[waiting[0]] == "error"
        streams.write(order_status("refunded", 4, order_id=waiting[0]), order_status("refunded", 4, order_id=going[0]))
        ends = streams.ends("order.status")
        running.catch_up({(topic, 0): before[topic, 0] + 1, (topic, 1): ends[topic, 1]})
        registry.is_back = True
        running.catch_up(ends)
        after = statuses(running.state.url)
        assert running.loop.applied == sum(ends.values())
        assert (after[waiting[0]], after[waiting[1]], after[going[0]]) == ("refunded", "completed", "refunded")
        streams.write(order_status("on_hold", 5, order_id=waiting[0]))  # the partition has been resumed
        running.catch_up(streams.ends("order.status"))
    assert streams.dead_letters() == []


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_a_partition_that_waits_goes_on_waiting_after_a_rebalance_and_then_is_read(
    streams: Streams, tmp_path: Path, strategy: str
) -> None:
    """The client remembers a pause across assignments; the loop does not."""
    streams.kafka = streams.kafka.model_copy(update={"config": {"partition.assignment.strategy": strategy}})
    registry = RegistryThatIsAway()
    in_confluent_format = Encoder(ids=registry)
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(20)), encoder=in_confluent_format)
    waiting = {"decoder": Decoder(registry), "schema_retry_s": 0.2, "schema_retry_max_s": 0.4}
    with running_loop(streams, tmp_path, **waiting) as first:
        wait_until(lambda: registry.asked >= 3, "retries")
        with running_loop(streams, tmp_path, **waiting) as second:
            wait_until(lambda: len(second.loop.assigned) == len(first.loop.assigned) == 2, "an even share")
        wait_until(lambda: len(first.loop.assigned) == 4, "all partitions back with the first")
        asked = registry.asked
        wait_until(lambda: registry.asked >= asked + 3, "retries after the rebalance")
        registry.is_back = True
        first.catch_up(streams.ends("order.status"))
    assert reader.orders_by_status(first.state.url) == {"processing": 20}


def test_a_registry_record_without_a_registry_stops_and_names_the_setting(streams: Streams, tmp_path: Path) -> None:
    streams.write(order_status("pending"), encoder=Encoder(ids=RegistryThatIsAway()))
    with running_loop(streams, tmp_path) as running:
        failure = running.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code == "registry_needed"
    assert "KINGUIN_REGISTRY__URL" in failure.hint


# When going on would skip records


def failure_of(streams: Streams, folder: Path, **settings: Any) -> OperatorError:
    """Return why a consumer of that folder's state does not start."""
    with running_loop(streams, folder, **settings) as running:
        failure = running.wait_for_failure()
    assert isinstance(failure, OperatorError)
    return failure


def test_a_missing_topic_is_named_at_the_start(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make("order.status")
    failure = failure_of(streams, tmp_path)
    assert failure.code == "topic_missing"
    assert streams.name("order.complete") in failure.what


def written(count: int) -> list[Record]:
    return [order_status("processing", order_id=f"O{n}") for n in range(count)]


def test_a_topic_made_anew_stops_the_next_start(streams: Streams, tmp_path: Path) -> None:
    streams.write(*written(10))
    with running_loop(streams, tmp_path) as running:
        running.catch_up(streams.ends("order.status"))
    streams.delete("order.status")
    streams.make().write(*written(40))  # longer than its predecessor: the stored offsets exist in it
    failure = failure_of(streams, tmp_path)
    assert failure.code == "topic_replaced"
    assert "KINGUIN_STATE__URL" in failure.hint


@pytest.mark.parametrize("count", [pytest.param(0, id="shorter"), pytest.param(60, id="longer")])
def test_a_topic_made_anew_under_a_running_consumer_stops_it(streams: Streams, tmp_path: Path, count: int) -> None:
    streams.write(*written(10))
    with running_loop(streams, tmp_path) as running:
        running.catch_up(streams.ends("order.status"))
        streams.delete("order.status")
        streams.make().write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(count)))
        failure = running.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code in ("topic_replaced", "topic_missing")
    assert failure_of(streams, tmp_path).code == "topic_replaced"  # and nobody goes on with that state


def test_row_58_retention_past_the_stored_offset_stops_the_consumer(
    streams: Streams, tmp_path: Path, settings: StateSettings
) -> None:
    streams.write(*written(10))
    with running_loop(streams, tmp_path, state=settings) as running:
        running.catch_up(streams.ends("order.status"))
    streams.write(*written(40))
    topic = streams.name("order.status")
    streams.delete_records("order.status", 0, streams.ends("order.status")[topic, 0] - 1)
    stored = running.stored()[topic, 0]
    failure = failure_of(streams, tmp_path, state=settings)
    assert failure.code == "offset_out_of_range"
    assert f"offset {stored} of {topic}/0" in failure.what
    assert running.stored()[topic, 0] == stored


def test_a_partition_never_read_starts_at_what_is_left_of_it(streams: Streams, tmp_path: Path) -> None:
    streams.write(*written(10))
    ends = streams.ends("order.status")
    topic = streams.name("order.status")
    streams.delete_records("order.status", 0, 2)
    with running_loop(streams, tmp_path) as running:
        running.catch_up(ends)
        assert running.loop.applied == ends[topic, 0] - 2 + ends[topic, 1]


def test_a_cluster_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    streams = Streams(f"127.0.0.1:{free_port()}", "none")
    failure = failure_of(streams, tmp_path, kafka_wait_s=1.0)
    assert failure.code == "kafka_unreachable"


@pytest.mark.faults
def test_a_broker_that_restarts_is_waited_for(kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path) -> None:
    broker = kafka_factory(tmp_path / "broker")
    streams = Streams(broker.bootstrap_servers, topic_prefix).make()
    streams.write(*written(50))
    with running_loop(streams, tmp_path) as running:
        running.catch_up(streams.ends("order.status"))
        broker.stop()
        time.sleep(8)  # long enough for a question about ids to go unanswered
        kafka_factory(tmp_path / "broker")
        streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(50)))
        running.catch_up(streams.ends("order.status"))
        assert running.loop.applied == 100
