"""The place of this process in its consumer group: which partitions it has, where it reads on, what it tells Kafka of it.

Every callback of the client comes inside `consume` or `close`, on the thread that called them.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from kinguin_streams.consumers.away_wait import AwayWait
from kinguin_streams.consumers.batch import Message, TopicPart
from kinguin_streams.consumers.client import ConsumerClient, Identity, NewClient
from kinguin_streams.consumers.clock import Clock
from kinguin_streams.consumers.effect import Effect
from kinguin_streams.consumers.held import HeldPartitions
from kinguin_streams.consumers.kafka_errors import NO_SUCH_TOPIC, NOT_AUTHORIZED, not_authorized
from kinguin_streams.consumers.store import PartitionSource
from kinguin_streams.consumers.tally import Tally
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.repeats import Repeats

log = structlog.get_logger()

LEAVE_WAIT_S: Final = 10.0
"""The client waits for its last commit and has no timeout. Measured with a broker that is there and says nothing: 150 s, and it
had not ended; with one that is gone: the session, which is 45 s with the consumer protocol."""


class Membership:
    """One member of one group, and the partitions it has."""

    def __init__(
        self,
        effect: Effect,
        *,
        config: dict[str, Any],
        new_client: NewClient,
        identity: Identity,
        held: HeldPartitions,
        away: AwayWait,
        tally: Tally,
        settle: Callable[[], None],
        clock: Clock,
    ) -> None:
        """config: for a consumer of librdkafka. held, away: what pauses partitions; it forgets with them.

        settle: waits for the batch in hand, called before partitions come or go.
        """
        self._effect = effect
        self._config = config
        self._new_client = new_client
        self._identity = identity
        self._held = held
        self._away = away
        self._tally = tally
        self._settle = settle
        self._clock = clock
        self._repeats = Repeats()
        self._log = log.bind(consumer=effect.name)
        self._is_incremental = _is_incremental(config)
        self._client: ConsumerClient | None = None
        self._failure: Exception | None = None
        self._source: tuple[str, Mapping[str, str]] = "", {}
        """The cluster's id and the topics' by name, as it found them; they stay so, or it ends."""
        self._uncommitted: dict[TopicPart, int] = {}
        self._moved: dict[TopicPart, int] = {}
        """How far each partition has come since it was assigned, whether that is committed or not."""
        self._handed: dict[tuple[str, int], int] = {}
        """Of each partition, the offset after the last record that `consume` has returned since it was assigned."""
        self._changed: set[TopicPart] = set()
        self.sources: dict[TopicPart, PartitionSource] = {}
        """The partitions that the group has given to this process."""
        self.next_offsets: dict[TopicPart, int | None] = {}
        """Of each, the offset that is to take effect next; None: none ever has."""
        self.is_member = False
        """Whether the group has told this process its partitions, be it none, and has not thrown it out since."""

    @property
    def client(self) -> ConsumerClient:
        """The client, once joined."""
        if self._client is None:
            raise RuntimeError("not a member: open() first")
        return self._client

    @property
    def is_joined(self) -> bool:
        """Whether there is a client."""
        return self._client is not None

    def join(self, topics: list[str]) -> None:
        """Ask the group for partitions of these topics."""
        self._source = self._identity.ask()
        self._client = self._new_client({**self._config, "error_cb": self._on_error, "on_commit": self._on_commit})
        self._client.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def leave(self) -> None:
        """Tell Kafka how far it came, and leave, within LEAVE_WAIT_S; a static member stays known until its session ends."""
        failures: list[Exception] = []
        leaving = threading.Thread(target=self._tell_and_close, args=(self.client, failures), name="leave", daemon=True)
        leaving.start()
        leaving.join(LEAVE_WAIT_S)
        self._client = None
        self.is_member = False
        if leaving.is_alive():
            hint = "nothing is lost: Kafka notices at the end of the session, and what it was not told of is done again, or known"
            self._log.warning("group_not_left", waited_s=LEAVE_WAIT_S, hint=hint)
        elif failures:
            raise failures[0]

    def _tell_and_close(self, client: ConsumerClient, failures: list[Exception]) -> None:
        try:
            try:
                if self._effect.offsets_are_kafkas:
                    self._commit_and_wait(client, list(self._moved))
                else:
                    self.commit()
            finally:
                client.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, `leave` raises it
            failures.append(error)

    def consume(self, most_records: int, wait_s: float) -> list[Message]:
        """Return records of this process's partitions which have not taken effect. Raises what a callback has kept."""
        fetched = self.client.consume(most_records, wait_s)
        if self._failure is not None:
            raise self._failure
        if not self._away.is_on:  # else read_again asks
            self._identity.watch()
        # A rebalance inside consume() may leave records of a partition that has gone, or that came back and is
        # read again from its stored offset.
        handed = self._handed
        messages: list[Message] = []
        for message in fetched:
            error = message.error()
            if error is not None:
                self._on_partition_error(message, error)
                continue
            place, offset = (message.topic(), message.partition()), message.offset()
            start = handed.get(place)
            if start is None:
                continue
            if offset >= start:
                messages.append(message)
                handed[place] = offset + 1
            else:
                self._tally.duplicates += 1
        return messages

    def changed(self) -> set[TopicPart]:
        """Return the partitions that came or went since the last call. What was returned of them is no longer to be used."""
        changed, self._changed = self._changed, set()
        return changed

    def pause(self, parts: Iterable[TopicPart]) -> None:
        """Fetch no more of these; they stay this process's."""
        self.client.pause([TopicPartition(*part) for part in parts])

    def resume(self, parts: Iterable[TopicPart]) -> None:
        """Go on with them."""
        self.client.resume([TopicPartition(*part) for part in parts])

    def advance(self, part: TopicPart, next_offset: int) -> None:
        """All below the offset has taken effect."""
        self.next_offsets[part] = self._uncommitted[part] = self._moved[part] = next_offset

    def commit(self) -> bool:
        """Tell Kafka how far it came, without waiting for its answer; return whether there was anything to tell.

        Where a report says another offset than the last one, or an error, the next commit tells it again, see _on_commit.
        """
        if not self._uncommitted:
            return False
        offsets = [self._offset(part, next_offset) for part, next_offset in self._uncommitted.items()]
        handed, self._uncommitted = self._uncommitted, {}
        try:
            self.client.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            # The client has not even taken it, so no report will come for _on_commit.
            self._uncommitted = {**handed, **self._uncommitted}
            self._log.debug("offsets_not_committed", error=str(error))
            return False
        return True

    def _offset(self, part: TopicPart, next_offset: int) -> TopicPartition:
        """Return it with the topic's id: names alone do not tell a topic from its successor."""
        return TopicPartition(*part, next_offset, metadata=self.sources[part].topic_id)

    def _commit_and_wait(self, client: ConsumerClient, parts: Iterable[TopicPart]) -> None:
        offsets = [self._offset(part, self._moved[part]) for part in parts if part in self._moved]
        if not offsets:
            return
        try:
            committed = client.commit(offsets=offsets, asynchronous=False)
            refused = next((each.error for each in committed or () if each.error is not None), None)
        except KafkaException as error:
            refused = error.args[0]
        if refused is not None:
            self._log.warning(
                "offsets_not_committed",
                error=str(refused),
                partitions=by_topic(parts),
                hint="whoever has these partitions next repeats what was done since the last commit",
            )

    def read_again(self) -> None:
        """Fetch everything again from where it is to go on, if all that say so answer.

        Nobody knows whether the last transaction was committed when the line to the database broke; its offsets say so.
        Kafka is not waited for: it may be away for hours, and a stop would come after its time most of the time.
        """
        try:
            if not self._identity.is_as_before():
                return
            starts = self._starts(self.sources)
        except OperatorError as error:
            self._away.begin(error, self._effect.name)
            return
        self._away.end()
        self._held.clear()
        self._effect.forget(self.sources)
        if starts:
            self._read_from(self.client, starts, are_read=True)
            self._log.info("read_again", partitions=by_topic(self.sources))

    def _on_assign(self, client: ConsumerClient, partitions: list[TopicPartition]) -> None:
        # Raised in the client's callback an exception would pass through C; kept, it is raised as soon as consume returns.
        self._tally.rebalances["assigned"] += 1
        try:
            self._settle()
            self._assign(client, partitions)
            self.is_member = True
        except Exception as error:  # noqa: BLE001 - whatever it is, `consume` raises it
            self._failure = error

    def _assign(self, client: ConsumerClient, partitions: list[TopicPartition]) -> None:
        """Start at the stored offsets, or at the beginning of a partition that has none; wait if nobody says for now."""
        cluster_id, topic_ids = self._source
        parts = [TopicPart(partition.topic, partition.partition) for partition in partitions]
        new = {part: PartitionSource(cluster_id, topic_ids[part.topic], *part) for part in parts}
        self.sources.update(new)
        self.next_offsets.update(dict.fromkeys(new))
        self._handed.update(dict.fromkeys(new, 0))
        self._changed.update(new)
        try:
            self._identity.ask_again()
            starts = self._starts(new)
        except OperatorError as error:
            self._away.begin(error, self._effect.name)
            starts = [TopicPartition(*part, OFFSET_BEGINNING) for part in parts]
        self._read_from(client, starts, are_read=False)
        self._log.info("partitions_assigned", partitions=by_topic(self.sources))

    def _read_from(self, client: ConsumerClient, starts: list[TopicPartition], *, are_read: bool) -> None:
        """Read these partitions from there on; while somebody is away, none at all. are_read: they are this process's already.

        The client remembers across assignments that a partition was paused, and what it waited for is forgotten here:
        measured, a held partition that came back from a rebalance was never read again. It is told to go on before it is told
        where: measured (librdkafka 2.16, a busy machine), the other way round 1 of 1,800 partitions was never read again.
        """
        if not self._away.is_on:
            client.resume(starts)
        if not self._is_incremental:
            client.assign(starts)
        else:
            if are_read:
                client.incremental_unassign(starts)
            client.incremental_assign(starts)
        if self._away.is_on:
            self.pause(self.sources)

    def _starts(self, sources: Mapping[TopicPart, PartitionSource]) -> list[TopicPartition]:
        """Return where each partition is to be read from, and note it. Raises what Effect.starts does."""
        stored = self._effect.starts(self.client, self._source, sources)
        if self._effect.offsets_are_kafkas:
            # What was done since a partition came, Kafka may not have been told while it was away.
            stored |= {part: self._moved[part] for part in sources if part in self._moved}
        for part in sources:
            self.next_offsets[part] = stored.get(part)
            if part in stored and not self._effect.offsets_are_kafkas:
                # Whoever had it before may have died, or given it away, before Kafka was told: where nothing more arrives,
                # its lag would stand for ever.
                self._uncommitted[part] = self._moved[part] = stored[part]
            self._handed[part] = stored.get(part, 0)
        return [TopicPartition(*part, stored.get(part, OFFSET_BEGINNING)) for part in sources]

    def _on_revoke(self, client: ConsumerClient, partitions: list[TopicPartition]) -> None:
        self._tally.rebalances["revoked"] += 1
        self._settle_before_loss()
        parts = [TopicPart(partition.topic, partition.partition) for partition in partitions]
        if self._effect.offsets_are_kafkas:
            self._commit_and_wait(client, parts)
        self._forget(parts)
        self._log.info("partitions_revoked", partitions=by_topic(parts))

    def _on_lost(self, _client: ConsumerClient, partitions: list[TopicPartition]) -> None:
        """Another member may have them already: there is nothing to tell Kafka any more."""
        self._tally.rebalances["lost"] += 1
        self.is_member = False
        self._settle_before_loss()
        parts = [TopicPart(partition.topic, partition.partition) for partition in partitions]
        self._forget(parts)
        self._log.warning("partitions_lost", partitions=by_topic(parts))

    def _settle_before_loss(self) -> None:
        try:
            self._settle()
        except Exception as error:  # noqa: BLE001 - as in _on_assign
            self._failure = error

    def _forget(self, parts: Iterable[TopicPart]) -> None:
        self._changed.update(parts)
        for part in parts:
            self._handed.pop(part, None)
            self.sources.pop(part, None)
            self.next_offsets.pop(part, None)
            self._uncommitted.pop(part, None)
            self._moved.pop(part, None)
            self._held.release(part)
        self._effect.forget(parts)

    def _on_partition_error(self, message: Any, error: KafkaError) -> None:
        where = f"{message.topic()}/{message.partition()}"
        is_out_of_range = error.code() == KafkaError._AUTO_OFFSET_RESET
        if (is_out_of_range or error.code() in NO_SUCH_TOPIC) and not self._is_still_there():
            return
        if is_out_of_range:
            next_offset = self.next_offsets.get(TopicPart(message.topic(), message.partition()), "?")
            raise OperatorError(
                "offset_out_of_range",
                f"{self._effect.name} is to go on at offset {next_offset} of {where}, and "
                f"the topic does not have it: {error.str()}.",
                self._effect.skipped_hint,
            )
        self._on_error(error)
        if self._failure is not None:
            raise self._failure

    def _is_still_there(self) -> bool:
        """Return whether the topics are those that are read; if Kafka does not say, all waits, and is read again then.

        So comes the error that has made one ask. Raises what ask_again does.
        """
        if self._away.waits_for != "kafka":
            try:
                self._identity.ask_again()
            except OperatorError as error:
                self._settle()
                self._away.begin(error, self._effect.name)
                self.pause(self.sources)
        return self._away.waits_for != "kafka"

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        # Measured: a commit that was on its way when the broker went is given up by the client. And of two that wait in the
        # client for the group's coordinator, the older may be taken last: both are reported without an error, the newer
        # first, and Kafka has the older offset. Where nothing more arrives, nobody would tell Kafka ever: the lag
        # would stand, and after a crash all of it would come again. The last report says what Kafka has.
        for each in partitions:
            part = TopicPart(each.topic, each.partition)
            moved = self._moved.get(part)
            is_told = error is None and each.error is None and each.offset == moved
            if moved is not None and not is_told:
                self._uncommitted[part] = moved

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in NOT_AUTHORIZED:
            self._failure = not_authorized(error)
        elif error.fatal():
            self._failure = _client_failed(error)
        else:
            # While a broker is away the client says so for each connection that it tries: 10 to 20 times a second.
            unsaid = self._repeats.unsaid(error.name(), self._clock.monotonic_s())
            if unsaid is not None:
                self._log.warning("kafka_trouble", error=error.name(), detail=error.str(), unsaid=unsaid)


def with_short_session(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with a session of 10 s, unless the user has chosen one.

    After kill -9 the group waits a session out (45 s by default) before the restarted process gets its partitions. A
    session that ends too early costs a rebalance, and of handlers a repetition. With the consumer protocol the broker
    sets it.
    """
    return config if config.get("group.protocol") == "consumer" else {"session.timeout.ms": 10_000, **config}


def by_topic(parts: Iterable[TopicPart]) -> dict[str, list[int]]:
    """Return the partitions' numbers by topic, for a line in the log."""
    found: dict[str, list[int]] = {}
    for part in sorted(parts):
        found.setdefault(part.topic, []).append(part.partition)
    return found


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the client raises into OperatorError("kafka_client_failed")."""
    try:
        yield
    except KafkaException as error:
        raise _client_failed(error.args[0]) from error


def _is_incremental(config: dict[str, Any]) -> bool:
    """Return whether the client's rebalances are cooperative: it then refuses the plain assign()."""
    return config.get("group.protocol") == "consumer" or "cooperative" in config.get(
        "partition.assignment.strategy", ""
    )


def _client_failed(error: KafkaError) -> OperatorError:
    return OperatorError(
        "kafka_client_failed",
        f"The Kafka client cannot go on: {error.name()}: {error.str()}.",
        "What has taken effect is noted; start the consumer again.",
    )
