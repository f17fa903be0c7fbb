"""A record on its way to Kafka: topic, key, value, CloudEvents headers, time. Everything but the sending."""

import re
from functools import lru_cache

import msgspec

from kinguin_streams.schemas.codec import RecordEncoder
from kinguin_streams.schemas.events import (
    EVENT_NAMES,
    DeadLetter,
    DeadLetterTrail,
    Derived,
    DerivedName,
    Event,
    Record,
    RecordName,
)
from kinguin_streams.schemas.instants import to_rfc3339
from kinguin_streams.schemas.topics import Topics

CONTENT_TYPE = b"application/avro"
GENERATION_HEADER = "ce_generation"
REVISION_HEADER = "ce_revision"
# W3C Trace Context, version 00: what does not match is dropped, as the recommendation says.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# What it may hold is the vendors' affair; that it is short and printable is ours.
_TRACESTATE = re.compile(r"[ -~\t]{1,512}")


class OutgoingRecord(msgspec.Struct, frozen=True):
    """What a producer needs. timestamp_ms is when we received it, never when it is sent."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


class OutgoingTombstone(msgspec.Struct, frozen=True):
    """A record without a value: the key has no state any more, and compaction takes what was there of it."""

    topic: str
    key: bytes
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int
    value: None = None


def outgoing(
    record: Record,
    topics: Topics,
    encoder: RecordEncoder,
    traceparent: str | None = None,
    tracestate: str | None = None,
) -> OutgoingRecord:
    """Return the record as it goes into its topic.

    Headers follow the CloudEvents 1.0 Kafka binding in binary mode: ce_time is when the sender says the change
    happened, ce_subject is the record key; a derived record has no ce_time where no time can be believed, and
    ce_generation and ce_revision, as a tombstone has. traceparent is passed on if it is a valid one, and tracestate with it.
    """
    key = record.key.encode()
    if isinstance(record, Derived):
        headers = _of_state(record.record_name, key, record.generation, record.revision)
        if record.updated_at_ms is not None:
            headers.append(("ce_time", to_rfc3339(record.updated_at_ms).encode()))
        headers.append(("content-type", CONTENT_TYPE))
    else:
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", _id(record).encode()),
            ("ce_source", _source(record)),
            ("ce_type", _type(record.record_name)),
            ("ce_time", to_rfc3339(_time_ms(record)).encode()),
            ("ce_subject", key),
            ("content-type", CONTENT_TYPE),
        ]
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        headers.append(("traceparent", traceparent.encode()))
        if tracestate is not None and _TRACESTATE.fullmatch(tracestate):
            headers.append(("tracestate", tracestate.encode()))
    return OutgoingRecord(
        topics.name(record.record_name), key, encoder.encode(record), tuple(headers), _timestamp_ms(record)
    )


def tombstone(
    name: DerivedName, key: str, topics: Topics, *, generation: int, revision: int, timestamp_ms: int
) -> OutgoingTombstone:
    """Return the record that says: the key (`<store>:<id>`) was forgotten. timestamp_ms: now; it is of no event.

    Its headers carry (generation, revision) too, so that a reader can tell it from an older state that comes after it.
    """
    headers = _of_state(name, key.encode(), generation, revision)
    return OutgoingTombstone(topics.name(name), key.encode(), tuple(headers), timestamp_ms)


def _of_state(name: DerivedName, key: bytes, generation: int, revision: int) -> list[tuple[str, bytes]]:
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"%s@%d.%d" % (key, generation, revision)),
        ("ce_source", b"urn:kinguin-streams:state"),
        ("ce_type", _type(name)),
        ("ce_subject", key),
        (GENERATION_HEADER, b"%d" % generation),
        (REVISION_HEADER, b"%d" % revision),
    ]


def _id(record: Event | DeadLetter | DeadLetterTrail) -> str:
    if isinstance(record, DeadLetterTrail):
        return f"{record.dead_letter_id}@{record.at_ms}"
    return record.dead_letter_id if isinstance(record, DeadLetter) else record.event_id


def _source(record: Event | DeadLetter | DeadLetterTrail) -> bytes:
    if isinstance(record, DeadLetterTrail):
        return b"urn:kinguin-streams:dead-letters"
    if isinstance(record, DeadLetter):
        return f"urn:kinguin-streams:{record.origin}:{record.consumer or record.store}".encode()
    return _source_of_store(record.store)


@lru_cache(maxsize=256)
def _source_of_store(store: str) -> bytes:
    return f"urn:kinguin:store:{store}".encode()


@lru_cache
def _type(name: RecordName) -> bytes:
    return f"net.kinguin.{name}".encode() if name in EVENT_NAMES else f"kinguin-streams.{name}".encode()


def _time_ms(record: Event | DeadLetter | DeadLetterTrail) -> int:
    if isinstance(record, DeadLetterTrail):
        return record.at_ms
    return record.failed_at_ms if isinstance(record, DeadLetter) else record.updated_at_ms


def _timestamp_ms(record: Record) -> int:
    if isinstance(record, DeadLetterTrail):
        return record.at_ms
    return record.failed_at_ms if isinstance(record, DeadLetter) else record.received_at_ms
