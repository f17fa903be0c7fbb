"""What becomes of a record whose handler has failed: again, later, or never. Decides only; does nothing."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from kinguin_streams.consumers.batch import MAX_DETAIL_CHARACTERS

FAILED: Final = "handler_failed"
"""The reason of a dead letter whose handler raised something every time."""
WHOLE_ATTEMPTS: Final = 2
"""Of a batch, before its records are tried one by one: the first, and one in case it was just a bad moment."""
BREAKER_WINDOW: Final = 100


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """attempts: at one record, in all. first_s: the first wait; it doubles, up to most_s."""

    attempts: int
    first_s: float
    most_s: float

    def wait_s(self, attempt: int) -> float | None:
        """Return how long to wait after this attempt (1 is the first) has failed, or None to give up."""
        if attempt >= self.attempts:
            return None
        return self.backoff_s(attempt)

    def backoff_s(self, attempt: int) -> float:
        """Return the wait after this attempt, if there is to be another one."""
        # 2 ** 60 s is longer than any wait; without the bound, attempt 1100 would be no float any more.
        return min(self.first_s * 2.0 ** min(attempt - 1, 60), self.most_s)

    def next_of_batch(self, attempt: int) -> float | None:
        """Return how long to wait before a failed batch is tried whole again, or None: now its records one by one."""
        if attempt >= min(WHOLE_ATTEMPTS, self.attempts):
            return None
        return self.backoff_s(attempt)


class Breaker:
    """Whether giving up has become the rule: then it is not the record that is at fault, and more dead letters help nobody.

    A record that a handler rejected itself counts as done: it has decided.
    """

    def __init__(self, most_letters: int) -> None:
        """most_letters: given up among the last 100 records, whatever the share."""
        self._most_letters = most_letters
        self._last: deque[bool] = deque(maxlen=BREAKER_WINDOW)
        self._given_up = 0

    def may_give_up(self) -> bool:
        """Return whether one more record may be dead-lettered."""
        return self._given_up < self._most_letters or self._given_up < len(self._last) - self._given_up

    def done(self, count: int = 1) -> None:
        """Note that records were handled."""
        for _ in range(min(count, BREAKER_WINDOW)):
            self._note(given_up=False)

    def gave_up(self) -> None:
        """Note that a record was dead-lettered."""
        self._note(given_up=True)

    def _note(self, *, given_up: bool) -> None:
        if len(self._last) == BREAKER_WINDOW and self._last[0]:
            self._given_up -= 1
        self._last.append(given_up)
        self._given_up += given_up


def described(error: BaseException) -> str:
    """Return type and message of what a handler raised, bounded: a message may hold a whole web page."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a user's exception may be unable to say what it is
        message = "(its message cannot be shown)"
    return f"{type(error).__name__}: {message}"[:MAX_DETAIL_CHARACTERS]
