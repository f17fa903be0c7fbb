"""Why a reader with one schema cannot read what another schema writes: Avro's resolution, field by field, in words.

Stricter than Apache Avro's own check where deployed readers are. Apache's Python reader compares names with their
namespace, uses neither aliases nor the default of an enum, and does not read bytes as a string or the reverse.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kinguin_streams.schemas.schema_tree import Kind

PROMOTIONS = frozenset(
    (
        ("int", "long"),
        ("int", "float"),
        ("int", "double"),
        ("long", "float"),
        ("long", "double"),
        ("float", "double"),
    )
)
"""What is written, and what Avro also reads it as."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Where and why a reader must give up. field: a path as in `lines[].sku`; "" for the record as a whole."""

    field: str
    reason: str


def obstacles(reader: Kind, writer: Kind, field: str = "") -> Iterator[Obstacle]:
    """Yield everything that keeps a reader with the one schema from reading what is written with the other."""
    if writer.base == "union":
        for branch in writer.branches:
            yield from obstacles(reader, branch, field)
    elif reader.base == "union":
        yield from _no_branch(reader, writer, field)
    elif reader.base != writer.base:
        if (writer.base, reader.base) not in PROMOTIONS:
            yield _instead(reader, writer, field)
    elif reader.name != writer.name:
        yield _instead(reader, writer, field)
    elif not (reader.recursive or writer.recursive):
        yield from _within(reader, writer, field)


def _no_branch(reader: Kind, writer: Kind, field: str) -> Iterator[Obstacle]:
    tried = [list(obstacles(branch, writer, field)) for branch in reader.branches]
    if all(tried):
        # The branch that was meant says more than that none fits.
        meant = [
            found
            for branch, found in zip(reader.branches, tried, strict=True)
            if (branch.base, branch.name) == (writer.base, writer.name)
        ]
        yield from meant[0] if meant else [_instead(reader, writer, field)]


def _within(reader: Kind, writer: Kind, field: str) -> Iterator[Obstacle]:
    """Yield what differs in two types of one name."""
    if reader.inner is not None and writer.inner is not None:
        yield from obstacles(reader.inner, writer.inner, f"{field}[]")
    if reader.size != writer.size:
        yield _instead(reader, writer, field)
    unknown = [symbol for symbol in writer.symbols if symbol not in reader.symbols]
    if unknown:
        helpless = "" if reader.default_symbol is None else ", and not every reader takes the default instead"
        yield Obstacle(field, f"it does not know the symbol {', '.join(unknown)}{helpless}")
    written = {each.name: each for each in writer.fields}
    for wanted in reader.fields:
        path = f"{field}.{wanted.name}" if field else wanted.name
        if wanted.name in written:
            yield from obstacles(wanted.kind, written[wanted.name].kind, path)
        elif wanted.default is None:
            yield Obstacle(path, "it is not written, and the reader has no default for it")


def _instead(reader: Kind, writer: Kind, field: str) -> Obstacle:
    return Obstacle(field, f"{writer.words()} where it wants {reader.words()}")
