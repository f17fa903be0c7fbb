"""Ids from a registry: one in memory, and a small one over real HTTP that can be silent, wrong or gone."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from kinguin_streams.cluster import registry
from kinguin_streams.cluster.registry import RegistryIds
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.codec import Decoder, Encoder, UnknownSchema
from kinguin_streams.schemas.events import EventId, OrderStatus, StoreName
from kinguin_streams.schemas.topics import topics
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped
from kinguin_streams.telemetry.operator_error import OperatorError

ORDER = OrderStatus(
    event_id=EventId("0" * 32),
    store=StoreName("default"),
    received_at_ms=5,
    order_id="PHS84FJAG5U",
    status="canceled",
    updated_at_ms=9,
    raw=b"raw",
)
PROTOBUF = 'syntax = "proto3"; message Order {}'
FOREIGN = '{"type": "record", "name": "Order", "fields": []}'


class Registry(ThreadingHTTPServer):
    """The two calls of Confluent's API that we make."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.schemas: dict[int, str] = {}
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.authorization: set[str | None] = set()
        self.answer: tuple[int, bytes] | None = None  # to everything, instead of the right one
        self.silent_s = 0.0
        self.go_on = threading.Event()

    def handle_error(self, *_args: object) -> None:
        """A client that gave up waiting is no error here."""

    @property
    def settings(self) -> RegistrySettings:
        return RegistrySettings(url=f"http://127.0.0.1:{self.server_port}")

    def register(self, subject: str, schema: str) -> int:
        known = {text: number for number, text in self.schemas.items()}
        number = known.get(schema, 101 + len(known))
        self.schemas[number] = schema
        self.subjects.setdefault(subject, []).append(number)
        return number


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        number = int(self.path.partition("?")[0].rpartition("/")[2])
        if number in self.server.schemas:
            self._answer(200, {"schema": self.server.schemas[number]})
        else:
            self._answer(404, {"error_code": 40403, "message": "Schema not found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = self.path.split("/")[2]
        self._answer(200, {"id": self.server.register(subject, body["schema"])})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.server.asked.append(self.path.partition("?")[0])
        self.server.authorization.add(self.headers["Authorization"])
        self.server.go_on.wait(self.server.silent_s)
        status, content = self.server.answer or (status, json.dumps(body).encode())
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Registry]:
    with Registry() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.go_on.set()
            running.shutdown()
            thread.join()


def test_a_record_goes_out_under_a_registered_id_and_comes_back() -> None:
    ids = RegistryIds(RegistrySettings(url="mock://round-trip"), topics())
    value = Encoder(ids=ids).encode(ORDER)
    assert value[0] == 0
    assert Decoder(ids).decode(value) == ORDER


def test_every_shipped_version_has_an_id_of_its_own_and_registering_again_changes_none() -> None:
    ids = RegistryIds(RegistrySettings(url="mock://all"), topics())
    versions = [schema for record in RECORD_NAMES for schema in shipped().versions(record)]
    numbers = [ids.id_of(schema) for schema in versions]
    assert len(set(numbers)) == len(versions)
    assert [ids.id_of(schema) for schema in versions] == numbers
    assert [ids.schema_of(number) for number in numbers] == versions


def test_schemas_are_registered_as_shipped_under_their_topics_value(server: Registry) -> None:
    Encoder(ids=RegistryIds(server.settings, topics("shop")))
    assert {
        subject: [server.schemas[number] for number in numbers] for subject, numbers in server.subjects.items()
    } == {f"shop.{record}-value": [shipped().newest(record).text] for record in RECORD_NAMES}


def test_a_reader_that_registers_nothing_learns_an_id_once(server: Registry) -> None:
    value = Encoder(ids=RegistryIds(server.settings, topics())).encode(ORDER)
    server.asked.clear()
    decoder = Decoder(RegistryIds(server.settings, topics()))
    assert [decoder.decode(value) for _ in range(50)] == [ORDER] * 50
    assert len(server.asked) == 1


def test_the_same_schema_written_otherwise_is_ours(server: Registry) -> None:
    """Registries reformat: it is the canonical form that counts."""
    number = server.register(
        "any", json.dumps(json.loads(shipped().newest("order.status").text), separators=(",", ":"))
    )
    assert RegistryIds(server.settings, topics()).schema_of(number) is shipped().newest("order.status")


def test_an_unknown_id_is_asked_once_an_interval(server: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = RegistryIds(server.settings, topics())
    now_s = 1000.0
    monkeypatch.setattr(registry, "time", SimpleNamespace(monotonic=lambda: now_s))
    for _ in range(10):
        with pytest.raises(UnknownSchema):
            ids.schema_of(7)
    assert server.asked == ["/schemas/ids/7"]
    with pytest.raises(UnknownSchema):
        ids.schema_of(8)
    assert server.asked == ["/schemas/ids/7", "/schemas/ids/8"]

    server.schemas[7] = shipped().newest("order.status").text
    now_s += registry.ASK_AGAIN_AFTER_S
    assert ids.schema_of(7) is shipped().newest("order.status")
    assert server.asked == ["/schemas/ids/7", "/schemas/ids/8", "/schemas/ids/7"]


@pytest.mark.parametrize(
    "text", [FOREIGN, PROTOBUF, "", "[]", "{"], ids=["foreign", "protobuf", "empty", "union", "half"]
)
def test_a_schema_that_is_none_of_ours_waits(server: Registry, text: str) -> None:
    number = server.register("any", text)
    with pytest.raises(UnknownSchema):
        RegistryIds(server.settings, topics()).schema_of(number)


@pytest.mark.parametrize("answer", [(500, b"{}"), (200, b"<html>"), (200, b"{}"), (401, b""), (302, b"")])
def test_a_registry_that_answers_nonsense_is_waited_for(server: Registry, answer: tuple[int, bytes]) -> None:
    ids = RegistryIds(server.settings, topics())
    server.answer = answer
    with pytest.raises(UnknownSchema):
        ids.schema_of(7)
    with pytest.raises(OperatorError) as refused:
        ids.id_of(shipped().newest("order.status"))
    assert refused.value.code == "registry_refused"
    assert str(server.settings.url) in refused.value.what


def test_a_registry_that_is_away_is_waited_for_and_known_ids_go_on(server: Registry) -> None:
    ids = RegistryIds(server.settings, topics())
    value = Encoder(ids=ids).encode(ORDER)
    server.shutdown()
    server.server_close()
    assert Decoder(ids).decode(value) == ORDER
    with pytest.raises(UnknownSchema):
        ids.schema_of(7)


def test_without_a_registry_at_its_address_writing_is_refused_with_the_setting() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port, and nobody answers
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(OperatorError, match="KINGUIN_REGISTRY__URL") as refused:
            Encoder(ids=RegistryIds(RegistrySettings(url=url), topics()))
    assert refused.value.code == "registry_refused"


def test_a_registry_that_hangs_is_given_up(server: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REQUEST_TIMEOUT_S", 0.2)
    server.silent_s = 30.0
    with pytest.raises(UnknownSchema):
        RegistryIds(server.settings, topics()).schema_of(7)


def test_name_and_password_are_sent_and_not_shown(server: Registry) -> None:
    settings = RegistrySettings(url=server.settings.url, username="reader", password="hunter2")  # type: ignore[arg-type]
    with pytest.raises(UnknownSchema) as unknown:
        RegistryIds(settings, topics()).schema_of(7)
    assert server.authorization == {"Basic cmVhZGVyOmh1bnRlcjI="}
    assert "hunter2" not in repr(settings) + str(unknown.value)


def test_a_password_in_the_url_is_in_no_message() -> None:
    registry = RegistryIds(RegistrySettings(url="http://me:hidden@127.0.0.1:1"), topics())
    with pytest.raises(OperatorError) as refused:
        registry.id_of(shipped().newest("order.status"))
    assert "hidden" not in str(refused.value)
    assert "127.0.0.1:1" in refused.value.what
