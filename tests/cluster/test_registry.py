"""Ids from a registry over real HTTP that can be silent, wrong, rebuilt or gone."""

import contextlib
import gc
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from kinguin_streams.cluster import registry, registry_known
from kinguin_streams.cluster.registry import RegistryIds
from kinguin_streams.cluster.registry_client import RegistryClient
from kinguin_streams.cluster.registry_encoder import EncoderOnDemand
from kinguin_streams.cluster.registry_url import without_credentials
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.codec import Decoder, Encoder, UnknownSchema
from kinguin_streams.schemas.events import EventId, OrderStatus, RecordName, StoreName
from kinguin_streams.schemas.topics import topics
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaVersion, shipped
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.registries import StandIn, running

ORDER = OrderStatus(
    event_id=EventId("0" * 32),
    store=StoreName("default"),
    received_at_ms=5,
    order_id="PHS84FJAG5U",
    status="canceled",
    updated_at_ms=9,
    raw=b"raw",
)
STATUS = shipped().newest("order.status")
COMPLETE = shipped().newest("order.complete")
PROTOBUF = 'syntax = "proto3"; message Order {}'
FOREIGN = '{"type": "record", "name": "Order", "fields": []}'


def subject(record: RecordName) -> str:
    return f"{topics().name(record)}-value"


def register_all(server: StandIn) -> dict[RecordName, list[int]]:
    return {
        record: [server.register(subject(record), schema.text) for schema in shipped().versions(record)]
        for record in RECORD_NAMES
    }


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    with running(stand_in):
        yield stand_in


def settings(server: StandIn, **more: Any) -> RegistrySettings:
    return RegistrySettings(url=server.url, timeout_s=more.pop("timeout_s", 2.0), **more)


class Clock:
    """The monotonic clock of the registry's ids, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (registry, registry_known):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=time.sleep))
    return clock


# Who writes


def test_a_writer_looks_its_ids_up_and_registers_nothing(server: StandIn) -> None:
    ids = register_all(server)
    value = Encoder(ids=RegistryIds(settings(server), topics())).encode(ORDER)
    assert value[:5] == b"\x00" + ids["order.status"][-1].to_bytes(4, "big")
    assert not [path for path in server.asked if not path.startswith("GET ")]


def test_what_is_not_registered_stops_the_writer_and_names_the_command(server: StandIn) -> None:
    with pytest.raises(OperatorError, match="kinguin-streams schemas register") as refused:
        Encoder(ids=RegistryIds(settings(server), topics()))
    assert refused.value.code == "schema_not_registered"
    assert server.schemas == {}


def test_with_auto_register_a_start_registers_what_is_written_and_a_second_one_nothing(server: StandIn) -> None:
    auto = settings(server, auto_register=True)
    Encoder(ids=RegistryIds(auto, topics("shop")))
    assert {name: [server.schemas[number] for number in numbers] for name, numbers in server.subjects.items()} == {
        f"shop.{record}-value": [shipped().newest(record).text] for record in RECORD_NAMES
    }
    before = dict(server.schemas)
    Encoder(ids=RegistryIds(auto, topics("shop")))
    assert server.schemas == before


def test_a_registry_that_does_not_take_a_schema_says_why(server: StandIn) -> None:
    server.refuses = "incompatible with version 1"
    with pytest.raises(OperatorError, match="incompatible with version 1") as refused:
        RegistryIds(settings(server, auto_register=True), topics()).id_of(STATUS)
    assert refused.value.code == "registry_refused"


def test_a_schema_with_our_fingerprint_and_another_meaning_is_not_ours_to_write_with(server: StandIn) -> None:
    server.register(subject("order.status"), STATUS.text.replace("timestamp-millis", "timestamp-micros"))
    with pytest.raises(OperatorError) as refused:
        RegistryIds(settings(server), topics()).id_of(STATUS)
    assert refused.value.code == "schema_not_registered"


def test_a_registry_that_takes_our_schema_for_another_one_is_not_believed(server: StandIn) -> None:
    number = server.register("other", STATUS.text.replace("timestamp-millis", "timestamp-micros"))
    server.answer = (200, json.dumps({"id": number, "schema": server.schemas[number]}).encode())
    with pytest.raises(OperatorError) as refused:
        registry.register(RegistryClient(settings(server)), subject("order.status"), STATUS)
    assert refused.value.code == "registry_refused"


# Who reads


def test_a_reader_learns_an_id_once(server: StandIn) -> None:
    register_all(server)
    value = Encoder(ids=RegistryIds(settings(server), topics())).encode(ORDER)
    server.asked.clear()
    decoder = Decoder(RegistryIds(settings(server), topics()))
    assert [decoder.decode(value) for _ in range(50)] == [ORDER] * 50
    assert server.asked.total() == 1


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(lambda text: json.dumps(json.loads(text), separators=(",", ":")), id="without blanks"),
        pytest.param(lambda text: json.dumps(json.loads(text), sort_keys=True), id="keys in another order"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "doc": "other"}), id="other documentation"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "connect.version": 3}), id="somebody's attribute"),
    ],
)
def test_the_same_schema_written_otherwise_is_ours(server: StandIn, spelling: Any) -> None:
    """Registries reformat: what bytes mean is what counts."""
    number = server.register("any", spelling(STATUS.text))
    assert RegistryIds(settings(server), topics()).schema_of(number) is STATUS


def test_our_fingerprint_with_another_logical_type_waits_and_says_where(server: StandIn) -> None:
    number = server.register("any", STATUS.text.replace("timestamp-millis", "timestamp-micros"))
    with pytest.raises(UnknownSchema, match="receivedAt"):
        RegistryIds(settings(server), topics()).schema_of(number)


@pytest.mark.parametrize(
    "text",
    [FOREIGN, PROTOBUF, "[]", "{", "17", '{"type": "record"}'],
    ids=["foreign", "protobuf", "union", "half", "number", "nameless"],
)
def test_a_schema_that_is_none_of_ours_waits(server: StandIn, text: str) -> None:
    number = server.register("any", text)
    with pytest.raises(UnknownSchema):
        RegistryIds(settings(server), topics()).schema_of(number)


def test_an_unknown_id_is_asked_once_an_interval_that_doubles_up_to_a_limit(server: StandIn, clock: Clock) -> None:
    ids = RegistryIds(settings(server), topics(), ask_again_s=5.0, ask_again_max_s=20.0)
    start_s = clock.now_s
    asked_at_s: list[float] = []
    while clock.now_s < start_s + 100:
        for _ in range(10):
            with pytest.raises(UnknownSchema):
                ids.schema_of(7)
        if server.asked.total() > len(asked_at_s):
            asked_at_s.append(clock.now_s - start_s)
        assert server.asked.total() == len(asked_at_s)
        clock.now_s += 1.0
    assert asked_at_s == [0, 5, 15, 35, 55, 75, 95]
    server.schemas[7] = STATUS.text
    clock.now_s += 20
    assert ids.schema_of(7) is STATUS


def test_an_id_that_is_asked_for_by_many_at_once_is_asked_once(server: StandIn) -> None:
    server.silent_s = 0.3
    number = server.register("any", STATUS.text)
    ids = RegistryIds(settings(server), topics())
    found: list[SchemaVersion] = []
    threads = [threading.Thread(target=lambda: found.append(ids.schema_of(number))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [STATUS] * 20
    assert server.asked_about_ids() == {number: 1}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((500, b"{}"), id="500"),
        pytest.param((503, b'{"error_code": 50301, "message": "forwarding"}'), id="503"),
        pytest.param((429, b"{}"), id="429"),
        pytest.param((200, b"<html>"), id="a page"),
        pytest.param((200, b"[]"), id="another shape"),
        pytest.param((200, b"{}"), id="an empty object"),
        pytest.param((200, b'{"message": "maintenance"}'), id="a message"),
        pytest.param((200, b'{"schema": null}'), id="a schema that is null"),
        pytest.param((200, b'{"schema": ""}'), id="a schema that is empty"),
        pytest.param((200, b'{"schema": {"type": "long"}}'), id="a schema that is no text"),
        pytest.param((200, b"[null]"), id="a list of nothing"),
        pytest.param((404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'), id="a 404 of a wrong path"),
        pytest.param((401, b""), id="401"),
        pytest.param((403, b'{"error_code": 40301, "message": "no"}'), id="403"),
        pytest.param((404, b"<html>not found"), id="a 404 that is no registry's"),
        pytest.param((302, b""), id="302"),
    ],
)
def test_a_registry_that_gives_no_usable_answer_is_away(server: StandIn, answer: tuple[int, bytes]) -> None:
    server.answer = answer
    with pytest.raises(UnknownSchema):
        RegistryIds(settings(server), topics()).schema_of(7)
    with pytest.raises(OperatorError) as refused:
        RegistryIds(settings(server, auto_register=True), topics()).id_of(STATUS)
    assert refused.value.code == "registry_away"
    assert server.url in refused.value.what


STRANGE = [b"{}", b'{"message": "maintenance"}', b'{"schema": null}', b'"text"', b"[]", b"[null]"]


@pytest.mark.parametrize("answer", STRANGE)
def test_an_answer_that_is_no_registrys_contradicts_nothing(server: StandIn, tmp_path: Path, answer: bytes) -> None:
    register_all(server)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    value = Encoder(ids=RegistryIds(kept, topics())).encode(ORDER)
    server.answer = (200, answer)
    ids = RegistryIds(kept, topics())
    assert Decoder(ids).decode(value) == ORDER
    assert ids.contradiction is None
    if answer != b"[]":  # which says that nothing is registered
        assert Encoder(ids=RegistryIds(kept, topics())).encode(ORDER) == value


def test_a_schema_of_another_kind_is_an_answer_and_contradicts(server: StandIn, tmp_path: Path) -> None:
    number = server.register("any", STATUS.text)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    RegistryIds(kept, topics()).schema_of(number)
    server.answer = (200, json.dumps({"schema": PROTOBUF, "schemaType": "PROTOBUF"}).encode())
    with pytest.raises(OperatorError, match="not an Avro schema") as refused:
        RegistryIds(kept, topics()).schema_of(number)
    assert refused.value.code == "registry_contradicts"


def test_a_listed_version_that_is_gone_when_it_is_asked_for_takes_no_other_along(server: StandIn) -> None:
    for schema in shipped().versions("product.update"):
        server.register(subject("product.update"), schema.text)
    server.missing.add((subject("product.update"), 2))
    with capture_logs() as logs:
        found = RegistryClient(settings(server)).versions(subject("product.update"))
    assert [each.version for each in found] == [1, 3]
    assert [(line["event"], line["version"]) for line in logs] == [("registry_version_gone", 2)]


# The registry is away


def test_while_the_registry_is_away_it_is_asked_for_one_id_an_interval_not_for_each(
    server: StandIn, clock: Clock
) -> None:
    server.answer = (503, b"{}")
    ids = RegistryIds(settings(server), topics(), ask_again_s=5.0)
    for schema_id in range(100):
        with pytest.raises(UnknownSchema):
            ids.schema_of(schema_id)
    assert server.asked.total() == 1
    server.answer = None
    number = server.register("any", STATUS.text)
    clock.now_s += 5
    assert ids.schema_of(number) is STATUS


def test_an_id_that_no_registry_can_give_is_not_asked_for_and_says_nothing_of_the_registry(
    server: StandIn, clock: Clock
) -> None:
    server.answer = (503, b"{}")
    ids = RegistryIds(settings(server), topics(), ask_again_s=5.0, ask_again_max_s=60.0)
    asked_at_s: list[float] = []
    for second in range(40):
        for schema_id in (2**31, 7):
            with pytest.raises(UnknownSchema):
                ids.schema_of(schema_id)
        if server.asked.total() > len(asked_at_s):
            asked_at_s.append(second)
        clock.now_s += 1
    assert asked_at_s == [0, 5, 15, 35]
    with pytest.raises(UnknownSchema, match="no registry gives such an id"):
        ids.schema_of(2**31)
    assert set(server.asked_about_ids()) == {7}


def test_a_registry_that_goes_away_takes_no_known_id_along(server: StandIn) -> None:
    register_all(server)
    ids = RegistryIds(settings(server), topics())
    value = Encoder(ids=ids).encode(ORDER)
    server.stop()
    assert Decoder(ids).decode(value) == ORDER
    with pytest.raises(UnknownSchema):
        ids.schema_of(7)


def test_a_registry_that_hangs_costs_a_reader_one_timeout_an_interval(server: StandIn) -> None:
    server.silent_s = 30.0
    ids = RegistryIds(settings(server, timeout_s=0.3), topics())
    start_s = time.monotonic()
    for schema_id in range(1_000):
        with pytest.raises(UnknownSchema):
            ids.schema_of(schema_id)
    assert time.monotonic() - start_s < 3  # 1,000 timeouts would be 300 s


def test_a_registry_that_trickles_passes_no_timeout_by(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte in time, the answer never: an HTTP client's timeouts are about a single read."""
    ids = RegistryIds(settings(server, timeout_s=0.3), topics())
    never = threading.Event()
    monkeypatch.setattr(ids._client, "schema_text", lambda _schema_id: never.wait(20) or "")
    start_s = time.monotonic()
    with pytest.raises(UnknownSchema, match=r"no answer in 0\.3 s"):
        ids.schema_of(7)
    assert time.monotonic() - start_s < 3
    never.set()


def test_a_writer_that_starts_while_the_registry_is_away_and_knows_no_id_says_so(server: StandIn) -> None:
    server.stop()
    start_s = time.monotonic()
    with pytest.raises(OperatorError, match="KINGUIN_REGISTRY__URL") as refused:
        Encoder(ids=RegistryIds(settings(server), topics()))
    assert refused.value.code == "registry_away"
    assert time.monotonic() - start_s < 5


def test_a_consumer_starts_without_a_registry_and_wants_it_only_to_write(server: StandIn) -> None:
    register_all(server)
    server.stop()
    ids = RegistryIds(settings(server), topics(), ask_again_s=0.05)
    encoder = EncoderOnDemand(lambda: Encoder(ids=ids))
    with pytest.raises(OperatorError) as refused:
        encoder.encode(ORDER)
    assert refused.value.code == "registry_away"
    server.start()
    time.sleep(0.3)
    assert Decoder(ids).decode(encoder.encode(ORDER)) == ORDER


# The file of ids


def test_ids_are_kept_in_a_file_for_a_start_while_the_registry_is_away(server: StandIn, tmp_path: Path) -> None:
    register_all(server)
    kept = settings(server, cache_file=tmp_path / "deep" / "ids.json")
    value = Encoder(ids=RegistryIds(kept, topics())).encode(ORDER)
    server.stop()
    away = RegistryIds(kept, topics(), ask_again_s=600, ask_again_max_s=600)
    assert Encoder(ids=away).encode(ORDER) == value
    assert Decoder(RegistryIds(kept, topics())).decode(value) == ORDER
    number = int.from_bytes(value[1:5], "big")
    content = json.loads((tmp_path / "deep" / "ids.json").read_text())
    assert content[server.url][subject("order.status")] == {str(number): STATUS.fingerprint.hex()}


def test_a_reader_keeps_what_it_learns_too(server: StandIn, tmp_path: Path) -> None:
    number = server.register("any", STATUS.text)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    RegistryIds(kept, topics()).schema_of(number)
    server.stop()
    assert RegistryIds(kept, topics()).schema_of(number) is STATUS


def test_the_file_holds_no_credentials_and_ids_of_one_registry_are_not_taken_for_anothers(tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    one, two = StandIn(), StandIn()
    two.next_id = 900
    with running(one), running(two):
        for stand_in in (one, two):
            stand_in.expect_basic("me", "hunter2")
            number = stand_in.register(subject("order.status"), STATUS.text)
            url = stand_in.url.replace("://", "://me:hunter2@")
            assert RegistryIds(RegistrySettings(url=url, cache_file=path), topics()).id_of(STATUS) == number
    assert set(json.loads(path.read_text())) == {one.url, two.url}
    assert "hunter2" not in path.read_text()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"http://x": 3}', '{"URL": {"s": {"x": "00", "7": 3}}}', "\x00"])
def test_a_file_that_is_broken_is_as_good_as_none(server: StandIn, tmp_path: Path, content: str) -> None:
    register_all(server)
    path = tmp_path / "ids.json"
    path.write_text(content.replace("URL", server.url))
    number = RegistryIds(settings(server, cache_file=path), topics()).id_of(STATUS)
    assert json.loads(path.read_text())[server.url][subject("order.status")] == {str(number): STATUS.fingerprint.hex()}


def test_a_file_that_cannot_be_written_is_complained_about_once_and_nothing_stops(
    server: StandIn, tmp_path: Path
) -> None:
    register_all(server)
    (tmp_path / "file").write_text("not a folder")
    with capture_logs() as logs:
        Encoder(ids=RegistryIds(settings(server, cache_file=tmp_path / "file" / "ids.json"), topics()))
    assert [line["event"] for line in logs].count("registry_ids_not_kept") == 1


def test_many_processes_add_to_one_file_and_lose_nothing(tmp_path: Path) -> None:
    from kinguin_streams.cluster.registry_cache import IdFile

    path = tmp_path / "ids.json"

    def add(worker: int) -> None:
        file = IdFile(path, f"http://registry-{worker % 2}")
        for number in range(20):
            file.add("subject", worker * 100 + number, "0" * 16)

    threads = [threading.Thread(target=add, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(subjects["subject"]) for subjects in json.loads(path.read_text()).values()) == 80


# The registry was rebuilt


def rebuilt(server: StandIn) -> None:
    """Lose everything, and register in another order: ids mean other schemas now."""
    server.schemas.clear()
    server.subjects.clear()
    server.next_id = 101
    for record in reversed(RECORD_NAMES):
        for schema in shipped().versions(record):
            server.register(subject(record), schema.text)


def wait_for_contradiction(use: Callable[[], object], ids: RegistryIds) -> None:
    """Use an id now and then, as a consumer does, until it is found out that it means something else."""
    deadline_s = time.monotonic() + 10
    while ids.contradiction is None:
        assert time.monotonic() < deadline_s
        with contextlib.suppress(OperatorError):
            use()
        time.sleep(0.01)


def test_ids_that_mean_something_else_now_stop_a_writer_at_its_start(server: StandIn, tmp_path: Path) -> None:
    register_all(server)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    Encoder(ids=RegistryIds(kept, topics()))
    rebuilt(server)
    with pytest.raises(OperatorError, match=str(tmp_path / "ids.json")) as refused:
        Encoder(ids=RegistryIds(kept, topics()))
    assert refused.value.code == "registry_contradicts"


def test_ids_that_mean_something_else_now_stop_a_reader_before_it_misreads(server: StandIn, tmp_path: Path) -> None:
    register_all(server)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    value = Encoder(ids=RegistryIds(kept, topics())).encode(ORDER)
    rebuilt(server)
    with pytest.raises(OperatorError) as refused:
        Decoder(RegistryIds(kept, topics())).decode(value)
    assert refused.value.code == "registry_contradicts"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        pytest.param(*shipped().versions("product.update")[:2], id="under one subject"),
        pytest.param(COMPLETE, STATUS, id="under two subjects"),
    ],
)
def test_what_another_process_has_written_meanwhile_contradicts_too(
    server: StandIn, tmp_path: Path, before: SchemaVersion, now: SchemaVersion
) -> None:
    kept = settings(server, cache_file=tmp_path / "ids.json")
    late = RegistryIds(kept, topics())  # the file has nothing yet
    number = server.register("any", before.text)
    RegistryIds(kept, topics()).schema_of(number)
    written = (tmp_path / "ids.json").read_text()
    server.schemas[number] = now.text
    with pytest.raises(OperatorError, match=f"was {before.record} version {before.version}") as refused:
        late.schema_of(number)
    assert refused.value.code == "registry_contradicts"
    assert (tmp_path / "ids.json").read_text() == written  # for who starts next
    with pytest.raises(OperatorError):
        RegistryIds(kept, topics()).schema_of(number)


def test_an_id_of_a_version_that_only_a_newer_release_knows_is_taken_all_the_same(
    server: StandIn, tmp_path: Path
) -> None:
    number = server.register("any", STATUS.text)
    (tmp_path / "ids.json").write_text(json.dumps({server.url: {subject("order.status"): {str(number): "ab" * 8}}}))
    with pytest.raises(OperatorError, match="abababababababab") as refused:
        RegistryIds(settings(server, cache_file=tmp_path / "ids.json"), topics()).schema_of(number)
    assert refused.value.code == "registry_contradicts"


def test_a_file_that_gives_one_id_two_meanings_stops_before_either_is_believed(server: StandIn, tmp_path: Path) -> None:
    register_all(server)
    number = server.subjects[subject("order.status")][0]
    both = {subject(schema.record): {str(number): schema.fingerprint.hex()} for schema in (STATUS, COMPLETE)}
    (tmp_path / "ids.json").write_text(json.dumps({server.url: both}))
    ids = RegistryIds(settings(server, cache_file=tmp_path / "ids.json"), topics())
    for use in (lambda: ids.schema_of(number), lambda: ids.id_of(STATUS)):
        with pytest.raises(OperatorError, match=r"order\.status version 1 .*order\.complete version 1") as refused:
            use()
        assert refused.value.code == "registry_contradicts"


def test_two_prefixes_may_share_an_id_of_one_schema(server: StandIn, tmp_path: Path) -> None:
    kept = settings(server, cache_file=tmp_path / "ids.json")
    for prefix in ("one", "two"):
        number = server.register(f"{prefix}.order.status-value", STATUS.text)
        assert RegistryIds(kept, topics(prefix)).id_of(STATUS) == number
    assert len(json.loads((tmp_path / "ids.json").read_text())[server.url]) == 2


def test_a_registry_that_is_rebuilt_behind_a_running_reader_is_noticed(server: StandIn, clock: Clock) -> None:
    number = server.register("any", STATUS.text)
    ids = RegistryIds(settings(server), topics(), verify_every_s=600)
    assert ids.schema_of(number) is STATUS
    server.schemas[number] = COMPLETE.text
    clock.now_s += 599
    assert ids.schema_of(number) is STATUS
    clock.now_s += 1
    wait_for_contradiction(lambda: ids.schema_of(number), ids)
    with pytest.raises(OperatorError) as refused:
        ids.schema_of(number)
    assert refused.value.code == "registry_contradicts"


def test_one_id_that_means_something_else_stops_the_reading_of_all(server: StandIn, clock: Clock) -> None:
    """A rebuilt registry may have given any id away; the others would be believed until their own ten minutes are over."""
    ours = {server.register("any", schema.text): schema for schema in (STATUS, COMPLETE)}
    ids = RegistryIds(settings(server), topics(), verify_every_s=600)
    first, second = ours
    assert ids.schema_of(first) is ours[first]
    clock.now_s += 599
    assert ids.schema_of(second) is ours[second]
    server.schemas[first] = COMPLETE.text
    clock.now_s += 1
    wait_for_contradiction(lambda: ids.schema_of(first), ids)
    with pytest.raises(OperatorError) as refused:
        ids.schema_of(second)
    assert refused.value.code == "registry_contradicts"


def test_a_consumer_does_not_start_with_ids_that_mean_something_else_now(server: StandIn, tmp_path: Path) -> None:
    register_all(server)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    Encoder(ids=RegistryIds(kept, topics()))
    rebuilt(server)
    with pytest.raises(OperatorError) as refused:
        EncoderOnDemand(lambda: Encoder(ids=RegistryIds(kept, topics())))
    assert refused.value.code == "registry_contradicts"


def test_a_reader_that_started_while_the_registry_was_away_verifies_when_it_is_back(
    server: StandIn, tmp_path: Path
) -> None:
    number = server.register("any", STATUS.text)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    RegistryIds(kept, topics()).schema_of(number)
    server.stop()
    ids = RegistryIds(kept, topics(), ask_again_s=0.05, ask_again_max_s=0.1)
    assert ids.schema_of(number) is STATUS
    server.schemas[number] = COMPLETE.text
    server.start()
    wait_for_contradiction(lambda: ids.schema_of(number), ids)
    with pytest.raises(OperatorError) as refused:
        ids.schema_of(number)
    assert refused.value.code == "registry_contradicts"


def test_a_writer_that_started_while_the_registry_was_away_verifies_when_it_is_back(
    server: StandIn, tmp_path: Path
) -> None:
    register_all(server)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    RegistryIds(kept, topics()).id_of(STATUS)
    server.stop()
    ids = RegistryIds(kept, topics(), ask_again_s=0.05, ask_again_max_s=0.1)
    ids.id_of(STATUS)
    with capture_logs() as logs:
        rebuilt(server)
        server.start()
        wait_for_contradiction(lambda: None, ids)
    assert ("error", "registry_contradicts") in [(line["log_level"], line["event"]) for line in logs]


def test_a_registry_that_is_rebuilt_behind_a_running_writer_is_logged(server: StandIn) -> None:
    register_all(server)
    ids = RegistryIds(settings(server), topics(), ask_again_s=0.05, verify_every_s=0.2)
    encoder = Encoder(ids=ids)
    with capture_logs() as logs:
        rebuilt(server)
        wait_for_contradiction(lambda: None, ids)
        time.sleep(0.3)
    assert "registry_contradicts_what_is_written" in [line["event"] for line in logs]
    assert encoder.encode(ORDER)[:1] == b"\x00"  # webhooks are taken on


def test_nothing_is_asked_once_nobody_has_the_ids(server: StandIn) -> None:
    register_all(server)
    Encoder(ids=RegistryIds(settings(server), topics(), ask_again_s=0.05, verify_every_s=0.05))
    gc.collect()
    time.sleep(0.3)
    before = server.asked.total()
    time.sleep(0.3)
    assert server.asked.total() == before


def test_an_id_that_the_registry_has_lost_goes_on_and_is_reported(server: StandIn, tmp_path: Path) -> None:
    """Nobody else claims the id, so it cannot mean anything else."""
    number = server.register("any", STATUS.text)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    RegistryIds(kept, topics()).schema_of(number)
    server.schemas.clear()
    with capture_logs() as logs:
        ids = RegistryIds(kept, topics())
        assert [ids.schema_of(number) for _ in range(10)] == [STATUS] * 10
    assert [line["event"] for line in logs] == ["registry_lost_id"]
    assert "no longer in the registry" in RegistryIds(kept, topics()).verify_all()[0]


@pytest.mark.parametrize("restored", [False, True], ids=["rebuilt", "rebuilt and restored"])
def test_a_writer_that_starts_while_the_registry_is_away_writes_the_id_that_was_last_given(
    server: StandIn, tmp_path: Path, restored: bool
) -> None:
    kept = settings(server, cache_file=tmp_path / "ids.json")

    def given(number: int) -> None:
        server.schemas.clear()
        server.subjects.clear()
        server.next_id = number
        server.register(subject("order.status"), STATUS.text)
        assert RegistryIds(kept, topics()).id_of(STATUS) == number

    for number in (9, 2, 9) if restored else (9, 2):
        given(number)
    server.stop()
    assert RegistryIds(kept, topics()).id_of(STATUS) == number
    assert {RegistryIds(kept, topics()).schema_of(schema_id) for schema_id in (9, 2)} == {STATUS}  # both are read


def test_an_id_that_the_registry_has_lost_is_not_written_while_it_is_away(server: StandIn, tmp_path: Path) -> None:
    number = server.register(subject("order.status"), STATUS.text)
    kept = settings(server, cache_file=tmp_path / "ids.json")
    RegistryIds(kept, topics()).id_of(STATUS)
    server.schemas.clear()
    server.subjects.clear()
    ids = RegistryIds(kept, topics())
    assert ids.schema_of(number) is STATUS
    server.stop()
    with pytest.raises(OperatorError) as refused:
        ids.id_of(STATUS)
    assert refused.value.code == "registry_away"


# The extra


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka.schema_registry", None)
    with pytest.raises(OperatorError, match=r"kinguin-streams\[registry\]") as missing:
        RegistryIds(RegistrySettings(url="http://127.0.0.1:1"), topics())
    assert missing.value.code == "registry_extra_missing"
    with pytest.raises(OperatorError):
        EncoderOnDemand(lambda: Encoder(ids=RegistryIds(RegistrySettings(url="http://127.0.0.1:1"), topics())))


# What gets out


def test_name_and_password_are_sent_and_not_shown(server: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.expect_basic("reader", "hunter2:x")
    given = settings(server, username="reader", password="hunter2:x")
    with pytest.raises(UnknownSchema) as unknown, capture_logs() as logs:
        RegistryIds(given, topics()).schema_of(7)
    assert server.asked == {"GET /schemas/ids/7": 1}
    assert "hunter2" not in repr(given) + str(unknown.value) + str(logs) + caplog.text


def test_a_bearer_token_is_sent_as_it_is_and_not_shown(server: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.wanted_authorization = "Bearer ey.hunter2.x"
    given = settings(server, bearer_token="ey.hunter2.x")
    with pytest.raises(UnknownSchema) as unknown, capture_logs() as logs:
        RegistryIds(given, topics()).schema_of(7)
    assert server.asked == {"GET /schemas/ids/7": 1}
    assert "hunter2" not in repr(given) + str(unknown.value) + str(logs) + caplog.text


def test_a_user_in_the_url_is_sent_and_not_shown(server: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.expect_basic("me", "hunter2/ö@x")
    given = settings(
        server,
    ).model_copy(update={"url": server.url.replace("://", "://me:hunter2%2F%C3%B6@x@")})
    with pytest.raises(UnknownSchema) as unknown, capture_logs() as logs:
        RegistryIds(given, topics()).schema_of(7)
    assert server.asked == {"GET /schemas/ids/7": 1}
    assert "hunter2" not in repr(given) + str(unknown.value) + str(logs) + caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hid@den@127.0.0.1:1",
        "http://127.0.0.1:1/api?api_key=hid&x=den",
        "http://me:hid%2Fden@127.0.0.1:1",
        "http://127.0.0.1:1,http://me:hid@den@127.0.0.1:2",
        "http://me:hid@den@127.0.0.1:1, http://me:hid@den@127.0.0.1:2",
    ],
)
def test_what_is_secret_in_a_url_is_in_no_message(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ids = RegistryIds(RegistrySettings(url=url), topics())
    with pytest.raises(OperatorError) as refused, capture_logs() as logs:
        ids.id_of(STATUS)
    said = str(refused.value) + refused.value.what + refused.value.hint + str(logs) + caplog.text
    assert "hid" not in said
    assert "den" not in said.replace("credentials", "").replace("identity", "")
    assert "127.0.0.1:1" in refused.value.what


@pytest.mark.parametrize(
    "url",
    ["http://me:hid/den@127.0.0.1:1", "http://me:1 hid den@127.0.0.1:1", "http://127.0.0.1:1,http://me:1/hid?den@one"],
)
def test_a_password_that_could_be_taken_for_a_path_is_refused_and_in_no_message(url: str) -> None:
    with pytest.raises(ValidationError, match="percent-encode") as refused:
        RegistrySettings(url=url)
    assert "hid" not in str(refused.value)
    assert "den" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no answer of http://me:hid/den@one:8081/x", "no answer of http://one:8081/x"),
        ("http://a:b@one/x,https://c:d@e@two?key=hid", "http://one/x,https://two"),
        ("http://one/x: write to admin@two", "http://one/x: write to admin@two"),
    ],
)
def test_user_password_and_query_are_taken_out_of_every_url_of_a_text(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_the_user_of_any_url_of_a_list_is_sent(server: StandIn) -> None:
    server.expect_basic("me", "hunter2")
    register_all(server)
    url = f"http://127.0.0.1:1,{server.url.replace('://', '://me:hunter2@')}"
    assert RegistryIds(RegistrySettings(url=url, timeout_s=2), topics()).id_of(STATUS)
