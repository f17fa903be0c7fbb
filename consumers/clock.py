"""The time, as the loop sees it: a test of retries need not wait for them."""

import time
from typing import Final, Protocol


class Clock(Protocol):
    """Two clocks: one for how long, one for when."""

    def monotonic_s(self) -> float: ...
    def now_ms(self) -> int: ...


class SystemClock:
    """The machine's."""

    def monotonic_s(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        return time.monotonic()

    def now_ms(self) -> int:
        """Return milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000


SYSTEM_CLOCK: Final = SystemClock()
