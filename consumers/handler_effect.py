"""The effect of a user's functions: called in the order of each partition, at least once for every record.

The order of the lines is the guarantee: a record counts as done after its handler has returned, or after its dead letter is
in Kafka; the loop commits what is done, and nothing else. A record that waits for its next attempt stops its own
partition only: the loop pauses it, polls on, and so stays in the group.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple

import structlog
from confluent_kafka import KafkaException, TopicPartition

from kinguin_streams.cluster.topic_admin import unreachable
from kinguin_streams.consumers.app import MAX_BATCH, App, Context, Handler, Reject
from kinguin_streams.consumers.batch import Batch, Message, TopicPart, dead_letter
from kinguin_streams.consumers.client import ConsumerClient
from kinguin_streams.consumers.clock import SYSTEM_CLOCK, Clock
from kinguin_streams.consumers.effect import Work
from kinguin_streams.consumers.handling import FAILED, Breaker, RetryPolicy, described
from kinguin_streams.consumers.kafka_errors import AWAY, NOT_AUTHORIZED, not_authorized
from kinguin_streams.consumers.projection import Received
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.consumers.source_changed import group_hints, topic_replaced
from kinguin_streams.consumers.store import PartitionSource
from kinguin_streams.schemas.events import DeadLetter, Event
from kinguin_streams.schemas.instants import EPOCH, MAX_MS, MIN_MS
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.traces import headers_of

log = structlog.get_logger()

TURN_S: Final = 1.0
"""After so long a turn ends, and what is left waits in memory: the client is polled in between, or the group gives the
partitions away (max.poll.interval.ms), and a stop is heard."""
MAX_POLL_INTERVAL_S: Final = 300.0
"""librdkafka's own."""


class _Item(NamedTuple):
    """A record, and what it is: an event, a dead letter already, or (neither) one that waits for its schema."""

    message: Message
    event: Received[Event] | None
    letter: DeadLetter | None

    @property
    def offset(self) -> int:
        return int(self.message.offset())


@dataclass(slots=True)
class _Tries:
    """Attempts at the records [first, last] of a partition, together.

    alone_until: records below it are tried one by one, after alone_attempts with the batch that they were in.
    """

    first: int
    last: int
    attempts: int = 0
    alone_until: int = 0
    alone_attempts: int = 0


class HandlerEffect:
    """Calls an App's handlers; where to go on is what the group has committed to Kafka."""

    offsets_are_kafkas: Final = True
    most_records: Final = MAX_BATCH
    wants_messages: Final = True
    unused: Final = ()
    skipped_hint: Final = (
        "Retention has deleted records that this consumer has not handled. To go on with what is left, move the group to "
        "the earliest offset (`kinguin-streams replay group`), and give the topic a longer retention."
    )

    def __init__(
        self,
        app: App,
        settings: ConsumerSettings,
        *,
        max_poll_interval_s: float = MAX_POLL_INTERVAL_S,
        clock: Clock = SYSTEM_CLOCK,
        replay: bool = False,
    ) -> None:
        """max_poll_interval_s: after so long without a poll the group gives partitions away; for a line in the log.
        replay: what `context.replay` says.

        Raises OperatorError("no_handlers").
        """
        self._handlers = app.handlers_or_refusal()
        self.name = app.name
        self.events = tuple(self._handlers)
        self.source_hints = group_hints(settings.group_id(app.name))
        self._settings = settings
        self._policy = RetryPolicy(settings.handler_attempts, settings.handler_retry_s, settings.handler_retry_max_s)
        self._breaker = Breaker(settings.handler_breaker_letters)
        self._max_poll_interval_s = max_poll_interval_s
        self._clock = clock
        self._replay = replay
        self._log = log.bind(consumer=app.name)
        self._tries: dict[TopicPart, _Tries] = {}
        self._served_s: dict[TopicPart, float] = {}

    @property
    def breaker_is_open(self) -> bool:
        """Whether the next record that its handler cannot do ends the consumer."""
        return not self._breaker.may_give_up()

    def starts(
        self,
        client: ConsumerClient,
        _identity: tuple[str, Mapping[str, str]],
        sources: Mapping[TopicPart, PartitionSource],
    ) -> dict[TopicPart, int]:
        """Return what the group has committed.

        Raises OperatorError: "topic_replaced" if that is of another topic, "not_authorized", "kafka_unreachable".
        """
        committed = self._committed(client, sources)
        for each in committed:
            now = sources[TopicPart(each.topic, each.partition)].topic_id
            # The loop commits it with the topic's id; whoever moves the group with Kafka's own tools leaves it empty.
            if each.offset >= 0 and each.metadata and each.metadata != now:
                raise topic_replaced(each.topic, each.metadata, now, self.source_hints)
        return {TopicPart(each.topic, each.partition): each.offset for each in committed if each.offset >= 0}

    def _committed(self, client: ConsumerClient, parts: Iterable[TopicPart]) -> list[TopicPartition]:
        try:
            committed = client.committed([TopicPartition(*part) for part in parts], timeout=self._settings.kafka_wait_s)
            for each in committed:
                if each.error is not None:
                    raise KafkaException(each.error)
        except KafkaException as error:
            if error.args[0].code() in AWAY:
                raise unreachable(error) from error
            if error.args[0].code() in NOT_AUTHORIZED:
                raise not_authorized(error.args[0]) from error
            raise
        return committed

    def settle(self, _work: Work) -> None:
        """Nothing is in hand: `take` returns when it is done."""

    def forget(self, parts: Iterable[TopicPart]) -> None:
        """Count the attempts anew, should the partition come back."""
        for part in parts:
            self._tries.pop(part, None)
            self._served_s.pop(part, None)

    def take(
        self, batch: Batch, messages: Sequence[Message], work: Work, _until_done: ExitStack
    ) -> dict[TopicPart, float]:
        """Call the handlers, partition by partition in turns, until all is done, waits, or the turn is over.

        Raises OperatorError("handler_keeps_failing") once giving up has become the rule.
        """
        queues = _by_partition(batch, messages)
        # Whoever was served longest ago comes first: a handler slower than a turn would serve one partition for ever.
        turns = deque(sorted(queues, key=lambda part: self._served_s.get(part, 0.0)))
        unfinished: dict[TopicPart, float] = {}
        ends_s = self._clock.monotonic_s() + TURN_S
        while turns:
            part = turns.popleft()
            if _waits_for_schema(queues[part][0]):
                continue
            now_s = self._clock.monotonic_s()
            if now_s >= ends_s or work.is_stopping():
                unfinished[part] = now_s
                continue
            self._served_s[part] = now_s
            due_s = self._step(part, queues[part], work)
            if due_s is not None:
                unfinished[part] = due_s
            elif queues[part]:
                turns.append(part)
        return unfinished

    def _step(self, part: TopicPart, queue: deque[_Item], work: Work) -> float | None:
        """Do the next thing of a partition; return when to come again if it has to wait."""
        item = queue[0]
        if item.letter is not None:
            work.keep(item.letter)
            self._finish(part, queue, 1, work, applied=0)
            return None
        handler = self._handlers[item.event.event.record_name]  # type: ignore[index,union-attr]
        items = self._together(part, queue, handler)
        tries = self._tries_at(part, items)
        attempt = tries.attempts + 1
        try:
            self._call(handler, items, attempt)
        except Reject as rejected:
            return self._after_reject(part, queue, items, rejected, work)
        except Exception as error:  # noqa: BLE001 - a user's function may raise anything
            return self._after_failure(part, queue, items, error, work)
        self._breaker.done(len(items))
        self._finish(part, queue, len(items), work, applied=len(items))
        return None

    def _together(self, part: TopicPart, queue: deque[_Item], handler: Handler) -> list[_Item]:
        """Return what the handler is given in one call: the same records again, if they have failed together."""
        first = queue[0]
        tries = self._tries.get(part)
        if handler.most_records is None or (tries is not None and first.offset < tries.alone_until):
            return [first]
        last = tries.last if tries is not None and tries.first == first.offset else None
        items: list[_Item] = []
        for item in queue:
            if item.event is None or len(items) == handler.most_records or (last is not None and item.offset > last):
                break
            items.append(item)
        return items

    def _tries_at(self, part: TopicPart, items: Sequence[_Item]) -> _Tries:
        first, last = items[0].offset, items[-1].offset
        tries = self._tries.get(part)
        if tries is None or first >= max(tries.alone_until, tries.last + 1):
            tries = self._tries[part] = _Tries(first, last)
        elif tries.first != first or tries.last != last:
            # The next of the records that are tried one by one.
            tries.first, tries.last, tries.attempts = first, last, tries.alone_attempts
        return tries

    def _call(self, handler: Handler, items: Sequence[_Item], attempt: int) -> None:
        events: list[Any] = [item.event.event for item in items if item.event is not None]
        contexts = [
            _context(item.event, item.message, attempt, replay=self._replay) for item in items if item.event is not None
        ]
        began_s = self._clock.monotonic_s()
        try:
            if handler.most_records is None:
                handler.call(events[0], contexts[0])
            else:
                handler.call(events, contexts)
        finally:
            took_s = self._clock.monotonic_s() - began_s
            if took_s > self._max_poll_interval_s:
                self._log.error(
                    "handler_too_slow",
                    **_position(items[0]),
                    records=len(items),
                    took_s=round(took_s, 1),
                    limit_s=self._max_poll_interval_s,
                    hint="the group has given the partition away, and the record comes again: make the handler faster "
                    "(a timeout for what it calls, fewer records in on_batch), or raise max.poll.interval.ms in "
                    "KINGUIN_KAFKA__CONFIG",
                )

    def _after_reject(
        self, part: TopicPart, queue: deque[_Item], items: Sequence[_Item], rejected: Reject, work: Work
    ) -> float | None:
        if len(items) > 1:  # it does not say which of them
            self._tries[part].attempts += 1
            self._one_by_one(part)
            return None
        work.keep(dead_letter(items[0].message, self.name, rejected.reason, rejected.detail, self._clock.now_ms()))
        self._breaker.done()
        self._finish(part, queue, 1, work, applied=0)
        return None

    def _after_failure(
        self, part: TopicPart, queue: deque[_Item], items: Sequence[_Item], error: Exception, work: Work
    ) -> float | None:
        tries = self._tries[part]
        tries.attempts += 1
        attempt, now_s = tries.attempts, self._clock.monotonic_s()
        what = described(error)
        wait_s = self._policy.wait_s(attempt)
        if len(items) > 1:
            wait_s = self._policy.next_of_batch(attempt)
            if wait_s is None:
                self._one_by_one(part)
                wait_s = self._policy.backoff_s(attempt)
        if wait_s is not None:
            work.will_retry()
            # With its traceback, so that the author of the handler need not guess.
            self._log.warning(
                "handler_failed",
                **_position(items[0]),
                records=len(items),
                attempt=attempt,
                error=what,
                retry_in_s=wait_s,
                exc_info=error,
            )
            return now_s + wait_s
        if not self._breaker.may_give_up():
            position = "{topic}/{partition}/{offset}".format(**_position(items[0]))
            raise OperatorError(
                "handler_keeps_failing",
                f"The handlers of {self.name} fail at most of their records; the last one is {position}: {what}.",
                "Mend the handler or what it calls, and start again: this record was not dead-lettered and comes first. "
                "KINGUIN_CONSUMER__HANDLER_BREAKER_LETTERS says how many may be.",
            ) from error
        work.keep(dead_letter(items[0].message, self.name, FAILED, what, self._clock.now_ms()))
        self._breaker.gave_up()
        self._finish(part, queue, 1, work, applied=0)
        return None

    def _one_by_one(self, part: TopicPart) -> None:
        tries = self._tries[part]
        tries.alone_until = tries.last + 1
        tries.alone_attempts = tries.attempts
        # The first of them begins with these attempts too.
        tries.last = tries.first

    def _finish(self, part: TopicPart, queue: deque[_Item], count: int, work: Work, *, applied: int) -> None:
        """Drop these from the queue, and have their offset committed."""
        for _ in range(count):
            item = queue.popleft()
        work.done(part, item.offset + 1, applied)
        tries = self._tries.get(part)
        if tries is not None and item.offset + 1 >= max(tries.alone_until, tries.last + 1):
            del self._tries[part]


def _by_partition(batch: Batch, messages: Sequence[Message]) -> dict[TopicPart, deque[_Item]]:
    events = {(each.topic, each.partition, each.offset): each for each in batch.received}
    letters = {(each.source_topic, each.source_partition, each.source_offset): each for each in batch.dead_letters}
    queues: dict[TopicPart, deque[_Item]] = {}
    for message in messages:
        part = TopicPart(message.topic(), message.partition())
        position = (*part, message.offset())
        queues.setdefault(part, deque()).append(_Item(message, events.get(position), letters.get(position)))
    return queues


def _waits_for_schema(item: _Item) -> bool:
    return item.event is None and item.letter is None


def _context(received: Received[Event], message: Message, attempt: int, *, replay: bool) -> Context:
    instant_ms = received.event.received_at_ms if received.timestamp_ms is None else received.timestamp_ms
    return Context(
        topic=received.topic,
        partition=received.partition,
        offset=received.offset,
        received=EPOCH + timedelta(milliseconds=min(max(instant_ms, MIN_MS), MAX_MS)),
        attempt=attempt,
        replay=replay,
        event_id=received.event.event_id,
        trace=headers_of(message),
    )


def _position(item: _Item) -> dict[str, Any]:
    return {"topic": item.message.topic(), "partition": item.message.partition(), "offset": item.offset}
