"""Which of the sender's times can be believed, judged without a clock: so a replay next year judges the same."""

from typing import Literal

from kinguin_streams.schemas.events import Event

EARLIEST_MS = 1_514_764_800_000
"""2018-01-01T00:00:00Z: the sender's API, whose first document is of November 2018, has no older orders or products."""
TOLERANCE_MS = 86_400_000
"""A sender's clock may run ahead of ours by a day, which is every time zone and then some."""


def is_plausible(event: Event) -> bool:
    """Return whether updatedAt lies between 2018 and a day after this delivery was received.

    One event in the year 2999 would otherwise be the newest for ever, and freeze its order or product.
    """
    return EARLIEST_MS <= event.updated_at_ms <= event.received_at_ms + TOLERANCE_MS


Implausible = Literal["before_2018", "after_receipt"]
"""Why an updatedAt cannot be believed: it is older than the sender's API, or more than a day later than its own delivery."""


def implausible_because(updated_at_ms: int, received_at_ms: int) -> Implausible | None:
    """Return why `is_plausible` says no to such an event, or None where it says yes. For whoever reads: folds ask that one."""
    if updated_at_ms < EARLIEST_MS:
        return "before_2018"
    return "after_receipt" if updated_at_ms > received_at_ms + TOLERANCE_MS else None
