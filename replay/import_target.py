"""The topics that an import writes into, read back: what carries its `replay-id`, each line by its `replay-source`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka.admin import AdminClient

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.replay.checksum import without_replay
from kinguin_streams.replay.landed_offsets import LandedOffsets
from kinguin_streams.replay.patience import patiently
from kinguin_streams.replay.plan import Window
from kinguin_streams.replay.receipt import Mark, partition_name, split_partition
from kinguin_streams.replay.record import REPLAY_ID, REPLAY_SOURCE, Record
from kinguin_streams.replay.settling import read_until_settled
from kinguin_streams.replay.survey import list_ends
from kinguin_streams.replay.topic_source import TopicSource
from kinguin_streams.replay.topic_target import topic_settles_s

log = structlog.get_logger()

Offsets = Mapping[tuple[str, int], int]
"""(topic, partition) to the offset of its next record."""


class ImportTarget:
    """What of one import lies in the topics: a run.ReadBack. The records are sent by a publisher, not by this."""

    def __init__(
        self,
        topics: Mapping[str, int],
        replay_id: str,
        *,
        admin: Mapping[str, Any],
        reader: dict[str, Any],
        batch_records: int = 500,
        at_rest: bool = False,
    ) -> None:
        """topics: name to number of partitions. admin, reader, at_rest: as of topic_target.TopicTarget."""
        self._topics = topics
        self._ours = (REPLAY_ID, replay_id.encode())
        self._reader, self._batch_records, self._at_rest = reader, batch_records, at_rest
        self._landed = LandedOffsets()
        self._start: Offsets = {}
        self._scan_from: Offsets = {}
        self._admin = new_client(AdminClient, admin)

    def open(self, mark: Mark | None) -> LandedOffsets:
        """Return what this import has written after its last `sync`. Waits and raises as TopicTarget.open does."""
        if mark is None:
            self._start = self._scan_from = self._ends()
            return self._landed
        self._start, self._scan_from = _by_partition(mark["start"]), _by_partition(mark["ends"])
        wait_s = 0.0
        if not self._at_rest:
            wait_s = max(patiently(lambda topic=topic: topic_settles_s(self._admin, topic)) for topic in self._topics)  # type: ignore[misc]
        log.info("target_settles", topics=list(self._topics), wait_s=wait_s)
        read_until_settled(self._scan_from, self._ends, self._find_landed, wait_s)
        return self._landed

    def _find_landed(self, start: Offsets, ends: Offsets) -> bool:
        found = False
        for batch in self._ours_in(start, ends):
            for record in batch:
                self._landed.add(dict(record.headers)[REPLAY_SOURCE] or b"", without_replay(record))
                found = True
        return found

    def sync(self) -> Mark:
        """Return where the topics end, once Kafka has confirmed all that was sent; what `open` needs to go on from here."""
        # As in TopicTarget.sync: until the run has come to all that has landed, it must be found again by the next `open`.
        if not len(self._landed):
            self._scan_from = self._ends()
        return {"start": _by_name(self._start), "ends": _by_name(self._scan_from)}

    def finish(self) -> None:
        """Do nothing: a record in a topic is final when it is acknowledged."""

    def read_back(self) -> Iterator[Sequence[Record]]:
        """Yield what lies in the topics of this import: after the ends that they had when it began."""
        for batch in self._ours_in(self._start, self._ends()):
            yield [without_replay(record) for record in batch]

    def _ends(self) -> Offsets:
        return {
            (topic, number): end
            for topic, partitions in self._topics.items()
            for number, end in list_ends(self._admin, topic, partitions).items()
        }

    def _ours_in(self, start: Offsets, ends: Offsets) -> Iterator[Sequence[Record]]:
        windows = [
            Window(topic=topic, partition=number, start=start.get((topic, number), 0), end=end, earliest=0, latest=end)
            for (topic, number), end in ends.items()
        ]
        for batch in TopicSource(self._reader, windows, self._batch_records).read({}):
            yield [record for record in batch if self._ours in record.headers]


def _by_name(offsets: Offsets) -> dict[str, int]:
    return {partition_name(*key): offset for key, offset in sorted(offsets.items())}


def _by_partition(offsets: Mapping[str, int]) -> Offsets:
    return {split_partition(name): offset for name, offset in offsets.items()}
