"""Records of the Kafka in memory, and the partitions that they lie in."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from confluent_kafka import TIMESTAMP_CREATE_TIME, KafkaError

from kinguin_streams.consumers.batch import TopicPart

Headers = Sequence[tuple[str, bytes | None]]


class MemoryMessage:
    """A record in its place, or an error of a partition, with the accessors of confluent_kafka.Message."""

    __slots__ = ("_error", "_headers", "_key", "_offset", "_partition", "_timestamp_ms", "_topic", "_value", "arrival")

    def __init__(
        self,
        part: TopicPart,
        offset: int,
        *,
        value: bytes | None = None,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp_ms: int = 0,
        error: KafkaError | None = None,
    ) -> None:
        self._topic, self._partition = part
        self._offset = offset
        self._value = value
        self._key = key
        self._headers = list(headers)
        self._timestamp_ms = timestamp_ms
        self._error = error
        self.arrival = 0
        """Of two partitions' next records the client hands over the one of the smaller number first."""

    def topic(self) -> str:
        """Return the topic's name."""
        return self._topic

    def partition(self) -> int:
        """Return the partition's number."""
        return self._partition

    def offset(self) -> int:
        """Return the offset."""
        return self._offset

    def key(self) -> bytes | None:
        """Return the key."""
        return self._key

    def value(self) -> bytes | None:
        """Return the value."""
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """Return the headers in their order, or None if there are none."""
        return self._headers or None

    def timestamp(self) -> tuple[int, int]:
        """Return (confluent_kafka.TIMESTAMP_CREATE_TIME, milliseconds)."""
        return TIMESTAMP_CREATE_TIME, self._timestamp_ms

    def error(self) -> KafkaError | None:
        """Return what is wrong with the partition, or None: this is a record."""
        return self._error

    def moved_to(self, offset: int, arrival: int) -> "MemoryMessage":
        """Return the same record in another place of its partition."""
        part = TopicPart(self._topic, self._partition)
        moved = MemoryMessage(
            part, offset, value=self._value, key=self._key, headers=self._headers, timestamp_ms=self._timestamp_ms
        )
        moved.arrival = arrival
        return moved


@dataclass
class Log:
    """A partition. The record at offset n is records[n]; those below `low` are gone."""

    records: list[MemoryMessage] = field(default_factory=list)
    low: int = 0
    read_to: int = 0
    """Records from here on have been handed to nobody yet."""

    @property
    def end(self) -> int:
        """The offset of the next record."""
        return len(self.records)
