"""How far a consumer is behind its topics: in records, and in time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Topics(Protocol):
    """What is asked of cluster.topic_reader.TopicReader."""

    def bounds_of(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        """Return the first offset that retention has left and the one after the last. Raises OperatorError."""
        ...

    def times_at(self, offsets: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Return the times of the records at these offsets, in milliseconds since 1970, where there are any."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """One partition, as seen by one look."""

    topic: str
    partition: int
    next_offset: int | None
    """The record that is to take effect next; None: none ever has."""
    first: int
    """The first one that retention has left."""
    end: int
    next_at_ms: int | None
    """The time of the next record: when the ingress received it. None: there is none, or it did not come in time."""

    @property
    def records(self) -> int:
        """Return how many records have not taken effect. Not those that retention has taken."""
        return max(0, self.end - max(self.next_offset or 0, self.first))

    @property
    def taken_away(self) -> int:
        """Return how many records retention has deleted before they took effect. A consumer stops at them."""
        return 0 if self.next_offset is None else max(0, self.first - self.next_offset)

    def seconds(self, now_ms: int) -> float | None:
        """Return the age of the next record; 0 if there is none, None if it is not known."""
        if self.records == 0:
            return 0.0
        return None if self.next_at_ms is None else max(0.0, (now_ms - self.next_at_ms) / 1000)


def measure(topics: Topics, next_offsets: Mapping[tuple[str, int], int | None]) -> list[PartitionLag]:
    """Look at these partitions, in their order. Raises OperatorError("kafka_unreachable")."""
    bounds = topics.bounds_of(next_offsets)
    starts = {key: max(next_offsets[key] or 0, first) for key, (first, _) in bounds.items()}
    times = topics.times_at({key: start for key, start in starts.items() if start < bounds[key][1]})
    return [
        PartitionLag(
            topic=topic,
            partition=partition,
            next_offset=next_offsets[topic, partition],
            first=first,
            end=end,
            next_at_ms=times.get((topic, partition)),
        )
        for (topic, partition), (first, end) in sorted(bounds.items())
    ]
