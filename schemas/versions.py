"""Every schema version ever written, loaded from the package, with the fingerprint that stands for it on the wire."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

from kinguin_streams.schemas.names import DERIVED_NAMES, EVENT_NAMES, RecordName

RECORD_NAMES: tuple[RecordName, ...] = (*EVENT_NAMES, "dead-letter", "dead-letter.trail", *DERIVED_NAMES)

LEVEL = "FULL_TRANSITIVE"
"""A registry's word for it: any reader deployed today can read any record in a topic, and the reverse."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SchemaVersion:
    """One .avsc file. Two instances are never equal but by identity: the catalogue holds one for each file."""

    record: RecordName
    version: int
    text: str
    """The file as shipped, documentation and logical types included: what a registry is given."""
    fingerprint: bytes
    """CRC-64-AVRO of the Parsing Canonical Form, 8 bytes, little-endian as in single-object encoding."""


class SchemaCatalogue:
    """All versions of all records, looked up by name and version, or by fingerprint."""

    def __init__(self, versions: tuple[SchemaVersion, ...]) -> None:
        self._by_record: dict[RecordName, dict[int, SchemaVersion]] = {}
        self._by_fingerprint: dict[bytes, SchemaVersion] = {}
        for schema in versions:
            self._by_record.setdefault(schema.record, {})[schema.version] = schema
            self._by_fingerprint[schema.fingerprint] = schema

    def versions(self, record: RecordName) -> tuple[SchemaVersion, ...]:
        """Return the versions of one record, oldest first."""
        return tuple(schema for _, schema in sorted(self._by_record[record].items()))

    def get(self, record: RecordName, version: int) -> SchemaVersion:
        """Return one version; raises KeyError if there is none of this number."""
        return self._by_record[record][version]

    def newest(self, record: RecordName) -> SchemaVersion:
        """Return the version that is written unless the settings hold it back."""
        return self.versions(record)[-1]

    def by_fingerprint(self, fingerprint: bytes) -> SchemaVersion | None:
        """Return the version with this 8-byte fingerprint, or None."""
        return self._by_fingerprint.get(fingerprint)


def fingerprint_of(text: str) -> bytes:
    """Return the 8-byte fingerprint of a schema given as JSON text.

    fastavro's canonical form equals that of Java's SchemaNormalization; Python avro's differs wherever there is a
    logical type, so it must not be used for this. fastavro's hex digits are already in wire (little-endian) order.
    """
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(json.loads(text)), "CRC-64-AVRO"))


def read_version(record: RecordName, version: int, text: str) -> SchemaVersion:
    """Return the version that this .avsc text is. Raises fastavro's SchemaParseException if it is no schema."""
    schema = json.loads(text)
    parse_schema(schema)
    return SchemaVersion(
        record=record,
        version=version,
        text=text,
        fingerprint=fingerprint_of(text),
    )


@cache
def shipped() -> SchemaCatalogue:
    """Return every version in this package: schemas/avro/<record>/<version>.avsc."""
    return SchemaCatalogue(
        tuple(
            read_version(record, int(file.name.removesuffix(".avsc")), file.read_text("utf-8"))
            for record in RECORD_NAMES
            for file in _avsc_files(files(__package__) / "avro" / record)
        )
    )


def _avsc_files(folder: Traversable) -> list[Traversable]:
    return [file for file in folder.iterdir() if file.name.endswith(".avsc")]
