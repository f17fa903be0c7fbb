"""Schema ids from a registry with Confluent's API: of the versions that are written, and behind those that are read.

What is known of ids, and when the registry is asked about them, is in registry_known.py.
"""

import threading
import time
import weakref

import structlog

from kinguin_streams.cluster.registry_cache import IdFile
from kinguin_streams.cluster.registry_client import (
    NotInRegistry,
    RegistryAway,
    RegistryClient,
    RegistryRefused,
    away_error,
)
from kinguin_streams.cluster.registry_known import Intervals, KnownIds
from kinguin_streams.cluster.registry_match import is_text_of, named
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.versions import SchemaVersion
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

ASK_AGAIN_AFTER_S = 5.0
ASK_AGAIN_AT_MOST_S = 60.0
VERIFY_EVERY_S = 600.0


class RegistryIds:
    """Ids of our schemas under `<topic>-value`; an implementation of schemas.codec.SchemaIds. Safe to call from any thread."""

    def __init__(
        self,
        settings: RegistrySettings,
        topics: Topics,
        *,
        ask_again_s: float = ASK_AGAIN_AFTER_S,
        ask_again_max_s: float = ASK_AGAIN_AT_MOST_S,
        verify_every_s: float = VERIFY_EVERY_S,
    ) -> None:
        """ask_again_s: first interval after an answer that is none; it doubles up to the greatest.

        Raises OperatorError as RegistryClient does.
        """
        self._client = RegistryClient(settings)
        self._auto_register = settings.auto_register
        self._known = KnownIds(
            self._client,
            IdFile(settings.cache_file, self._client.shown_url),
            topics,
            timeout_s=settings.timeout_s,
            intervals=Intervals(
                ask_again_s=ask_again_s, ask_again_max_s=ask_again_max_s, verify_every_s=verify_every_s
            ),
        )
        self.pause_s = min(1.0, ask_again_s)
        """How often to see whether something is due."""
        self._complain_every_s = verify_every_s
        self._complain_again_s = 0.0
        self._written: set[int] = set()
        self._watch_lock = threading.Lock()

    @property
    def contradiction(self) -> OperatorError | None:
        """What was found out of an id that means another schema now; it stops whoever asks next."""
        return self._known.contradiction

    def schema_of(self, schema_id: int) -> SchemaVersion:
        """Return the shipped version behind an id. Waits for the registry one timeout at most, and only if it has to.

        Raises UnknownSchema if the id is none of ours, or the registry cannot be asked now: the caller waits either way.
        Raises OperatorError("registry_contradicts") if the registry gives a known id, this one or another, to another schema.
        """
        return self._known.schema_of(schema_id)

    def verify_all(self) -> tuple[str, ...]:
        """Ask about every id that the file knows; return what is wrong with them. Stops at a contradiction."""
        return self._known.verify_all()

    def id_of(self, schema: SchemaVersion) -> int:
        """Return the id of a shipped version under its topic's subject; registers it only if the settings say so.

        While the registry is away: the last one that the file of ids knows. What is returned is verified now and then, in
        the background: a contradiction is logged, since who writes has nobody to raise it to.
        Raises OperatorError: registry_away (and nothing known), schema_not_registered, registry_refused,
        registry_contradicts.
        """
        if self.contradiction is not None:
            raise self.contradiction
        try:
            self._known.refuse_while_away()  # a start asks for several ids, and waits for the first one only
            schema_id = self._registered_id(schema)
        except RegistryAway as away:
            kept_id = self._known.last_given(schema, away)
            if kept_id is None:
                raise _away_and_unknown(schema, away) from away
            log.warning("registry_away_id_from_file", record=schema.record, version=schema.version, schema_id=kept_id)
            schema_id = kept_id
        else:
            self._known.given(schema_id, schema)
        self._watch(schema_id)
        return schema_id

    def _registered_id(self, schema: SchemaVersion) -> int:
        subject = self._known.subject_of(schema)
        # Newest first: the version that is written is most often the last one registered.
        for found in reversed(self._client.versions(subject)):
            if is_text_of(found.text, schema):
                return found.schema_id
        if not self._auto_register:
            raise OperatorError(
                "schema_not_registered",
                f"The registry at {self._client.shown_url} does not have {named(schema)} under {subject}.",
                "Run `kinguin-streams schemas register`, a step of every deployment, or set "
                "KINGUIN_REGISTRY__AUTO_REGISTER=true.",
            )
        return register(self._client, subject, schema)

    def _watch(self, schema_id: int) -> None:
        """See to it that an id which is written, and so never looked up by this process, is verified all the same."""
        with self._watch_lock:
            first = not self._written
            self._written.add(schema_id)
        if first:
            threading.Thread(target=_watch, args=(weakref.ref(self),), name="registry-watch", daemon=True).start()

    def verify_what_is_due(self) -> None:
        """Ask about the ids that are written, each when its time has come; log a contradiction, again and again."""
        for schema_id in list(self._written):
            try:
                self._known.verify_if_due(schema_id)
            except OperatorError as error:
                if time.monotonic() >= self._complain_again_s:
                    self._complain_again_s = time.monotonic() + self._complain_every_s
                    log.error("registry_contradicts_what_is_written", reason=error.what, hint=error.hint)


def _watch(of: "weakref.ref[RegistryIds]") -> None:
    """Verify as long as somebody has the ids."""
    while (ids := of()) is not None:
        ids.verify_what_is_due()
        pause_s = ids.pause_s
        del ids
        time.sleep(pause_s)


def register(client: RegistryClient, subject: str, schema: SchemaVersion) -> int:
    """Return the id of a shipped version that is under its subject now.

    Raises OperatorError("registry_refused") if the registry does not take it, or gives the id of something else; RegistryAway.
    """
    try:
        schema_id = client.register(subject, schema.text)
        # A registry may take a schema for one that it has, though the bytes mean something else.
        if not is_text_of(client.schema_text(schema_id), schema):
            raise RegistryRefused(f"it answers with id {schema_id}, and that is another schema")
    except (RegistryRefused, NotInRegistry) as error:
        raise OperatorError(
            "registry_refused",
            f"The registry at {client.shown_url} did not take {named(schema)} under {subject}: {error}",
            "Look at what the subject holds and at its compatibility level; `schemas register --dry-run` shows both.",
        ) from error
    return schema_id


def _away_and_unknown(schema: SchemaVersion, away: RegistryAway) -> OperatorError:
    return away_error(
        away,
        what=f"The id of {named(schema)} is not known here, and it cannot be asked for",
        then="With KINGUIN_REGISTRY__CACHE_FILE on a disk that stays, a restart needs no registry.",
    )
