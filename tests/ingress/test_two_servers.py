"""Where waitress and granian differ: what each does by itself, before our code sees a request. All else is the same.

That it is the same, every test with the fixture `ingress` shows: each runs on both. docs/http.md lists these too.
"""

import http.client
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ingress.running_ingress import (
    SECRET,
    Connection,
    RunningIngress,
    new_id,
    order_status,
    request_bytes,
    webhook_headers,
)

pytestmark = pytest.mark.kafka

HEADERS = webhook_headers("order.status", SECRET)
CLOSED = 0


@dataclass(frozen=True)
class Case:
    """A request, and the status that each server answers; CLOSED: it closes the connection without a word."""

    request: bytes
    waitress: int
    granian: int
    ends: bool = False
    """Whether the client says that nothing more comes."""


def _posted(*more: tuple[str, str], body: bytes = b"") -> bytes:
    return request_bytes("POST", "/webhooks", [*HEADERS, *more], body)


def _trailer() -> bytes:
    body = order_status(new_id())
    return _posted(("Transfer-Encoding", "chunked"), body=b"%x\r\n%b\r\n0\r\nX-A: 1\r\n\r\n" % (len(body), body))


DIFFERENCES = {
    "a method in small letters": Case(request_bytes("post", "/webhooks", [("Content-Length", "0")]), 400, 405),
    "another coding than chunked": Case(_posted(("Transfer-Encoding", "gzip"), body=b"0\r\n\r\n"), 501, 400),
    "a trailer after the chunks": Case(_trailer(), 204, 400),
    "a length beyond 64 bits": Case(_posted(("Content-Length", "1" + "0" * 30)), 413, 400),
    "more than 100 headers": Case(
        request_bytes("GET", "/webhooks", [(f"X-{number}", "x") for number in range(150)]), 204, 431
    ),
    "lines that end in LF alone": Case(b"GET /webhooks HTTP/1.1\nHost: x\n\n", CLOSED, 204),
    "a header over two lines": Case(_posted(("X-Long", "x\r\n y"), ("Content-Length", "2"), body=b"{}"), 202, 400),
    "the same length twice": Case(_posted(("Content-Length", "2"), ("Content-Length", "2"), body=b"{}"), 400, 202),
    "the path //webhooks": Case(request_bytes("GET", "//webhooks", []), 204, 404),
    "a body that ends too early": Case(_posted(("Content-Length", "9"), body=b"{}"), CLOSED, 400, ends=True),
    "HTTP/2": Case(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, CLOSED),
}
SAME = {
    "chunks that are compressed too": Case(
        _posted(("Transfer-Encoding", "gzip, chunked"), body=b"0\r\n\r\n"), 501, 501
    ),
    "a length that is no number": Case(_posted(("Content-Length", "x")), 400, 400),
    "GET with 128 KiB or more": Case(request_bytes("GET", "/webhooks", [("Content-Length", "131072")]), 413, 413),
    "headers over 16 KiB": Case(_posted(("X-Long", "x" * 17_000), ("Content-Length", "0")), 431, 431),
    "a length of 5,000 digits": Case(_posted(("Content-Length", "9" * 5000)), 400, 400),
    "the method WEBSOCKET": Case(request_bytes("WEBSOCKET", "/webhooks", []), 405, 405),
    "no Host": Case(b"GET /webhooks HTTP/1.1\r\n\r\n", 204, 204),
    "OPTIONS *": Case(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, 404),
    "no HTTP at all": Case(b"\x16\x03\x01\r\n\r\n", 400, 400),
}


@pytest.mark.parametrize("name", [*DIFFERENCES, *SAME])
def test_what_each_server_does_by_itself(ingress: RunningIngress, name: str) -> None:
    case = (DIFFERENCES | SAME)[name]
    assert _status(ingress, case) == ingress.differing(case.waitress, granian=case.granian)
    assert ingress.post(order_status(new_id())).status == 204


def _status(ingress: RunningIngress, case: Case) -> int:
    if case.ends:
        with socket.create_connection(("127.0.0.1", ingress.port), timeout=5) as ending:
            ending.sendall(case.request)
            ending.shutdown(socket.SHUT_WR)
            said = ending.recv(1000)
            return int(said.split()[1]) if said else CLOSED
    connection = Connection(ingress.port, timeout_s=1, documented=False)
    try:
        return connection.exchange(case.request).status
    except (http.client.RemoteDisconnected, TimeoutError):
        return CLOSED
    finally:
        connection.close()


def test_a_method_that_falcon_does_not_take_for_one_is_counted_as_it_is_answered(ingress: RunningIngress) -> None:
    rejected = ("kinguin_ingress_rejected_total", (("outcome", "refused"), ("reason", "method_not_allowed")))
    before = ingress.metrics().get(rejected, 0)
    assert ingress.send(request_bytes("WEBSOCKET", "/webhooks", [])).problem_type == "method_not_allowed"
    assert ingress.metrics()[rejected] == before + 1


def test_the_page_about_http_lists_the_same_differences() -> None:
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text("utf-8")
    for name, case in DIFFERENCES.items():
        says = [str(status) if status != CLOSED else "(waits|closed)" for status in (case.waitress, case.granian)]
        assert re.search(rf"^\| {re.escape(name)} \| {says[0]} \| {says[1]} \|$", page, re.MULTILINE), name


def test_an_answer_has_the_same_headers_but_for_those_that_a_server_adds(ingress: RunningIngress) -> None:
    good, bad, refused = (
        ingress.post(order_status(new_id())),
        ingress.post(b"{"),
        ingress.post(b"{", secret="wrong"),
    )
    own = {"x-request-id", "date", *ingress.differing(set(), granian={"server"})}
    assert set(good.headers) == own
    assert set(bad.headers) == own | {"kinguin-streams-fault", "content-length"}
    assert set(refused.headers) == own | {"content-length", "content-type", "www-authenticate"}


def test_a_connection_stays_open_after_every_answer_but_one_whose_request_was_not_read(ingress: RunningIngress) -> None:
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=2) as connection:
        for body in (order_status(new_id()), b"{", b""):
            connection.sendall(ingress.webhook(body))
            assert connection.recv(1000).startswith(b"HTTP/1.1 20")


def test_a_request_that_breaks_off_leaves_nothing_behind(ingress: RunningIngress) -> None:
    body = order_status(new_id())
    in_chunks = _posted(("Transfer-Encoding", "chunked"), body=b"%x\r\n%b\r\n" % (len(body), body))
    before = ingress.metrics()["kinguin_ingress_received_total", ()]
    for broken in (ingress.webhook(body)[:-1], in_chunks):
        with socket.create_connection(("127.0.0.1", ingress.port), timeout=2) as connection:
            connection.sendall(broken)
    assert ingress.post(order_status(new_id())).status == 204
    assert len(ingress.log.events()) == 1
    assert ingress.log.dead_letters() == []
    metrics = ingress.metrics()
    assert metrics["kinguin_ingress_received_total", ()] == before + 1
    assert metrics["kinguin_ingress_in_flight", ()] == 0


def test_a_header_that_is_not_ascii_is_kept_as_its_bytes_or_as_unreadable(ingress: RunningIngress) -> None:
    name = "order.größe".encode()
    answer = ingress.post(order_status(new_id()), event=name, headers=[("User-Agent", "gr\xfcn".encode("latin-1"))])
    assert (answer.status, answer.fault) == (202, "unknown_event")
    (letter,) = ingress.log.dead_letters()
    kept = dict(letter.headers)
    unreadable = "\ufffd".encode()
    assert kept["X-Event-Name"] == ingress.differing(name, granian=unreadable)
    assert kept["User-Agent"] == ingress.differing(b"gr\xfcn", granian=unreadable)
