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
    except (ValueError, KeyError, TypeError, SchemaParseException, AvroException) as error:
        return f"not a schema: {error}"
    if json.loads(candidate.text).get("type") != "record":
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
            reasons = "; ".join(
                f"{where}: {why}" for where, why in zip(sorted(result.locations), sorted(result.messages), strict=False)
            )
            message = f"a reader of version {reader.version} cannot read version {writer.version}: {reasons or 'no reason given'}"
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


def _changes_of_meaning(older: Any, newer: Any) -> Iterator[str]:
    if _full_name(older) != _full_name(newer):
        yield f"the record was {_full_name(older)} and is {_full_name(newer)}"
    before = {field["name"]: field["type"] for field in older["fields"]}
    for field in newer["fields"]:
        if field["name"] in before:
            yield from _type_changes(field["name"], before[field["name"]], field["type"])


def _type_changes(where: str, older: Any, newer: Any) -> Iterator[str]:
    old, new = _without_null(older), _without_null(newer)
    for attribute in MEANING:
        before, after = _attribute(old, attribute), _attribute(new, attribute)
        if before != after:
            yield f"field {where}: {attribute} was {before} and is {after}"
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type") == "record":
        yield from (f"{where}.{change}" for change in _changes_of_meaning(old, new))
    for inner in ("items", "values"):
        if isinstance(old, dict) and isinstance(new, dict) and inner in old and inner in new:
            yield from _type_changes(f"{where}[]", old[inner], new[inner])


def _lint(schema: Any) -> Iterator[str]:
    if schema.get("namespace") != NAMESPACE:
        yield f"the namespace is {schema.get('namespace')}, not {NAMESPACE}"
    if not schema.get("doc"):
        yield "the record has no doc"
    for field in schema["fields"]:
        name, kind = field["name"], field["type"]
        if not field.get("doc"):
            yield f"field {name} has no doc"
        if isinstance(kind, list) and (len(kind) != 2 or kind[0] != "null" or field.get("default", 0) is not None):
            yield f'field {name}: what may be absent is ["null", T] with default null'
        base = _without_null(kind)
        if base in ("float", "double"):
            yield f"field {name}: money and measures are decimals, never {base}"
        if _attribute(base, "logicalType") in ("timestamp-micros", "timestamp-nanos", "local-timestamp-millis"):
            yield f"field {name}: times are timestamp-millis"


def _without_null(kind: Any) -> Any:
    branches = [branch for branch in kind if branch != "null"] if isinstance(kind, list) else [kind]
    return branches[0] if len(branches) == 1 else branches


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
