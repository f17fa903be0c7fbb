"""Which of our schema versions a registry's text is. Decides only."""

import json
from collections.abc import Iterator
from typing import Any

from fastavro.schema import SchemaParseException

from kinguin_streams.schemas.versions import SchemaCatalogue, SchemaVersion, fingerprint_of

_MEANING = ("logicalType", "scale", "precision")


class NotOurs(Exception):
    """This text is none of the shipped versions, and why."""


def identify(text: str, catalogue: SchemaCatalogue) -> SchemaVersion:
    """Return the shipped version that a text means: whatever its spelling, documentation and defaults.

    Logical types, scale and precision must be the same. Avro's fingerprint leaves them out, so that bytes of a schema
    with timestamp-micros in the place of our timestamp-millis would be read a thousand times too late.
    Raises NotOurs, also for what is no schema at all.
    """
    try:
        ours = catalogue.by_fingerprint(fingerprint_of(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SchemaParseException) as error:
        raise NotOurs("not an Avro schema") from error
    if ours is None:
        raise NotOurs("none of the shipped schemas")
    theirs, wanted = (dict(_meanings(json.loads(one))) for one in (text, ours.text))
    if theirs != wanted:
        where = sorted(place for place in theirs.keys() | wanted.keys() if theirs.get(place) != wanted.get(place))
        raise NotOurs(
            f"{ours.record} version {ours.version} but for what its bytes mean: another logical type, scale or precision "
            f"at {', '.join(where)}"
        )
    return ours


def _meanings(schema: Any, place: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield (place, logical type, scale and precision) wherever a schema has one of them."""
    if isinstance(schema, list):
        for number, branch in enumerate(schema):
            yield from _meanings(branch, f"{place}|{number}")
    if not isinstance(schema, dict):
        return
    if "logicalType" in schema:
        meaning = {attribute: schema.get(attribute) for attribute in _MEANING}
        if meaning["logicalType"] == "decimal":
            meaning["scale"] = meaning["scale"] or 0  # Avro: where it is not said, it is 0
        yield place, tuple(meaning.values())
    for field in schema.get("fields", ()):
        yield from _meanings(field["type"], f"{place}.{field['name']}".lstrip("."))
    for inner in ("items", "values"):
        if inner in schema:
            yield from _meanings(schema[inner], f"{place}[]")
