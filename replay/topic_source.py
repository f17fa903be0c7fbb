"""Records out of topics, as fast as the client gives them: fixed windows, no group, committed records only."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.replay.patience import patiently
from kinguin_streams.replay.plan import Window
from kinguin_streams.replay.receipt import Gap, Positions
from kinguin_streams.replay.record import Record
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

REQUEST_TIMEOUT_S = 15.0
SILENCE_TIMEOUT_S = 60.0
_POLL_S = 0.1  # `consume` waits so long for a full batch, so this is also what the end of a topic costs
_new: Any = tuple.__new__
_MOVED_ON = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})


def source_config(config: dict[str, Any], *, committed: bool = True) -> dict[str, Any]:
    """Return a consumer's configuration for reading windows. config: from cluster.connection.consumer_config.

    Memory: librdkafka holds at most 8 MB ahead of us for each partition, where its default is 64 MB. Time: the end of a topic
    is told by a fetch that brings nothing, which the broker holds back for half a second by default.
    """
    preferred = {
        "queued.max.messages.kbytes": 8_192,
        "queued.min.messages": 50_000,
        "fetch.queue.backoff.ms": 10,
        "fetch.wait.max.ms": 50,
    }
    isolation = "read_committed" if committed else "read_uncommitted"
    return {**preferred, **config, "isolation.level": isolation, "enable.partition.eof": True}


class TopicSource:
    """A Source over topics: what lies in the windows and is committed. Aborted transactions are never seen."""

    def __init__(self, config: dict[str, Any], windows: Sequence[Window], batch_records: int = 500) -> None:
        """config: from source_config."""
        self._config = config
        self._windows = {(window.topic, window.partition): window for window in windows}
        self._batch_records = batch_records
        self._gaps: list[Gap] = []
        self._consumer: Consumer | None = None

    @property
    def gaps(self) -> Sequence[Gap]:
        """What retention deleted between the plan and the reading."""
        return self._gaps

    def read(self, start: Positions) -> Iterator[Sequence[Record]]:
        """Yield the records of the windows, in batches of several partitions. `start`: as in run.Source.

        Raises OperatorError: "kafka_silent", "kafka_refused", "kafka_unreachable".
        """
        # A client for each reading: one that has read before may hand out ends of its last assignment.
        consumer = self._consumer = new_client(Consumer, self._config)
        try:
            yield from self._read(consumer, start)
        finally:
            self.close()

    def _read(self, consumer: Consumer, start: Positions) -> Iterator[Sequence[Record]]:
        ends: dict[str, dict[int, int]] = {}
        positions: dict[tuple[str, int], int] = {}
        for key, window in self._windows.items():
            position = self._still_there(consumer, key, max(start.get(key, window.start), window.start))
            if position < window.end:
                positions[key] = position
                ends.setdefault(window.topic, {})[window.partition] = window.end
        if not positions:
            return
        consumer.assign([TopicPartition(topic, part, offset) for (topic, part), offset in positions.items()])
        open_parts = set(positions)
        heard_s = time.monotonic()
        while open_parts:
            messages: Any = consumer.consume(self._batch_records, _POLL_S)
            if not messages:
                if time.monotonic() - heard_s >= SILENCE_TIMEOUT_S:
                    raise _silent()
                continue
            told = [message for message in messages if message.error() is not None]
            # This is the speed of every replay: one comprehension, nothing for a record but the record, and that without the
            # detour over Record's own __new__, which does just this.
            records: list[Record] = [
                _new(
                    Record,
                    (
                        message.topic(),
                        message.partition(),
                        offset,
                        stamp[1] if (stamp := message.timestamp())[0] else None,
                        message.key(),
                        message.value(),
                        tuple(headers) if (headers := message.headers()) else (),
                    ),
                )
                for message in messages
                if message.error() is None and (offset := message.offset()) < ends[message.topic()][message.partition()]
            ]
            if records:
                yield records
            if len(records) + len(told) < len(messages):  # some lie behind the end
                self._close_finished(consumer, messages, ends, open_parts)
            heard_s = time.monotonic()  # after whoever took the records has had its time with them
            for message in told:
                self._heed(consumer, message, positions, ends, open_parts)

    def _close_finished(
        self,
        consumer: Consumer,
        messages: Sequence[Any],
        ends: Mapping[str, Mapping[int, int]],
        open_parts: set[tuple[str, int]],
    ) -> None:
        """Stop fetching partitions whose window has been read; live ones would go on for ever."""
        last = {(message.topic(), message.partition()): message.offset() for message in messages if not message.error()}
        done = [key for key, offset in last.items() if offset + 1 >= ends[key[0]][key[1]] and key in open_parts]
        if done:
            open_parts.difference_update(done)
            consumer.pause([TopicPartition(*key) for key in done])

    def _heed(
        self,
        consumer: Consumer,
        message: Message,
        positions: Positions,
        ends: Mapping[str, Mapping[int, int]],
        open_parts: set[tuple[str, int]],
    ) -> None:
        error = message.error()
        key = (str(message.topic()), int(message.partition() or 0))
        if error is None or key not in open_parts:
            return
        if error.code() == KafkaError._PARTITION_EOF:
            # Told as the offset that the next record will have: of a compacted topic the last ones may be missing.
            if int(message.offset() or 0) >= ends[key[0]][key[1]]:
                open_parts.discard(key)
        elif error.code() in _MOVED_ON:
            # The client's own position, since the error names the offset that it wanted to fetch, which may be far ahead.
            (asked,) = consumer.position([TopicPartition(*key)])
            wanted = asked.offset if asked.offset >= 0 else positions[key]
            position = self._still_there(consumer, key, wanted)
            if position >= ends[key[0]][key[1]]:
                open_parts.discard(key)
            else:
                # With auto.offset.reset=error the partition has stopped for good, and a seek is refused.
                consumer.incremental_unassign([TopicPartition(*key)])
                consumer.incremental_assign([TopicPartition(*key, position)])
        elif not error.retriable():
            raise _refused(key, int(message.offset() or 0), error)

    def _still_there(self, consumer: Consumer, key: tuple[str, int], position: int) -> int:
        """Return the position, or the first that retention has left after it; what is missing is a gap."""
        end = self._windows[key].end
        if position >= end:
            return position
        partition = TopicPartition(*key)
        earliest, _ = patiently(lambda: consumer.get_watermark_offsets(partition, timeout=REQUEST_TIMEOUT_S))
        if earliest <= position:
            return position
        self._gaps.append(Gap(topic=key[0], partition=key[1], start=position, end=min(earliest, end)))
        return min(int(earliest), end)

    def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def _silent() -> OperatorError:
    return OperatorError(
        "kafka_silent",
        f"Kafka sent nothing for {SILENCE_TIMEOUT_S:g} s while records were to be read.",
        "Check that the cluster is up; a replay goes on with `replay resume`.",
    )


def _refused(partition: tuple[str, int], offset: int, error: KafkaError) -> OperatorError:
    return OperatorError(
        "kafka_refused",
        f"Kafka does not give the records of {partition[0]}/{partition[1]} from offset {offset} on: {error.str()}.",
        "Check the rights on the topic (Read and Describe), and read again.",
    )
