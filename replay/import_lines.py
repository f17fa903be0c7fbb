"""Lines of old webhooks, as they come out of somebody's logs: what each is, by today's validator. Pure.

A line is a JSON object: {"store", "event", "body" | "body_base64"[, "received_at"]}. The body is the request's, to the byte: the
event id is made of it, and so is what a retry is recognised by.
"""

import base64
import binascii
import re
from typing import Final, NamedTuple

import msgspec

from kinguin_streams.ingress.decide import MAX_BODY_BYTES, Accepted, Delivery, Invalid, validated
from kinguin_streams.replay.filters import instant_ms
from kinguin_streams.replay.record import REPLAY_ID, REPLAY_SOURCE
from kinguin_streams.schemas.events import STORE_NAME, DeadLetter, Event, StoreName
from kinguin_streams.schemas.instants import MAX_MS, MIN_MS, to_rfc3339
from kinguin_streams.schemas.outgoing import OutgoingRecord

ORIGIN_HEADER: Final = "origin"
ORIGIN: Final = b"import"
ORIGIN_TIME_HEADER: Final = "origin-time"
_LONGEST_QUOTE: Final = 80
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')


class LineFault(Exception):
    """The line is none of ours, so that there is nothing to import: a person has to look. Says what is wrong."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    store: str
    event: str
    body: str | None = None
    body_base64: str | None = None
    received_at: str | None = None


class Imported(NamedTuple):
    """What a line has become. origin_time_ms: when it was received first, if the line says so.

    is_reserialised: the body is JSON that the sender does not write so: it was probably parsed and written again, and its
    event id is not the one that the webhook had.
    """

    record: Event | DeadLetter
    origin_time_ms: int | None
    is_reserialised: bool


_decoder = msgspec.json.Decoder(_Line)


def read_line(line: bytes, now_ms: int) -> Imported:
    """Return what the line is. now_ms: when it is imported, which is when the event counts as received.

    Raises LineFault. A body that is no valid webhook is no fault of the line: it becomes a dead letter.
    """
    try:
        said = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LineFault(f"it is not {{store, event, body or body_base64, received_at}}: {error}") from error
    if STORE_NAME.fullmatch(said.store) is None:
        raise LineFault(f"{said.store[:_LONGEST_QUOTE]!r} cannot be the name of a store ({STORE_NAME.pattern})")
    body = _body(said)
    origin_time_ms = None if said.received_at is None else _origin_time_ms(said.received_at)
    decision = validated(
        Delivery(
            store=StoreName(said.store),
            event_name=said.event,
            secret=None,
            content_type=None,
            content_encoding=None,
            kept_headers=(),
            body=body,
            received_at_ms=now_ms,
        )
    )
    match decision:
        case Accepted(event):
            return Imported(event, origin_time_ms, _is_reserialised(body))
        case Invalid(letter):
            return Imported(letter, origin_time_ms, is_reserialised=False)


def marked(record: OutgoingRecord, origin_time_ms: int | None, replay_id: str, source: str) -> OutgoingRecord:
    """Return the record with the headers that say where it came from. source: file/0/line, as topic/partition/offset of a copy."""
    of_replay = ((REPLAY_ID, replay_id.encode()), (REPLAY_SOURCE, source.encode()))
    headers = (*record.headers, (ORIGIN_HEADER, ORIGIN), *of_replay)
    if origin_time_ms is not None:
        headers += ((ORIGIN_TIME_HEADER, to_rfc3339(origin_time_ms).encode()),)
    return msgspec.structs.replace(record, headers=headers)


def _body(said: _Line) -> bytes:
    if (said.body is None) == (said.body_base64 is None):
        raise LineFault("it needs body (text) or body_base64, one of them")
    try:
        body = base64.b64decode(said.body_base64, validate=True) if said.body is None else said.body.encode()  # type: ignore[arg-type]
    except (binascii.Error, ValueError) as error:
        raise LineFault(f"body_base64 is not base64: {error}") from error
    if len(body) > MAX_BODY_BYTES:
        raise LineFault(f"its body has {len(body):,} bytes; the ingress takes {MAX_BODY_BYTES:,}")
    return body


def _origin_time_ms(text: str) -> int:
    try:
        at_ms = instant_ms(text)
    except ValueError as error:
        raise LineFault(f"received_at {text[:_LONGEST_QUOTE]!r} is not a time: {error}") from error
    # 0001-01-01T00:00:00+14:00 parses, and is of the year 0 in UTC: the header could not say it.
    if not MIN_MS <= at_ms <= MAX_MS:
        raise LineFault(f"received_at {text[:_LONGEST_QUOTE]!r} is not in the years 1 to 9999 of UTC")
    return at_ms


def _is_reserialised(body: bytes) -> bool:
    """Return whether there is white space between the tokens: the sender's encoder (PHP's json_encode) writes none."""
    return re.search(rb"\s", _STRINGS.sub(b"", body)) is not None
