"""Whether it makes sense to wait for Kafka. Decides only; does nothing. Times are monotonic.

Closed while Kafka confirms. Opened by the first wait of a second during which Kafka confirmed nothing at all: then nobody
waits, and events go to the spool at once. Half open once Kafka answers a question about its topics: one record a second may
try. Closed again once Kafka has taken a record, or refused it for good: that is an answer too.
"""

import threading
from dataclasses import dataclass, field
from typing import Final, Literal

QUIET_S: Final = 1.0
"""One report that did not come may be one partition without a leader; none at all for so long is Kafka away."""
TRY_EVERY_S: Final = 1.0

BreakerState = Literal["closed", "open", "half_open"]


@dataclass
class Breaker:
    """Safe to use from any thread.

    Without it each request waits in vain for as long as it may: three seconds, in which a sender's connections are all in use.
    """

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _state: BreakerState = "closed"
    _tried_at_s: float = float("-inf")
    _confirmed_at_s: float = float("-inf")

    @property
    def state(self) -> BreakerState:
        """Where it stands now."""
        return self._state

    def may_try(self, now_s: float) -> bool:
        """Return whether to hand a record to Kafka now."""
        with self._lock:
            if self._state == "closed":
                return True
            if self._state == "open" or now_s - self._tried_at_s < TRY_EVERY_S:
                return False
            self._tried_at_s = now_s
            return True

    def confirmed(self, now_s: float) -> bool:
        """Note that Kafka has a record, or refuses it for good; return whether this closed the breaker."""
        with self._lock:
            was, self._state = self._state, "closed"
            self._confirmed_at_s = now_s
            return was != "closed"

    def waited_in_vain(self, now_s: float) -> bool:
        """Note that Kafka said nothing about a record for QUIET_S; return whether this opened the breaker."""
        with self._lock:
            if self._state == "open" or now_s - self._confirmed_at_s <= QUIET_S:
                return False
            was, self._state = self._state, "open"
            return was == "closed"

    def answered(self) -> None:
        """Note that Kafka has answered a question about its topics: it may take records again."""
        with self._lock:
            if self._state == "open":
                self._state = "half_open"
