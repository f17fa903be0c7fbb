"""Waiting, without saying how: what decides yields what it waits for, and a thread or an event loop does the waiting.

So the order of the steps, which is the promise, stands once, whatever the server is.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

TICK_S: Final = 0.05
"""How late a wait in an event loop may end: one timer looks at all of them, since a timer for each costs more than the rest."""


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
    """Run the steps to their end; this thread waits."""
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


class InLoop:
    """Runs steps in an event loop, which serves others while one waits.

    Results come from other threads many at a time; they cross into the loop together, by one wake-up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived: deque[asyncio.Future[None]] = deque()
        self._wakes = False
        self._until_s: dict[asyncio.Future[None], float] = {}
        self._loop.call_soon(self._tick)

    async def run(self, steps: Steps[T]) -> T:
        """Run the steps to their end."""
        try:
            wait = next(steps)
            while True:
                woken = self._loop.create_future()
                self._until_s[woken] = self._loop.time() + wait.timeout_s
                wait.awaited.add_done_callback(partial(self._arrive, woken))
                await woken
                del self._until_s[woken]
                try:
                    result = wait.awaited.result(0)
                except Exception as error:  # noqa: BLE001 - the steps decide what becomes of it
                    wait = steps.throw(error)
                else:
                    wait = steps.send(result)
        except StopIteration as done:
            ended: T = done.value
            return ended

    def _arrive(self, woken: "asyncio.Future[None]", _awaited: object) -> None:
        """Called by whichever thread has the result."""
        self._arrived.append(woken)
        if not self._wakes:
            self._wakes = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._wakes = False  # before looking: what arrives from now on calls again
        while self._arrived:
            _resume(self._arrived.popleft())

    def _tick(self) -> None:
        now_s = self._loop.time()
        for woken, until_s in self._until_s.items():
            if until_s <= now_s:
                _resume(woken)
        self._loop.call_later(TICK_S, self._tick)


def _resume(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)
