"""Lag: what has not taken effect yet, in records and in the age of the next one."""

from collections.abc import Iterable, Mapping

import pytest

from kinguin_streams.consumers.lag import PartitionLag, measure


class TopicsInMemory:
    """Bounds and times of one partition each."""

    def __init__(self, bounds: dict[tuple[str, int], tuple[int, int]], times: dict[tuple[str, int], int]) -> None:
        self._bounds = bounds
        self._times = times
        self.asked: dict[tuple[str, int], int] = {}

    def bounds_of(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        return {key: self._bounds[key] for key in partitions}

    def times_at(self, offsets: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        self.asked = dict(offsets)
        return {key: self._times[key] for key in offsets if key in self._times}


@pytest.mark.parametrize(
    ("next_offset", "bounds", "records", "seconds", "taken_away"),
    [
        pytest.param(3, (0, 10), 7, 5.0, 0, id="what lies from the next offset on"),
        pytest.param(10, (0, 10), 0, 0.0, 0, id="nothing is left to do"),
        pytest.param(None, (0, 10), 10, 5.0, 0, id="nothing has ever been done"),
        pytest.param(None, (4, 10), 6, 5.0, 0, id="a new consumer does not miss what is gone"),
        pytest.param(2, (4, 10), 6, 5.0, 2, id="retention has passed the next offset"),
        pytest.param(2, (10, 10), 0, 0.0, 8, id="retention has taken everything"),
        pytest.param(12, (0, 10), 0, 0.0, 0, id="a topic made anew is no negative lag"),
    ],
)
def test_lag_is_what_has_not_taken_effect(
    next_offset: int | None, bounds: tuple[int, int], records: int, seconds: float, taken_away: int
) -> None:
    topics = TopicsInMemory({("t", 0): bounds}, {("t", 0): 1_000})
    [lag] = measure(topics, {("t", 0): next_offset})
    assert (lag.records, lag.seconds(6_000), lag.taken_away) == (records, seconds, taken_away)


def test_only_partitions_that_lag_are_asked_for_a_time() -> None:
    topics = TopicsInMemory({("t", 0): (5, 10), ("t", 1): (0, 3)}, {})
    found = measure(topics, {("t", 1): 3, ("t", 0): 1})
    assert topics.asked == {("t", 0): 5}
    assert [lag.partition for lag in found] == [0, 1]
    assert [lag.seconds(0) for lag in found] == [None, 0.0]


def test_a_record_of_the_future_is_not_late() -> None:
    lag = PartitionLag(topic="t", partition=0, next_offset=0, first=0, end=1, next_at_ms=9_000)
    assert lag.seconds(6_000) == 0.0
