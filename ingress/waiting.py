"""Waiting, without saying how: what decides yields what it waits for, and a thread or an event loop does the waiting.

So the order of the steps, which is the promise, stands once, whatever the server is.
"""

import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

TICK_S: Final = 0.05
"""How late a wait in an event loop may end: all are looked at together, since a timer for each costs more than the rest."""


class Awaited(Protocol):
    """What another thread brings about: a concurrent.futures.Future, or what behaves like one."""

    def result(self, timeout: float | None = None) -> Any:
        """Return or raise what it is. Raises TimeoutError if it is not there in time."""
        ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call it once it is there, on the thread that brought it about; at once if it is."""
        ...


@dataclass(slots=True)
class Wait:
    """Where a step waits: it is resumed with the result, or with its exception, or with TimeoutError."""

    awaited: Awaited
    timeout_s: float


Steps = Generator[Wait, Any, T]


def in_thread(steps: Steps[T]) -> T:
    """Run the steps to their end; this thread waits. Only for tests, which call the application without a server."""
    try:
        wait = next(steps)
        while True:
            try:
                result = wait.awaited.result(wait.timeout_s)
            except Exception as error:  # noqa: BLE001 - the steps decide what becomes of it
                wait = steps.throw(error)
            else:
                wait = steps.send(result)
    except StopIteration as done:
        ended: T = done.value
        return ended


class _Running:
    """Steps that have begun and not ended."""

    __slots__ = ("ended", "steps", "until_s", "wait")

    def __init__(self, steps: Steps[Any], ended: Callable[[Any], object]) -> None:
        self.steps = steps
        self.ended = ended
        self.wait: Wait | None = None
        self.until_s = 0.0


class InLoop:
    """Runs steps in an event loop, which serves others while one waits. All but `_arrive` is called on the loop's thread.

    Results come from other threads many at a time; they cross into the loop together, by one wake-up.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        """wake: has the loop call `resume` soon; called on any thread."""
        self._wake = wake
        self._is_woken = False
        self._arrived: deque[tuple[_Running, Wait]] = deque()
        self._waiting: set[_Running] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def start(self, steps: Steps[T], ended: Callable[[T], object]) -> None:
        """Run the steps as far as they go without waiting. ended: called with what they end with, now or later."""
        self._go_on(_Running(steps, ended), None)

    def resume(self) -> None:
        """Go on with what has something to go on with."""
        self._is_woken = False  # before looking: what arrives from now on wakes again
        for _ in range(len(self._arrived)):
            running, wait = self._arrived.popleft()
            if running.wait is wait:  # else it has given up on this one
                self._go_on(running, wait)

    def time_out(self) -> None:
        """Go on with what has waited long enough. To be called every TICK_S."""
        now_s = time.monotonic()
        for running in [each for each in self._waiting if each.until_s <= now_s]:
            self._go_on(running, running.wait)

    def _go_on(self, running: _Running, wait: Wait | None) -> None:
        try:
            if wait is None:
                following = next(running.steps)
            else:
                self._waiting.discard(running)
                try:
                    result = wait.awaited.result(0)
                except Exception as error:  # noqa: BLE001 - the steps decide what becomes of it
                    following = running.steps.throw(error)
                else:
                    following = running.steps.send(result)
        except StopIteration as done:
            running.wait = None
            try:
                running.ended(done.value)
            except Exception:  # an answer that cannot be written costs its connection, not the loop
                log.exception("not_ended")
            return
        except Exception:  # steps raise nothing, but if they do, one request has no answer, and the others have theirs
            running.wait = None
            log.exception("steps_broke_off")
            return
        running.wait = following
        running.until_s = time.monotonic() + following.timeout_s
        self._waiting.add(running)
        following.awaited.add_done_callback(partial(self._arrive, running, following))

    def _arrive(self, running: _Running, wait: Wait, _awaited: object) -> None:
        self._arrived.append((running, wait))
        if not self._is_woken:
            self._is_woken = True
            self._wake()
