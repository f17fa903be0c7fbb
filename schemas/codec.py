"""Record values to and from bytes, in both wire formats.

Single-object encoding (Avro specification): 0xC3 0x01, the schema's 8-byte fingerprint, the Avro body. Needs nothing but
the shipped schemas. Confluent wire format: 0x00, a 4-byte big-endian schema id, the Avro body. Needs a registry.
An Encoder writes one of them; a Decoder reads either, record by record, so that a topic may hold both.
"""

import json
from collections.abc import Callable, Collection, Mapping
from copy import copy
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from kinguin_streams.schemas import binary
from kinguin_streams.schemas.attributes import attribute_name
from kinguin_streams.schemas.events import (
    DeadLetter,
    DeadLetterTrail,
    OrderComplete,
    OrderStateRecord,
    OrderStatus,
    ProductStateRecord,
    ProductUpdate,
    Record,
    RecordName,
)
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaCatalogue, SchemaVersion, shipped

SINGLE_OBJECT_MARKER = b"\xc3\x01"
SINGLE_OBJECT_HEADER_BYTES = 10
CONFLUENT_MARKER = b"\x00"
CONFLUENT_HEADER_BYTES = 5
_WORDS = frozenset({"store", "status"})
"""Fields that have one of a few values in a million records."""


Unused = Literal["event_id", "raw"]
"""A field of every event that a reader may do without. Together they are a third of an event's memory."""


class UndecodableRecord(Exception):
    """These bytes can never be read, now or later: dead-letter them.

    code: no_value, unknown_frame, truncated, malformed, trailing_bytes or not_canonical.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class UnknownSchema(Exception):
    """A newer writer's schema: these bytes can be read after an upgrade of this reader. Wait, never dead-letter."""


class RegistryNeeded(Exception):
    """A record in the Confluent wire format met a reader without a registry. Stop: no record of this topic may be skipped."""


class SchemaIds(Protocol):
    """What a schema registry knows: ids for our schema versions, and back."""

    def id_of(self, schema: SchemaVersion) -> int:
        """Return the registered id of a shipped version, under the subject of its topic."""
        ...

    def schema_of(self, schema_id: int) -> SchemaVersion:
        """Return the shipped version behind an id; raises UnknownSchema if it is none of ours, or cannot be asked now.

        May raise OperatorError("registry_contradicts"): the registry was rebuilt, and gives an id that we know to another
        schema. Nothing can be read then.
        """
        ...


class RecordEncoder(Protocol):
    """What turns records into values: Encoder, or something that makes one when there is something to write."""

    def encode(self, record: Record) -> bytes:
        """Return the record's value; raises ValueError as Encoder.encode does."""
        ...


class Encoder:
    """Writes records: the newest schema version of each, unless `write` holds one back."""

    def __init__(self, write: Mapping[RecordName, int] | None = None, ids: SchemaIds | None = None) -> None:
        """write: record name to version, for a roll-out in which readers are not there yet. ids: a registry, if any.

        Raises KeyError for a version that is not shipped.
        """
        held_back = write or {}
        self._frames: dict[RecordName, tuple[bytes, _Layout]] = {}
        for name in RECORD_NAMES:
            schema = shipped().get(name, held_back[name]) if name in held_back else shipped().newest(name)
            header = SINGLE_OBJECT_MARKER + schema.fingerprint
            if ids is not None:
                header = CONFLUENT_MARKER + ids.id_of(schema).to_bytes(4, "big")
            self._frames[name] = (header, _layout(schema))

    def encode(self, record: Record) -> bytes:
        """Return the record's value; what the written version has no field for is left to `raw`.

        Raises ValueError for a number or a text that Avro cannot hold: the validator has seen to it that there is none.
        """
        header, layout = self._frames[record.record_name]
        return b"".join([header, *[coding.write(getattr(record, name)) for name, coding in layout]])


class Decoder:
    """Reads records of every shipped version, in either wire format."""

    def __init__(self, ids: SchemaIds | None = None, catalogue: SchemaCatalogue | None = None) -> None:
        self._ids = ids
        self._catalogue = catalogue or shipped()
        self._unused: frozenset[Unused] = frozenset()
        self._readers: dict[bytes, _Reader] = {}
        """By single-object header. What a header means never changes, so it is explained once."""

    def without(self, unused: Collection[Unused]) -> "Decoder":
        """Return one that reads these fields, finds them right, and drops them: each is msgspec.UNSET in its events."""
        if not unused:
            return self
        changed = copy(self)
        changed._unused, changed._readers = frozenset(unused), {}
        return changed

    def decode(self, value: bytes | None) -> Record:
        """Return the record.

        Raises UndecodableRecord, UnknownSchema, RegistryNeeded, or what SchemaIds.schema_of raises; nothing else, in time
        and memory proportional to the length of the value whatever the bytes are.
        """
        if value is None:
            raise UndecodableRecord("no_value", "the record has no value")
        reader, at = self._readers.get(value[:SINGLE_OBJECT_HEADER_BYTES]), SINGLE_OBJECT_HEADER_BYTES
        if reader is None:
            schema, at = self._explain(value)
            reader = _reader(schema, self._unused)
            if at == SINGLE_OBJECT_HEADER_BYTES:
                self._readers[value[:at]] = reader
        try:
            record, at = reader.read(value, at)
        except IndexError as error:
            raise _undecodable("truncated", reader.schema, "wants more bytes") from error
        except binary.NotCanonical as error:
            raise _undecodable("not_canonical", reader.schema, f"is never written like this: {error}") from error
        except ValueError as error:
            raise _undecodable("malformed", reader.schema, f"it is not: {error}") from error
        if at != len(value):
            raise _undecodable("trailing_bytes", reader.schema, f"is followed by {len(value) - at} bytes")
        return record

    def _explain(self, value: bytes) -> tuple[SchemaVersion, int]:
        """Return the schema that wrote a value, and where its body begins."""
        if value.startswith(SINGLE_OBJECT_MARKER):
            if len(value) < SINGLE_OBJECT_HEADER_BYTES:
                raise UndecodableRecord("truncated", f"{len(value)} bytes end within the single-object header of 10")
            fingerprint = value[2:SINGLE_OBJECT_HEADER_BYTES]
            schema = self._catalogue.by_fingerprint(fingerprint)
            if schema is None:
                raise UnknownSchema(f"no shipped schema has the fingerprint {fingerprint.hex()}")
            return schema, SINGLE_OBJECT_HEADER_BYTES
        if value.startswith(CONFLUENT_MARKER):
            if len(value) < CONFLUENT_HEADER_BYTES:
                raise UndecodableRecord("truncated", f"{len(value)} bytes end within the Confluent header of 5")
            schema_id = int.from_bytes(value[1:CONFLUENT_HEADER_BYTES], "big")
            if self._ids is None:
                raise RegistryNeeded(
                    f"a record refers to schema id {schema_id} of a registry; set KINGUIN_REGISTRY__URL"
                )
            return self._ids.schema_of(schema_id), CONFLUENT_HEADER_BYTES
        raise UndecodableRecord(
            "unknown_frame", f"a value must begin with c301 or 00, this one with {value[:2].hex()!r}"
        )


_Layout = tuple[tuple[str, binary.Coding], ...]
"""How a version lies on the wire: its fields in their order, by the name they have in Python."""


class _Reader(NamedTuple):
    schema: SchemaVersion
    read: Callable[[bytes, int], tuple[Record, int]]


@cache
def _reader(schema: SchemaVersion, unused: Collection[Unused]) -> _Reader:
    readers = [(name, coding.read) for name, coding in _layout(schema)]
    return _Reader(schema, binary.unrolled(readers, _RECORDS[schema.record], dict.fromkeys(unused, msgspec.UNSET)))


@cache
def _layout(schema: SchemaVersion) -> _Layout:
    return tuple((attribute_name(field), _coding(field)) for field in json.loads(schema.text)["fields"])


def _coding(field: Mapping[str, Any]) -> binary.Coding:
    is_word = field["name"] in _WORDS and field["type"] == "string"
    return binary.WORD if is_word else binary.coding(field["type"])


def _undecodable(code: str, schema: SchemaVersion, detail: str) -> UndecodableRecord:
    return UndecodableRecord(code, f"{schema.record} version {schema.version} {detail}")


_RECORDS: dict[RecordName, type[Record]] = {
    record.record_name: record
    for record in (
        ProductUpdate,
        OrderStatus,
        OrderComplete,
        DeadLetter,
        DeadLetterTrail,
        OrderStateRecord,
        ProductStateRecord,
    )
}
