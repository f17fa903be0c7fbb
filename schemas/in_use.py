"""Which schema versions the records of the topics were really written with, and what is wrong with that. Pure.

A record's header says it: the fingerprint or the registry's id. How the headers are counted is cluster/schema_usage.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from kinguin_streams.schemas.codec import (
    CONFLUENT_HEADER_BYTES,
    CONFLUENT_MARKER,
    SINGLE_OBJECT_HEADER_BYTES,
    SINGLE_OBJECT_MARKER,
)
from kinguin_streams.schemas.compatibility import CandidateVersion, Finding, Side, faults_between, why_unreadable
from kinguin_streams.schemas.names import RecordName
from kinguin_streams.schemas.schema_tree import tree_of
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.versions import SchemaCatalogue, SchemaVersion, fingerprint_of

NO_HEADER = b""
"""Stands for every value that begins with neither marker, is cut off within its header, or is not there at all."""


def header_of(value: bytes | None) -> bytes:
    """Return what says which schema wrote a value: its first 10 or 5 bytes, or NO_HEADER."""
    if value is None:
        return NO_HEADER
    if value[:2] == SINGLE_OBJECT_MARKER and len(value) >= SINGLE_OBJECT_HEADER_BYTES:
        return value[:SINGLE_OBJECT_HEADER_BYTES]
    if value[:1] == CONFLUENT_MARKER and len(value) >= CONFLUENT_HEADER_BYTES:
        return value[:CONFLUENT_HEADER_BYTES]
    return NO_HEADER


def schema_id_of(header: bytes) -> int | None:
    """Return the registry's id in a header; None if it has a fingerprint, or nothing."""
    return int.from_bytes(header[1:], "big") if header[:1] == CONFLUENT_MARKER else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The records of one topic that have one header."""

    topic: str
    header: bytes
    records: int
    first_at_ms: int
    """The smallest record time, milliseconds since 1970."""
    last_at_ms: int
    partition: int
    offset: int
    """Where the one with the smallest record time is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInUse:
    """How much of a topic one version is, whichever way its records name it."""

    topic: str
    record: RecordName
    version: int
    records: int
    single_object: int
    """How many of them carry the fingerprint; the others a registry's id."""
    first_at_ms: int | None
    """None, as last_at_ms, if there are none."""
    last_at_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """What the topics hold."""

    versions: tuple[VersionInUse, ...]
    """Every version that is shipped or a candidate, used or not."""
    findings: tuple[Finding, ...]


def versions_in_use(
    seen: Sequence[Seen],
    topics: Topics,
    catalogue: SchemaCatalogue,
    candidates: Sequence[CandidateVersion],
    texts_by_id: Mapping[int, str | None] | None,
) -> InUse:
    """Return which versions are in use, and a finding for each that a reader with the candidates could not read.

    catalogue: what is shipped; candidates: what is to be released, the same or another set.
    texts_by_id: what the registry has for the ids that were seen, None for one that it does not know; None as a whole
    if there is no registry.
    """
    known = _Known(catalogue, candidates)
    counted: dict[tuple[str, RecordName, int], list[Seen]] = {}
    findings: list[Finding] = []
    for each in seen:
        record = topics.record(each.topic)
        named = known.name(each, record, texts_by_id)
        if isinstance(named, Finding):
            findings.append(named)
        else:
            counted.setdefault((each.topic, record, named), []).append(each)
    versions = []
    for spec in topics.specs:
        numbers = {number for topic, _, number in counted if topic == spec.name} | known.numbers(spec.record)
        for number in sorted(numbers):
            usage = _usage(spec.name, spec.record, number, counted.get((spec.name, spec.record, number), []))
            versions.append(usage)
            if usage.records and known.is_left_out(spec.record, number):
                findings.append(_left_out(usage))
    return InUse(versions=tuple(versions), findings=tuple(findings))


class _Known:
    """The versions that are shipped, and those that are to be released."""

    def __init__(self, catalogue: SchemaCatalogue, candidates: Sequence[CandidateVersion]) -> None:
        self._catalogue = catalogue
        readable = [candidate for candidate in candidates if why_unreadable(candidate.text) is None]
        self._trees = [tree_of(candidate.text) for candidate in readable]
        self._candidates = {fingerprint_of(candidate.text): candidate for candidate in readable}

    def numbers(self, record: RecordName) -> set[int]:
        """Return the numbers of all versions of a record."""
        shipped = {schema.version for schema in self._catalogue.versions(record)}
        return shipped | {each.version for each in self._candidates.values() if each.record == record}

    def is_left_out(self, record: RecordName, version: int) -> bool:
        """Return whether a shipped version, as it is, is none of the candidates. Its fingerprint leaves out what bytes mean."""
        return any(
            tree_of(schema.text) not in self._trees
            for schema in self._catalogue.versions(record)
            if schema.version == version
        )

    def name(self, seen: Seen, record: RecordName, texts_by_id: Mapping[int, str | None] | None) -> int | Finding:
        """Return the version of a header, or what is wrong with it."""
        if seen.header == NO_HEADER:
            why = "no schema in front of the value; a consumer puts them into the dead letters"
            return _finding(seen, record, why, severity="warning")
        schema_id = schema_id_of(seen.header)
        if schema_id is None:
            fingerprint = seen.header[len(SINGLE_OBJECT_MARKER) :]
            found = self._find(fingerprint)
            if found is None:
                return _finding(seen, record, f"the fingerprint {fingerprint.hex()}, which no known schema has")
            return self._checked(seen, record, found, f"the fingerprint {fingerprint.hex()}")
        named = f"the schema id {schema_id}"
        if texts_by_id is None:
            return _finding(seen, record, f"{named} of a registry: set KINGUIN_REGISTRY__URL to resolve it")
        text = texts_by_id[schema_id]
        if text is None or why_unreadable(text) is not None:
            return _finding(seen, record, f"{named}, for which the registry has no Avro schema of a record")
        found = self._find(fingerprint_of(text))
        if found is None:
            return _finding(seen, record, f"{named}, which is no known schema: {fingerprint_of(text).hex()}")
        ours = Side(f"version {found.version}", found.text)
        for fault in faults_between(ours, Side(f"schema id {schema_id}", text)):
            return _finding(seen, record, f"{named}: {fault.message}", version=found.version)
        return self._checked(seen, record, found, named)

    def _find(self, fingerprint: bytes) -> CandidateVersion | SchemaVersion | None:
        return self._candidates.get(fingerprint) or self._catalogue.by_fingerprint(fingerprint)

    @staticmethod
    def _checked(seen: Seen, record: RecordName, found: CandidateVersion | SchemaVersion, named: str) -> int | Finding:
        if found.record == record:
            return found.version
        return _finding(seen, record, f"{named}, which is {found.record} version {found.version}")


def _usage(topic: str, record: RecordName, version: int, seen: Sequence[Seen]) -> VersionInUse:
    return VersionInUse(
        topic=topic,
        record=record,
        version=version,
        records=sum(each.records for each in seen),
        single_object=sum(each.records for each in seen if schema_id_of(each.header) is None),
        first_at_ms=min((each.first_at_ms for each in seen), default=None),
        last_at_ms=max((each.last_at_ms for each in seen), default=None),
    )


def _left_out(usage: VersionInUse) -> Finding:
    last = shown_time(usage.last_at_ms or 0)
    return Finding(
        record=usage.record,
        version=usage.version,
        against=None,
        kind="in_use",
        message=f"records of version {usage.version} are still in {usage.topic}, {usage.records} of them until {last}; "
        "a reader without it, as it was released, would stop or misread them",
        source="topics",
    )


def _finding(
    seen: Seen,
    record: RecordName,
    what: str,
    *,
    version: int | None = None,
    severity: Literal["error", "warning"] = "error",
) -> Finding:
    where = f"{seen.topic}/{seen.partition}/{seen.offset}"
    return Finding(
        record=record,
        version=version,
        against=None,
        kind="in_use",
        message=f"{seen.records} records in {seen.topic}, the first at {where} of {shown_time(seen.first_at_ms)}, have {what}",
        severity=severity,
        source="topics",
    )


def shown_time(at_ms: int) -> str:
    """Return a record's time as people and programs read it: UTC, ISO 8601, to the second; Kafka may have none."""
    try:
        return datetime.fromtimestamp(at_ms // 1000, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"
