"""What `schemas register` would do: pure. Every shipped version under its topic's subject, oldest first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kinguin_streams.cluster.registry_client import RegisteredVersion
from kinguin_streams.cluster.registry_match import NotOurs, identify
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.versions import LEVEL, RECORD_NAMES, SchemaCatalogue, SchemaVersion
from kinguin_streams.telemetry.operator_error import OperatorError


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStep:
    """One shipped version. schema_id: None while it is not registered."""

    subject: str
    schema: SchemaVersion
    action: Literal["present", "register"]
    schema_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelStep:
    """The compatibility level of one subject. before: None where the registry's own level holds."""

    subject: str
    before: str | None
    action: Literal["present", "set"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationPlan:
    """All steps, in the order in which they are to be done: levels first, so that the registry checks every version."""

    levels: tuple[LevelStep, ...]
    versions: tuple[VersionStep, ...]


def subject_of(topic: str) -> str:
    """Return the subject of a topic's values (TopicNameStrategy, the default of every serializer)."""
    return f"{topic}-value"


def plan(
    topics: Topics,
    catalogue: SchemaCatalogue,
    registered: Mapping[str, Iterable[RegisteredVersion]],
    levels: Mapping[str, str | None],
) -> RegistrationPlan:
    """Return what has to be done.

    registered: subject to what is under it, oldest first. levels: subject to its own level; without an entry for a
    subject whose registry knows no levels.
    Raises OperatorError("registry_holds_other_schemas") if a subject of ours holds a version that is not ours.
    """
    level_steps: list[LevelStep] = []
    version_steps: list[VersionStep] = []
    strangers: list[str] = []
    for record in RECORD_NAMES:
        subject = subject_of(topics.name(record))
        ids: dict[SchemaVersion, int] = {}
        for found in registered.get(subject, ()):
            try:
                ours = identify(found.text, catalogue)
                if ours.record != record:
                    raise NotOurs(f"that of {ours.record}")
            except NotOurs as reason:
                strangers.append(f"{subject} version {found.version} (id {found.schema_id}) is {reason}")
            else:
                ids[ours] = found.schema_id
        version_steps += [
            VersionStep(
                subject=subject,
                schema=schema,
                action="present" if schema in ids else "register",
                schema_id=ids.get(schema),
            )
            for schema in catalogue.versions(record)
        ]
        if subject in levels:
            before = levels[subject]
            level_steps.append(
                LevelStep(subject=subject, before=before, action="present" if before == LEVEL else "set")
            )
    if strangers:
        raise OperatorError(
            "registry_holds_other_schemas",
            f"The registry holds schemas under our subjects that this release does not know: {'; '.join(strangers)}.",
            "If a newer release has registered them, run its `schemas register` instead. If somebody else uses the "
            "subject, choose another KINGUIN_TOPICS__PREFIX, or have them deleted. Nothing was registered.",
        )
    return RegistrationPlan(levels=tuple(level_steps), versions=tuple(version_steps))
