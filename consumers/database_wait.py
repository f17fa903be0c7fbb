"""Waiting for a database that is away: when it is asked again. Does no I/O but a line in the log."""

from typing import Final

import structlog

from kinguin_streams.consumers.clock import Clock
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

GOES_BY_ITSELF: Final = frozenset({"state_away", "state_busy"})
"""What the database may say that a consumer waits for, instead of ending: the server restarts, another writer takes long."""


class DatabaseWait:
    """While it is on, every partition is paused, and nothing takes effect."""

    def __init__(self, retry_s: float, retry_max_s: float, clock: Clock) -> None:
        self._retry_s = retry_s
        self._retry_max_s = retry_max_s
        self._clock = clock
        self._delay_s: float | None = None
        self._due_s = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the database did not answer when it was last asked."""
        return self._delay_s is not None

    @property
    def is_due(self) -> bool:
        """Whether it is time to ask again."""
        return self._clock.monotonic_s() >= self._due_s

    def begin(self, error: OperatorError, consumer: str) -> None:
        """Wait, longer than before; raise the error if it is none that goes by itself."""
        if error.code not in GOES_BY_ITSELF:
            raise error
        self._wait("state_away", error, consumer)

    def go_on_without_kafka(self, error: OperatorError, consumer: str) -> None:
        """Wait longer: the database cannot be asked while nobody knows which topics these are; raise what is not that."""
        if error.code != "kafka_unreachable":
            raise error
        self._wait("state_not_asked", error, consumer)

    def _wait(self, event: str, error: OperatorError, consumer: str) -> None:
        self._delay_s = self._retry_s if self._delay_s is None else min(self._delay_s * 2, self._retry_max_s)
        self._due_s = self._clock.monotonic_s() + self._delay_s
        log.error(
            event,
            consumer=consumer,
            reason=str(error),
            retry_in_s=self._delay_s,
            hint="every partition waits, and no offset moves",
        )

    def end(self) -> None:
        """The database has answered."""
        self._delay_s = None
