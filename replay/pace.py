"""How fast a replay may go. Pure: the caller says what time it is."""

from kinguin_streams.replay.plan import PaceLimit

BURST_S = 0.1


class Pace:
    """A token bucket: each chunk costs the time that the stricter of the two limits gives it; a tenth of a second may be saved."""

    def __init__(self, limit: PaceLimit, now_s: float) -> None:
        """now_s: on any clock that only goes forward, the same for every call."""
        self._records_per_s = limit.max_records_per_s
        self._bytes_per_s = limit.max_bytes_per_s
        self._free_at_s = now_s

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self._records_per_s is not None or self._bytes_per_s is not None

    def chunk_records(self, most: int) -> int:
        """Return how many records to move at once, so that a slow pace is even: `most` without a limit of records."""
        if self._bytes_per_s is not None:
            most = min(most, 100)  # of records of any size: a few at a time, and then the wait that they cost
        if self._records_per_s is None:
            return most
        return max(1, min(most, int(self._records_per_s * BURST_S)))

    def wait_s(self, records: int, size_bytes: int, now_s: float) -> float:
        """Return how long to wait now that so much has been moved."""
        cost_s = 0.0
        if self._records_per_s is not None:
            cost_s = records / self._records_per_s
        if self._bytes_per_s is not None:
            cost_s = max(cost_s, size_bytes / self._bytes_per_s)
        # What was not used in time is lost but for a short burst: a pause of the source must not be made up for at full speed.
        self._free_at_s = max(self._free_at_s, now_s - BURST_S) + cost_s
        return max(0.0, self._free_at_s - now_s)
