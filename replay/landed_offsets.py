"""What a topic holds already of a replay whose process died: each record by where it came from, and what it is. Pure."""

from kinguin_streams.replay.checksum import Tally, tally
from kinguin_streams.replay.receipt import Positions
from kinguin_streams.replay.record import Record


class LandedOffsets:
    """Source records that were found in the target, until the run has come to them."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, int], dict[int, Tally]] = {}
        self._count = 0

    def add(self, source: bytes, record: Record) -> None:
        """Take in a record. source: what its `replay-source` header says. record: it, without what the copy has added."""
        topic, partition, offset = source.decode().rsplit("/", 2)
        of_partition = self._tallies.setdefault((topic, int(partition)), {})
        if int(offset) not in of_partition:  # what is there twice counts once: the proof finds the other one
            of_partition[int(offset)] = tally((record,))
            self._count += 1

    def take(self, position: tuple[str, int, int]) -> Tally | None:
        """Return what it is if it is one of them, and forget it."""
        found = self._tallies.get(position[:2], {}).pop(position[2], None)
        if found is not None:
            self._count -= 1
        return found

    def leave(self, below: Positions | None = None) -> Tally:
        """Return what was never taken and lies before these positions, or all that is left, and forget it."""
        left = []
        for partition, of_partition in self._tallies.items():
            limit = None if below is None else below.get(partition, 0)
            passed = [offset for offset in of_partition if limit is None or offset < limit]
            left += [of_partition.pop(offset) for offset in passed]
        self._count -= len(left)
        return sum(left, start=Tally())

    def __len__(self) -> int:
        return self._count
