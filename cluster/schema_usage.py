"""Counts which schemas the records of topics were written with: headers only, nothing is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kinguin_streams.cluster.topic_reader import Offsets, TopicReader
from kinguin_streams.schemas.in_use import Seen, header_of

REPORT_EVERY_RECORDS = 10_000
Report = Callable[[int, int], None]
"""Told how many records have been looked at, and how many there are."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found, and the topics that are not there."""

    seen: tuple[Seen, ...]
    missing: tuple[str, ...]


def survey(reader: TopicReader, topics: Sequence[str], since_ms: int | None, report: Report) -> Survey:
    """Return what the records begin with that the topics hold now, for each topic its partitions together.

    since_ms: begin at the first record of this time or later in each partition; None: with the first there is.
    Raises OperatorError as TopicReader's bounds, offsets_at and read do.
    """
    bounds = reader.bounds(topics)
    there = {topic for topic, _ in bounds}
    end = {key: high for key, (_, high) in bounds.items()}
    start = {key: low for key, (low, _) in bounds.items()}
    if since_ms is not None:
        start = reader.offsets_at(since_ms, end)
    return Survey(_count(reader, start, end, report), tuple(topic for topic in topics if topic not in there))


def _count(reader: TopicReader, start: Offsets, end: Offsets, report: Report) -> tuple[Seen, ...]:
    total = sum(end[key] - start[key] for key in end)
    tallies: dict[tuple[str, bytes], _Tally] = {}
    for done, message in enumerate(reader.read(start, end)):
        key = (message.topic() or "", header_of(message.value()))
        position = (message.timestamp()[1], message.partition() or 0, message.offset() or 0)
        tally = tallies.get(key)
        if tally is None:
            tallies[key] = _Tally(position)
        else:
            tally.add(position)
        if done % REPORT_EVERY_RECORDS == 0:
            report(done, total)
    report(total, total)  # what retention or a transaction has taken is not there to be counted
    return tuple(tally.seen(*key) for key, tally in sorted(tallies.items()))


class _Tally:
    """How often one header was met, and when first and last. Positions are (record time, partition, offset)."""

    __slots__ = ("_first", "_last_at_ms", "_records")

    def __init__(self, position: tuple[int, int, int]) -> None:
        self._records = 1
        self._first = position
        self._last_at_ms = position[0]

    def add(self, position: tuple[int, int, int]) -> None:
        self._records += 1
        if position < self._first:
            self._first = position
        elif position[0] > self._last_at_ms:
            self._last_at_ms = position[0]

    def seen(self, topic: str, header: bytes) -> Seen:
        at_ms, partition, offset = self._first
        return Seen(
            topic=topic,
            header=header,
            records=self._records,
            first_at_ms=at_ms,
            last_at_ms=self._last_at_ms,
            partition=partition,
            offset=offset,
        )
