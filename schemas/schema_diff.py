"""What changed between two versions of a record, in the words of somebody who reads the data. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kinguin_streams.schemas.schema_tree import FieldOf, Kind, tree_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference. field: a path as in `lines[].sku`, "" for the record itself; before and after: None where there is nothing."""

    change: Literal["added", "removed", "type", "default", "doc", "order", "name", "symbols", "aliases"]
    field: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaDiff:
    """The changes, and what they mean for readers that are not of the writer's version."""

    changes: tuple[Change, ...]
    old_reader: tuple[str, ...]
    """What a reader of the old version sees of a record of the new one, other than the common fields."""
    new_reader: tuple[str, ...]
    """What a reader of the new version sees of a record of the old one, other than the common fields."""


def diff(old: str, new: str) -> SchemaDiff:
    """Return the changes from one schema text to another, each of which must be the schema of a record."""
    before, after = tree_of(old), tree_of(new)
    return SchemaDiff(
        changes=tuple(_changes(before, after, "")),
        old_reader=tuple(_seen(reader=before, writer=after)),
        new_reader=tuple(_seen(reader=after, writer=before)),
    )


def _changes(old: Kind, new: Kind, where: str) -> Iterator[Change]:
    """Yield the differences of two records, or of whatever holds records."""
    if old.inner is not None and new.inner is not None:
        yield from _changes(old.inner.but_null(), new.inner.but_null(), f"{where}[]")
        return
    named = where.removesuffix(".")
    if old.doc != new.doc:
        yield Change(change="doc", field=named, before=old.doc or None, after=new.doc or None)
    if old.aliases != new.aliases:
        yield Change(change="aliases", field=named, before=_list(old.aliases), after=_list(new.aliases))
    if old.symbols != new.symbols:
        yield Change(change="symbols", field=named, before=_list(old.symbols), after=_list(new.symbols))
    if old.default_symbol != new.default_symbol:
        yield Change(change="default", field=named, before=old.default_symbol, after=new.default_symbol)
    if not where and old.name != new.name:
        yield Change(change="name", field="", before=old.name, after=new.name)
    earlier, later = _by_name(old), _by_name(new)
    prefix = f"{where}." if where else ""
    for name, field in earlier.items():
        if name not in later:
            yield Change(change="removed", field=prefix + name, before=_described(field), after=None)
    for name, field in later.items():
        if name not in earlier:
            yield Change(change="added", field=prefix + name, before=None, after=_described(field))
        else:
            yield from _field_changes(prefix + name, earlier[name], field)
    common_before, common_after = (
        [name for name in earlier if name in later],
        [name for name in later if name in earlier],
    )
    if common_before != common_after:
        yield Change(change="order", field=named, before=_list(common_before), after=_list(common_after))


def _field_changes(where: str, old: FieldOf, new: FieldOf) -> Iterator[Change]:
    if old.kind.words() != new.kind.words():
        yield Change(change="type", field=where, before=old.kind.words(), after=new.kind.words())
    if old.default != new.default:
        yield Change(change="default", field=where, before=old.default, after=new.default)
    if old.doc != new.doc:
        yield Change(change="doc", field=where, before=old.doc or None, after=new.doc or None)
    if old.aliases != new.aliases:
        yield Change(change="aliases", field=where, before=_list(old.aliases), after=_list(new.aliases))
    inner_old, inner_new = old.kind.but_null(), new.kind.but_null()
    if inner_old.base == inner_new.base and not (inner_old.recursive or inner_new.recursive):
        yield from _changes(inner_old, inner_new, where)


def _seen(reader: Kind, writer: Kind, where: str = "") -> Iterator[str]:
    """Yield what becomes of the fields that only one of the two has."""
    if reader.inner is not None and writer.inner is not None:
        yield from _seen(reader.inner.but_null(), writer.inner.but_null(), f"{where}[]")
        return
    wanted, written = _by_name(reader), _by_name(writer)
    prefix = f"{where}." if where else ""
    for name, field in wanted.items():
        if name not in written:
            filled_in = "no default: it cannot read them" if field.default is None else f"always {field.default}"
            yield f"{prefix}{name}: {filled_in}"
        else:
            inner_wanted, inner_written = field.kind.but_null(), written[name].kind.but_null()
            if inner_wanted.base == inner_written.base and not (inner_wanted.recursive or inner_written.recursive):
                yield from _seen(inner_wanted, inner_written, prefix + name)
    for name in written:
        if name not in wanted:
            yield f"{prefix}{name}: not seen"


def _by_name(record: Kind) -> dict[str, FieldOf]:
    return {field.name: field for field in record.fields}


def _described(field: FieldOf) -> str:
    return field.kind.words() + ("" if field.default is None else f", default {field.default}")


def _list(names: Sequence[str]) -> str | None:
    return ", ".join(names) or None
