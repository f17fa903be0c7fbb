"""What a leader has and its replicas have not is not taken for missing."""

import pytest

from kinguin_streams.replay.settling import read_until_settled, settle_s


class Topic:
    """One partition, whose end is seen to move at given times; its own clock."""

    def __init__(self, moves: dict[float, int], ours: frozenset[int] = frozenset(range(100))) -> None:
        self._moves, self._ours = moves, ours
        self.now_s = 0.0
        self.found: list[int] = []

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def ends(self) -> dict[int, int]:
        return {0: max(end for at_s, end in self._moves.items() if at_s <= self.now_s)}

    def read(self, start: dict[int, int], ends: dict[int, int]) -> bool:
        mine = [offset for offset in range(start[0], ends[0]) if offset in self._ours]
        self.found += mine
        return bool(mine)

    def settle(self, wait_s: float) -> "Topic":
        read_until_settled({0: 3}, self.ends, self.read, wait_s, clock=lambda: self.now_s, sleep=self.sleep)  # type: ignore[arg-type]
        return self


def test_what_is_seen_only_once_a_hanging_follower_is_given_up_is_found() -> None:
    moves = {0.0: 5, 44.0: 9}
    assert Topic(moves).settle(settle_s(3)).found == [3, 4, 5, 6, 7, 8]
    assert Topic(moves).settle(settle_s(1)).found == [3, 4]  # there is no follower that could hang


def test_it_goes_on_while_more_is_found_and_not_for_records_of_others() -> None:
    busy = {float(second): 3 + second for second in range(80)}
    topic = Topic(busy, ours=frozenset({3, 4})).settle(1.0)
    assert (topic.found, topic.now_s) == ([3, 4], 3.0)


def test_what_was_left_at_rest_is_looked_at_once() -> None:
    topic = Topic({0.0: 3}).settle(0.0)
    assert (topic.found, topic.now_s) == ([], 0.0)


@pytest.mark.parametrize(
    ("replicas", "lag_s", "expected_s"),
    [
        pytest.param(1, 30.0, 1.0, id="without replicas only requests can be on their way"),
        pytest.param(3, 30.0, 48.0, id="a follower is given up after up to one and a half times the lag"),
        pytest.param(2, 10.0, 18.0, id="as the brokers have it"),
    ],
)
def test_how_long_a_record_may_stay_unseen(replicas: int, lag_s: float, expected_s: float) -> None:
    assert settle_s(replicas, lag_s) == expected_s
