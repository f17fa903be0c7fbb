"""Our versions against those that a registry holds, whoever registered them. Pure; cluster/registry_survey.py does the asking."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kinguin_streams.schemas.compatibility import CandidateVersion, Finding, Side, faults_between, why_unreadable
from kinguin_streams.schemas.schema_tree import tree_of
from kinguin_streams.schemas.versions import LEVEL, fingerprint_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A version under the subject of a record's topic. version: the registry's own count, which need not be ours."""

    record: str
    version: int
    schema_id: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InRegistry:
    """One version of ours and its ids there; none if it is not registered yet, which is no fault."""

    record: str
    version: int
    schema_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryReport:
    """What the registry holds of ours, and what is wrong with the rest."""

    versions: tuple[InRegistry, ...]
    findings: tuple[Finding, ...]


def compare(
    candidates: Sequence[CandidateVersion], registered: Sequence[Registered], levels: Mapping[str, str | None]
) -> RegistryReport:
    """Return how candidates and registered versions get on, each with each, both ways.

    levels: record to its subject's compatibility level, None where the registry's own holds; without an entry where the
    registry does not say.
    """
    readable = [candidate for candidate in candidates if why_unreadable(candidate.text) is None]
    ids: dict[tuple[str, int], list[int]] = {(each.record, each.version): [] for each in readable}
    findings = list(_weak_levels(levels))
    for found in registered:
        unreadable = why_unreadable(found.text)
        if unreadable is not None:
            findings.append(_finding(found, f"{_named(found)} is no Avro schema of a record: {unreadable}"))
            continue
        ours = [candidate for candidate in readable if candidate.record == found.record]
        twins = [each for each in ours if _is_the_same(each, found)]
        for twin in twins:
            ids[twin.record, twin.version].append(found.schema_id)
        if not any(tree_of(twin.text) == tree_of(found.text) for twin in twins):
            findings += _differences(found, ours, twins)
    return RegistryReport(
        versions=tuple(
            InRegistry(record=record, version=version, schema_ids=tuple(schema_ids))
            for (record, version), schema_ids in ids.items()
        ),
        findings=tuple(findings),
    )


def _is_the_same(candidate: CandidateVersion, found: Registered) -> bool:
    """Return whether records of the one are records of the other: a fingerprint leaves out what bytes mean."""
    return fingerprint_of(candidate.text) == fingerprint_of(found.text) and not any(
        faults_between(Side("", candidate.text), Side("", found.text))
    )


def _differences(
    found: Registered, ours: Sequence[CandidateVersion], twins: Sequence[CandidateVersion]
) -> Iterator[Finding]:
    """Yield what is to be said of a registered version that says nothing that ours say. What ours say is checked in files."""
    if not twins:
        # A newer release may have registered it. Until this one is upgraded, its readers wait for records of it.
        message = f"{_named(found)} is none of these versions; a reader with them waits at records written with it"
        yield _finding(found, message, severity="warning")
    for candidate in ours:
        theirs = Side(f"registered version {found.version} (id {found.schema_id})", found.text)
        for fault in faults_between(theirs, Side(f"version {candidate.version}", candidate.text)):
            yield Finding(
                record=candidate.record,
                version=candidate.version,
                against=found.version,
                kind=fault.kind,
                message=fault.message,
                field=fault.field,
                reader=fault.reader,
                source="registry",
            )


def _weak_levels(levels: Mapping[str, str | None]) -> Iterator[Finding]:
    for record, level in levels.items():
        if level != LEVEL:
            has = "no compatibility level of its own" if level is None else f"the compatibility level {level}"
            yield Finding(
                record=record,
                version=None,
                against=None,
                kind="registry",
                message=f"its subject has {has}, so that the registry may take what would break a reader; "
                f"`schemas register` sets {LEVEL}",
                severity="warning",
                source="registry",
            )


def _named(found: Registered) -> str:
    return f"registered version {found.version} (id {found.schema_id})"


def _finding(found: Registered, message: str, *, severity: Literal["error", "warning"] = "error") -> Finding:
    return Finding(
        record=found.record,
        version=None,
        against=found.version,
        kind="registry",
        message=message,
        severity=severity,
        source="registry",
    )
