"""What is said again and again is said once in a while. Does no I/O, and reads no clock."""

from typing import Final

SAME_EVERY_S: Final = 10.0
MOST_KINDS: Final = 1_000
"""Of what is remembered; then all is forgotten, and said once more."""


class Repeats:
    """When each thing was last said, and how often it was left unsaid since. Threads may share it: a count may come out one short."""

    def __init__(self, every_s: float = SAME_EVERY_S) -> None:
        """every_s: the same is said no more often."""
        self._every_s = every_s
        self._said: dict[str, tuple[float, int]] = {}

    def unsaid(self, what: str, now_s: float) -> int | None:
        """Return how often it was left unsaid since it was last said, if it is to be said now; None: leave it unsaid."""
        said_s, unsaid = self._said.get(what, (float("-inf"), 0))
        if now_s - said_s < self._every_s:
            self._said[what] = said_s, unsaid + 1
            return None
        if len(self._said) >= MOST_KINDS:
            self._said.clear()
        self._said[what] = now_s, 0
        return unsaid
