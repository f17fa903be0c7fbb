"""Webhooks over HTTP into a real Kafka: what is answered, and what is kept."""

import json
import re
import socket
from collections.abc import Iterable

import pytest

from kinguin_streams.schemas.events import EVENT_NAMES, EventName
from tests.ingress.running_ingress import (
    NEXT_SECRET,
    SECRET,
    SHOP_2_SECRET,
    Answer,
    Header,
    RunningIngress,
    assert_balanced,
    new_id,
    order_status,
    request_bytes,
    wait_until,
    webhook_headers,
)

pytestmark = pytest.mark.kafka

# Byte for byte as in the sender's documentation of 2021-03.
DOCUMENTED: dict[EventName, bytes] = {
    "product.update": b"""{
   "kinguinId": 1949,
   "productId": "5c9b5f6b2539a4e8f172916a",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}""",
    "order.complete": b"""{
   "orderId": "PHS84FJAG5U",
   "orderExternalId": "AL2FEEHOO2OHF",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}""",
    "order.status": b"""{
   "orderId": "PHS84FJAG5U",
   "orderExternalId": "AL2FEEHOO2OHF",
   "status": "canceled",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}""",
}


def chunked(body: bytes, sizes: Iterable[int] = (1, 7, 1000)) -> bytes:
    """Return a body in chunked transfer coding."""
    out, rest = b"", body
    for size in sizes:
        part, rest = rest[:size], rest[size:]
        if part:
            out += b"%x\r\n%s\r\n" % (len(part), part)
    if rest:
        out += b"%x\r\n%s\r\n" % (len(rest), rest)
    return out + b"0\r\n\r\n"


# --- the table of answers ---


@pytest.mark.parametrize("event", EVENT_NAMES)
def test_the_documented_examples_are_answered_204_and_are_in_their_topic(
    ingress: RunningIngress, event: EventName
) -> None:
    answer = ingress.post(DOCUMENTED[event], event=event)
    assert (answer.status, answer.body) == (204, b"")
    (kept,) = ingress.log.new(event)
    assert kept.record.raw == DOCUMENTED[event]
    assert kept.message.key() == (b"1949" if event == "product.update" else b"PHS84FJAG5U")
    assert kept.headers["ce_type"] == f"net.kinguin.{event}".encode()
    assert kept.headers["ce_time"] == b"2020-10-16T11:24:08.000Z"
    assert kept.headers["ce_id"] == kept.record.event_id.encode()
    assert ingress.log.dead_letters() == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_request_with_nothing_in_it_is_a_ping(ingress: RunningIngress, method: str) -> None:
    headers: list[Header] = [("Content-Length", "0")] if method == "POST" else []
    assert ingress.send(request_bytes(method, "/webhooks", headers), method).status == 204
    assert ingress.send(request_bytes(method, "/webhooks/shop-2/", headers), method).status == 204


def test_a_body_without_its_headers_is_refused_and_says_so_in_the_log_at_most_once_a_minute(
    ingress: RunningIngress,
) -> None:
    for _ in range(3):
        assert ingress.post(order_status(new_id()), event=None, secret=None).status == 401
    wait_until(lambda: "headers_missing" in ingress.log_text(), 5, "the line")  # written by a thread of its own
    errors = [line for line in ingress.log_lines() if line["event"] == "headers_missing"]
    assert len(errors) == 1
    assert errors[0]["level"] == "error"
    assert ingress.log.events() == []


def test_each_store_has_its_own_secrets_and_is_named_in_the_record(ingress: RunningIngress) -> None:
    body = order_status(new_id())
    assert ingress.post(body, secret=SHOP_2_SECRET, path="/webhooks/shop-2").status == 204
    assert ingress.post(body, secret=SHOP_2_SECRET).status == 401
    assert ingress.post(body, secret=SECRET, path="/webhooks/shop-2").status == 401
    assert ingress.post(body, secret=NEXT_SECRET, path="/webhooks/default/").status == 204
    kept = ingress.log.new("order.status")
    assert {record.record.store for record in kept} == {"shop-2", "default"}
    assert len({record.record.event_id for record in kept}) == 2


def test_a_traceparent_is_passed_on_if_it_is_one(ingress: RunningIngress) -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    ingress.post(order_status(new_id()), headers=[("traceparent", good)])
    ingress.post(order_status(new_id()), headers=[("traceparent", "00-0-0-01")])
    assert sorted(kept.headers.get("traceparent", b"") for kept in ingress.log.events()) == [b"", good.encode()]


def test_the_checks_are_in_order_404_405_413_ping_401(ingress: RunningIngress) -> None:
    big: list[Header] = [("Content-Length", "70000"), ("X-Event-Secret", "wrong")]
    assert ingress.send(request_bytes("PUT", "/webhooks/unknown", big)[:-2] + b"\r\n" + b"x" * 70_000).status == 404
    assert ingress.send(request_bytes("PUT", "/webhooks", big) + b"x" * 70_000).status == 405
    assert ingress.send(request_bytes("POST", "/webhooks", big) + b"x" * 70_000).status == 413
    for method in ("GET", "HEAD"):
        assert ingress.send(request_bytes(method, "/webhooks", big) + b"x" * 70_000, method).status == 413
    assert ingress.post(b"{", secret="wrong", event="unknown").status == 401


def test_every_refusal_is_a_problem_with_the_id_of_its_request(ingress: RunningIngress) -> None:
    answer = ingress.post(order_status(new_id()), path="/webhooks/unknown")
    assert answer.status == 404
    assert answer.problem["status"] == 404
    assert answer.problem_type == "unknown_store"
    assert answer.problem["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"


# --- row 24 ---


def test_row_24_a_chunked_body_means_what_one_with_a_length_means(ingress: RunningIngress) -> None:
    body = order_status(new_id())
    headers = webhook_headers("order.status", SECRET)
    assert ingress.post(body).status == 204
    with_length = ingress.log.events()
    in_chunks = request_bytes("POST", "/webhooks", [*headers, ("Transfer-Encoding", "chunked")], chunked(body))
    assert ingress.send(in_chunks).status == 204
    without = ingress.log.events()
    (first,), (second,) = with_length, without
    assert first.record.raw == second.record.raw == body
    assert first.record.event_id == second.record.event_id
    assert first.message.key() == second.message.key()


def test_row_24_a_chunked_body_over_the_limit_is_refused(ingress: RunningIngress) -> None:
    headers: list[Header] = [*webhook_headers("order.status", SECRET), ("Transfer-Encoding", "chunked")]
    too_large = order_status(new_id(), extra=f', "x": "{"x" * 66_000}"')
    answer = ingress.send(request_bytes("POST", "/webhooks", headers, chunked(too_large, [8000] * 9)))
    assert (answer.status, answer.problem_type) == (413, "body_too_large")


# --- row 26 ---

PASS: list[list[Header]] = [
    [],
    [("Content-Type", "aplication/json")],
    [("Content-Type", "application/json")],
    [("Content-Type", "application/json; charset=utf-8")],
    [("Content-Type", 'application/json; charset="UTF-8"')],
    [("Content-Type", "application/x-www-form-urlencoded")],
    [("Content-Type", "text/plain")],
    [("Content-Encoding", "identity")],
]
UNSUPPORTED: list[list[Header]] = [
    [("Content-Type", "application/json; charset=iso-8859-1")],
    [("Content-Type", "application/json; charset=utf-16")],
    [("Content-Encoding", "gzip")],
    [("Content-Encoding", "br"), ("Content-Type", "application/json")],
]


def test_row_26_any_content_type_passes_and_an_encoding_we_do_not_read_is_kept_as_it_came(
    ingress: RunningIngress,
) -> None:
    def request(body: bytes, headers: list[Header]) -> bytes:
        own: list[Header] = [("X-Event-Name", "order.status"), ("X-Event-Secret", SECRET), *headers]
        return request_bytes("POST", "/webhooks", [*own, ("Content-Length", str(len(body)))], body)

    passing = [request(order_status(new_id()), headers) for headers in PASS]
    assert [answer.status for answer in ingress.send_all(passing)] == [204] * 8
    bodies = [b"\x1f\x8b\x08 not unpacked %d" % number for number in range(4)]
    refused = [request(body, headers) for body, headers in zip(bodies, UNSUPPORTED, strict=True)]
    answers = ingress.send_all(refused)
    assert [(answer.status, answer.fault, answer.body) for answer in answers] == [
        (202, "unsupported_encoding", b"")
    ] * 4
    letters = ingress.log.dead_letters()
    assert {(letter.reason, letter.body) for letter in letters} == {("unsupported_encoding", body) for body in bodies}
    assert ("Content-Encoding", b"gzip") in [header for letter in letters for header in letter.headers]


def test_a_charset_in_the_extended_syntax_is_kept_as_another_charset_is(ingress: RunningIngress) -> None:
    parameters = ["charset*=utf-16''x; charset*0=a", "charset*=x; charset*1=y", f"charset*{'7' * 5000}=x"]
    answers, bodies = [], []
    for parameter in parameters:
        bodies.append(order_status(new_id()))
        own: list[Header] = [("X-Event-Name", "order.status"), ("X-Event-Secret", SECRET)]
        own += [("Content-Type", f"a/b; {parameter}"), ("Content-Length", str(len(bodies[-1])))]
        answers.append(ingress.send(request_bytes("POST", "/webhooks", own, bodies[-1])))
    assert {(answer.status, answer.fault) for answer in answers} == {(202, "unsupported_encoding")}
    assert {letter.body for letter in ingress.log.dead_letters()} == set(bodies)


# --- row 27 ---


def secret_variants() -> list[list[Header]]:
    """Return forty ways of not knowing the secret, as the headers of a request."""

    def one(*values: str | bytes) -> list[Header]:
        return [("X-Event-Secret", value) for value in values]

    texts: list[str | bytes] = [
        "",
        " ",
        "wrong",
        SECRET[:-1],
        SECRET[1:],
        SECRET[:1],
        SECRET + "x",
        "x" + SECRET,
        SECRET + "00",
        SECRET.upper(),
        SECRET.lower(),
        SECRET.swapcase(),
        SECRET[::-1],
        SECRET * 2,
        SECRET + SECRET[-1],
        SECRET + "," + SECRET,
        SECRET + ";",
        f'"{SECRET}"',
        f"'{SECRET}'",
        f"Bearer {SECRET}",
        f"{SECRET} {SECRET}",
        SECRET.replace("-", "_"),
        SECRET.replace("e", "\xe9").encode("latin-1"),
        SECRET.replace("e", "é").encode(),
        SECRET.replace("e", "е").encode(),  # noqa: RUF001 - a Cyrillic letter that looks like e
        b"\xff\xfe" + SECRET.encode(),
        SECRET.encode("utf-16-le").replace(b"\0", b" "),
        b"\xff" * 32,
        "%6b" + SECRET[1:],
        "k7Qw*",
        "*",
        "null",
        "0",
        "x" * 8192,
        SECRET + "x" * 8192,
        SHOP_2_SECRET,
    ]
    return [
        [],
        *(one(text) for text in texts),
        one(SECRET, SECRET),
        one("wrong", SECRET),
        [("X_Event_Secret", SECRET)],
    ]


def test_row_27_only_the_exact_bytes_of_the_secret_pass(ingress: RunningIngress) -> None:
    variants = secret_variants()
    assert len(variants) == 40
    body = order_status(new_id())
    requests = [
        request_bytes(
            "POST",
            "/webhooks",
            [("X-Event-Name", "order.status"), *headers, ("Content-Length", str(len(body)))],
            body,
        )
        for headers in variants
    ]
    answers = ingress.send_all(requests)
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].problem == {
        "type": "urn:kinguin-streams:problem:unauthorized",
        "title": "The request is not authenticated.",
        "status": 401,
    }
    # The real header beside its alias with underscores: the alias changes nothing.
    beside = request_bytes(
        "POST",
        "/webhooks",
        [*webhook_headers("order.status", SECRET), ("X_Event_Secret", "wrong"), ("Content-Length", str(len(body)))],
        body,
    )
    assert ingress.send(beside).status == 204
    assert len(ingress.log.events()) == 1
    assert ingress.log.dead_letters() == []


# --- row 31 ---


def test_row_31_the_same_bytes_a_hundred_times_are_one_event_id(ingress: RunningIngress) -> None:
    request = ingress.webhook(order_status(new_id()))
    answers = ingress.send_all([request] * 100, clients=10)
    assert [answer.status for answer in answers] == [204] * 100
    kept = ingress.log.events()
    assert len(kept) == 100
    assert len({record.headers["ce_id"] for record in kept}) == 1
    assert len({(record.message.key(), record.message.partition()) for record in kept}) == 1
    assert len({record.record.raw for record in kept}) == 1


# --- row 33 ---


def test_row_33_methods_paths_and_forged_proxy_headers(ingress: RunningIngress) -> None:
    def status(method: str, path: str) -> tuple[int, str | None]:
        answer = ingress.send(request_bytes(method, path, [("Content-Length", "0")]), method)
        return answer.status, answer.headers.get("allow")

    methods = ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "MKCOL", "PURGE", "FOO"]
    for path in ["/webhooks", "/webhooks/", "/webhooks/default"]:
        assert {status(method, path) for method in methods} == {(405, "GET, HEAD, POST")}
    # Methods are case-sensitive. To waitress this is no HTTP; to granian it is one more method.
    assert status("post", "/webhooks") == ingress.differing((400, None), granian=(405, "GET, HEAD, POST"))
    paths = [
        "/",
        "/webhook",
        "/Webhooks",
        "/webhooks/UNKNOWN",
        "/webhooks/unknown",
        "/webhooks/default/x",
        "/webhooks/../metrics",
        "/webhooks/..%2fmetrics",
        "/webhooks/%00",
        "/webhooks/%ff",
        "/webhooks/-x",
        "/webhooks/" + "a" * 4000,
        "/metrics",
        "/livez",
        "/readyz",
        "/.env",
        "/?x=/webhooks",
    ]
    assert {path: status("POST", path)[0] for path in paths} == dict.fromkeys(paths, 404)
    forged = [
        ("X-Forwarded-For", "203.0.113.77"),
        ("Forwarded", "for=203.0.113.77;host=evil.example"),
        ("X-Real-IP", "203.0.113.77"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "https"),
    ]
    assert ingress.post(order_status(new_id()), headers=forged).status == 204
    assert ingress.post(b"{", headers=forged).status == 202
    assert "203.0.113.77" not in ingress.log_text()
    assert "evil.example" not in ingress.log_text()
    assert all(
        b"203.0.113.77" not in (value or b"") for letter in ingress.log.dead_letters() for _, value in letter.headers
    )


# --- rows 37, 39, 40 and 41: what is stored equals what was sent, or is a dead letter ---

NUMBERS = {
    "NaN": "malformed_json",
    "1e400": "invalid_field",
    "9" * 5000: "invalid_field",
    "9223372036854775808": "invalid_field",
    "1.0": "invalid_field",
    "true": "invalid_field",
    '"1949"': "invalid_field",
    "-1": "invalid_field",
    "2147483648": None,
    "9223372036854775807": None,
}
PRICES = {"1e400": "number_out_of_range", "1e1000000": "number_out_of_range", "Infinity": "malformed_json", "0.1": None}


def test_row_37_a_number_is_stored_as_sent_or_is_a_dead_letter(ingress: RunningIngress) -> None:
    def body(kinguin_id: str, price: str) -> bytes:
        fields = f'"kinguinId": {kinguin_id}, "productId": "{new_id()}", "price": {price}'
        return f'{{{fields}, "updatedAt": "2020-10-16T11:24:08+00:00"}}'.encode()

    cases = [(body(text, "1"), reason) for text, reason in NUMBERS.items()]
    cases += [(body("7", text), reason) for text, reason in PRICES.items()]
    answers = ingress.send_all([ingress.webhook(sent, event="product.update") for sent, _ in cases])
    assert [answer.fault for answer in answers] == [reason for _, reason in cases]
    assert {answer.status for answer in answers} == {202, 204}
    stored = ingress.log.new("product.update")
    assert len(stored) == sum(reason is None for _, reason in cases)
    assert all(kept.record.kinguin_id == json.loads(kept.record.raw)["kinguinId"] for kept in stored)
    assert len(ingress.log.dead_letters()) == sum(reason is not None for _, reason in cases)


def test_row_39_duplicate_keys_are_a_dead_letter_with_the_bytes(ingress: RunningIngress) -> None:
    twice = order_status(new_id())[:-1]
    bodies = [twice + b', "orderId": "B"}', twice + b', "status": "completed"}', twice + b', "x": [{"y": 1, "y": 1}]}']
    answers = ingress.send_all([ingress.webhook(body) for body in bodies])
    assert [(answer.status, answer.fault) for answer in answers] == [(202, "duplicate_key")] * 3
    assert {letter.body for letter in ingress.log.dead_letters()} == set(bodies)
    assert ingress.log.events() == []


# JSON text of a string, and the reason if it is refused.
STRINGS: list[tuple[bytes, str | None]] = [
    (b'"plain"', None),
    ('"é"'.encode(), None),
    (b'"e\xcc\x81"', None),  # NFD stays NFD
    ('"ﬀ Å"'.encode(), None),
    ('"Ａ"'.encode(), None),  # noqa: RUF001 - full width stays full width
    ('"😀"'.encode(), None),
    (b'"\\ud83d\\ude00"', None),
    (b'"\\u00e9"', None),
    ('"\ufeff"'.encode(), None),
    (b'"\\ufeff"', None),
    ('"\u202eabc"'.encode(), None),
    ('"\u200b"'.encode(), None),
    ('"\u2028\u2029"'.encode(), None),
    ('"\uffff\ufffe"'.encode(), None),
    ('"\U0010ffff"'.encode(), None),
    (b'"\\udbff\\udfff"', None),
    ('"\ufffd"'.encode(), None),
    (b'"\x7f"', None),
    ('"\x80\x9f"'.encode(), None),
    (b'"\\u0001\\u001f"', None),
    (b'"\\n\\t\\r\\b\\f\\/\\\\\\""', None),
    ('"ß ẞ \u0131 İ \u017f"'.encode(), None),
    ('"שלום עולם"'.encode(), None),
    ('"한국어"'.encode(), None),
    (('"' + "a" + "\u0301" * 200 + '"').encode(), None),
    (b'"<img src=x onerror=alert(1)>"', None),
    (b'"\'; DROP TABLE orders; --"', None),
    (b'"\\u0000"', "invalid_field"),
    (b'"a\\u0000b"', "invalid_field"),
    (b'"\x00"', "malformed_json"),
    (b'"\x1f"', "malformed_json"),
    (b'"\\ud800"', "malformed_json"),
    (b'"\\udc00"', "malformed_json"),
    (b'"\\ud800\\ud800"', "malformed_json"),
    (b'"\\ud800x"', "malformed_json"),
    (b'"\xed\xa0\x80"', "invalid_utf8"),  # a surrogate in UTF-8
    (b'"\xc0\xaf"', "invalid_utf8"),  # overlong
    (b'"\xe0\x80\x80"', "invalid_utf8"),
    (b'"\xf4\x90\x80\x80"', "invalid_utf8"),  # beyond U+10FFFF
    (b'"\xff"', "invalid_utf8"),
]


def test_row_40_a_string_is_stored_as_sent_or_is_a_dead_letter(ingress: RunningIngress) -> None:
    assert len(STRINGS) == 40
    bodies = [
        b'{"orderId": "%s", "orderExternalId": %s, "status": %s, "updatedAt": "2020-10-16T11:24:08+00:00"}'
        % (new_id().encode(), text, text)
        for text, _ in STRINGS
    ]
    answers = ingress.send_all([ingress.webhook(body) for body in bodies])
    assert [answer.fault for answer in answers] == [reason for _, reason in STRINGS]
    stored = {kept.record.raw: kept.record for kept in ingress.log.new("order.status")}
    letters = {letter.body for letter in ingress.log.dead_letters()}
    for body, (text, reason) in zip(bodies, STRINGS, strict=True):
        if reason is None:
            assert stored[body].status == stored[body].order_external_id == json.loads(text)
        else:
            assert body in letters
            assert body not in stored


TIMES: list[tuple[str, int | None]] = [
    ("2020-10-16T11:24:08+00:00", 1_602_847_448_000),
    ("2020-10-16T11:24:08UTC", 1_602_847_448_000),
    ("2020-10-16T11:24:08Z", 1_602_847_448_000),
    ("2020-10-16T11:24:08.123+00:00", 1_602_847_448_123),
    ("2020-10-16T11:24:08.1+00:00", 1_602_847_448_100),
    ("2020-10-16T11:24:08.123999999Z", 1_602_847_448_123),
    ("2020-10-16T13:24:08+02:00", 1_602_847_448_000),
    ("2020-10-16T05:54:08-05:30", 1_602_847_448_000),
    ("2020-02-29T00:00:00Z", 1_582_934_400_000),
    ("1969-12-31T23:59:59.999Z", -1),
    ("0001-01-01T00:00:00Z", -62_135_596_800_000),
    ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ("0001-01-01T00:00:00+14:00", None),
    ("9999-12-31T23:59:59-14:00", None),
    ("2020-10-16T11:24:08", None),
    ("2020-10-16 11:24:08+00:00", None),
    ("2020-10-16T11:24:60Z", None),
    ("2020-10-16T24:00:00Z", None),
    ("2021-02-29T00:00:00Z", None),
    ("2020-W42-5T11:24:08Z", None),
    ("2020-10-16T11:24:08+0000", None),
    ("2020-10-16T11:24:08+24:00", None),
    ("2020-10-16T11:24:08.1234567890Z", None),
    ("1602847448", None),
    ("", None),
]


def test_row_41_a_time_is_stored_exactly_or_is_a_dead_letter(ingress: RunningIngress) -> None:
    assert len(TIMES) == 25
    bodies = [order_status(new_id(), updated_at=text) for text, _ in TIMES]
    answers = ingress.send_all([ingress.webhook(body) for body in bodies])
    expected = [None if instant is not None else "bad_updated_at" for _, instant in TIMES]
    assert [answer.fault for answer in answers] == expected
    stored = {kept.record.raw: kept.record.updated_at_ms for kept in ingress.log.new("order.status")}
    assert [stored.get(body) for body in bodies] == [instant for _, instant in TIMES]
    assert {letter.body for letter in ingress.log.dead_letters()} == set(bodies) - set(stored)


# --- rows 22 and 23 ---


def body_of(size: int) -> bytes:
    empty = order_status(new_id(), extra=', "x": ""')
    return empty[:-2] + b"x" * (size - len(empty)) + b'"}'


def test_row_22_a_body_may_have_64_kib_and_not_one_byte_more(ingress: RunningIngress) -> None:
    sizes = [65_535, 65_536, 65_537]
    bodies = [body_of(size) for size in sizes]
    assert [len(body) for body in bodies] == sizes
    answers = [ingress.post(body) for body in bodies]
    assert [answer.status for answer in answers] == [204, 204, 413]
    assert answers[2].problem_type == "body_too_large"
    assert {kept.record.raw for kept in ingress.log.events()} == set(bodies[:2])


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("131072", 413),
        ("-1", 400),
        ("+5", 400),
        ("0x5", 400),
        ("5_0", 400),
        ("5, 5", 400),
        ("", 400),
    ],
)
def test_row_22_a_length_that_is_huge_or_none_is_answered_without_waiting_for_the_body(
    ingress: RunningIngress, length: str, status: int
) -> None:
    assert _status_of_a_head(ingress, length) == status


def test_row_22_a_length_over_the_limit_is_refused_at_once_or_once_the_body_is_there(ingress: RunningIngress) -> None:
    # Up to its backstop of 128 KiB waitress waits for what was announced.
    assert _status_of_a_head(ingress, "65537") == ingress.differing(None, granian=413)
    assert _status_of_a_head(ingress, "1" + "0" * 30) == ingress.differing(413, granian=400)


def _status_of_a_head(ingress: RunningIngress, length: str) -> int | None:
    """Return what is answered to a POST of which only the head is sent; None: nothing, for a second."""
    headers: list[Header] = [*webhook_headers("order.status", SECRET), ("Content-Length", length)]
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=1) as connection:
        connection.sendall(request_bytes("POST", "/webhooks", headers))
        try:
            answer = connection.recv(100)
        except TimeoutError:
            return None
    found = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    assert found is not None, answer
    return int(found[1])


def test_row_22_chunks_without_end_are_refused_and_no_memory_grows(ingress: RunningIngress) -> None:
    before_kib = ingress.memory_kib()
    headers: list[Header] = [*webhook_headers("order.status", SECRET), ("Transfer-Encoding", "chunked")]
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=5) as connection:
        connection.sendall(request_bytes("POST", "/webhooks", headers))
        with pytest.raises(OSError):  # it answers and closes while we send
            connection.sendall(chunk * 2_000)
    assert ingress.memory_kib() - before_kib < 20_000
    assert ingress.post(order_status(new_id())).status == 204


def test_row_23_a_flood_of_headers_is_refused_and_the_next_request_is_served(ingress: RunningIngress) -> None:
    floods: list[list[Header]] = [
        [(f"X-{number}", "x") for number in range(10_000)],
        [("X-Long", "x" * 300_000)],
        [("X Space", "x")],
        [("X-Nul", "a\0b")],
    ]
    for headers in floods:
        assert _refusal_of_flood(ingress, headers) in (400, 431)
        assert ingress.post(order_status(new_id())).status == 204


def _refusal_of_flood(ingress: RunningIngress, headers: list[Header]) -> int:
    """Return the status. The server answers and closes before it has read everything, so sending may fail."""
    request = request_bytes("POST", "/webhooks", [*headers, ("Content-Length", "0")])
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=5) as connection:
        connection.sendall(request[:20_000])
        answer = connection.recv(1000)
    found = re.match(rb"HTTP/1\.[01] (\d+) ", answer)
    assert found is not None, answer
    return int(found[1])


# --- the ledger ---


def test_the_ledger_balances_at_every_scrape_under_load_and_counts_each_request_once(ingress: RunningIngress) -> None:
    before = ingress.metrics()
    mixed: list[bytes] = []
    for number in range(600):
        if number % 10 == 0:
            mixed.append(ingress.webhook(b"{" + new_id().encode()))
        elif number % 10 == 1:
            mixed.append(ingress.webhook(order_status(new_id()), secret="wrong"))
        elif number % 10 == 2:
            mixed.append(request_bytes("GET", "/webhooks", []))
        else:
            mixed.append(ingress.webhook(order_status(new_id())))
    answers: list[Answer] = []
    for start in range(0, 600, 100):
        answers += ingress.send_all(mixed[start : start + 100])
        assert_balanced(ingress.metrics())
    after = ingress.metrics()
    assert_balanced(after)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("kinguin_ingress_received_total") == 600
    assert grown("kinguin_ingress_requests_total", event="order.status", outcome="acked") == 420
    assert grown("kinguin_ingress_requests_total", event="order.status", outcome="dead_lettered") == 60
    assert grown("kinguin_ingress_requests_total", event="other", outcome="refused") == 60
    assert grown("kinguin_ingress_requests_total", event="other", outcome="ping") == 60
    assert grown("kinguin_ingress_rejected_total", outcome="refused", reason="wrong_secret") == 60
    assert sorted(answer.status for answer in answers) == [202] * 60 + [204] * 480 + [401] * 60
    assert len(ingress.log.events()) == 420
    assert len(ingress.log.dead_letters()) == 60
