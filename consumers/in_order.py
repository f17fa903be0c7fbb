"""Statements of one transaction, given to the database by a thread while another works out the next ones."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Statements(Protocol):
    """Takes calls, and makes them in their order. A context manager: all have been made after it."""

    def submit(self, call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> "Future[R]": ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class AtOnce:
    """Makes each call when it is given."""

    def submit(self, call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> "Future[R]":
        """Return the result. Raises what the call raises."""
        done: Future[R] = Future()
        done.set_result(call(*arguments, **named))
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Beside:
    """Makes the calls on a thread of its own.

    After one that has failed no other is made, and all of them raise its error, so that nobody is told of its consequences
    instead: PostgreSQL refuses every statement after the first one that failed.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="statements")
        self._failure: BaseException | None = None
        self._last: Future[Any] | None = None

    def submit(self, call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> "Future[R]":
        """Return what will be the result."""

        def made() -> R:
            if self._failure is not None:
                raise self._failure
            try:
                return call(*arguments, **named)
            except BaseException as error:
                self._failure = error
                raise

        given = self._last = self._thread.submit(made)
        return given

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Wait for the calls. Raises the error of the one that has failed, unless an error is under way.

        Who is interrupted meanwhile waits for the call in hand, and no other is made: the transaction is undone next.
        """
        given = [] if self._last is None else [self._last]
        try:
            wait(given)
        except BaseException as interrupt:
            self._failure = interrupt
            # Not by joining the thread: Python 3.11 takes one for ended once somebody was interrupted while joining it.
            wait(given)
            raise
        finally:
            self._thread.shutdown()
        if kind is None and self._failure is not None:
            raise self._failure
