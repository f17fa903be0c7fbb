"""Write schemas/records.py from the .avsc files: one class a record, with the fields of all its versions together.

    uv run python -m kinguin_streams.schemas.generate_records

The result is committed, so that people and type checkers read it like any other file; a test makes it again and compares.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kinguin_streams.schemas.attributes import attribute_name, required
from kinguin_streams.schemas.names import RecordName
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaCatalogue, shipped

TARGET = Path(__file__).with_name("records.py")

_HEADING = '''"""The records as their schemas have them. Made by schemas/generate_records.py from schemas/avro; edits are lost.

One class a record, with the fields of all shipped versions: what a version does not carry has its default. Times are
integers in milliseconds since 1970-01-01T00:00:00Z, as they are on the wire: who only compares them pays for no datetime.
"""

from decimal import Decimal
from typing import Literal

import msgspec

from kinguin_streams.schemas.names import EventId, StoreName
'''
_PYTHON_TYPES = {"string": "str", "bytes": "bytes", "int": "int", "long": "int", "boolean": "bool"}
# What Avro can only call a string.
_STRINGS = {"eventId": "EventId", "store": "StoreName", "origin": 'Literal["ingress", "consumer"]'}


@dataclass(frozen=True, slots=True)
class _Field:
    """A field over all versions of its record, as the newest of those that carry it has it."""

    schema: Mapping[str, Any]
    versions: tuple[int, ...]


def source(catalogue: SchemaCatalogue) -> str:
    """Return the text of records.py. Raises KeyError for an Avro type that has no place in it yet."""
    return _HEADING + "".join(
        f"\n\n{line}" if line.startswith("class ") else line
        for record in RECORD_NAMES
        for line in _class(catalogue, record)
    )


def _class(catalogue: SchemaCatalogue, record: RecordName) -> Iterator[str]:
    schemas = {schema.version: msgspec.json.decode(schema.text) for schema in catalogue.versions(record)}
    newest = schemas[max(schemas)]
    yield f"class {newest['name']}Fields(msgspec.Struct, frozen=True, kw_only=True, gc=False):\n"
    yield f'    """{newest["doc"]}"""\n\n'
    for field in _fields(schemas):
        default = _default(field, len(schemas))
        yield f"    {attribute_name(field.schema)}: {_python_type(field.schema)}{default}\n"
        yield f'    """{field.schema["doc"]}{_carried_by(field.versions, schemas)}"""\n'


def _fields(schemas: Mapping[int, Mapping[str, Any]]) -> list[_Field]:
    """Return the fields of all versions, each where the first version that had it put it."""
    order: list[str] = []
    for schema in schemas.values():
        names = [field["name"] for field in schema["fields"]]
        for before, name in zip([None, *names], names, strict=False):
            if name not in order:
                order.insert(0 if before is None else order.index(before) + 1, name)
    return [
        _Field(
            schema=next(field for field in schemas[max(versions)]["fields"] if field["name"] == name),
            versions=tuple(versions),
        )
        for name in order
        if (versions := [number for number, schema in schemas.items() if _has(schema, name)])
    ]


def _has(schema: Mapping[str, Any], name: str) -> bool:
    return any(field["name"] == name for field in schema["fields"])


def _default(field: _Field, versions: int) -> str:
    if "default" not in field.schema:
        if len(field.versions) < versions:
            raise KeyError(f"{field.schema['name']} is not in every version, and has no default")
        return ""
    default = field.schema["default"]
    return f" = {() if default == [] else default!r}"


def _python_type(field: Mapping[str, Any]) -> str:
    kind = required(field["type"])
    name = _STRINGS[field["name"]] if kind == "string" and field["name"] in _STRINGS else _type_name(kind)
    return f"{name} | None" if kind is not field["type"] else name


def _type_name(kind: Any) -> str:
    match kind:
        case {"logicalType": "timestamp-millis"}:
            return "int"
        case {"logicalType": "decimal"}:
            return "Decimal"
        case {"type": "array", "items": items}:
            return f"tuple[{_type_name(items)}, ...]"
        case {"type": "record", "fields": fields}:
            return f"tuple[{', '.join(_type_name(field['type']) for field in fields)}]"
        case ["null", inner]:
            return f"{_type_name(inner)} | None"
    return _PYTHON_TYPES[kind]


def _carried_by(versions: Sequence[int], schemas: Mapping[int, Any]) -> str:
    if len(versions) == len(schemas):
        return ""
    return f" Only in schema version{'s' * (len(versions) > 1)} {' and '.join(map(str, versions))}."


if __name__ == "__main__":
    TARGET.write_text(source(shipped()), "utf-8")
    print(f"{TARGET} written", file=sys.stderr)  # noqa: T201 - a build step of its own
