"""Which of our schema versions a registry's text is. Decides only."""

from collections.abc import Iterator

from fastavro.schema import SchemaParseException

from kinguin_streams.schemas.schema_tree import Kind, tree_of
from kinguin_streams.schemas.versions import SchemaCatalogue, SchemaVersion, fingerprint_of, shipped


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
    where = list(_other_meanings(tree_of(ours.text), tree_of(text)))
    if where:
        raise NotOurs(
            f"{named(ours)} but for what its bytes mean: another logical type, scale or precision at {', '.join(where)}"
        )
    return ours


def is_text_of(text: str, schema: SchemaVersion) -> bool:
    """Return whether a text means this shipped version."""
    try:
        return is_same(identify(text, shipped()), schema)
    except NotOurs:
        return False


def is_same(one: SchemaVersion, other: SchemaVersion) -> bool:
    """Return whether two are one version.

    Not by identity: threads that are the first to ask for the shipped versions may each get their own copy.
    """
    return one.fingerprint == other.fingerprint


def named(schema: SchemaVersion) -> str:
    """Return a version as messages name it: "order.status version 1"."""
    return f"{schema.record} version {schema.version}"


def _other_meanings(ours: Kind, theirs: Kind, place: str = "") -> Iterator[str]:
    """Yield where one meaning differs from the other, in types that have one fingerprint and so one shape."""
    if ours.meaning != theirs.meaning:
        yield place
    for one, other in zip(ours.branches, theirs.branches, strict=True):
        yield from _other_meanings(one, other, place)
    if ours.inner is not None and theirs.inner is not None:
        yield from _other_meanings(ours.inner, theirs.inner, f"{place}[]")
    for field, their_field in zip(ours.fields, theirs.fields, strict=True):
        yield from _other_meanings(field.kind, their_field.kind, f"{place}.{field.name}".lstrip("."))
