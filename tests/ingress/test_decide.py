"""The table of answers, without HTTP and without Kafka: from (headers, body) to what is to be done."""

import hashlib
import hmac
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kinguin_streams.ingress.decide import (
    INVALID_REASONS,
    MAX_KEPT_NAME_CHARACTERS,
    Accepted,
    Decision,
    Delivery,
    Invalid,
    Ping,
    Refused,
    decide,
)
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.schemas.events import StoreName

SECRETS = Secrets({"default": ["current-secret", "next-secret"], "shop-2": ["other-secret"]})
BODY = b'{"orderId": "A", "status": "processing", "updatedAt": "2020-10-16T11:24:08+00:00"}'
GOOD = Delivery(
    store=StoreName("default"),
    event_name="order.status",
    secret=b"current-secret",
    content_type="aplication/json",
    content_encoding=None,
    kept_headers=(("X-Event-Name", b"order.status"),),
    body=BODY,
    received_at_ms=1_700_000_000_000,
)


def decision(**changes: object) -> Decision:
    return decide(replace(GOOD, **changes), SECRETS)


def reason_of(decided: Decision) -> str:
    assert isinstance(decided, Invalid)
    return decided.dead_letter.reason


def test_right_secret_known_event_valid_payload_is_an_event() -> None:
    decided = decision()
    assert isinstance(decided, Accepted)
    assert (decided.event.record_name, decided.event.key, decided.event.raw) == ("order.status", "A", BODY)


def test_each_live_secret_is_right_while_one_replaces_another() -> None:
    assert isinstance(decision(secret=b"next-secret"), Accepted)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"event_name": None, "secret": None, "body": b""}, Ping(), id="nothing at all is a ping"),
        pytest.param({"event_name": None, "secret": None}, Refused("headers_missing"), id="a body without its headers"),
        pytest.param({"secret": None}, Refused("wrong_secret"), id="an event name without a secret"),
        pytest.param({"secret": None, "body": b""}, Refused("wrong_secret"), id="the same without a body"),
        pytest.param({"secret": b""}, Refused("wrong_secret"), id="an empty secret"),
        pytest.param(
            {"event_name": None, "secret": b"", "body": b""}, Refused("wrong_secret"), id="empty is not absent"
        ),
        pytest.param({"secret": b"other-secret"}, Refused("wrong_secret"), id="the secret of another store"),
        pytest.param(
            {"secret": b"wrong", "event_name": "x.y", "body": b"{"}, Refused("wrong_secret"), id="wrong in all"
        ),
    ],
)
def test_who_is_not_authenticated_learns_nothing_and_nothing_is_kept(
    changes: dict[str, object], expected: Decision
) -> None:
    assert decision(**changes) == expected


def test_no_content_is_looked_at_before_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*_: object) -> None:
        pytest.fail("content was read of a request that is not authenticated")

    monkeypatch.setattr("kinguin_streams.ingress.decide.read_event", must_not_run)
    monkeypatch.setattr("kinguin_streams.ingress.decide._check_encoding", must_not_run)
    assert decision(secret=b"wrong") == Refused("wrong_secret")


# --- order of the checks on content ---


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param(
            {"content_encoding": "gzip", "event_name": "x", "body": b"{"}, "unsupported_encoding", id="encoding"
        ),
        pytest.param({"event_name": None, "body": b"{"}, "missing_event_name", id="then the event's name"),
        pytest.param({"event_name": "", "body": b"{"}, "missing_event_name", id="which may be empty"),
        pytest.param({"event_name": "order.created", "body": b"{"}, "unknown_event", id="or unknown"),
        pytest.param({"event_name": "Order.Status"}, "unknown_event", id="in exactly this spelling"),
        pytest.param({"event_name": "order.status, order.status"}, "unknown_event", id="once"),
        pytest.param({"body": b""}, "malformed_json", id="then the body, also an empty one with headers"),
    ],
)
def test_what_is_authenticated_and_bad_is_a_dead_letter_with_the_first_fault(
    changes: dict[str, object], reason: str
) -> None:
    assert reason_of(decision(**changes)) == reason


def test_a_dead_letter_keeps_the_body_byte_for_byte_and_what_was_allowed_of_the_headers() -> None:
    decided = decision(event_name="order.created", body=b"\x00\xff{")
    assert isinstance(decided, Invalid)
    letter = decided.dead_letter
    assert (letter.origin, letter.store, letter.event, letter.body) == (
        "ingress",
        "default",
        "order.created",
        b"\x00\xff{",
    )
    assert (letter.body_size, letter.body_sha256) == (3, hashlib.sha256(b"\x00\xff{").hexdigest())
    assert letter.headers == GOOD.kept_headers
    assert letter.failed_at_ms == GOOD.received_at_ms


def test_a_long_event_name_is_cut_in_the_dead_letter() -> None:
    decided = decision(event_name="x" * 10_000)
    assert isinstance(decided, Invalid)
    assert decided.dead_letter.event == "x" * MAX_KEPT_NAME_CHARACTERS


def test_a_retry_of_a_bad_delivery_has_the_same_id() -> None:
    first, later = decision(body=b"{"), decision(body=b"{", received_at_ms=GOOD.received_at_ms + 60_000)
    assert isinstance(first, Invalid)
    assert isinstance(later, Invalid)
    assert first.dead_letter.dead_letter_id == later.dead_letter.dead_letter_id


# --- encodings ---


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "aplication/json",
        "application/json",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; charset=utf8",
        "text/plain; charset=us-ascii",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "multipart/form-data; boundary=x",
        "nonsense",
        'multipart/form-data; boundary="; charset=utf-16"',
    ],
)
def test_row_26_any_content_type_passes_in_utf_8(content_type: str | None) -> None:
    assert isinstance(decision(content_type=content_type), Accepted)


@pytest.mark.parametrize("charset", ["utf-16", "iso-8859-1", "latin-1", "UTF-7", "", "utf-8x", '"utf-16', "'utf-8'"])
def test_row_26_another_charset_is_unsupported(charset: str) -> None:
    assert reason_of(decision(content_type=f"application/json; charset={charset}")) == "unsupported_encoding"


EXTENDED_CHARSETS = [
    "charset*=utf-16''x; charset*0=a",
    "charset*=x; charset*1=y",
    "charset*=utf-8''utf-8",
    f"charset*{'7' * 5000}=x",
    "charset=utf-8; charset*1=x",
    "charset",
    "charset=utf-8; CHARSET=utf-16",
]


@pytest.mark.parametrize("parameters", EXTENDED_CHARSETS, ids=lambda parameters: parameters[:40])
def test_a_charset_that_is_written_as_no_webhook_writes_it_is_unsupported(parameters: str) -> None:
    assert reason_of(decision(content_type=f"application/json; {parameters}")) == "unsupported_encoding"


@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity "])
def test_row_26_no_content_encoding_passes(encoding: str | None) -> None:
    assert isinstance(decision(content_encoding=encoding), Accepted)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "x"])
def test_row_26_a_content_encoding_is_unsupported(encoding: str) -> None:
    assert reason_of(decision(content_encoding=encoding)) == "unsupported_encoding"


HEADER = st.none() | st.text(st.characters(max_codepoint=255), max_size=60)
# What the syntax of parameters is made of, put together at random.
PARAMETERS = st.lists(
    st.sampled_from(
        [";", "=", "*", "'", '"', "\\", " ", "charset", "charset*", "utf-8", "utf-16", "0", "1", "%41", "x", "7" * 99]
    )
).map("".join)


@settings(max_examples=300)
@given(
    event_name=HEADER | st.sampled_from(["order.status", "product.update"]),
    secret=st.none() | st.binary(max_size=40) | st.just(b"current-secret"),
    content_type=HEADER
    | st.text(st.characters(max_codepoint=255), max_size=30).map("a/b; charset={}".format)
    | PARAMETERS.map("a/b;{}".format),
    content_encoding=HEADER,
    body=st.binary(max_size=80),
)
def test_every_request_that_http_can_carry_gets_one_of_four_decisions(
    event_name: str | None, secret: bytes | None, content_type: str | None, content_encoding: str | None, body: bytes
) -> None:
    decided = decision(
        event_name=event_name, secret=secret, content_type=content_type, content_encoding=content_encoding, body=body
    )
    if isinstance(decided, Invalid):
        assert decided.dead_letter.reason in INVALID_REASONS
        assert decided.dead_letter.body == body
    elif isinstance(decided, Accepted):
        assert decided.event.raw == body
    else:
        assert isinstance(decided, Ping | Refused)


# --- row 28: constant time ---


class ComparedAsItIs(AssertionError):
    """Somebody compared, searched or hashed what was presented instead of its digest."""


class Presented(bytes):
    """The bytes of a secret header, of which only a digest may be taken."""

    def _refused(self, *_: object) -> NoReturn:
        raise ComparedAsItIs

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = __contains__ = __getitem__ = __iter__ = _refused
    startswith = endswith = find = index = count = decode = hex = _refused  # type: ignore[assignment]


LIVE = ("first-secret-of-many", "second", "third-secret-" + "x" * 300, "fourth")


@pytest.mark.parametrize(
    ("presented", "accepted"),
    [
        pytest.param(LIVE[0], True, id="the first"),
        pytest.param(LIVE[1], True, id="one in the middle"),
        pytest.param(LIVE[3], True, id="the last"),
        pytest.param("xirst-secret-of-many", False, id="the first byte wrong"),
        pytest.param("first-secret-of-manx", False, id="the last byte wrong"),
        pytest.param("f", False, id="a prefix"),
        pytest.param("x" * 8_000, False, id="of another length than any"),
    ],
)
def test_row_28_every_live_secret_is_compared_as_a_digest_whatever_was_presented_and_whichever_is_right(
    monkeypatch: pytest.MonkeyPatch, presented: str, accepted: bool
) -> None:
    """By its structure, not by a clock: what is compared, how often and by what is the same for all that is presented."""
    compared: list[tuple[bytes, bytes]] = []
    plain = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return plain(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    secrets = Secrets({"default": LIVE, "shop-2": ["other"]})
    decided = decide(replace(GOOD, secret=Presented(presented.encode())), secrets)
    assert isinstance(decided, Accepted) == accepted
    digests = [hashlib.sha256(secret.encode()).digest() for secret in LIVE]
    assert compared == [(hashlib.sha256(presented.encode()).digest(), digest) for digest in digests]
