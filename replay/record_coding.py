"""One record as Avro: `kinguin.v1.ReplayedRecord`, the envelope that container files hold. Pure.

What schemas/binary.py makes of the schema says what is right. The usual record is written and read by loops of their own, since
this is what the speed of an export is made of: measured, fastavro takes eight times as long to write it and twice to
read it, most of it for the dictionaries and union branches of headers.
"""

import json
from collections.abc import Sequence
from typing import Any

from kinguin_streams.replay.record import Record
from kinguin_streams.schemas.binary import coding

SCHEMA = {
    "type": "record",
    "name": "ReplayedRecord",
    "namespace": "kinguin.v1",
    "doc": "One Kafka record as it lay in its topic, to the byte.",
    "fields": [
        {"name": "topic", "type": "string", "doc": "Topic that it was read from."},
        {"name": "partition", "type": "int", "doc": "Partition that it was read from."},
        {"name": "offset", "type": "long", "doc": "Its offset there. Offsets grow within a file, with gaps."},
        {
            "name": "timestamp",
            "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}],
            "doc": "The record's time; null where it has none.",
        },
        {"name": "key", "type": ["null", "bytes"], "doc": "Its key; null is not the same as empty."},
        {
            "name": "value",
            "type": ["null", "bytes"],
            "doc": "Its value as it is; null is a tombstone. The schemas are in the file's metadata, under kinguin.schemas.",
        },
        {
            "name": "headers",
            "doc": "Its headers, in their order; a name may come twice.",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "Header",
                    "fields": [
                        {"name": "name", "type": "string", "doc": "Name."},
                        {"name": "value", "type": ["null", "bytes"], "doc": "Value; null is not the same as empty."},
                    ],
                },
            },
        },
    ],
}
SCHEMA_TEXT = json.dumps(SCHEMA)

_LONG = coding("long")
_STRING = coding("string")
_INSTANT = coding({"type": "long", "logicalType": "timestamp-millis"})
_INT = coding("int")
_RECORD = coding(SCHEMA)

write_long = _LONG.write
read_long = _LONG.read

_LENGTHS = tuple(map(write_long, range(8_192)))
_NAMES_KEPT = 1_000
_IS_SOME, _MORE, _LOW, _NOT_SHORT = 2, 0x80, 0x7F, 0x81  # of a length: more than one byte, or below zero
_SOME, _END = b"\x02", b"\x00"  # the branch of a union that is not null; the end of an array


class RecordEncoder:
    """Writes the records of one topic and partition."""

    def __init__(self, topic: str, partition: int) -> None:
        self._place = _STRING.write(topic) + _INT.write(partition)
        self._names: dict[str, bytes] = {}

    def encode(self, records: Sequence[Record]) -> bytes:
        """Return the records' bytes, one behind the other. Raises ValueError for a number that no 64 bits hold."""
        parts: list[bytes] = []
        place, lengths, names, write_instant = self._place, _LENGTHS, self._names, _INSTANT.write
        for record in records:
            _topic, _partition, offset, timestamp_ms, key, value, headers = record
            begin = len(parts)
            # Of most records nothing is null, long or new. What is shows by an error, and is written by the schema.
            try:
                parts += (
                    *(place, write_long(offset), _SOME, write_instant(timestamp_ms)),
                    *(_SOME, lengths[len(key)], key, _SOME, lengths[len(value)], value),  # type: ignore[arg-type]
                )
                if headers:
                    parts.append(lengths[len(headers)])
                    for name, content in headers:
                        parts += (names[name], lengths[len(content)], content)  # type: ignore[arg-type]
                parts.append(_END)
            except (TypeError, KeyError, IndexError):
                del parts[begin:]
                parts.append(_RECORD.write(record))
                self._learn(record)
        return b"".join(parts)

    def _learn(self, record: Record) -> None:
        for name, _content in record.headers:
            if name not in self._names and len(self._names) < _NAMES_KEPT:
                self._names[name] = _STRING.write(name) + _SOME


def decode(data: bytes, count: int) -> list[Record]:
    """Return as many records, which fill the bytes to the last one. Raises ValueError or IndexError for anything else."""
    records: list[Record] = []
    names: dict[bytes, str] = {}
    at = 0
    place = topic = partition = None
    for _ in range(count):
        try:
            if place is None or data[at : at + len(place)] != place:
                raise _Unusual
            values, end = _usual(data, at + len(place), names)
            record = Record(topic, partition, *values)  # type: ignore[arg-type]
        except (_Unusual, IndexError):
            found, end = _RECORD.read(data, at)
            record = Record(*found)
            topic, partition = record[:2]
            place = _STRING.write(topic) + _INT.write(partition)
        records.append(record)
        at = end
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow the last record")
    return records


class _Unusual(Exception):
    """Something is null, long or new, or wrong: the schema's own reader is to look."""


def _usual(data: bytes, at: int, names: dict[bytes, str]) -> tuple[tuple[Any, ...], int]:
    """Return offset, time, key, value and headers of a record in which nothing is null or longer than 8 KiB.

    Takes what a writer writes and nothing else, as schemas/binary.py does. Raises _Unusual or IndexError for the rest; a
    slice that the end cuts short is followed by a byte that is not there. Measured: 6 µs a record of eight headers where
    the schema's reader takes 11, and reading back is what a proof costs.
    """
    offset, at = read_long(data, at)
    if data[at] != _IS_SOME:
        raise _Unusual
    timestamp_ms, at = _INSTANT.read(data, at + 1)
    pair = []
    for _ in (0, 1):
        if data[at] != _IS_SOME:
            raise _Unusual
        length = data[at + 1]
        at += 2
        if length & _NOT_SHORT:
            more = data[at]
            if length & 1 or not 0 < more < _MORE:
                raise _Unusual
            length = length & _LOW | more << 7
            at += 1
        end = at + (length >> 1)
        pair.append(data[at:end])
        at = end
    key, value = pair
    headers, at = _usual_headers(data, at, names)
    return (offset, timestamp_ms, key, value, headers), at


def _usual_headers(data: bytes, at: int, names: dict[bytes, str]) -> tuple[tuple[tuple[str, bytes | None], ...], int]:
    """Return fewer than 64 headers, none of them null. Raises as `_usual` does."""
    count = data[at]
    at += 1
    if not count:
        return (), at
    if count & _NOT_SHORT:
        raise _Unusual
    headers = []
    for _ in range(count >> 1):
        length = data[at]
        if length & _NOT_SHORT:
            raise _Unusual
        end = at + (length >> 1) + 2
        name = data[at:end]  # with its length in front and the union's branch behind
        if name not in names:
            _learn(names, name)
        length = data[end]
        at = end + 1
        if length & _NOT_SHORT:
            more = data[at]
            if length & 1 or not 0 < more < _MORE:
                raise _Unusual
            length = length & _LOW | more << 7
            at += 1
        end = at + (length >> 1)
        headers.append((names[name], data[at:end]))
        at = end
    if data[at] != 0:
        raise _Unusual
    return tuple(headers), at + 1


def _learn(names: dict[bytes, str], written: bytes) -> None:
    if written[-1] != _IS_SOME or len(names) >= _NAMES_KEPT:
        raise _Unusual
    try:
        names[written] = written[1:-1].decode()
    except UnicodeDecodeError as error:
        raise _Unusual from error
