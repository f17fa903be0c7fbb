"""Orders that have been waiting for long: asked for by people, decided by nobody. Pure."""

import msgspec

from kinguin_streams.consumers.order_state import OPEN_RANK, RANKS, UNKNOWN_RANK, OrderView


class Stuck(msgspec.Struct, frozen=True):
    """An order that is neither completed nor given up, and how long the sender has said nothing new of it.

    Nothing here says that something is wrong: a pre-order is `processing` until its release date, for months if need be, and
    no webhook tells a pre-order from another.
    """

    view: OrderView
    waits_ms: int


def stuck(view: OrderView, now_ms: int, after_ms: int) -> Stuck | None:
    """Return the order if it is open, or of a status that nobody here knows, for longer than after_ms; else None."""
    if view.status is None or view.updated_at_ms is None:
        return None
    waits_ms = now_ms - view.updated_at_ms
    if RANKS.get(view.status, UNKNOWN_RANK) not in (OPEN_RANK, UNKNOWN_RANK) or waits_ms <= after_ms:
        return None
    return Stuck(view, waits_ms)
