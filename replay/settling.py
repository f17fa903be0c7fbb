"""When nothing that a process has sent before it died can turn up in a topic any more. Pure, but for the clock it is given."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Part = TypeVar("Part", bound=Hashable)
"""A partition, by whatever name."""

REPLICA_LAG_S = 30.0
"""Kafka's default of replica.lag.time.max.ms."""
_ON_ITS_WAY_S = 1.0
_SLACK_S = 3.0
_AGAIN_AFTER_S = 1.0


def settle_s(replicas: int, replica_lag_s: float = REPLICA_LAG_S) -> float:
    """Return for how long records that the leader has taken may stay unseen, after their producer is gone.

    Consumers see what all in-sync replicas have. A follower that hangs stays one of them for up to one and a half times
    replica.lag.time.max.ms: the leader looks every half of it.
    """
    return _ON_ITS_WAY_S if replicas < 2 else 1.5 * replica_lag_s + _SLACK_S


def read_until_settled(
    start: Mapping[Part, int],
    ends: Callable[[], Mapping[Part, int]],
    read: Callable[[Mapping[Part, int], Mapping[Part, int]], bool],
    wait_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Read from `start` to the end, and what comes after it, until `wait_s` have passed and the last read found nothing.

    start, ends: of each partition the offset of its next record, as consumers see it. read: takes what lies between two ends, and returns whether any of it was meant.
    """
    settled_at_s = clock() + wait_s
    while True:
        now = ends()
        found = now != start and read(start, now)
        start = now
        if not found and clock() >= settled_at_s:
            return
        sleep(_AGAIN_AFTER_S)
