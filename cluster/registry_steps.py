"""`schemas register` against a real registry: the shell around registry_plan."""

from kinguin_streams.cluster.registry import RegistryIds, register
from kinguin_streams.cluster.registry_client import RegistryAway, RegistryClient, RegistryRefused, away_error
from kinguin_streams.cluster.registry_plan import LevelStep, RegistrationPlan, VersionStep, plan, subject_of
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.versions import LEVEL, RECORD_NAMES, shipped


class Registration:
    """The shipped versions and the subjects of one registry."""

    def __init__(self, settings: RegistrySettings, topics: Topics) -> None:
        """Raises OperatorError: registry_not_set, registry_extra_missing."""
        self._client = RegistryClient(settings)
        self._topics = topics
        self.shown_url = self._client.shown_url

    def plan(self) -> RegistrationPlan:
        """Return what there is to do. Raises OperatorError: registry_away, registry_holds_other_schemas."""
        subjects = [subject_of(self._topics.name(record)) for record in RECORD_NAMES]
        try:
            registered = {subject: self._client.versions(subject) for subject in subjects}
        except RegistryAway as away:
            raise away_error(away) from away
        levels: dict[str, str | None] = {}
        for subject in subjects:
            try:
                levels[subject] = self._client.level(subject)
            except (RegistryRefused, RegistryAway):
                continue  # it has answered the above: it knows no levels, or we may not see them
        return plan(self._topics, shipped(), registered, levels)

    def set_level(self, step: LevelStep) -> str | None:
        """Set a subject's level; returns why not, if the registry does not let us."""
        try:
            self._client.set_level(step.subject, LEVEL)
        except (RegistryRefused, RegistryAway) as error:
            return str(error)
        return None

    def register(self, step: VersionStep) -> int:
        """Return the id of a version that was not registered. Raises OperatorError: registry_refused, registry_away."""
        try:
            return register(self._client, step.subject, step.schema)
        except RegistryAway as away:
            raise away_error(away, then="What was registered stays; run it again.") from away


def contradicted_ids(settings: RegistrySettings, topics: Topics) -> tuple[str, ...]:
    """Return what is wrong with the ids in the file of ids, as the registry has them now; () if it cannot be asked."""
    ids = RegistryIds(settings, topics)
    return ids.verify_all()
