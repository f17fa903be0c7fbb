"""What a registry holds under our subjects, and behind ids that were met: the asking for `schemas check` and `schemas diff`."""

from collections.abc import Iterable

from kinguin_streams.cluster.registry_client import (
    NotInRegistry,
    RegistryAway,
    RegistryClient,
    RegistryRefused,
    away_error,
)
from kinguin_streams.cluster.registry_plan import subject_of
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.registered import Registered
from kinguin_streams.schemas.topics import Topics


class RegistrySurvey:
    """One registry, asked and never told."""

    def __init__(self, settings: RegistrySettings, topics: Topics) -> None:
        """Raises OperatorError: registry_not_set, registry_extra_missing."""
        self._client = RegistryClient(settings)
        self._topics = topics

    def registered(self) -> tuple[Registered, ...]:
        """Return every version under the subjects of our topics. Raises OperatorError("registry_away")."""
        try:
            return tuple(
                Registered(record=spec.record, version=each.version, schema_id=each.schema_id, text=each.text)
                for spec in self._topics.specs
                for each in self._client.versions(subject_of(spec.name))
            )
        except RegistryAway as away:
            raise away_error(away) from away

    def levels(self) -> dict[str, str | None]:
        """Return the compatibility level of each record's subject; None where the registry's own holds.

        Without an entry for a record if the registry has no levels, or does not let us see them.
        """
        levels: dict[str, str | None] = {}
        for spec in self._topics.specs:
            try:
                levels[spec.record] = self._client.level(subject_of(spec.name))
            except (RegistryRefused, RegistryAway):
                continue
        return levels

    def texts(self, schema_ids: Iterable[int]) -> dict[int, str | None]:
        """Return the schemas of these ids; None for an id that the registry does not know. Raises OperatorError("registry_away")."""
        texts: dict[int, str | None] = {}
        for schema_id in schema_ids:
            try:
                texts[schema_id] = self._client.schema_text(schema_id)
            except NotInRegistry:
                texts[schema_id] = None
            except RegistryAway as away:
                raise away_error(away) from away
        return texts
