"""Records as lines of JSON, for people and their tools: bytes in base64, so nothing is lost; no compression, no schemas.

    {"topic": "kinguin.order.status", "partition": 3, "offset": 12, "timestamp_ms": 1602847448000,
     "timestamp": "2020-10-16T11:24:08.000Z", "key_base64": "UEhT", "value_base64": null,
     "headers": [{"name": "ce_id", "value_base64": "MDEy"}], "crc32": 2183476540}

`timestamp` says the same as `timestamp_ms`, and only that is read. `crc32` is that of the other fields' bytes; a line
without it is taken as it is, so that lines can be written by hand.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from kinguin_streams.replay.file_damage import DamagedFile
from kinguin_streams.replay.part_file import PartFile
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.rolled_writer import RolledWriter
from kinguin_streams.schemas.instants import MAX_MS, MIN_MS, to_rfc3339

_BATCH_RECORDS = 1_000
_MOST_LINE_BYTES = 64 * 1024 * 1024


class _HeaderLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    value_base64: bytes | None


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    timestamp: str | None = None
    key_base64: bytes | None
    value_base64: bytes | None
    headers: list[_HeaderLine]
    crc32: int | None = None


_encode_line = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(_Line).decode
_encode_record = msgspec.msgpack.Encoder().encode


class JsonLinesWriter(RolledWriter):
    """Writes JSON lines."""

    format = "jsonl"

    def _begin(self, part: PartFile) -> None:
        pass

    def _begin_again(self, part: PartFile) -> None:
        pass

    def _add(self, part: PartFile, records: Sequence[Record]) -> None:
        part.append(b"".join([line_of(record) for record in records]))

    def _flush(self, part: PartFile) -> None:
        pass

    def _seal(self, part: PartFile, records: int, next_offset: int) -> None:
        pass


def line_of(record: Record) -> bytes:
    """Return the record's line, with its end."""
    topic, partition, offset, timestamp_ms, key, value, headers = record
    line = _Line(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=timestamp_ms,
        # Kafka takes any 64 bits for a time; of those that no calendar has, only the number is written.
        timestamp=None if timestamp_ms is None or not MIN_MS <= timestamp_ms <= MAX_MS else to_rfc3339(timestamp_ms),
        key_base64=key,
        value_base64=value,
        headers=[_HeaderLine(name, content) for name, content in headers],
        crc32=_crc32(record),
    )
    return _encode_line(line) + b"\n"


def record_of(line: bytes) -> Record:
    """Return the record of a line. Raises ValueError."""
    try:
        said = _decode_line(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is no line of a record: {error}") from error
    headers = tuple([(header.name, header.value_base64) for header in said.headers])
    record = Record(
        said.topic, said.partition, said.offset, said.timestamp_ms, said.key_base64, said.value_base64, headers
    )
    if said.crc32 is not None and said.crc32 != _crc32(record):
        raise ValueError("its bytes do not agree with its crc32")
    return record


def read_json_lines(path: Path) -> Iterator[list[Record]]:
    """Yield the file's records, some lines at once. Raises DamagedFile at the first line that is none, OSError."""
    records: list[Record] = []
    position = 0
    for number, line in enumerate(_lines(path), 1):
        try:
            records.append(_whole_record(line))
        except ValueError as error:
            if records:
                yield records
            raise DamagedFile(path, number, position, number - 1, str(error).rstrip(".")) from error
        position += len(line)
        if len(records) == _BATCH_RECORDS:
            yield records
            records = []
    if records:
        yield records


def next_offset(path: Path, first_offset: int, next_file: int | None = None) -> int:
    """Return the first offset after the file's last record, without reading all of it unless it is damaged at its end.

    first_offset: as the file's name says it; what an empty file returns. next_file: the same of the file after it, up to which
    a file that is damaged at its end may have had records; of the last file, each damaged line there is taken for one. Raises
    OSError.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:
            return first_offset
        tail, step = b"", 64 * 1024
        while b"\n" not in tail[:-1] and len(tail) < size:
            step *= 2
            file.seek(max(0, size - step))
            tail = file.read()
    try:
        return _whole_record(tail[tail.rfind(b"\n", 0, -1) + 1 :]).offset + 1
    except ValueError:
        return _after_damage(path, first_offset, next_file)


def _after_damage(path: Path, first_offset: int, next_file: int | None) -> int:
    offset, damaged = first_offset, 0
    for line in _lines(path):
        try:
            offset, damaged = _whole_record(line).offset + 1, 0
        except ValueError:
            damaged += 1
    return offset + damaged if next_file is None else max(offset, next_file)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(_MOST_LINE_BYTES):
            yield line


def _whole_record(line: bytes) -> Record:
    if not line.endswith(b"\n"):
        raise ValueError("the line has no end")
    return record_of(line)


def _crc32(record: Record) -> int:
    return zlib.crc32(_encode_record(record))
