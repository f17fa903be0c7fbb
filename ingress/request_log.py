"""One line for a request, and not for every one: while all is well a sample says enough, and metrics count the rest."""

import itertools
import time

import structlog

from kinguin_streams.ingress.exchange import Asked
from kinguin_streams.ingress.ledger import Entry

log = structlog.get_logger()

# These have had a line of their own, which says why.
_TOLD = frozenset({"dead_lettered"})
_TOLD_FROM_STATUS = 500


class RequestLog:
    """Logs every n-th request of those that nobody else has told of."""

    def __init__(self, every: int) -> None:
        """every: 1 logs all of them, 0 none."""
        self._every = every
        self._count = itertools.count(1)

    def ended(self, asked: Asked, entry: Entry, status: int, request_id: str) -> None:
        """Note that a request has been answered."""
        if entry.outcome in _TOLD or status >= _TOLD_FROM_STATUS:
            return
        if self._every and next(self._count) % self._every == 0:
            log.info(
                "request",
                request_id=request_id,
                method=asked.method,
                event_name=entry.event,
                outcome=entry.outcome,
                reason=entry.reason,
                status=status,
                duration_ms=round((time.monotonic() - asked.arrived_s) * 1000, 1),
                sampled_one_in=self._every,
            )
