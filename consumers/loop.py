"""The loop: Kafka to state. A thin shell around sort_out and StateStore.apply.

The order of the lines in `_apply` is the guarantee: a dead letter is in Kafka before its record counts as done, and
an offset moves together with what it stands for, in the state's own transaction. Kafka's committed offsets are written
afterwards, for lag tools, and never read.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import structlog
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from kinguin_streams.cluster.connection import admin_config, consumer_config
from kinguin_streams.cluster.publisher import Publisher, PublishFailed
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.consumers.batch import Batch, Held, Message, TopicPart, sort_out
from kinguin_streams.consumers.client import ConsumerClient, Identity, NewClient, kafka_client
from kinguin_streams.consumers.clock import SYSTEM_CLOCK, Clock
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.consumers.source_identity import SourceIdentity
from kinguin_streams.consumers.store import Advance, PartitionSource, StateStore
from kinguin_streams.schemas.codec import Decoder, RecordEncoder, RegistryNeeded
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.traces import Traces

log = structlog.get_logger()

COMMIT_EVERY_S = 1.0
REPORT_EVERY_S = 10.0
GOES_BY_ITSELF: Final = frozenset({"state_away", "state_busy"})
"""What the database may say that a consumer waits for, instead of ending: the server restarts, another writer takes long."""
_NO_SUCH_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
_NOT_AUTHORIZED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,
    }
)


class ConsumeLoop:
    """Reads the topics of one projection as a member of its consumer group, until stopped."""

    def __init__(
        self,
        projection: Projection,
        *,
        kafka: KafkaSettings,
        topics: Topics,
        settings: ConsumerSettings,
        store: StateStore,
        decoder: Decoder,
        encoder: RecordEncoder,
        publisher: Publisher,
        traces: Traces,
        new_client: NewClient = kafka_client,
        identity: Identity | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """store: of the same projection. encoder, publisher: for dead letters.

        new_client, identity, clock: of a Kafka and a time that are not the real ones.
        """
        self._new_client = new_client
        self._clock = clock
        self._traces = traces
        self._projection = projection
        self._topics = topics
        self._settings = settings
        self._store = store
        self._decoder = decoder
        self._encoder = encoder
        self._publisher = publisher
        self._log = log.bind(consumer=projection.name)
        self._expected = {topics.name(name): name for name in projection.events}
        group_id = settings.group_id(projection.name)
        self._config = _with_short_session(consumer_config(kafka, group_id=group_id, client_id=group_id))
        self._assigns_incrementally = _assigns_incrementally(self._config)
        self._identity = identity or SourceIdentity(
            admin_config(kafka, client_id=f"{group_id}-admin"), list(self._expected), settings.kafka_wait_s
        )
        self._consumer: ConsumerClient | None = None
        self._next: dict[PartitionSource, int | None] = {}
        """Of every assigned partition, the next offset as the database has it; None: it has none yet."""
        self._sources: dict[TopicPart, PartitionSource] = {}
        self._held: dict[TopicPart, _Waiting] = {}
        self._away: _Away | None = None
        """The database does not answer: every partition is paused, and nothing takes effect."""
        self._failure: Exception | None = None
        self._stopping = False
        self._uncommitted: dict[TopicPart, int] = {}
        self._last_commit_s = self._last_report_s = clock.monotonic_s()
        self._reported = 0
        self.applied = 0
        """Records that have taken effect in this run."""
        self.dead_lettered = 0

    @property
    def assigned(self) -> frozenset[TopicPart]:
        """The partitions that Kafka's group has given to this process."""
        return frozenset(self._sources)

    @property
    def waits_for_database(self) -> bool:
        """Whether every partition is paused because the database does not answer."""
        return self._away is not None

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. May be called from a signal handler or another thread."""
        self._stopping = True

    def run(self) -> None:
        """Consume until stopped.

        Raises OperatorError for whatever stops it: lost_partition, topic_missing, topic_replaced, cluster_changed,
        offset_out_of_range, registry_needed, dead_letter_refused, not_authorized, kafka_unreachable,
        kafka_client_failed, kafka_config_refused, those of consumers/database.py and of cluster/registry.py. What has not
        taken effect then will, after a restart.
        """
        try:
            self.open()
            while not self._stopping:
                self.turn()
        finally:
            self.close()

    def open(self) -> None:
        """Join the group."""
        self._identity.ask()
        self._consumer = self._new_client({**self._config, "error_cb": self._on_error})
        with _explained():
            self._consumer.subscribe(
                list(self._expected), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )

    def close(self) -> None:
        """Leave the group."""
        if self._consumer is None:
            return
        with _explained():
            try:
                self._commit_for_lag_tools(self._consumer)
            finally:
                self._consumer.close()
                self._consumer = None
        self._log.info("consumer_stopped", applied=self.applied, dead_lettered=self.dead_lettered)

    def turn(self) -> None:
        """Take what is there, at most a batch of it, and let it take effect. Raises as `run` does."""
        if self._consumer is None:
            raise RuntimeError("turn() before open()")
        with _explained():
            self._turn(self._consumer)

    def _turn(self, consumer: ConsumerClient) -> None:
        fetched = consumer.consume(self._settings.batch_records, self._settings.batch_wait_s)
        if self._failure is not None:
            raise self._failure
        self._identity.watch()
        if self._away is not None:
            # What was fetched is dropped: once the database is back, everything is read again from its offsets.
            self._try_database_again(consumer, self._away)
            return
        now_s = self._clock.monotonic_s()
        due = {part: waiting for part, waiting in self._held.items() if waiting.due_s <= now_s}
        held_back = [message for waiting in due.values() for message in waiting.held.messages]
        try:
            self._take_effect(consumer, [*held_back, *self._wanted(fetched, due)])
        except OperatorError as error:
            if error.code not in GOES_BY_ITSELF:
                raise
            self._wait_for_database(error)
            consumer.pause([TopicPartition(*part) for part in self._sources])
        if self._clock.monotonic_s() - self._last_commit_s >= COMMIT_EVERY_S:
            self._commit_for_lag_tools(consumer)
        self._report()

    def _wanted(self, fetched: Iterable[Any], due: Container[TopicPart]) -> list[Message]:
        """Return the messages that are still ours, have not taken effect, and need not wait behind one that is held."""
        wanted: list[Message] = []
        for message in fetched:
            error = message.error()
            if error is not None:
                self._on_partition_error(message, error)
                continue
            part = TopicPart(message.topic(), message.partition())
            source = self._sources.get(part)
            # A rebalance inside consume() may leave records of a partition that has gone, or that came back and is
            # read again from its stored offset.
            if source is None or message.offset() < (self._next[source] or 0):
                continue
            waiting = self._held.get(part)
            if waiting is None or part in due:
                wanted.append(message)
            else:
                waiting.held.messages.append(message)
        return wanted

    def _take_effect(self, consumer: ConsumerClient, messages: list[Message]) -> None:
        if not messages:
            return
        with self._traces.processing(self._projection.name, messages) as span:
            batch = self._sort_out(messages)
            self._apply(batch)
            span.ended("applied", failed=False)
        self._hold(consumer, batch)

    def _apply(self, batch: Batch) -> None:
        self._publish_dead_letters(batch)
        advances = [
            Advance(self._sources[part], self._next[self._sources[part]], next_offset)
            for part, next_offset in batch.next_offsets.items()
        ]
        if advances:
            self._store.apply(batch.received, advances)
        for advance in advances:
            self._next[advance.source] = advance.next_offset
        self._uncommitted.update(batch.next_offsets)
        self.applied += len(batch.received)
        self.dead_lettered += len(batch.dead_letters)

    def _sort_out(self, messages: list[Message]) -> Batch:
        try:
            return sort_out(
                messages,
                decode=self._decoder.decode,
                expected=self._expected,
                consumer=self._projection.name,
                now_ms=self._clock.now_ms(),
            )
        except RegistryNeeded as error:
            raise OperatorError(
                "registry_needed",
                f"{self._projection.name} met a record in the Confluent wire format: {error}.",
                "Set KINGUIN_REGISTRY__URL to the schema registry that its writer uses.",
            ) from error

    def _publish_dead_letters(self, batch: Batch) -> None:
        for letter in batch.dead_letters:
            position = f"{letter.source_topic}/{letter.source_partition}/{letter.source_offset}"
            try:
                self._publisher.publish(outgoing(letter, self._topics, self._encoder))
            except PublishFailed as error:
                raise OperatorError(
                    "dead_letter_refused",
                    f"The record {position} cannot be read ({letter.reason}), and the dead-letter topic does not take "
                    f"it ({error}).",
                    "The consumer stops instead of skipping it: check `kinguin-streams topics plan` and the cluster.",
                ) from error
            self._log.warning("record_dead_lettered", position=position, reason=letter.reason, detail=letter.detail)

    def _hold(self, consumer: ConsumerClient, batch: Batch) -> None:
        for part, held in batch.held.items():
            before = self._held.get(part)
            same_record = before is not None and before.held.messages[0].offset() == held.messages[0].offset()
            delay_s = self._settings.schema_retry_s
            if before is not None and same_record:
                delay_s = min(before.delay_s * 2, self._settings.schema_retry_max_s)
            self._held[part] = _Waiting(held, delay_s, self._clock.monotonic_s() + delay_s)
            if before is None:
                consumer.pause([TopicPartition(*part)])
            self._log.error(
                "schema_unknown",
                topic=part.topic,
                partition=part.partition,
                offset=held.messages[0].offset(),
                reason=held.reason,
                retry_in_s=delay_s,
                hint="upgrade this consumer, or see to the schema registry; the partition waits, the others go on",
            )
        done = [part for part in batch.next_offsets if part in self._held and part not in batch.held]
        for part in done:
            del self._held[part]
            consumer.resume([TopicPartition(*part)])

    def _on_assign(self, consumer: ConsumerClient, partitions: list[TopicPartition]) -> None:
        # Raised in the client's callback an exception would pass through C; kept, it is raised as soon as consume returns.
        try:
            self._assign(consumer, partitions)
        except Exception as error:  # noqa: BLE001 - whatever it is, `_turn` raises it
            self._failure = error

    def _assign(self, consumer: ConsumerClient, partitions: list[TopicPartition]) -> None:
        """Start at the offsets of the database, or at the beginning of a partition that it does not know."""
        cluster_id, topic_ids = self._identity.ask()
        parts = [TopicPart(partition.topic, partition.partition) for partition in partitions]
        self._sources.update({part: PartitionSource(cluster_id, topic_ids[part.topic], *part) for part in parts})
        try:
            starts = self._starts(cluster_id, topic_ids, parts)
        except OperatorError as error:
            if error.code not in GOES_BY_ITSELF:
                raise
            self._wait_for_database(error)
            starts = [TopicPartition(*part, OFFSET_BEGINNING) for part in parts]
        if self._assigns_incrementally:
            consumer.incremental_assign(starts)
        else:
            consumer.assign(starts)
        # The client remembers across assignments that a partition was paused, and what it waited for is forgotten here:
        # measured, a held partition that came back from a rebalance was never read again.
        if self._away is None:
            consumer.resume(starts)
        else:
            consumer.pause(starts)
        self._log.info("partitions_assigned", partitions=_by_topic(self._sources))

    def _starts(
        self, cluster_id: str, topic_ids: Mapping[str, str], parts: Iterable[TopicPart]
    ) -> list[TopicPartition]:
        """Return where each partition is to be read from, and note it."""
        stored = self._store.offsets(cluster_id, topic_ids)
        starts: list[TopicPartition] = []
        for part in parts:
            next_offset = self._next[self._sources[part]] = stored.get(self._sources[part])
            starts.append(TopicPartition(*part, OFFSET_BEGINNING if next_offset is None else next_offset))
        return starts

    def _wait_for_database(self, error: OperatorError) -> None:
        delay_s = self._settings.state_retry_s
        if self._away is not None:
            delay_s = min(self._away.delay_s * 2, self._settings.state_retry_max_s)
        self._away = _Away(delay_s, self._clock.monotonic_s() + delay_s)
        self._log.error(
            "state_away", reason=str(error), retry_in_s=delay_s, hint="every partition waits, and no offset moves"
        )

    def _try_database_again(self, consumer: ConsumerClient, away: "_Away") -> None:
        """Once the database answers, read everything again from its offsets.

        Nobody knows whether the last transaction was committed when the line broke; its offsets say so.
        """
        if self._clock.monotonic_s() < away.due_s:
            return
        cluster_id, topic_ids = self._identity.ask()
        try:
            starts = self._starts(cluster_id, topic_ids, self._sources)
        except OperatorError as error:
            if error.code not in GOES_BY_ITSELF:
                raise
            self._wait_for_database(error)
            return
        self._away = None
        self._held.clear()
        if not starts:
            return
        if self._assigns_incrementally:
            consumer.incremental_unassign(starts)
            consumer.incremental_assign(starts)
        else:
            consumer.assign(starts)
        consumer.resume(starts)
        self._log.info("state_back", partitions=_by_topic(self._sources))

    def _on_revoke(self, _consumer: ConsumerClient, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            part = TopicPart(partition.topic, partition.partition)
            source = self._sources.pop(part, None)
            if source is not None:
                self._next.pop(source, None)
            self._held.pop(part, None)
            self._uncommitted.pop(part, None)
        self._log.info("partitions_revoked", partitions=_by_topic(TopicPart(p.topic, p.partition) for p in partitions))

    def _on_partition_error(self, message: Message, error: KafkaError) -> None:
        where = f"{message.topic()}/{message.partition()}"
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._identity.ask_again()
            source = self._sources.get(TopicPart(message.topic(), message.partition()))
            raise OperatorError(
                "offset_out_of_range",
                f"{self._projection.name} is to go on at offset {self._next[source] if source else '?'} of {where}, and "
                f"the topic does not have it: {error.str()}.",
                "Retention has deleted records that this state has not seen. Set KINGUIN_STATE__URL to a new database "
                "to make the state anew from what is left, and give the topic a longer retention.",
            )
        if error.code() in _NO_SUCH_TOPIC:
            self._identity.ask_again()
        self._on_error(error)
        if self._failure is not None:
            raise self._failure

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in _NOT_AUTHORIZED:
            self._failure = OperatorError(
                "not_authorized",
                f"Kafka refuses {self._projection.name}: {error.str()}.",
                "Check the user in KINGUIN_KAFKA__CONFIG and its rights to read the topics and the group.",
            )
        elif error.fatal():
            self._failure = _client_failed(error)
        else:
            self._log.warning("kafka_trouble", error=error.name(), detail=error.str())

    def _commit_for_lag_tools(self, consumer: ConsumerClient) -> None:
        self._last_commit_s = self._clock.monotonic_s()
        if not self._uncommitted:
            return
        offsets = [TopicPartition(*part, next_offset) for part, next_offset in self._uncommitted.items()]
        self._uncommitted.clear()
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._log.debug("offsets_not_committed", error=str(error))

    def _report(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._last_report_s >= REPORT_EVERY_S and self.applied > self._reported:
            per_s = (self.applied - self._reported) / (now_s - self._last_report_s)
            self._log.info("records_applied", applied=self.applied, per_s=round(per_s))
        if now_s - self._last_report_s >= REPORT_EVERY_S:
            self._last_report_s = now_s
            self._reported = self.applied


class _Away(NamedTuple):
    """The database is asked again then."""

    delay_s: float
    due_s: float


class _Waiting:
    """Records held back, and when they are tried again."""

    def __init__(self, held: Held, delay_s: float, due_s: float) -> None:
        self.held = held
        self.delay_s = delay_s
        self.due_s = due_s


def _with_short_session(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with a session of 10 s, unless the user has chosen one.

    After kill -9 the group waits a session out (45 s by default) before the restarted process gets its partitions. A
    session that ends too early costs a rebalance and nothing else: the database decides who writes. With the consumer
    protocol the broker sets it.
    """
    return config if config.get("group.protocol") == "consumer" else {"session.timeout.ms": 10_000, **config}


def _assigns_incrementally(config: dict[str, Any]) -> bool:
    """Return whether the client's rebalances are cooperative: it then refuses the plain assign()."""
    return config.get("group.protocol") == "consumer" or "cooperative" in config.get(
        "partition.assignment.strategy", ""
    )


def _by_topic(parts: Iterable[TopicPart]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for part in sorted(parts):
        found.setdefault(part.topic, []).append(part.partition)
    return found


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise _client_failed(error.args[0]) from error


def _client_failed(error: KafkaError) -> OperatorError:
    return OperatorError(
        "kafka_client_failed",
        f"The Kafka client cannot go on: {error.name()}: {error.str()}.",
        "What was applied is stored; start the consumer again.",
    )
