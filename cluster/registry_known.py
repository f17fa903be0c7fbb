"""The ids that we know, what the registry is asked about them, and what its answers change.

What an id means never changes, so what is known is used at once: from memory, or from a file of ids that was written when
the registry could be asked. The registry is asked about an unknown id, at most once an interval, and about a known one now
and then, for one thing only: to notice that it was rebuilt and gives our ids to other schemas.
"""

import threading
import time
from dataclasses import dataclass
from typing import Literal

import structlog

from kinguin_streams.cluster.registry_cache import IdFile
from kinguin_streams.cluster.registry_client import GREATEST_ID, NotInRegistry, RegistryAway, RegistryClient
from kinguin_streams.cluster.registry_match import NotOurs, identify, is_same, named
from kinguin_streams.cluster.registry_plan import subject_of
from kinguin_streams.schemas.codec import UnknownSchema
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaVersion, shipped
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """When to ask, in seconds.

    ask_again_s: after an answer that is none, at first; it doubles up to ask_again_max_s. verify_every_s: about an id that
    is known.
    """

    ask_again_s: float
    ask_again_max_s: float
    verify_every_s: float


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


class KnownIds:
    """What is known of the ids of one registry. Safe to call from any thread.

    `contradiction` is what was found out in the background and stops whoever asks next: an id that means another schema now.
    """

    def __init__(
        self, client: RegistryClient, file: IdFile, topics: Topics, *, timeout_s: float, intervals: Intervals
    ) -> None:
        """timeout_s: longest wait for one answer."""
        self._client = client
        self._file = file
        self._topics = topics
        self._timeout_s = timeout_s
        self._intervals = intervals
        self._lock = threading.Lock()
        self._known: dict[int, _Known] = {}
        self._questions: dict[int, threading.Event] = {}
        self._unknown: dict[int, _Wait] = {}
        self._away: _Wait | None = None
        self.contradiction: OperatorError | None = None
        self._load()

    def schema_of(self, schema_id: int) -> SchemaVersion:
        """Return the shipped version behind an id, as schemas.codec.SchemaIds.schema_of does.

        Waits for the registry one timeout at most, and only if it has to.
        """
        known = self._known.get(schema_id)
        if known is not None and self.contradiction is None and time.monotonic() < known.ask_again_s:
            return known.schema
        return self._look_up(schema_id)

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
                    f"id {schema_id} of {named(known.schema)} is no longer in the registry: "
                    "other readers cannot read such records"
                )
        return tuple(found)

    # For who writes

    def subject_of(self, schema: SchemaVersion) -> str:
        """Return the subject under which a version is registered."""
        return subject_of(self._topics.name(schema.record))

    def refuse_while_away(self) -> None:
        """Raise RegistryAway if the registry is away and not to be asked yet."""
        away = self._away
        if away is not None and time.monotonic() < away.until_s:
            raise RegistryAway(away.reason)

    def last_given(self, schema: SchemaVersion, away: RegistryAway) -> int | None:
        """Return the id to write a version with while the registry is away; None if none is known.

        The last one: an id from before may be lost by now. Not one of which the registry has said so.
        """
        with self._lock:
            self._is_away(str(away))
            ids = [
                schema_id
                for schema_id, known in self._known.items()
                if known.source != "lost" and is_same(known.schema, schema)
            ]
        return ids[-1] if ids else None

    def given(self, schema_id: int, schema: SchemaVersion) -> None:
        """Take note of the id that the registry gives a version, and ask about the others that this version once had.

        A registry that was rebuilt may have given those away. Raises OperatorError("registry_contradicts").
        """
        with self._lock:
            self._learn(schema_id, schema, to_write=True)
            others = [
                other
                for other, known in self._known.items()
                if known.source == "file" and other != schema_id and is_same(known.schema, schema)
            ]
        for other in others:
            self._look_up(other)
        if self.contradiction is not None:
            raise self.contradiction

    def verify_if_due(self, schema_id: int) -> None:
        """Ask about a known id if its time has come. Raises OperatorError("registry_contradicts")."""
        if time.monotonic() >= self._known[schema_id].ask_again_s:
            self._look_up(schema_id)

    # Asking

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
                self._contradicts(schema_id, named(known.schema), str(reason))
            else:
                self._waits(schema_id, str(reason))
        else:
            self._learn(schema_id, schema)

    def _learn(self, schema_id: int, schema: SchemaVersion, *, to_write: bool = False) -> None:
        known = self._known.get(schema_id)
        if known is not None and not is_same(known.schema, schema):
            self._contradicts(schema_id, named(known.schema), named(schema))
            return
        before = self._file.add(self.subject_of(schema), schema_id, schema.fingerprint.hex(), as_last=to_write)
        if before is not None:
            self._contradicts(schema_id, _named_by(before), named(schema))
            return
        self._known[schema_id] = _Known(schema, "registry", time.monotonic() + self._intervals.verify_every_s)
        self._unknown.pop(schema_id, None)

    def _is_missing(self, schema_id: int) -> None:
        known = self._known.get(schema_id)
        if known is None:
            self._waits(schema_id, f"the registry at {self._client.shown_url} does not have it")
            return
        # Nobody else claims the id, so what it meant is all it can mean.
        self._known[schema_id] = _Known(known.schema, "lost", time.monotonic() + self._intervals.verify_every_s)
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
        delay_s = (
            self._intervals.ask_again_s if before is None else min(before.delay_s * 2, self._intervals.ask_again_max_s)
        )
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

    def _load(self) -> None:
        by_fingerprint = {
            (self.subject_of(schema), schema.fingerprint.hex()): schema
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


def _named_by(fingerprint: str) -> str:
    schema = shipped().by_fingerprint(bytes.fromhex(fingerprint))
    return f"a schema with the fingerprint {fingerprint}, unknown to this release" if schema is None else named(schema)


def _told(error: OperatorError) -> str:
    return f"{error.what} {error.hint}"
