"""The loop: from Kafka to an effect. A thin shell around sort_out and Effect.take.

The order of the lines in Effect.take is the guarantee: a dead letter is in Kafka before its record counts as done, and
an offset moves with what it stands for (a projection's, in its database) or after it (a handler's, in Kafka).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from operator import methodcaller
from typing import Final

import structlog

from kinguin_streams.cluster.connection import admin_config, consumer_config
from kinguin_streams.cluster.publisher import Publisher
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.consumers import dead_letter_sink
from kinguin_streams.consumers.away_wait import Away, AwayWait
from kinguin_streams.consumers.batch import Batch, Message, TopicPart, sort_out
from kinguin_streams.consumers.client import Identity, NewClient, kafka_client
from kinguin_streams.consumers.clock import SYSTEM_CLOCK, Clock
from kinguin_streams.consumers.effect import Effect
from kinguin_streams.consumers.garbage import without_cycles_looked_for
from kinguin_streams.consumers.held import HeldPartitions, PauseReason
from kinguin_streams.consumers.membership import Membership, explained, with_short_session
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.consumers.source_identity import SourceIdentity
from kinguin_streams.consumers.store import PartitionSource
from kinguin_streams.consumers.tally import Tally
from kinguin_streams.schemas.codec import Decoder, RecordEncoder, RegistryNeeded
from kinguin_streams.schemas.events import DeadLetter
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.traces import Span, Traces

log = structlog.get_logger()

COMMIT_EVERY_S = 1.0
COMMIT_HANDLED_EVERY_S = 0.1
"""Of handlers, whose committed offsets are what they are not called again for after a crash; also within a turn."""
REPORT_EVERY_S = 10.0
FETCHED_AHEAD_KIB = 16_384
"""By default the client fetches 64 MiB ahead, a fifth of a consumer's memory. With this it hands out 111,000 records/s, which is
more than any consumer takes; a replay, which may, keeps the default."""
SLICE_RECORDS = 5_000
"""So many are fetched at once, and decoded before more are fetched."""
_TOPIC_OF: Final = methodcaller("topic")


class _Gathered:
    """What a turn has fetched so far, sorted out."""

    __slots__ = ("batch", "count", "due", "messages")

    def __init__(self) -> None:
        self.batch = Batch()
        self.count = 0
        """Records in it."""
        self.messages: list[Message] = []
        """All of them if the effect wants them; some of them for the batch's trace."""
        self.due: set[TopicPart] | None = None
        """The partitions that are held no longer, or are tried again in this turn; None: nothing has been fetched."""

    def drop(self, parts: Collection[TopicPart]) -> None:
        """Forget what is of these: they are another process's, or are read again."""
        if parts and self.count:
            before = len(self.batch.received)
            self.batch = self.batch.without(parts)
            self.count -= before - len(self.batch.received)
            self.messages = [each for each in self.messages if (each.topic(), each.partition()) not in parts]


class ConsumeLoop:
    """Reads the topics of one consumer as a member of its group, until stopped."""

    def __init__(
        self,
        effect: Effect,
        *,
        kafka: KafkaSettings,
        topics: Topics,
        settings: ConsumerSettings,
        decoder: Decoder,
        encoder: RecordEncoder,
        publisher: Publisher,
        traces: Traces,
        new_client: NewClient = kafka_client,
        identity: Identity | None = None,
        clock: Clock = SYSTEM_CLOCK,
        tally: Tally | None = None,
    ) -> None:
        """encoder, publisher: for dead letters.

        new_client, identity, clock: of a Kafka and a time that are not the real ones. tally: where others count too.
        """
        self._effect = effect
        self._clock = clock
        self._traces = traces
        self._topics = topics
        self._settings = settings
        self._decoder = decoder.without(effect.unused)
        self._encoder = encoder
        self._publisher = publisher
        self._log = log.bind(consumer=effect.name)
        self._expected = {topics.name(name): name for name in effect.events}
        group_id = self.group_id
        config = with_short_session(consumer_config(kafka, group_id=group_id, client_id=group_id))
        config.setdefault("queued.max.messages.kbytes", FETCHED_AHEAD_KIB)
        if settings.instance_id is not None:
            config["group.instance.id"] = settings.instance_id
        self._held = HeldPartitions(settings.schema_retry_s, settings.schema_retry_max_s)
        self._away = AwayWait(settings.state_retry_s, settings.state_retry_max_s, clock)
        self.tally = tally or Tally()
        """What this run has done."""
        self.tally.consumed.update(dict.fromkeys(self._expected, 0))
        self._member = Membership(
            effect,
            config=config,
            new_client=new_client,
            identity=identity
            or SourceIdentity(
                admin_config(kafka, client_id=f"{group_id}-admin"),
                list(self._expected),
                settings.kafka_wait_s,
                effect.source_hints,
            ),
            held=self._held,
            away=self._away,
            tally=self.tally,
            settle=self._settle,
            clock=clock,
        )
        # A handler's code is somebody else's, and may make cycles for as long as it runs.
        self._garbage = nullcontext if effect.offsets_are_kafkas else without_cycles_looked_for
        self._stopping = False
        self._last_commit_s = self._last_report_s = clock.monotonic_s()
        self._reported = 0

    @property
    def applied(self) -> int:
        """Records that have taken effect in this run."""
        return self.tally.applied

    @property
    def dead_lettered(self) -> int:
        """Records that were dead-lettered in this run."""
        return self.tally.dead_lettered

    @property
    def group_id(self) -> str:
        """The consumer group's name."""
        return self._settings.group_id(self._effect.name)

    @property
    def topics(self) -> list[str]:
        """The topics that it reads, by name."""
        return list(self._expected)

    @property
    def is_member(self) -> bool:
        """Whether this process is in its group, with partitions or as one too many."""
        return self._member.is_member

    @property
    def paused(self) -> dict[PauseReason, int]:
        """How many partitions wait for what, instead of being read. Any thread may ask."""
        waiting = self._held.waiting(self._clock.monotonic_s())
        away = self._away.waits_for
        return waiting if away is None else {**dict.fromkeys(waiting, 0), away: len(self._member.sources)}

    @property
    def turning_for_s(self) -> float:
        """For how long the turn in hand, or the closing, has gone on; 0 before the first and after it. Any thread may ask."""
        turned_s = self.tally.turned_s
        return 0.0 if turned_s is None else self._clock.monotonic_s() - turned_s

    @property
    def assigned(self) -> frozenset[TopicPart]:
        """The partitions that Kafka's group has given to this process."""
        return frozenset(self._member.sources)

    @property
    def waits_for(self) -> Away | None:
        """What does not answer, so that every partition is paused; None: none is for that. Any thread may ask."""
        return self._away.waits_for

    @property
    def sources(self) -> Mapping[TopicPart, PartitionSource]:
        """The assigned partitions, with the ids of what they are partitions of. For the effect."""
        return self._member.sources

    @property
    def next_offsets(self) -> Mapping[TopicPart, int | None]:
        """Of each assigned partition, the offset that is to take effect next; None: none ever has."""
        return self._member.next_offsets

    @property
    def next_due_s(self) -> float | None:
        """When, on the clock's monotonic_s, what is held is tried again; None: nothing is held."""
        return self._held.next_due_s()

    def stop(self) -> None:
        """Ask the loop to end after the batch or the handler in hand; a signal handler or another thread may call it."""
        self._stopping = True

    def is_stopping(self) -> bool:
        """Return whether it was asked to."""
        return self._stopping

    def run(self) -> None:
        """Consume until stopped.

        Raises OperatorError for whatever stops it: lost_partition, topic_missing, topic_replaced, cluster_changed,
        offset_out_of_range, registry_needed, dead_letter_refused, handler_keeps_failing, not_authorized,
        kafka_unreachable (at the start), kafka_client_failed, kafka_config_refused, those of consumers/database.py and of
        cluster/registry.py. What has not taken effect then will, after a restart.
        """
        try:
            self.open()
            self.tally.turned_s = self._clock.monotonic_s()
            while not self._stopping:
                self.turn()
        finally:
            try:
                self.close()
            finally:
                # Not before: who hangs while it closes is stuck, and nobody but /livez can tell.
                self.tally.turned_s = None

    def open(self) -> None:
        """Join the group."""
        with explained():
            self._member.join(list(self._expected))

    def close(self) -> None:
        """Leave the group."""
        if not self._member.is_joined:
            return
        with explained():
            try:
                self._settle()
            finally:
                self._member.leave()
        self._log.info("consumer_stopped", applied=self.applied, dead_lettered=self.dead_lettered)

    def turn(self) -> None:
        """Take what is there, at most a batch of it, and let it take effect. Raises as `run` does."""
        with explained(), self._garbage():
            self._turn()
        self.tally.turned_s = self._clock.monotonic_s()

    def _turn(self) -> None:
        gathered = self._gather()
        if self._away.is_on:
            # What was fetched is dropped: once it is back, everything is read again from its offsets.
            if self._away.is_due:
                self._member.read_again()
            return
        if gathered.count:
            with self._database_may_be_away():
                self._take_effect(gathered)
        else:
            self._settle()
        self._commit_if_due(0.0 if self._effect.offsets_are_kafkas else COMMIT_EVERY_S)
        self._report(self._clock.monotonic_s())

    def _gather(self) -> "_Gathered":
        """Fetch what is there and sort it out, a slice at a time: decoded, a record takes a quarter of the memory."""
        left = min(self._settings.batch_records, self._effect.most_records)
        gathered = _Gathered()
        while left and not self._stopping:
            most_records = min(left, SLICE_RECORDS)
            fetched = self._member.consume(most_records, self._wait_s())
            gathered.drop(self._member.changed())
            if self._away.is_on:
                break
            for topic, count in Counter(map(_TOPIC_OF, fetched)).items():
                self.tally.consumed[topic] += count
            messages = self._not_held(fetched, gathered)
            self._sort_out(messages, gathered.batch)
            gathered.count += len(messages)
            if not gathered.messages or self._effect.wants_messages:
                gathered.messages += messages
            left -= len(fetched)
            if len(fetched) < most_records:
                break
        return gathered

    def _not_held(self, fetched: Sequence[Message], gathered: "_Gathered") -> list[Message]:
        """Return what is to take effect: what was held until now, and what was fetched of partitions that are not held."""
        if gathered.due is None:
            gathered.due = self._held.due(self._clock.monotonic_s())
            messages = self._held.messages(gathered.due)
        else:
            messages = []
        for message in fetched:
            part = TopicPart(message.topic(), message.partition())
            if part in self._held and part not in gathered.due:
                self._held.add(part, message)
            else:
                messages.append(message)
        return messages

    def _settle(self) -> None:
        """Wait for what is in hand: partitions are about to change, or there is nothing else to do."""
        with self._database_may_be_away():
            self._effect.settle(self)

    @contextmanager
    def _database_may_be_away(self) -> Iterator[None]:
        """Pause everything if it is; what is in hand or was fetched is dropped, and read again once the database is back."""
        try:
            yield
        except OperatorError as error:
            self._away.begin(error, self._effect.name)
            self._member.pause(self._member.sources)

    def _wait_s(self) -> float:
        due_s = self._held.next_due_s()
        if due_s is None or self._away.is_on:
            return self._settings.batch_wait_s
        return min(self._settings.batch_wait_s, max(0.0, due_s - self._clock.monotonic_s()))

    def _take_effect(self, gathered: "_Gathered") -> None:
        messages = gathered.messages if self._effect.wants_messages else ()
        span = self._traces.processing(self._effect.name, gathered.messages, gathered.count)
        with ExitStack() as until_done:
            until_done.enter_context(self._measured(span, gathered.count))
            unfinished = self._effect.take(gathered.batch, messages, self, until_done)
        self._hold(messages, gathered.batch, unfinished)

    @contextmanager
    def _measured(self, batch: AbstractContextManager[Span], count: int) -> Iterator[None]:
        """Say how a batch of so many has ended, and if it has taken effect, how long that took. On any thread."""
        began_s = self._clock.monotonic_s()
        with batch as span:
            try:
                yield
            except Exception as error:
                span.ended(error.code if isinstance(error, OperatorError) else type(error).__name__, failed=True)
                raise
            span.ended("applied", failed=False)
        self.tally.batch(count, self._clock.monotonic_s() - began_s)

    def keep(self, letter: DeadLetter) -> None:
        """Return when the dead letter is in Kafka. For the effect. Raises OperatorError("dead_letter_refused")."""
        dead_letter_sink.keep(letter, self._publisher, self._topics, self._encoder)
        self.tally.dead_letter(letter.reason)

    def done(self, part: TopicPart, next_offset: int, applied: int) -> None:
        """Note that all below the offset has taken effect, `applied` records more than before. For the effect."""
        self._member.advance(part, next_offset)
        self.tally.applied += applied
        if self._effect.offsets_are_kafkas:
            self._commit_if_due(COMMIT_HANDLED_EVERY_S)
        else:
            self.tally.stored_at_ms = self._clock.now_ms()

    def will_retry(self) -> None:
        """Note that what has failed is tried again. For the effect."""
        self.tally.retries += 1

    def _commit_if_due(self, every_s: float) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._last_commit_s >= every_s:
            self._last_commit_s = now_s
            if self._member.commit() and self._effect.offsets_are_kafkas:
                self.tally.stored_at_ms = self._clock.now_ms()

    def _sort_out(self, messages: list[Message], batch: Batch) -> None:
        try:
            sort_out(
                messages,
                batch,
                decode=self._decoder.decode,
                expected=self._expected,
                consumer=self._effect.name,
                now_ms=self._clock.now_ms(),
            )
        except RegistryNeeded as error:
            raise OperatorError(
                "registry_needed",
                f"{self._effect.name} met a record in the Confluent wire format: {error}.",
                "Set KINGUIN_REGISTRY__URL to the schema registry that its writer uses.",
            ) from error

    def _hold(self, messages: Sequence[Message], batch: Batch, unfinished: Mapping[TopicPart, float]) -> None:
        """Hold what is not done, partition by partition, and go on with those that have nothing left."""
        left = {part: held.messages for part, held in batch.held.items()}
        left.update({part: [] for part in unfinished})
        for message in messages if unfinished else ():
            part = TopicPart(message.topic(), message.partition())
            if part in unfinished and message.offset() >= (self.next_offsets[part] or 0):
                left[part].append(message)
        for part, rest in left.items():
            if part in unfinished:
                must_pause = self._held.hold(part, rest, unfinished[part])
            else:
                must_pause = self._hold_for_schema(part, rest, batch.held[part].reason)
            if must_pause:
                self._member.pause([part])
        for part in batch.next_offsets:
            if part in self._held and part not in left:
                self._held.release(part)
                self._member.resume([part])

    def _hold_for_schema(self, part: TopicPart, rest: list[Message], reason: str) -> bool:
        must_pause, delay_s = self._held.hold_for_schema(part, rest, self._clock.monotonic_s())
        self._log.error(
            "schema_unknown",
            topic=part.topic,
            partition=part.partition,
            offset=rest[0].offset(),
            reason=reason,
            retry_in_s=delay_s,
            hint="upgrade this consumer, or see to the schema registry; the partition waits, the others go on",
        )
        return must_pause

    def _report(self, now_s: float) -> None:
        if now_s - self._last_report_s < REPORT_EVERY_S:
            return
        if self.applied > self._reported:
            per_s = (self.applied - self._reported) / (now_s - self._last_report_s)
            self._log.info("records_applied", applied=self.applied, per_s=round(per_s))
        self._last_report_s = now_s
        self._reported = self.applied
