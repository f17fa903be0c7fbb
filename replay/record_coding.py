"""One record as Avro: `kinguin.v1.ReplayedRecord`, the envelope that container files hold. Pure.

Read by schemas/binary.py, strictly. Written by a loop of its own, since this is what the speed of an export is made of:
measured, fastavro takes five times as long for it, most of it for the dictionaries and union branches of headers.
"""

import json
from collections.abc import Sequence

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
_RECORD = coding(SCHEMA)

write_long = _LONG.write
read_long = _LONG.read

_LENGTHS = tuple(map(write_long, range(8_192)))
_NAMES_KEPT = 1_000
_SOME, _END = b"\x02", b"\x00"  # the branch of a union that is not null; the end of an array


class RecordEncoder:
    """Writes the records of one topic and partition."""

    def __init__(self, topic: str, partition: int) -> None:
        self._place = _STRING.write(topic) + coding("int").write(partition)
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
    read, make = _RECORD.read, Record._make
    records: list[Record] = []
    at = 0
    for _ in range(count):
        values, at = read(data, at)
        records.append(make(values))
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow the last record")
    return records
