"""Schema ids from a registry with Confluent's API, and what becomes of them while it is away.

What an id means never changes, so what is known is used at once: from memory, or from a file of ids that was written when
the registry could be asked. The registry is asked about an unknown id, at most once an interval, and about a known one now
and then, for one thing only: to notice that it was rebuilt and gives our ids to other schemas.
"""

import threading
import time
import weakref
from dataclasses import dataclass
from typing import Literal

import structlog

from kinguin_streams.cluster.registry_cache import IdFile
from kinguin_streams.cluster.registry_client import (
    GREATEST_ID,
    NotInRegistry,
    RegistryAway,
    RegistryClient,
    RegistryRefused,
    away_error,
)
from kinguin_streams.cluster.registry_match import NotOurs, identify
from kinguin_streams.cluster.registry_plan import subject_of
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.schemas.codec import UnknownSchema
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaVersion, shipped
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

ASK_AGAIN_AFTER_S = 5.0
ASK_AGAIN_AT_MOST_S = 60.0
VERIFY_EVERY_S = 600.0


@dataclass(frozen=True, slots=True)
class _Known:
    """A shipped version behind an id.

    source: who says so. "file": the file of ids alone; "registry": it has told this process; "lost": it told once, and has
    told this process that it has no such id any more. ask_again_s: when it is to be asked next, by the monotonic clock; 0
    if this process has not asked yet.
    """

    schema: SchemaVersion
    source: Literal["file", "registry", "lost"]
    ask_again_s: float


@dataclass(frozen=True, slots=True)
class _Wait:
    """Why something is not asked before an instant of the monotonic clock."""

    until_s: float
    delay_s: float
    reason: str


class RegistryIds:
    """Ids of our schemas under `<topic>-value`; an implementation of schemas.codec.SchemaIds. Safe to call from any thread.

    `contradiction` is what was found out in the background and stops whoever asks next: an id that means another schema now.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        topics: Topics,
        *,
        ask_again_s: float = ASK_AGAIN_AFTER_S,
        ask_again_max_s: float = ASK_AGAIN_AT_MOST_S,
        verify_every_s: float = VERIFY_EVERY_S,
    ) -> None:
        """settings: with a url. ask_again_s: first interval after an answer that is none; it doubles up to the greatest.

        Raises OperatorError("registry_extra_missing") as RegistryClient does.
        """
        self._client = RegistryClient(settings)
        self._topics = topics
        self._timeout_s = settings.timeout_s
        self._auto_register = settings.auto_register
        self._ask_again_s = ask_again_s
        self._ask_again_max_s = ask_again_max_s
        self.pause_s = min(1.0, ask_again_s)
        """How often to see whether something is due."""
        self._verify_every_s = verify_every_s
        self._file = IdFile(settings.cache_file, self._client.shown_url)
        self._lock = threading.Lock()
        self._known: dict[int, _Known] = {}
        self._questions: dict[int, threading.Event] = {}
        self._unknown: dict[int, _Wait] = {}
        self._away: _Wait | None = None
        self._written: set[int] = set()
        self._complain_again_s = 0.0
        self.contradiction: OperatorError | None = None
        self._load()

    # Reading

    def schema_of(self, schema_id: int) -> SchemaVersion:
        """Return the shipped version behind an id. Waits for the registry one timeout at most, and only if it has to.

        Raises UnknownSchema if the id is none of ours, or the registry cannot be asked now: the caller waits either way.
        Raises OperatorError("registry_contradicts") if the registry gives a known id to another schema.
        """
        known = self._known.get(schema_id)
        if known is not None and self.contradiction is None and time.monotonic() < known.ask_again_s:
            return known.schema
        return self._look_up(schema_id)

    def _look_up(self, schema_id: int) -> SchemaVersion:
        with self._lock:
            if self.contradiction is not None:
                raise self.contradiction
            known = self._known.get(schema_id)
            question = self._question(schema_id)
        # Only the first question about an id is worth waiting for: later ones find out what nobody needs at once.
        if question is not None and (known is None or known.ask_again_s == 0) and not question.wait(self._timeout_s):
            with self._lock:
                self._is_away(f"the registry at {self._client.shown_url} gives no answer in {self._timeout_s:g} s")
        with self._lock:
            if self.contradiction is not None:
                raise self.contradiction
            known = self._known.get(schema_id)
            if known is not None:
                return known.schema
            wait = self._unknown.get(schema_id) or self._away
            raise UnknownSchema(f"schema id {schema_id}: {wait.reason if wait else 'no answer'}")

    def _question(self, schema_id: int) -> threading.Event | None:
        """Return the question about this id that is under way, or None if it is not the time for one. Lock held.

        Asked in a thread of its own: a registry that sends a byte now and then passes every timeout of an HTTP client.
        """
        if schema_id > GREATEST_ID:
            self._waits(schema_id, "no registry gives such an id")
            return None
        now_s = time.monotonic()
        for wait in (self._away, self._unknown.get(schema_id)):
            if wait is not None and now_s < wait.until_s:
                return None
        answered = self._questions.get(schema_id)
        if answered is None:
            answered = self._questions[schema_id] = threading.Event()
            threading.Thread(
                target=self._ask, args=(schema_id, answered), name=f"registry-id-{schema_id}", daemon=True
            ).start()
        return answered

    def _ask(self, schema_id: int, answered: threading.Event) -> None:
        try:
            text = self._client.schema_text(schema_id)
        except RegistryAway as away:
            with self._lock:
                self._is_away(str(away))
        except NotInRegistry:
            with self._lock:
                self._is_back()
                self._is_missing(schema_id)
        else:
            with self._lock:
                self._is_back()
                self._means(schema_id, text)
        finally:
            with self._lock:
                del self._questions[schema_id]
            answered.set()

    # What an answer changes; the lock is held in all of these

    def _means(self, schema_id: int, text: str) -> None:
        known = self._known.get(schema_id)
        try:
            schema = identify(text, shipped())
        except NotOurs as reason:
            if known is not None:
                self._contradicts(schema_id, _named(known.schema), str(reason))
            else:
                self._waits(schema_id, str(reason))
        else:
            self._learn(schema_id, schema)

    def _learn(self, schema_id: int, schema: SchemaVersion, *, to_write: bool = False) -> None:
        known = self._known.get(schema_id)
        if known is not None and not _same(known.schema, schema):
            self._contradicts(schema_id, _named(known.schema), _named(schema))
            return
        before = self._file.add(self._subject(schema), schema_id, schema.fingerprint.hex(), as_last=to_write)
        if before is not None:
            self._contradicts(schema_id, _named_by(before), _named(schema))
            return
        self._known[schema_id] = _Known(schema, "registry", time.monotonic() + self._verify_every_s)
        self._unknown.pop(schema_id, None)

    def _is_missing(self, schema_id: int) -> None:
        known = self._known.get(schema_id)
        if known is None:
            self._waits(schema_id, f"the registry at {self._client.shown_url} does not have it")
            return
        # Nobody else claims the id, so what it meant is all it can mean.
        self._known[schema_id] = _Known(known.schema, "lost", time.monotonic() + self._verify_every_s)
        log.error(
            "registry_lost_id",
            schema_id=schema_id,
            record=known.schema.record,
            version=known.schema.version,
            hint="other readers cannot read these records: was the registry rebuilt, or the schema deleted for good?",
        )

    def _waits(self, schema_id: int, reason: str) -> None:
        self._unknown[schema_id] = self._longer(self._unknown.get(schema_id), reason)

    def _is_away(self, reason: str) -> None:
        now_s = time.monotonic()
        if self._away is not None and now_s < self._away.until_s:
            return  # several asked at once, and all of them were told
        self._away = self._longer(self._away, reason)
        log.warning("registry_away", reason=reason, asked_again_in_s=self._away.delay_s)
        for schema_id, known in self._known.items():
            if known.source == "file":
                self._known[schema_id] = _Known(known.schema, "file", self._away.until_s)

    def _is_back(self) -> None:
        self._away = None

    def _longer(self, before: _Wait | None, reason: str) -> _Wait:
        delay_s = self._ask_again_s if before is None else min(before.delay_s * 2, self._ask_again_max_s)
        return _Wait(time.monotonic() + delay_s, delay_s, reason)

    def _contradicts(self, schema_id: int, was: str, now_means: str) -> None:
        self._stop(
            schema_id,
            f"Schema id {schema_id} was {was}, and the registry at {self._client.shown_url} now says that it is {now_means}.",
        )

    def _stop(self, schema_id: int, what: str) -> None:
        self.contradiction = OperatorError(
            "registry_contradicts",
            what,
            "Was the registry rebuilt with other ids? Records in the topics still carry the old ones: restore it with "
            f"its ids. If no topic holds such records, delete {self._file.path} and start again.",
        )
        log.error("registry_contradicts", schema_id=schema_id, reason=what)

    def verify_all(self) -> tuple[str, ...]:
        """Ask about every id that the file knows; return what is wrong with them. Stops at a contradiction."""
        if self.contradiction is not None:
            return (_told(self.contradiction),)
        found: list[str] = []
        for schema_id, known in list(self._known.items()):
            try:
                self._look_up(schema_id)
            except OperatorError as error:
                return (*found, _told(error))
            if self._known[schema_id].source == "lost":
                found.append(
                    f"id {schema_id} of {known.schema.record} version {known.schema.version} is no longer in the registry: "
                    "other readers cannot read such records"
                )
        return tuple(found)

    # Writing

    def id_of(self, schema: SchemaVersion) -> int:
        """Return the id of a shipped version under its topic's subject; registers it only if the settings say so.

        While the registry is away: one that the file of ids knows. What is returned is verified now and then, in the
        background: a contradiction is logged, since who writes has nobody to raise it to.
        Raises OperatorError: registry_away (and nothing known), schema_not_registered, registry_refused,
        registry_contradicts.
        """
        if self.contradiction is not None:
            raise self.contradiction
        subject = self._subject(schema)
        try:
            if self._away is not None and time.monotonic() < self._away.until_s:
                raise RegistryAway(self._away.reason)  # a start asks for several ids, and waits for the first one only
            schema_id = self._registered_id(subject, schema)
        except RegistryAway as away:
            with self._lock:
                self._is_away(str(away))
                ids = [number for number, known in self._known.items() if _may_be_written(known, schema)]
            if not ids:
                raise _away_and_unknown(schema, away) from away
            schema_id = ids[-1]  # the one last given: one from before may be lost by now
            log.warning("registry_away_id_from_file", record=schema.record, version=schema.version, schema_id=schema_id)
            self._watch(schema_id)
            return schema_id
        with self._lock:
            self._learn(schema_id, schema, to_write=True)
        self._verify_others(schema_id, schema)
        if self.contradiction is not None:
            raise self.contradiction
        self._watch(schema_id)
        return schema_id

    def _registered_id(self, subject: str, schema: SchemaVersion) -> int:
        # Newest first: the version that is written is most often the last one registered.
        for found in reversed(self._client.versions(subject)):
            if _is(found.text, schema):
                return found.schema_id
        if not self._auto_register:
            raise OperatorError(
                "schema_not_registered",
                f"The registry at {self._client.shown_url} does not have {schema.record} version {schema.version} under "
                f"{subject}.",
                "Run `kinguin-streams schemas register`, a step of every deployment, or set "
                "KINGUIN_REGISTRY__AUTO_REGISTER=true.",
            )
        return register(self._client, subject, schema)

    def _verify_others(self, schema_id: int, schema: SchemaVersion) -> None:
        """Ask about the other ids that this version once had: a registry that was rebuilt may have given them away."""
        for other, known in list(self._known.items()):
            if _same(known.schema, schema) and other != schema_id and known.source == "file":
                try:
                    self._look_up(other)
                except OperatorError:
                    return  # the caller raises it

    def _watch(self, schema_id: int) -> None:
        """See to it that an id which is written, and so never looked up by this process, is verified all the same."""
        with self._lock:
            first = not self._written
            self._written.add(schema_id)
        if first:
            threading.Thread(target=_watch, args=(weakref.ref(self),), name="registry-watch", daemon=True).start()

    def verify_what_is_due(self) -> None:
        """Ask about the ids that are written, each when its time has come; log a contradiction, again and again."""
        for schema_id in list(self._written):
            if time.monotonic() < self._known[schema_id].ask_again_s:
                continue
            try:
                self._look_up(schema_id)
            except OperatorError as error:
                if time.monotonic() >= self._complain_again_s:
                    self._complain_again_s = time.monotonic() + self._verify_every_s
                    log.error("registry_contradicts_what_is_written", reason=error.what, hint=error.hint)

    def _subject(self, schema: SchemaVersion) -> str:
        return subject_of(self._topics.name(schema.record))

    def _load(self) -> None:
        by_fingerprint = {
            (self._subject(schema), schema.fingerprint.hex()): schema
            for record in RECORD_NAMES
            for schema in shipped().versions(record)
        }
        fingerprints: dict[int, str] = {}
        for subject, ids in self._file.read().items():
            for schema_id, fingerprint in ids.items():
                # A later release may have written ids of versions that this one does not know.
                if (schema := by_fingerprint.get((subject, fingerprint))) is not None:
                    self._known[schema_id] = _Known(schema, "file", 0.0)
                before = fingerprints.setdefault(schema_id, fingerprint)
                if before != fingerprint:
                    both = f"{_named_by(before)} and to {_named_by(fingerprint)}"
                    self._stop(schema_id, f"{self._file.path} gives schema id {schema_id} to {both}.")


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
        if not _is(client.schema_text(schema_id), schema):
            raise RegistryRefused(f"it answers with id {schema_id}, and that is another schema")
    except (RegistryRefused, NotInRegistry) as error:
        raise OperatorError(
            "registry_refused",
            f"The registry at {client.shown_url} did not take {schema.record} version {schema.version} under {subject}: "
            f"{error}",
            "Look at what the subject holds and at its compatibility level; `schemas register --dry-run` shows both.",
        ) from error
    return schema_id


def _is(text: str, schema: SchemaVersion) -> bool:
    try:
        return _same(identify(text, shipped()), schema)
    except NotOurs:
        return False


def _same(one: SchemaVersion, other: SchemaVersion) -> bool:
    # Not by identity: threads that are the first to ask for the shipped versions may each get their own copy.
    return one.fingerprint == other.fingerprint


def _may_be_written(known: _Known, schema: SchemaVersion) -> bool:
    return known.source != "lost" and _same(known.schema, schema)


def _named(schema: SchemaVersion) -> str:
    return f"{schema.record} version {schema.version}"


def _named_by(fingerprint: str) -> str:
    schema = shipped().by_fingerprint(bytes.fromhex(fingerprint))
    return f"a schema with the fingerprint {fingerprint}, unknown to this release" if schema is None else _named(schema)


def _told(error: OperatorError) -> str:
    return f"{error.what} {error.hint}"


def _away_and_unknown(schema: SchemaVersion, away: RegistryAway) -> OperatorError:
    return away_error(
        away,
        what=f"The id of {_named(schema)} is not known here, and it cannot be asked for",
        then="With KINGUIN_REGISTRY__CACHE_FILE on a disk that stays, a restart needs no registry.",
    )
