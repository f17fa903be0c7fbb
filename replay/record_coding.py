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


class RecordEncoder:
    """Writes the records of one topic and partition."""

    def __init__(self, topic: str, partition: int) -> None:
        self._place = _STRING.write(topic) + coding("int").write(partition)
        self._names: dict[str, bytes] = {}

    def encode(self, records: Sequence[Record]) -> bytes:
        """Return the records' bytes, one behind the other. Raises ValueError for a number that no 64 bits hold."""
        parts: list[bytes] = []
        add = parts.append
        place, lengths, most, names = self._place, _LENGTHS, len(_LENGTHS), self._names
        write_instant = _INSTANT.write
        for _topic, _partition, offset, timestamp_ms, key, value, headers in records:
            add(place)
            add(write_long(offset))
            add(b"\x00" if timestamp_ms is None else b"\x02" + write_instant(timestamp_ms))
            if key is None:
                add(b"\x00")
            else:
                length = len(key)
                add(b"\x02" + (lengths[length] if length < most else write_long(length)))
                add(key)
            if value is None:
                add(b"\x00")
            else:
                length = len(value)
                add(b"\x02" + (lengths[length] if length < most else write_long(length)))
                add(value)
            if headers:
                add(write_long(len(headers)))
                for name, content in headers:
                    add(names[name] if name in names else self._name(name))
                    if content is None:
                        add(b"\x00")
                    else:
                        length = len(content)
                        add(b"\x02")
                        add(lengths[length] if length < most else write_long(length))
                        add(content)
            add(b"\x00")
        return b"".join(parts)

    def _name(self, name: str) -> bytes:
        written = _STRING.write(name)
        if len(self._names) < _NAMES_KEPT:
            self._names[name] = written
        return written


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
