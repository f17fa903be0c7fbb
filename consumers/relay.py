"""The relay: outbox to derived topic. At least once; readers keep the greatest (generation, revision) of a key.

The order of the lines in `turn` is the guarantee: a row goes only after Kafka has confirmed its record, and only if its
revision is still the confirmed one. A crash in between tells a state twice.

Who loses the lock while records are under way may have put an older state behind a newer one of the next leader: it puts
those keys back, to be told once more.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import structlog

from kinguin_streams.cluster.publisher import PublishFailed, Report, TopicMissing
from kinguin_streams.consumers import database, election, generations, outbox
from kinguin_streams.consumers.clock import SYSTEM_CLOCK, Clock
from kinguin_streams.consumers.derived_states import states_of
from kinguin_streams.consumers.outbox import Queued
from kinguin_streams.consumers.projection import Projection, StateKey
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.telling_again import tell_again
from kinguin_streams.schemas.codec import RecordEncoder
from kinguin_streams.schemas.outgoing import OutgoingRecord, OutgoingTombstone, outgoing, tombstone
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

BATCH_KEYS: Final = 1_000
REST_S: Final = 0.5
"""Between two looks at an outbox that was read to its end: several changes of one key within it are told as one."""
RETRY_MAX_S: Final = 30.0
REPORT_WAIT_S: Final = 60.0
"""Longer than a producer's delivery timeout, so that the client's own report is what is heard."""
STOP_S: Final = 5.0
"""For the batch in hand, once it is to end: a consumer has 30 s for all of its stop, see FLUSH_S in cli/running.py."""


class Sender(Protocol):
    """What the relay needs of cluster.publisher.KafkaPublisher."""

    def partitions(self, topic: str, timeout_s: float) -> int:
        """Return the topic's number of partitions; raises TopicMissing or PublishFailed."""
        ...

    def send(self, record: OutgoingRecord | OutgoingTombstone) -> Report:
        """Return what will be the record's delivery report; raises PublishFailed if it is not taken."""
        ...


class Relay:
    """Publishes the outbox of one projection whenever this process holds the projection's lock."""

    def __init__(
        self,
        projection: Projection,
        *,
        state: StateSettings,
        topics: Topics,
        encoder: RecordEncoder,
        sender: Sender,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """projection: with a derived topic. Its tables must be there: open its StateStore first.

        Raises OperatorError as consumers/database.py does.
        """
        if projection.derived is None:
            raise ValueError(f"{projection.name} has no derived topic")
        self._projection = projection
        self._name = projection.derived
        self._state = state
        self._topics = topics
        self._topic = topics.name(projection.derived)
        self._encoder = encoder
        self._sender = sender
        self._clock = clock
        self._log = log.bind(consumer=projection.name, topic=self._topic)
        self._election = election.candidate(state, projection.name)
        self._reading = database.open_for_reading(state)
        self._topic_is_there = False
        self._after: StateKey | None = None
        self._doubtful: set[StateKey] = set()
        """Keys that were told without proof that nobody else led meanwhile."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.told = 0
        """Records that Kafka has confirmed in this run."""
        self.leading = False
        self._is_replaced = False
        """Another version of the fold has made the live state: its own processes tell of it, and this one is to end."""
        self._round_began_s: float | None = None
        """When the round in hand began, as long as everything in it has been told; None: it proves nothing any more."""
        self._all_told_s = clock.monotonic_s()

    @property
    def behind_s(self) -> float | None:
        """For how long the oldest row may have waited, at most; None where another process has the lock.

        Rows do not say since when they wait. But a round from the first key to the last that told every row of it has told
        all that was there when it began. Any thread may ask.
        """
        return max(0.0, self._clock.monotonic_s() - self._all_told_s) if self.leading else None

    def start(self) -> None:
        """Run in a thread of its own until stopped. A failure is logged and tried again; it never ends the process."""
        self._thread = threading.Thread(target=self.run, name="relay", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End after the batch in hand, and close the database. What is not told yet stays in the outbox."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                # A daemon: it ends with the process, and the rows of its batch stay.
                self._log.warning("relay_left_behind", waited_s=timeout_s)
                return
        self._election.close()
        self._reading.dispose()

    def run(self) -> None:
        """Publish until stopped."""
        delay_s = REST_S
        while not self._stopping.is_set():
            try:
                more = self.turn()
            except (OperatorError, PublishFailed) as error:
                hint = error.hint if isinstance(error, OperatorError) else "nothing is lost: it is told later"
                self._log.error("relay_waits", reason=str(error), retry_in_s=delay_s, hint=hint)
            except Exception:  # noqa: BLE001 - the state goes on without its topic, and the log says so
                self._log.exception("relay_failed", retry_in_s=delay_s)
            else:
                delay_s = REST_S
                if not more:
                    self._stopping.wait(REST_S)
                continue
            self._stopping.wait(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)
        try:
            self._put_back()
        except OperatorError as error:
            hint = "once the database is back: kinguin-streams state verify --derived --repair"
            self._log.error("relay_may_leave_older", keys=len(self._doubtful), reason=str(error), hint=hint)
        self._log.info("relay_stopped", told=self.told)

    def turn(self) -> bool:
        """Publish one batch if this process holds the lock; return whether there may be more at once.

        Raises OperatorError for the database, a registry or a topic that is missing, PublishFailed for Kafka.
        """
        self._put_back()
        if self._is_replaced or not self._leads():
            return False
        if self._after is None:
            self._round_began_s = self._clock.monotonic_s()
        # Until all of this batch is told.
        began_s, self._round_began_s = self._round_began_s, None
        self._ask_for_topic()
        with database.explained(self._state), self._reading.connect() as connection:
            live = generations.live(connection, self._projection)
            if live is None:
                self._all_told_s = self._clock.monotonic_s()
                return False
            # In the transaction that reads the states: the fold of another version would tell them in its own words.
            self._is_replaced = live.version != self._projection.version
            if self._is_replaced:
                self._step_down(live.version)
                return False
            generation = live.generation
            queued = outbox.peek(connection, self._projection.name, generation, BATCH_KEYS, self._after)
            states = states_of(connection, self._projection, generation, dict(queued))
        # Round and round in the order of the keys: one that is refused or changes all the time keeps nobody waiting.
        self._after = queued[-1].key if len(queued) == BATCH_KEYS else None
        if not queued:
            self._told_since(began_s)
            return False
        records: list[tuple[Queued, OutgoingRecord | OutgoingTombstone]] = []
        for row in queued:
            state = states.get(row.key)
            if state is not None:
                records.append((row, outgoing(state, self._topics, self._encoder)))
            else:
                gone = tombstone(
                    self._name,
                    row.key.in_topic,
                    self._topics,
                    generation=generation,
                    revision=row.revision,
                    timestamp_ms=self._clock.now_ms(),
                )
                records.append((row, gone))
        self._doubtful.update(row.key for row in queued)
        told, failure = self._send(records)
        with self._election.writing() as connection:
            outbox.confirm(connection, self._projection.name, generation, told)
        self._doubtful.clear()
        self.told += len(told)
        if failure is not None:
            raise failure
        self._told_since(began_s)
        return self._after is not None

    def _told_since(self, began_s: float | None) -> None:
        self._round_began_s = began_s
        if self._after is None and began_s is not None:
            self._all_told_s = began_s

    def _put_back(self) -> None:
        if self._doubtful:
            tell_again(self._state, self._projection, dict.fromkeys(self._doubtful, 0))
            self._log.warning("relay_tells_again", keys=len(self._doubtful), reason="the lock was lost on the way")
            self._doubtful.clear()

    def _leads(self) -> bool:
        before, self.leading = self.leading, False
        self.leading = self._election.leads()
        if self.leading and not before:
            self._after = None
            self._all_told_s = self._clock.monotonic_s()
            self._log.info("relay_leads")
        return self.leading

    def _step_down(self, version: int) -> None:
        self.leading = False
        self._election.resign()
        self._log.warning("relay_replaced", reason=f"the live state was made by version {version} of the fold")

    def _ask_for_topic(self) -> None:
        # Handed to the client anyway, records for a missing topic would wait there for their whole delivery timeout.
        if self._topic_is_there:
            return
        try:
            self._sender.partitions(self._topic, timeout_s=5.0)
        except TopicMissing as error:
            raise OperatorError(
                "topic_missing",
                f"There is no topic {self._topic}: nobody is told of the states of {self._projection.name}.",
                "Make it with `kinguin-streams topics apply`, or set KINGUIN_CONSUMER__DERIVED=false.",
            ) from error
        self._topic_is_there = True

    def _send(
        self, records: list[tuple[Queued, OutgoingRecord | OutgoingTombstone]]
    ) -> tuple[list[Queued], PublishFailed | None]:
        """Return the rows whose records Kafka has confirmed, and why others were not."""
        failure: PublishFailed | None = None
        reports: list[tuple[Queued, Report]] = []
        for row, record in records:
            try:
                reports.append((row, self._sender.send(record)))
            except PublishFailed as error:
                failure = error
                if error.code != "refused":
                    break
        told: list[Queued] = []
        for row, report in reports:
            try:
                error_or_none = report.result(timeout=REPORT_WAIT_S)
            except TimeoutError:
                error_or_none = PublishFailed("no_report", f"none within {REPORT_WAIT_S:g} s", landed="maybe")
            if error_or_none is None:
                told.append(row)
            else:
                failure = error_or_none
                self._topic_is_there = False
        return told, failure


@contextmanager
def running(relay: Relay | None) -> Iterator[None]:
    """Let a relay run meanwhile; None: nobody is to be told."""
    if relay is None:
        yield
        return
    relay.start()
    try:
        yield
    finally:
        relay.stop()
