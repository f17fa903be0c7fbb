"""Whether schema versions may live in one topic: FULL_TRANSITIVE by Apache Avro's own rules, and a lint for what those miss.

Apache Avro's check calls timestamp-millis to timestamp-micros and decimal scale 2 to 3 compatible, which are errors of
meaning by factors of 1000 and 10, and it compares names without their namespace.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.errors import AvroException
from avro.schema import parse
from fastavro.schema import SchemaParseException

from kinguin_streams.schemas.versions import fingerprint_of

NAMESPACE = "kinguin.v1"
MEANING = ("logicalType", "scale", "precision")
"""Attributes that change what bytes mean and that Avro's resolution does not look at."""

_OTHER_TIMES = ("timestamp-micros", "timestamp-nanos", "local-timestamp-millis", "local-timestamp-micros")


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateVersion:
    """A schema version to be checked, not necessarily shipped."""

    record: str
    version: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why a version may not be released."""

    record: str
    version: int
    against: int | None
    kind: Literal["unreadable", "incompatible", "meaning", "fingerprint", "lint"]
    message: str


def check(versions: Sequence[CandidateVersion]) -> tuple[Finding, ...]:
    """Return everything that is wrong with these versions of any number of records; nothing means: release them.

    Every version is checked by itself, and against every earlier one of its record in both directions, so that any
    reader deployed today can read any record that is in a topic, and the reverse.
    """
    findings: list[Finding] = []
    by_record: dict[str, list[CandidateVersion]] = {}
    for candidate in versions:
        unreadable = _unreadable(candidate)
        if unreadable is not None:
            findings.append(_finding(candidate, None, "unreadable", unreadable))
            continue
        findings += [_finding(candidate, None, "lint", message) for message in _lint(json.loads(candidate.text))]
        by_record.setdefault(candidate.record, []).append(candidate)
    for history in by_record.values():
        history.sort(key=lambda candidate: candidate.version)
        findings += _gaps(history)
        for older, newer in combinations(history, 2):
            findings += _incompatibilities(older, newer)
            findings += [
                _finding(newer, older, "meaning", message)
                for message in _changes_of_meaning(json.loads(older.text), json.loads(newer.text))
            ]
    findings += _shared_fingerprints([candidate for history in by_record.values() for candidate in history])
    return tuple(findings)


def _unreadable(candidate: CandidateVersion) -> str | None:
    try:
        fingerprint_of(candidate.text)
        parse(candidate.text)
    except (ValueError, KeyError, TypeError, RecursionError, SchemaParseException, AvroException) as error:
        return f"not a schema: {error}"
    schema = json.loads(candidate.text)
    if not isinstance(schema, dict) or schema.get("type") != "record":
        return "not a schema of a record"
    return None


def _gaps(history: Sequence[CandidateVersion]) -> Iterator[Finding]:
    for expected, candidate in enumerate(history, start=1):
        if candidate.version != expected:
            yield _finding(
                candidate, None, "lint", f"version {expected} is missing: versions count from 1 without gaps"
            )
            return


def _incompatibilities(older: CandidateVersion, newer: CandidateVersion) -> Iterator[Finding]:
    for reader, writer in ((newer, older), (older, newer)):
        result = ReaderWriterCompatibilityChecker().get_compatibility(parse(reader.text), parse(writer.text))
        if result.compatibility is not SchemaCompatibilityType.compatible:
            # Two sets, so that nothing says which place belongs to which reason.
            reasons, places = "; ".join(sorted(result.messages)), ", ".join(sorted(result.locations))
            message = (
                f"a reader of version {reader.version} cannot read version {writer.version}: {reasons} (at {places})"
            )
            yield _finding(newer, older, "incompatible", message)


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


def _changes_of_meaning(older: Any, newer: Any, where: str = "") -> Iterator[str]:
    if _full_name(older) != _full_name(newer):
        yield f"the record was {_full_name(older)} and is {_full_name(newer)}"
    before = {field["name"]: field for field in older["fields"]}
    for field in newer["fields"]:
        name, earlier = where + field["name"], before.get(field["name"])
        if earlier is None:
            continue
        if "default" in earlier and "default" in field and earlier["default"] != field["default"]:
            # A reader puts it where the writer had no such field: the same record would mean two things.
            yield f"field {name}: the default was {json.dumps(earlier['default'])} and is {json.dumps(field['default'])}"
        yield from _type_changes(name, earlier["type"], field["type"])


def _type_changes(where: str, older: Any, newer: Any) -> Iterator[str]:
    old, new = _without_null(older), _without_null(newer)
    if _may_be_null(older) != _may_be_null(newer):
        yield f"field {where}: {'could' if _may_be_null(older) else 'could not'} be null, and that has changed"
    if {_base(old), _base(new)} == {"string", "bytes"}:
        # Avro reads either as the other, but bytes need not be UTF-8.
        yield f"field {where}: was {_base(old)} and is {_base(new)}"
    for attribute in MEANING:
        before, after = _attribute(old, attribute), _attribute(new, attribute)
        if before != after:
            yield f"field {where}: {attribute} was {before} and is {after}"
    if not isinstance(old, dict) or not isinstance(new, dict) or old.get("type") != new.get("type"):
        return  # another type: Avro's own check has its say
    match old["type"]:
        case "record":
            yield from _changes_of_meaning(old, new, f"{where}.")
        case "array" | "map":
            inner = "items" if old["type"] == "array" else "values"
            yield from _type_changes(f"{where}[]", old[inner], new[inner])
        case "enum" if new["symbols"][: len(old["symbols"])] != old["symbols"]:
            yield f"field {where}: symbols were {old['symbols']} and are {new['symbols']}; new ones come last, none goes"


def _lint(schema: Any) -> Iterator[str]:
    if schema.get("namespace") != NAMESPACE:
        yield f"the namespace is {schema.get('namespace')}, not {NAMESPACE}"
    yield from _lint_record(schema, "", ())


def _lint_record(schema: Any, where: str, enclosing: tuple[str, ...]) -> Iterator[str]:
    if not schema.get("doc"):
        yield f"record {schema['name']} has no doc"
    for field in schema["fields"]:
        name, kind = where + field["name"], field["type"]
        if not field.get("doc"):
            yield f"field {name} has no doc"
        if isinstance(kind, list) and (len(kind) != 2 or kind[0] != "null" or field.get("default", 0) is not None):
            yield f'field {name}: what may be absent is ["null", T] with default null'
        yield from _lint_type(name, _without_null(kind), (*enclosing, schema["name"]))


def _lint_type(where: str, kind: Any, enclosing: tuple[str, ...]) -> Iterator[str]:
    base = _base(kind)
    if base in ("float", "double"):
        yield f"field {where}: money and measures are decimals, never {base}"
    if _attribute(kind, "logicalType") in _OTHER_TIMES:
        yield f"field {where}: times are timestamp-millis"
    if base.rpartition(".")[2] in enclosing:
        # fastavro reads nested records by recursion: 10 KB with 10,000 levels ended the process.
        yield f"field {where}: a record must not contain itself"
    match kind:
        case {"type": "record"}:
            yield from _lint_record(kind, f"{where}.", enclosing)
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            yield from _lint_type(f"{where}[]", _without_null(inner), enclosing)
        case {"type": "enum"} if "default" not in kind:
            yield f"field {where}: an enum has a default, for readers that do not know a new symbol"


def _without_null(kind: Any) -> Any:
    branches = [branch for branch in kind if branch != "null"] if isinstance(kind, list) else [kind]
    return branches[0] if len(branches) == 1 else branches


def _may_be_null(kind: Any) -> bool:
    return isinstance(kind, list) and "null" in kind


def _base(kind: Any) -> str:
    """Return the type without its attributes; "" for a union."""
    base = kind.get("type") if isinstance(kind, dict) else kind
    return base if isinstance(base, str) else ""


def _attribute(kind: Any, attribute: str) -> Any:
    return kind.get(attribute) if isinstance(kind, dict) else None


def _full_name(schema: Any) -> str:
    return f"{schema.get('namespace', '')}.{schema['name']}"


def _finding(
    candidate: CandidateVersion,
    against: CandidateVersion | None,
    kind: Literal["unreadable", "incompatible", "meaning", "fingerprint", "lint"],
    message: str,
) -> Finding:
    return Finding(
        record=candidate.record,
        version=candidate.version,
        against=None if against is None else against.version,
        kind=kind,
        message=message,
    )
