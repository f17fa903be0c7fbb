"""What a consumer has done in this run, in numbers. Does no I/O, and knows nothing of who asks.

The loop's thread writes; what is counted of a batch in hand, the thread that stores it, before the loop's hears of its end.
Whoever reads on another thread may find one number a batch ahead of another, and never half a number.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from kinguin_streams.consumers.projection import FoldProjection, Projection, Received
from kinguin_streams.telemetry.histogram import Histogram

DURATIONS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES_RECORDS: Final = (1, 10, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000)
MOST_REASONS: Final = 50
OTHER: Final = "other"
"""Of dead letters whose reason is one too many: a handler may make reasons of what it reads."""

RebalanceEvent = Literal["assigned", "revoked", "lost"]
REBALANCE_EVENTS: Final[tuple[RebalanceEvent, ...]] = ("assigned", "revoked", "lost")


@dataclass(slots=True)
class Tally:
    """The numbers of one run of one consumer."""

    consumed: dict[str, int] = field(default_factory=dict)
    """By topic: records that Kafka has handed out, and that were not dropped at once."""
    applied: int = 0
    """Records that have taken effect."""
    stale: int = 0
    """Of those, the ones that said nothing new. Counted only of a projection that count_stale has prepared."""
    duplicates: int = 0
    """Records that Kafka handed out though they had taken effect; dropped."""
    dead_letters: dict[str, int] = field(default_factory=dict)
    """By reason."""
    retries: int = 0
    """Calls of a handler that failed, and are made again."""
    rebalances: dict[RebalanceEvent, int] = field(default_factory=lambda: dict.fromkeys(REBALANCE_EVENTS, 0))
    batch_seconds: Histogram = field(default_factory=lambda: Histogram(DURATIONS_S))
    batch_records: Histogram = field(default_factory=lambda: Histogram(SIZES_RECORDS))
    stored_at_ms: int | None = None
    """When offsets were last stored: a projection's in its database, a handler's handed to Kafka."""
    turned_s: float | None = None
    """When the loop last finished a turn, on the clock's monotonic_s; None: it does not turn yet, or has closed."""

    @property
    def dead_lettered(self) -> int:
        """All dead letters."""
        return sum(self.dead_letters.copy().values())

    def dead_letter(self, reason: str) -> None:
        """Count one."""
        known = reason in self.dead_letters or len(self.dead_letters) < MOST_REASONS
        label = reason if known else OTHER
        self.dead_letters[label] = self.dead_letters.get(label, 0) + 1

    def batch(self, records: int, seconds: float) -> None:
        """Count a batch that has been worked on."""
        self.batch_records.observe(records)
        self.batch_seconds.observe(seconds)


def count_stale(projection: Projection, tally: Tally) -> Projection:
    """Return the projection, with a fold that counts what says nothing new.

    A fold only: of rows, the database alone finds out. A transaction that is undone has been counted, and is again.
    """
    if not isinstance(projection, FoldProjection):
        return projection
    fold = projection.fold

    def counting(state: Any, received: Received[Any]) -> Any:
        after = fold(state, received)
        if after is state:
            tally.stale += 1
        return after

    return replace(projection, fold=counting)
