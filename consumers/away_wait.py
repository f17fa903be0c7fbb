"""Waiting for a database or a Kafka that is away: when it is asked again. Does no I/O but a line in the log."""

from collections.abc import Mapping
from typing import Final, Literal

import structlog

from kinguin_streams.consumers.clock import Clock
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

Away = Literal["database", "kafka"]
GOES_BY_ITSELF: Final[Mapping[str, Away]] = {
    "state_away": "database",
    "state_busy": "database",
    "kafka_unreachable": "kafka",
}
"""What a consumer waits for, by what it is told, instead of ending: a server restarts, another writer takes long."""
_EVENTS: Final[Mapping[Away, str]] = {"database": "state_away", "kafka": "kafka_away"}


class AwayWait:
    """While it is on, every partition is paused, and nothing takes effect."""

    def __init__(self, retry_s: float, retry_max_s: float, clock: Clock) -> None:
        self._retry_s = retry_s
        self._retry_max_s = retry_max_s
        self._clock = clock
        self._delay_s = 0.0
        self._due_s = 0.0
        self.waits_for: Away | None = None
        """Who did not answer when last asked; None: all have answered."""

    @property
    def is_on(self) -> bool:
        """Whether somebody did not answer when last asked."""
        return self.waits_for is not None

    @property
    def is_due(self) -> bool:
        """Whether it is time to ask again."""
        return self._clock.monotonic_s() >= self._due_s

    def begin(self, error: OperatorError, consumer: str) -> None:
        """Wait, longer than before; raise the error if it is none that goes by itself."""
        away = GOES_BY_ITSELF.get(error.code)
        if away is None:
            raise error
        self._delay_s = min(self._delay_s * 2, self._retry_max_s) if self.is_on else self._retry_s
        self._due_s = self._clock.monotonic_s() + self._delay_s
        self.waits_for = away
        log.error(
            _EVENTS[away],
            consumer=consumer,
            reason=str(error),
            retry_in_s=self._delay_s,
            hint="every partition waits, and no offset moves",
        )

    def end(self) -> None:
        """All have answered."""
        self.waits_for = None
