"""Reads a fixed stretch of topics: from offsets to offsets, no group, always ends."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.cluster.topic_admin import unreachable
from kinguin_streams.telemetry.operator_error import OperatorError

REQUEST_TIMEOUT_S = 15.0
SILENCE_TIMEOUT_S = 30.0
GLANCE_TIMEOUT_S = 5.0
# librdkafka stops fetching while 100,000 records wait, and looks again after this time. With its default of a second,
# 1,000,000 records of 500 B took 4.7 s; they take 1.6 s.
FETCH_AGAIN_AFTER_MS = 10
LOOK_AGAIN_AFTER_S = (0.1, 0.3, 0.6)
_SETTLING = frozenset(
    {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART}
)
Offsets = Mapping[tuple[str, int], int]
"""(topic, partition) to offset."""


class TopicReader:
    """Asks about topics, and reads them, as a member of no group."""

    def __init__(self, config: dict[str, Any]) -> None:
        """config: from cluster.connection.consumer_config; its group is never joined."""
        preferred = {"fetch.queue.backoff.ms": FETCH_AGAIN_AFTER_MS}
        self._config = {**preferred, **config, "enable.partition.eof": True}
        self._consumer = new_client(Consumer, self._config)
        self._glances: Consumer | None = None

    def bounds(self, topics: Sequence[str]) -> dict[tuple[str, int], tuple[int, int]]:
        """Return the first offset that retention has left and the one after the last, of every partition.

        A topic that does not exist has none. Raises OperatorError("kafka_unreachable").
        """
        try:
            return self.bounds_of((topic, number) for topic in topics for number in self._partitions(topic))
        except KafkaException as error:
            raise unreachable(error) from error

    def bounds_of(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        """Return the same of these partitions."""
        try:
            return {
                (topic, number): _once_more(
                    partial(
                        self._consumer.get_watermark_offsets, TopicPartition(topic, number), timeout=REQUEST_TIMEOUT_S
                    )
                )
                for topic, number in partitions
            }
        except KafkaException as error:
            raise unreachable(error) from error

    def _partitions(self, topic: str) -> list[int]:
        # By name, and not taken for missing at once: of 120 sets of topics that had just been made, a busy broker
        # left one out of its list twice.
        for wait_s in (*LOOK_AGAIN_AFTER_S, None):
            metadata = self._consumer.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics.get(topic)
            if metadata is not None and metadata.error is None and metadata.partitions:
                return sorted(metadata.partitions)
            if wait_s is not None:
                time.sleep(wait_s)
        return []

    def end_offsets(self, topics: Sequence[str]) -> dict[tuple[str, int], int]:
        """Return the offset after the last record of every partition, as `bounds` does."""
        return {key: end for key, (_, end) in self.bounds(topics).items()}

    def offsets_at(self, at_ms: int, end: Offsets) -> dict[tuple[str, int], int]:
        """Return, for every partition in `end`, the first offset with a record of this time or later; `end` if there is none.

        at_ms: milliseconds since 1970, UTC. Records are not in the order of their times: later ones may be older.
        Raises OperatorError("kafka_unreachable").
        """
        asked = [TopicPartition(topic, number, at_ms) for topic, number in end]
        try:
            answers = self._consumer.offsets_for_times(asked, timeout=REQUEST_TIMEOUT_S) if asked else []
            for answer in answers:
                if answer.error is not None:
                    raise KafkaException(answer.error)
        except KafkaException as error:
            raise unreachable(error) from error
        return {
            (answer.topic, answer.partition): (
                answer.offset if answer.offset >= 0 else end[answer.topic, answer.partition]
            )
            for answer in answers
        }

    def times_at(self, offsets: Offsets) -> dict[tuple[str, int], int]:
        """Return, of each partition, the time of the first record from this offset on, in milliseconds since 1970, UTC.

        A partition is left out that has no such record or time, or whose leader does not answer.
        """
        if not offsets:
            return {}
        if self._glances is None:
            # A record of each partition is wanted, not a megabyte.
            self._glances = new_client(
                Consumer, {**self._config, "max.partition.fetch.bytes": 1, "fetch.wait.max.ms": 50}
            )
        consumer, waiting, times = self._glances, dict(offsets), {}
        consumer.assign([TopicPartition(topic, part, offset) for (topic, part), offset in offsets.items()])
        deadline_s = time.monotonic() + GLANCE_TIMEOUT_S
        while waiting and (left_s := deadline_s - time.monotonic()) > 0:
            message = consumer.poll(left_s)
            if message is None:
                break
            key = (str(message.topic()), int(message.partition() or 0))
            if (error := message.error()) is None:
                # What an earlier call had asked for may still be on its way.
                if key in waiting and int(message.offset() or 0) >= waiting[key]:
                    del waiting[key]
                    kind, at_ms = message.timestamp()
                    if kind != TIMESTAMP_NOT_AVAILABLE:
                        times[key] = at_ms
            elif not error.retriable():
                waiting.pop(key, None)
        consumer.unassign()
        return times

    def read(self, start: Offsets, end: Offsets) -> Iterator[Message]:
        """Yield every record from `start` (the beginning where it says nothing) up to, not including, `end`.

        Records that retention has taken are not there to be yielded. Raises OperatorError: "kafka_silent" if the
        cluster stops answering in between, "kafka_refused" if it will not give a partition's records.
        """
        first = {key: low for key, (low, _) in self.bounds(sorted({topic for topic, _ in end})).items()}
        positions = {key: max(start.get(key, 0), first.get(key, 0)) for key in end}
        positions = {key: position for key, position in positions.items() if position < end[key]}
        if not positions:
            return
        # A client of its own: seen once on a busy machine, one that had read before handed out the end of a partition from its
        # last assignment, and the stretch looked empty.
        consumer = new_client(Consumer, self._config)
        try:
            consumer.assign([TopicPartition(topic, part, offset) for (topic, part), offset in positions.items()])
            open_parts = set(positions)
            while open_parts:
                message = consumer.poll(SILENCE_TIMEOUT_S)
                if message is None:
                    raise OperatorError(
                        "kafka_silent",
                        f"Kafka sent nothing for {SILENCE_TIMEOUT_S:g} s while records were to be read.",
                        "Check that the cluster is up, and read again.",
                    )
                key = (str(message.topic()), int(message.partition() or 0))
                offset = int(message.offset() or 0)
                if (error := message.error()) is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise _refused(key, offset, error)
                    next_offset = offset  # the end of a partition is told as the offset that the next record will have
                else:
                    next_offset = offset + 1
                    if offset < end[key]:
                        yield message
                if next_offset >= end[key]:
                    open_parts.discard(key)
        finally:
            consumer.close()

    def close(self) -> None:
        """Close the connection."""
        if self._glances is not None:
            self._glances.close()
        self._consumer.close()


def _once_more(ask: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Return the answer; ask again for a moment where a broker has only just become the leader of a new partition."""
    for wait_s in LOOK_AGAIN_AFTER_S:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _SETTLING:
                raise
            time.sleep(wait_s)
    return ask()


def _refused(partition: tuple[str, int], offset: int, error: KafkaError) -> OperatorError:
    return OperatorError(
        "kafka_refused",
        f"Kafka does not give the records of {partition[0]}/{partition[1]} from offset {offset} on: {error.str()}.",
        "Check the rights on the topic (Read and Describe), and read again.",
    )
