"""What a user writes for side effects: functions that are called with typed events. Imports no client and no database.

    app = App("order-notifier")

    @app.on(OrderStatus)
    def notify(event: OrderStatus, context: Context) -> None: ...

A record's handler is called at least once: after a crash, or when the partition moves to another process, the records
since the last commit come again. `context.event_id` is what tells a repetition. Returning means done; raising means
"try again", with growing waits, and after so many attempts a dead letter; raising Reject means a dead letter at once.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from kinguin_streams.consumers.samples import SAMPLES
from kinguin_streams.schemas.events import Event, EventId, EventName, OrderComplete, OrderStatus, ProductUpdate
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.traces import TraceHeaders

E = TypeVar("E", bound=Event)

EVENT_CLASSES: Final[tuple[type[Event], ...]] = (OrderStatus, OrderComplete, ProductUpdate)
MAX_BATCH: Final = 500
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Where an event comes from, and which attempt at it this is."""

    topic: str
    partition: int
    offset: int
    received: datetime
    """When the ingress received the event, UTC: the record's own time."""
    attempt: int
    """1 the first time this process tries it."""
    replay: bool
    """Whether the record is read again on purpose, by a replay."""
    event_id: EventId
    """The same for every delivery of the same event: what makes a side effect idempotent."""
    trace: TraceHeaders = TraceHeaders()
    """W3C Trace Context of the webhook that it came in, to pass on."""


class Reject(Exception):
    """Raised by a handler: no further attempt will help. The record is dead-lettered at once.

    reason: a stable word, as "unknown_customer"; detail: a sentence for whoever looks at the dead letter.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Handler:
    """A user's function. most_records: how many it takes at once; None: it takes one event and its context, no lists."""

    call: Callable[..., None]
    most_records: int | None = None


class App:
    """A consumer that has side effects. It declares; `kinguin-streams consume FILE.py:NAME` or `kinguin_streams.run` runs it."""

    def __init__(self, name: str) -> None:
        """name: names the consumer group, `<prefix>.<name>`, and the `consumer` of its dead letters.

        Raises OperatorError("consumer_name") for one that is not lower-case letters, digits and hyphens, or is a sample's.
        """
        if not _NAME.fullmatch(name):
            raise OperatorError(
                "consumer_name",
                f"App({name!r}): no name for a consumer.",
                "Name it in lower-case letters, digits and hyphens, at most 63, as in App('order-notifier').",
            )
        check_is_no_sample(name, f"App({name!r})")
        self.name = name
        self._handlers: dict[EventName, Handler] = {}

    @property
    def handlers(self) -> Mapping[EventName, Handler]:
        """The functions, by the event that they take."""
        return self._handlers

    def handlers_or_refusal(self, called: str = "app") -> Mapping[EventName, Handler]:
        """Return the handlers. called: the App's name in the user's file. Raises OperatorError("no_handlers")."""
        if not self._handlers:
            raise OperatorError(
                "no_handlers",
                f"The App {self.name} has no handlers.",
                f"Write one: @{called}.on(OrderStatus) above a function.",
            )
        return self._handlers

    def on(self, event: type[E]) -> Callable[[Callable[[E, Context], None]], Callable[[E, Context], None]]:
        """Have the function called with each event of this class. Returns the function unchanged.

        Raises OperatorError("handler_refused") for a class that is no event, a second function for the same one, a
        coroutine, or a function that cannot be called with an event and a context.
        """

        def register(function: Callable[[E, Context], None]) -> Callable[[E, Context], None]:
            self._register(event, function, Handler(function), "(event, context)")
            return function

        _check_is_event(event)
        return register

    def on_batch(
        self, event: type[E], *, most_records: int = MAX_BATCH
    ) -> Callable[[Callable[[Sequence[E], Sequence[Context]], None]], Callable[[Sequence[E], Sequence[Context]], None]]:
        """Have the function called with events of this class that follow each other in one partition.

        most_records: in one call. A batch that fails is tried again whole, then record by record, so that one that
        cannot be handled costs itself only. Raises as `on` does.
        """

        def register(
            function: Callable[[Sequence[E], Sequence[Context]], None],
        ) -> Callable[[Sequence[E], Sequence[Context]], None]:
            self._register(event, function, Handler(function, most_records), "(events, contexts)")
            return function

        _check_is_event(event)
        if not 1 <= most_records <= MAX_BATCH:
            raise _refused(f"on_batch(most_records={most_records})", f"Give a number from 1 to {MAX_BATCH}.")
        return register

    def _register(self, event: type[Any], function: Any, handler: Handler, parameters: str) -> None:
        where = f"{_where(function)}: {getattr(function, '__name__', function)}"
        if inspect.iscoroutinefunction(function):
            raise _refused(f"{where} is a coroutine", "Write `def`, not `async def`: handlers are called one by one.")
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            raise _refused(
                f"{where} cannot be called with {parameters} ({error})",
                f"Give it exactly these two parameters: {parameters}.",
            ) from error
        if event.record_name in self._handlers:
            raise _refused(
                f"{where} is the second handler for {event.__name__} in {self.name}",
                "Call both from one function, or make another App: each has a consumer group and retries of its own.",
            )
        self._handlers[event.record_name] = handler


def check_is_no_sample(name: str, where: str) -> None:
    """Raise OperatorError("consumer_name") if the name is that of a sample: they would share a group and its partitions."""
    if any(sample.name == name for sample in SAMPLES):
        raise OperatorError(
            "consumer_name",
            f"{where}: {name} is a consumer that comes with the package.",
            "Take another name: two consumers of one name share the group, and each is given half of the records only.",
        )


def _check_is_event(event: object) -> None:
    if event not in EVENT_CLASSES:
        names = ", ".join(each.__name__ for each in EVENT_CLASSES)
        shown = getattr(event, "__name__", repr(event))
        raise _refused(f"on({shown}): that is no event", f"Name one of {names}, as in @app.on(OrderStatus).")


def _where(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return "?" if code is None else f"{code.co_filename}, line {code.co_firstlineno}"


def _refused(what: str, hint: str) -> OperatorError:
    return OperatorError("handler_refused", f"{what}.", hint)
