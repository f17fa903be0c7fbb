"""Whether it makes sense to wait for Kafka: while it is away, one request a second finds out whether it is back."""

import threading
from dataclasses import dataclass, field
from typing import Final

QUIET_S: Final = 1.0
"""One report that did not come may be one partition without a leader; none at all for so long is Kafka away."""
TRY_EVERY_S: Final = 1.0


@dataclass
class Breaker:
    """Closed while Kafka confirms; open after a wait in vain during which nothing was confirmed. Times are monotonic.

    Without it each request waits in vain on one of a few threads while the next ones queue for those: with 100
    connections on 32 threads, the last answer came after 12 s instead of 3.
    """

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: bool = False
    _tried_at_s: float = float("-inf")
    _confirmed_at_s: float = float("-inf")

    def may_try(self, now_s: float) -> bool:
        """Return whether to publish now."""
        with self._lock:
            if self._open and now_s - self._tried_at_s < TRY_EVERY_S:
                return False
            self._tried_at_s = now_s
            return True

    def confirmed(self, now_s: float) -> bool:
        """Note that Kafka has a record; return whether this closed the breaker."""
        with self._lock:
            was_open, self._open = self._open, False
            self._confirmed_at_s = now_s
            return was_open

    def waited_in_vain(self, now_s: float) -> bool:
        """Note that Kafka said nothing about a record in time; return whether this opened the breaker."""
        with self._lock:
            if self._open or now_s - self._confirmed_at_s <= QUIET_S:
                return False
            self._open = True
            self._tried_at_s = now_s  # those in the queue have waited long enough to be the next to try
            return True
