"""A dead letter for people and for programs: everything that is known of it. Pure."""

import base64
import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from kinguin_streams.replay.dead_letters import Found
from kinguin_streams.replay.filters import Decode
from kinguin_streams.schemas.attributes import attribute_name
from kinguin_streams.schemas.codec import RegistryNeeded, UndecodableRecord, UnknownSchema
from kinguin_streams.schemas.events import DeadLetter, Record
from kinguin_streams.schemas.instants import MAX_MS, MIN_MS, to_rfc3339
from kinguin_streams.schemas.versions import shipped

HEX_BYTES_PER_LINE: Final = 16
MOST_HEX_LINES: Final = 64


def view(found: Found, decode: Decode) -> dict[str, Any]:
    """Return all of it as JSON: the body as base64, as text where it is UTF-8, and as the record that it is where it is one."""
    letter = found.letter
    said: dict[str, Any] = {
        "id": found.id,
        "state": found.state,
        "attempts": found.attempts,
        "origin": letter.origin,
        "consumer": letter.consumer,
        "store": letter.store,
        "event": letter.event,
        "reason": letter.reason,
        "detail": letter.detail,
        "failed_at": to_rfc3339(letter.failed_at_ms),
        "body_size": letter.body_size,
        "body_sha256": letter.body_sha256,
        "body_is_whole": letter.body_size == len(letter.body),
        "body_base64": base64.b64encode(letter.body).decode(),
        "body": text_of(letter.body),
        "record": record_in(letter, decode),
        "headers": [
            {"name": name, "value": None if value is None else value.decode("utf-8", "backslashreplace")}
            for name, value in letter.headers
        ],
        "source": None,
        "trail": [
            {"at": to_rfc3339(at_ms), "state": state, "why": why, "by": by, "redrive_id": redrive_id}
            for at_ms, state, why, by, redrive_id in (() if found.trail is None else found.trail.steps)
        ],
    }
    if letter.source_topic is not None:
        said["source"] = {
            "topic": letter.source_topic,
            "partition": letter.source_partition,
            "offset": letter.source_offset,
            "key_base64": None if letter.source_key is None else base64.b64encode(letter.source_key).decode(),
            "timestamp_ms": letter.source_timestamp_ms,
        }
    return said


def in_lines(found: Found, decode: Decode) -> Iterator[str]:
    """Yield it for a terminal: the body as the record that it is, else as text, else in hexadecimal."""
    letter = found.letter
    yield f"dead letter {found.id}: {found.state}, redriven {found.attempts} times"
    yield f"  {letter.reason}: {letter.detail}"
    of = f"consumer {letter.consumer}" if letter.origin == "consumer" else f"store {letter.store}, event {letter.event}"
    yield f"  {letter.origin}, {of}, failed at {to_rfc3339(letter.failed_at_ms)}"
    if letter.source_topic is not None:
        yield f"  record {letter.source_topic}/{letter.source_partition}/{letter.source_offset}, key {letter.source_key!r}"
    for name, value in letter.headers:
        yield f"  header {name}: {'' if value is None else value.decode('utf-8', 'backslashreplace')}"
    for at_ms, state, why, by, _ in () if found.trail is None else found.trail.steps:
        yield f"  {to_rfc3339(at_ms)} {state} by {by}" + (f": {why}" if why else "")
    kept = "" if letter.body_size == len(letter.body) else f", of which {len(letter.body):,} were kept"
    record = record_in(letter, decode)
    if record is not None:
        yield f"  body, {letter.body_size:,} bytes, a record {record['record']}:"
        for name, value in record["fields"].items():
            yield f"    {name}: {value if isinstance(value, str) and value.isprintable() else json.dumps(value)}"
        return
    yield f"  body, {letter.body_size:,} bytes{kept}:"
    text = text_of(letter.body)
    if text is not None:
        yield text
        return
    for number in range(min(MOST_HEX_LINES, -(-len(letter.body) // HEX_BYTES_PER_LINE))):
        start = number * HEX_BYTES_PER_LINE
        part = letter.body[start : start + HEX_BYTES_PER_LINE]
        printable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"  {start:08x}  {part.hex(' '):<47}  {printable}"
    if len(letter.body) > MOST_HEX_LINES * HEX_BYTES_PER_LINE:
        yield "  … `--json` has all of it"


def record_in(letter: DeadLetter, decode: Decode) -> dict[str, Any] | None:
    """Return the record that a consumer could not process: its name, and its fields as the schema calls them.

    Times are RFC 3339, bytes are text where they are UTF-8, else base64. None if the body is no record: of the ingress's, which
    are bodies of webhooks; cut; or not to be read, or not here: what has failed may be just that.
    """
    if letter.origin != "consumer" or letter.body_size > len(letter.body):
        return None
    try:
        record = decode(letter.body)
    except (UndecodableRecord, UnknownSchema, RegistryNeeded):
        return None
    return {"record": record.record_name, "fields": _fields(record)}


def _fields(record: Record) -> dict[str, Any]:
    names = {
        attribute_name(field): field["name"]
        for schema in shipped().versions(record.record_name)
        for field in json.loads(schema.text)["fields"]
    }
    return {name: _plain(attribute, getattr(record, attribute)) for attribute, name in names.items()}


def _plain(attribute: str, value: Any) -> Any:
    if isinstance(value, bytes):
        text = text_of(value)
        return base64.b64encode(value).decode() if text is None else text
    if attribute.endswith("_ms") and value is not None and MIN_MS <= value <= MAX_MS:
        return to_rfc3339(value)
    return msgspec.to_builtins(value)


def text_of(body: bytes) -> str | None:
    """Return the body as text a terminal can show, or None."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\n\r\t" for char in text) else None
