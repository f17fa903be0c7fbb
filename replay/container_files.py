"""Avro container files of records: zstd blocks with a checksum, and a header that says what is inside and how much.

fastavro reads and writes the header, zstd the blocks. The frame around a block (count, size, bytes, marker) is written
here, for what fastavro's own writer does not offer: a checksum in each block, and blocks that end where a replay was durable.
Any reader of Avro 1.9 or later with zstandard reads these files; see docs/adr/0013.
"""

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fastavro
from fastavro.schema import SchemaParseException, parse_schema, to_parsing_canonical_form

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from kinguin_streams.replay.file_damage import DamagedFile, not_ours
from kinguin_streams.replay.part_file import PartFile
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.record_coding import SCHEMA, SCHEMA_TEXT, RecordEncoder, decode, read_long, write_long
from kinguin_streams.replay.rolled_writer import DEFAULT_MAX_BYTES, FileMark, RolledWriter
from kinguin_streams.replay.value_schemas import ValueSchemas

BLOCK_BYTES = 256 * 1024
SCHEMAS = "kinguin.schemas"
RECORDS = "kinguin.records"
NEXT_OFFSET = "kinguin.next_offset"
REPLAY_ID = "kinguin.replay_id"
PARTITIONS = "kinguin.partitions"
FOLLOWS = "kinguin.follows"

_MAGIC = b"Obj\x01"
_MARKER_BYTES = 16
_CODEC = "zstandard"
# From the specification, "Object Container Files".
_HEADER_SCHEMA = parse_schema(
    {
        "type": "record",
        "name": "org.apache.avro.file.Header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "Magic", "size": len(_MAGIC)}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "Sync", "size": _MARKER_BYTES}},
        ],
    }
)
_MOST_HEADER_BYTES = 8 * 1024 * 1024
_FRAME_BYTES = 20  # of two numbers in front of a block, at most
# Numbers in the header have a place of this width: they are known only when the file is complete.
_DIGITS = 20
_UNKNOWN = b"-" * _DIGITS
# Without it a flipped bit may come out as another record: Avro has no checksum, and zstd has one only where it is asked for.
_COMPRESSION = {int(zstd.CompressionParameter.checksum_flag): 1}
_CANONICAL = to_parsing_canonical_form(SCHEMA)


class ContainerHeader(NamedTuple):
    """What a container says of itself.

    records, next_offset: None in a file that is not complete. schemas: as in ValueSchemas. size_bytes: of the header.
    partitions: how many the topic had that it was read from, 0 if that is not said.
    follows: where the file before it ended, whose writer had nothing to write from there up to the first record of this one;
    None in the first file of an export, and where that is not said.
    """

    replay_id: str
    partitions: int
    schemas: Mapping[str, str]
    records: int | None
    next_offset: int | None
    follows: int | None
    marker: bytes
    size_bytes: int


class ContainerWriter(RolledWriter):
    """Writes containers."""

    format = "avro"

    def __init__(
        self,
        folder: Path,
        topic: str,
        partition: int,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        mark: FileMark | None = None,
        schemas: ValueSchemas | None = None,
        replay_id: str = "",
        partitions: int = 0,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """partitions: how many the topic has, 0 if nobody knows. block_bytes: of a block's records, before compression."""
        super().__init__(folder, topic, partition, max_bytes=max_bytes, mark=mark)
        self._schemas = schemas or ValueSchemas({})
        self._replay_id, self._partitions = replay_id, partitions
        self._block_bytes = block_bytes
        self._encoder = RecordEncoder(topic, partition)
        self._in_header: frozenset[str] = frozenset()
        self._places: dict[str, int] = {}
        self._marker = b""
        self._pending: list[bytes] = []
        self._pending_bytes = self._pending_records = 0

    def _needs_another(self, chunk: Sequence[Record]) -> bool:
        return not self._schemas.named_by(chunk) <= self._in_header

    def _begin(self, part: PartFile) -> None:
        texts = self._schemas.texts()
        self._marker = os.urandom(_MARKER_BYTES)
        header = write_header(
            {
                "avro.schema": SCHEMA_TEXT.encode(),
                "avro.codec": _CODEC.encode(),
                SCHEMAS: json.dumps({name: json.loads(text) for name, text in texts.items()}).encode(),
                REPLAY_ID: self._replay_id.encode(),
                PARTITIONS: b"%d" % self._partitions,
                **({FOLLOWS: b"%d" % self._next_offset} if self._next_offset else {}),
                RECORDS: _UNKNOWN,
                NEXT_OFFSET: _UNKNOWN,
            },
            self._marker,
        )
        part.append(header)
        self._learn(header, frozenset(texts))

    def _begin_again(self, part: PartFile) -> None:
        data = part.read(0, _MOST_HEADER_BYTES)
        header = read_header(part.path, io.BytesIO(data), len(data))
        self._marker = header.marker
        self._learn(data[: header.size_bytes], frozenset(header.schemas))
        for place in self._places.values():
            part.patch(place, _UNKNOWN)

    def _learn(self, header: bytes, names: frozenset[str]) -> None:
        self._in_header = names
        # From behind: a schema's documentation may have these words too, but it stands before them.
        self._places = {key: header.rindex(key.encode()) + len(key) + 1 for key in (RECORDS, NEXT_OFFSET)}

    def _add(self, part: PartFile, records: Sequence[Record]) -> None:
        data = self._encoder.encode(records)
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._pending_records += len(records)
        if self._pending_bytes >= self._block_bytes:
            self._flush(part)

    def _flush(self, part: PartFile) -> None:
        if not self._pending:
            return
        data = zstd.compress(b"".join(self._pending), options=_COMPRESSION)
        part.append(b"".join((write_long(self._pending_records), write_long(len(data)), data, self._marker)))
        self._pending.clear()
        self._pending_bytes = self._pending_records = 0

    def _seal(self, part: PartFile, records: int, next_offset: int) -> None:
        part.patch(self._places[RECORDS], b"%020d" % records)
        part.patch(self._places[NEXT_OFFSET], b"%020d" % next_offset)


def write_header(metadata: Mapping[str, bytes], marker: bytes) -> bytes:
    """Return a container's header. marker: 16 bytes that end every block."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _HEADER_SCHEMA, {"magic": _MAGIC, "meta": metadata, "sync": marker})
    return out.getvalue()


def read_header(path: Path, file: BinaryIO, size_bytes: int) -> ContainerHeader:
    """Return what the file says of itself, and leave it where the first block begins. path: for errors.

    Raises DamagedFile, OperatorError("file_not_ours").
    """
    data = io.BytesIO(file.read(min(size_bytes, _MOST_HEADER_BYTES)))
    if size_bytes >= len(_MAGIC) and data.getvalue()[: len(_MAGIC)] != _MAGIC:
        raise not_ours(path, "it does not begin as an Avro container does")
    try:
        # From memory: a length that was damaged then ends in an error, and not in an attempt to read so many bytes.
        found: Any = fastavro.schemaless_reader(data, _HEADER_SCHEMA, None)
        meta: dict[str, bytes] = found["meta"]
        schemas = {name: json.dumps(schema) for name, schema in json.loads(meta.get(SCHEMAS, b"{}")).items()}
        header = ContainerHeader(
            replay_id=meta.get(REPLAY_ID, b"").decode(),
            partitions=int(meta.get(PARTITIONS, b"0")),
            schemas=schemas,
            records=_number(meta.get(RECORDS, _UNKNOWN)),
            next_offset=_number(meta.get(NEXT_OFFSET, _UNKNOWN)),
            follows=_number(meta.get(FOLLOWS, _UNKNOWN)),
            marker=found["sync"],
            size_bytes=data.tell(),
        )
    except (ValueError, EOFError, IndexError, AttributeError) as error:
        raise DamagedFile(path, 0, 0, 0, f"its header cannot be read ({_said(error)})") from error
    if not _is_envelope(meta.get("avro.schema", b"")):
        raise not_ours(path, "its schema is not kinguin.v1.ReplayedRecord")
    if meta.get("avro.codec") != _CODEC.encode():
        raise not_ours(path, f"its codec is {meta.get('avro.codec', b'null')!r}, not {_CODEC}")
    file.seek(header.size_bytes)
    return header


def read_header_of(path: Path) -> ContainerHeader:
    """Return what a file says of itself. Raises as `read_header` does."""
    with path.open("rb") as file:
        return read_header(path, file, os.fstat(file.fileno()).st_size)


def read_container(path: Path) -> Iterator[list[Record]]:
    """Yield a container's records, block by block.

    Raises DamagedFile at the first block that is not what was written, or at the end of a file that holds fewer or more
    than it says; OperatorError("file_not_ours"); OSError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = read_header(path, file, size)
        position, number, good = header.size_bytes, 0, 0
        while position < size:
            number += 1
            try:
                records, taken = _read_block(file, size - position, header.marker)
            except (ValueError, IndexError, zstd.ZstdError, MemoryError) as error:
                raise DamagedFile(path, number, position, good, _said(error)) from error
            position += taken
            good += len(records)
            yield records
        if header.records is not None and header.records != good:
            raise DamagedFile(path, number + 1, position, good, f"it was complete with {header.records:,} records")


def _read_block(file: BinaryIO, left_bytes: int, marker: bytes) -> tuple[list[Record], int]:
    frame = file.read(min(_FRAME_BYTES, left_bytes))
    count, at = read_long(frame, 0)
    size, at = read_long(frame, at)
    whole = at + size + _MARKER_BYTES
    if count <= 0 or size <= 0:
        raise ValueError(f"a block of {count} records in {size} bytes")
    if whole > left_bytes:
        raise ValueError(f"the file ends {whole - left_bytes:,} bytes before the block does")
    rest = frame[at:] + file.read(max(0, whole - len(frame)))
    if rest[size : size + _MARKER_BYTES] != marker:
        raise ValueError("the block does not end with the file's marker")
    records = decode(zstd.decompress(rest[:size]), count)
    file.seek(whole - at - len(rest), os.SEEK_CUR)  # a small last block: the frame was read beyond it
    return records, whole


def _is_envelope(text: bytes) -> bool:
    try:
        return to_parsing_canonical_form(json.loads(text)) == _CANONICAL
    except (ValueError, SchemaParseException, KeyError, TypeError, AttributeError):
        return False


def _number(digits: bytes) -> int | None:
    return None if digits == _UNKNOWN else int(digits)


def _said(error: Exception) -> str:
    if isinstance(error, (IndexError, EOFError)):
        return "it ends in the middle"
    return str(error).rstrip(".") or type(error).__name__
