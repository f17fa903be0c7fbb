"""Whether schema versions may live in one topic: FULL_TRANSITIVE by Apache Avro's own rules, and a lint for what those miss.

Apache Avro's check calls timestamp-millis to timestamp-micros and decimal scale 2 to 3 compatible, which are errors of
meaning by factors of 1000 and 10; it compares names without their namespace; and it counts on aliases, on the default of
an enum and on bytes read as a string, none of which Apache's own Python reader does. There is a pair of schemas, with its
witness, for each in tests/schemas/test_compatibility_pairs.py.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.errors import AvroException, IgnoredLogicalType
from avro.schema import parse
from fastavro.schema import SchemaParseException

from kinguin_streams.schemas.defaults import reads_alike
from kinguin_streams.schemas.resolution import Obstacle, obstacles
from kinguin_streams.schemas.schema_tree import Kind, tree_of
from kinguin_streams.schemas.versions import SchemaCatalogue, SchemaVersion, fingerprint_of

NAMESPACE = "kinguin.v1"
MEANING = ("logicalType", "scale", "precision")
"""Attributes that change what bytes mean and that Avro's resolution does not look at; in the order of Kind.meaning."""

_CARRIERS = {
    "decimal": ("bytes", "fixed"),
    "timestamp-millis": ("long",),
    "date": ("int",),
    "time-millis": ("int",),
    "time-micros": ("long",),
    "uuid": ("string", "fixed"),
    "duration": ("fixed",),
}
"""Which types a logical type may stand on. On another one, or if its name is not known, readers ignore it and say nothing."""

_OTHER_TIMES = ("timestamp-micros", "timestamp-nanos", "local-timestamp-millis", "local-timestamp-micros")

FindingKind = Literal["unreadable", "incompatible", "meaning", "fingerprint", "lint", "codec", "registry", "in_use"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateVersion:
    """A schema version to be checked, not necessarily shipped."""

    record: str
    version: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why a version may not be released; with severity "warning", what to look at before."""

    record: str
    version: int | None
    """None if it is about no one version of ours."""
    against: int | None
    kind: FindingKind
    message: str
    field: str | None = None
    """Where, as in `lines[].sku`; None for the record as a whole."""
    reader: str | None = None
    """Whose reader could not read, or would misread: "version 1"."""
    severity: Literal["error", "warning"] = "error"
    source: Literal["files", "released", "registry", "topics"] = "files"
    """What was compared with. `against` counts there: the registry numbers the versions of a subject by itself."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two schemas that are compared, under the name that messages give it: "version 2"."""

    name: str
    text: str


def check(versions: Sequence[CandidateVersion]) -> tuple[Finding, ...]:
    """Return everything that is wrong with these versions of any number of records; nothing means: release them.

    Every version is checked by itself, and against every earlier one of its record in both directions, so that any
    reader deployed today can read any record that is in a topic, and the reverse.
    """
    findings: list[Finding] = []
    by_record: dict[str, list[CandidateVersion]] = {}
    for candidate in versions:
        unreadable = why_unreadable(candidate.text)
        if unreadable is not None:
            findings.append(_finding(candidate, None, "unreadable", unreadable))
            continue
        findings += [
            _finding(candidate, None, "lint", message, field=field) for field, message in _lint(tree_of(candidate.text))
        ]
        by_record.setdefault(candidate.record, []).append(candidate)
    for history in by_record.values():
        history.sort(key=lambda candidate: candidate.version)
        findings += _gaps(history)
        for older, newer in combinations(history, 2):
            sides = Side(f"version {older.version}", older.text), Side(f"version {newer.version}", newer.text)
            findings += [
                _finding(newer, older, fault.kind, fault.message, field=fault.field, reader=fault.reader)
                for fault in faults_between(*sides)
            ]
    findings += _shared_fingerprints([candidate for history in by_record.values() for candidate in history])
    return tuple(findings)


def check_released(candidates: Sequence[CandidateVersion], released: SchemaCatalogue) -> tuple[Finding, ...]:
    """Return how candidates differ from the released versions whose fingerprints they have. Words may differ.

    A fingerprint leaves out logical types, scales and defaults. Records of the released version, and its readers, are out
    there; under the same fingerprint they must go on meaning the same.
    """
    findings: list[Finding] = []
    for candidate in candidates:
        if why_unreadable(candidate.text) is None and (twin := released.by_fingerprint(fingerprint_of(candidate.text))):
            findings += _edits(candidate, twin)
    return tuple(findings)


def _edits(candidate: CandidateVersion, released: SchemaVersion) -> Iterator[Finding]:
    if tree_of(candidate.text) == tree_of(released.text):
        return
    against = CandidateVersion(record=released.record, version=released.version, text=released.text)
    theirs, ours = f"released version {released.version}", f"version {candidate.version}"
    faults = list(faults_between(Side(theirs, released.text), Side(ours, candidate.text)))
    for fault in faults:
        yield _finding(
            candidate, against, fault.kind, fault.message, field=fault.field, reader=fault.reader, source="released"
        )
    if not faults:
        # A reader of the edited version may do without a field that deployed readers of the same version need.
        message = "it is not as it was released: another default or alias"
        yield _finding(candidate, against, "meaning", message, source="released")


def why_unreadable(text: str) -> str | None:
    """Return why this is not the schema of a record; None if it is."""
    try:
        fingerprint_of(text)
        _apache(text)
        tree = tree_of(text)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        SchemaParseException,
        AvroException,
    ) as error:
        return f"not a schema: {error}"
    return None if tree.base == "record" else "not a schema of a record"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong between two schemas."""

    kind: Literal["incompatible", "meaning"]
    field: str | None
    reader: str
    message: str


def faults_between(older: Side, newer: Side) -> Iterator[Fault]:
    """Yield why readers of the one cannot read what the other writes, or would take it for something else."""
    for reader, writer in ((older, newer), (newer, older)):
        for obstacle in _obstacles(reader.text, writer.text):
            where = f"field {obstacle.field}" if obstacle.field else "the record"
            yield Fault(
                kind="incompatible",
                field=obstacle.field or None,
                reader=reader.name,
                message=f"{where}: a reader of {reader.name} cannot read what {writer.name} writes: {obstacle.reason}",
            )
    for change in _changes_of_meaning(tree_of(older.text), tree_of(newer.text)):
        effect = (
            f"readers of {older.name} and {newer.name} would put in different values"
            if change.of_a_default
            else f"a reader of {older.name} misreads what {newer.name} writes"
        )
        yield Fault(
            kind="meaning",
            field=change.field,
            reader=older.name,
            message=f"field {change.field}: {effect}: {change.what} was {change.before} and is {change.after}",
        )


def _obstacles(reader: str, writer: str) -> list[Obstacle]:
    """Return ours; should Apache's check ever find what ours does not, its words, which name places and reasons in two sets."""
    found = list(obstacles(tree_of(reader), tree_of(writer)))
    if found:
        return found
    result = ReaderWriterCompatibilityChecker().get_compatibility(_apache(reader), _apache(writer))
    if result.compatibility is SchemaCompatibilityType.compatible:
        return []
    return [Obstacle("", f"{'; '.join(sorted(result.messages))} (at {', '.join(sorted(result.locations))})")]


@lru_cache(maxsize=256)
def _apache(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IgnoredLogicalType)  # the lint says it, as a finding
        return parse(text)


def _gaps(history: Sequence[CandidateVersion]) -> Iterator[Finding]:
    for expected, candidate in enumerate(history, start=1):
        if candidate.version != expected:
            yield _finding(
                candidate, None, "lint", f"version {expected} is missing: versions count from 1 without gaps"
            )
            return


def _shared_fingerprints(versions: Sequence[CandidateVersion]) -> Iterator[Finding]:
    seen: dict[bytes, CandidateVersion] = {}
    for candidate in versions:
        fingerprint = fingerprint_of(candidate.text)
        if (twin := seen.get(fingerprint)) is not None:
            yield _finding(
                candidate,
                twin,
                "fingerprint",
                f"the same fingerprint as {twin.record} version {twin.version}: a change of documentation, default or "
                "logical type alone is not a version",
            )
        seen[fingerprint] = candidate


@dataclass(frozen=True, slots=True)
class _Change:
    """What can be read, and says something else."""

    field: str
    what: str
    before: str
    after: str
    of_a_default: bool = False


def _changes_of_meaning(older: Kind, newer: Kind, where: str = "") -> Iterator[_Change]:
    before = {field.name: field for field in older.fields}
    for field in newer.fields:
        name, earlier = where + field.name, before.get(field.name)
        if earlier is None:
            continue
        if earlier.default is not None and field.default is not None and earlier.default != field.default:
            # A reader puts it where the writer had no such field: the same record would mean two things.
            yield _Change(name, "the default", earlier.default, field.default, of_a_default=True)
        yield from _type_changes(name, earlier.kind, field.kind)


def _type_changes(where: str, older: Kind, newer: Kind) -> Iterator[_Change]:
    """Yield what differs in the branches that both types have; a type that is no union is its own only branch."""
    twins = {(branch.base, branch.name): branch for branch in newer.branches or (newer,)}
    for branch in older.branches or (older,):
        twin = twins.get((branch.base, branch.name))
        if twin is not None:  # else resolution has its say
            yield from _branch_changes(where, branch, twin)


def _branch_changes(where: str, older: Kind, newer: Kind) -> Iterator[_Change]:
    for attribute, before, after in zip(MEANING, older.meaning, newer.meaning, strict=True):
        if before != after:
            yield _Change(where, attribute, _or_none(before), _or_none(after))
    if older.recursive or newer.recursive:
        return
    if older.inner is not None and newer.inner is not None:
        yield from _type_changes(f"{where}[]", older.inner, newer.inner)
    if older.symbols != newer.symbols and sorted(older.symbols) == sorted(newer.symbols):
        yield _Change(where, "the order of symbols", ", ".join(older.symbols), ", ".join(newer.symbols))
    if older.default_symbol != newer.default_symbol:
        symbols = _or_none(older.default_symbol), _or_none(newer.default_symbol)
        yield _Change(where, "the default symbol", *symbols, of_a_default=True)
    yield from _changes_of_meaning(older, newer, f"{where}.")


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)


def _lint(schema: Kind) -> Iterator[tuple[str | None, str]]:
    """Yield field and message of what we do not release, whatever it is compared with."""
    namespace = schema.name.rpartition(".")[0]
    if namespace != NAMESPACE:
        yield None, f"the namespace is {namespace or 'missing'}, not {NAMESPACE}"
    yield from _lint_record(schema, "")


def _lint_record(schema: Kind, where: str) -> Iterator[tuple[str | None, str]]:
    if not schema.doc:
        yield None, f"record {schema.name.rpartition('.')[2]} has no doc"
    yield from _lint_aliases(None, f"record {schema.name}", schema.aliases)
    for field in schema.fields:
        name, kind = where + field.name, field.kind
        if not field.doc:
            yield name, f"field {name} has no doc"
        yield from _lint_aliases(name, f"field {name}", field.aliases)
        if kind.base == "union" and not (kind.is_null_or_another() and field.default in (None, "null")):
            yield name, f'field {name}: what may be absent is ["null", T] with default null'
        elif field.default is not None and not reads_alike(kind, json.loads(field.default)):
            yield name, f"field {name}: readers do not agree on the default {field.default}; use null"
        yield from _lint_branches(name, kind)


def _lint_aliases(field: str | None, what: str, aliases: Sequence[str]) -> Iterator[tuple[str | None, str]]:
    if aliases:
        yield field, f"{what}: Apache's Python reader ignores an alias and others follow it, so that they would differ"


def _lint_branches(where: str, kind: Kind) -> Iterator[tuple[str | None, str]]:
    for branch in kind.branches or (kind,):
        yield from _lint_type(where, branch)


def _lint_type(where: str, kind: Kind) -> Iterator[tuple[str | None, str]]:
    if kind.base in ("float", "double"):
        yield where, f"field {where}: money and measures are decimals, never {kind.base}"
    yield from _lint_logical_type(where, kind)
    if kind.recursive:
        # fastavro reads nested records by recursion: 10 KB with 10,000 levels ended the process.
        yield where, f"field {where}: a record must not contain itself"
    elif kind.base == "record":
        yield from _lint_record(kind, f"{where}.")
    elif kind.inner is not None:
        if kind.inner.base == "union" and not kind.inner.is_null_or_another():
            yield f"{where}[]", f'field {where}[]: what may be absent is ["null", T]'
        yield from _lint_branches(f"{where}[]", kind.inner)
    elif kind.base in ("enum", "fixed"):
        yield from _lint_aliases(where, f"field {where}", kind.aliases)
        if kind.base == "enum" and kind.default_symbol is None:
            yield where, f"field {where}: an enum has a default, for readers that do not know a new symbol"


def _lint_logical_type(where: str, kind: Kind) -> Iterator[tuple[str | None, str]]:
    if kind.logical_type is None:
        return
    if kind.logical_type in _OTHER_TIMES:
        yield where, f"field {where}: times are timestamp-millis"
    elif kind.base not in _CARRIERS.get(kind.logical_type, ()):
        yield where, f"field {where}: readers ignore the logical type {kind.logical_type} on {kind.base}"
    elif kind.logical_type == "decimal" and (type(kind.precision) is not int or kind.precision == 0):
        yield where, f"field {where}: readers ignore a decimal of precision {kind.precision}"


def _finding(
    candidate: CandidateVersion,
    against: CandidateVersion | None,
    kind: FindingKind,
    message: str,
    *,
    field: str | None = None,
    reader: str | None = None,
    source: Literal["files", "released"] = "files",
) -> Finding:
    return Finding(
        record=candidate.record,
        version=candidate.version,
        against=None if against is None else against.version,
        kind=kind,
        message=message,
        field=field,
        reader=reader,
        source=source,
    )
