"""What of a schema version this package's own codec cannot do yet. Others may: it is a warning, not a fault of the schema."""

import json
from collections.abc import Iterator, Sequence

from kinguin_streams.schemas.attributes import attribute_name
from kinguin_streams.schemas.binary import UnsupportedType, coding
from kinguin_streams.schemas.compatibility import CandidateVersion, Finding, why_unreadable


def codec_gaps(candidates: Sequence[CandidateVersion]) -> tuple[Finding, ...]:
    """Return a warning for each type that has no reader and writer here, and for fields that are one attribute in Python."""
    findings: list[Finding] = []
    # One class a record holds the fields of all its versions.
    names: dict[tuple[str, str], str] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.version):
        if why_unreadable(candidate.text) is None:
            findings += _gaps(candidate, names)
    return tuple(findings)


def _gaps(candidate: CandidateVersion, names: dict[tuple[str, str], str]) -> Iterator[Finding]:
    for field in json.loads(candidate.text)["fields"]:
        name, attribute = field["name"], attribute_name(field)
        try:
            coding(field["type"])
        except UnsupportedType as error:
            yield _warning(candidate, name, f"{error} in schemas/binary.py; this package needs them first")
        other = names.setdefault((candidate.record, attribute), name)
        if other != name:
            yield _warning(candidate, name, f"in Python it would be {attribute}, as the field {other} is")


def _warning(candidate: CandidateVersion, field: str, what: str) -> Finding:
    return Finding(
        record=candidate.record,
        version=candidate.version,
        against=None,
        kind="codec",
        message=f"field {field}: {what}",
        field=field,
        severity="warning",
    )
