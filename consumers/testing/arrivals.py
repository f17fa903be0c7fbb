"""What may happen to events on their way into a state, drawn by hypothesis: any order, retries, crashes, rebalances.

Hypothesis (the package of that name) is imported by the strategies alone: whoever draws nothing need not have it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from kinguin_streams.consumers.projection import FoldProjection, Projection
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.testing import events as built
from kinguin_streams.consumers.testing.driver import ProjectionDriver
from kinguin_streams.schemas.events import Event

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

MAX_EVENTS: Final = 8
MAX_RETRIES: Final = 4
MAX_FAULTS: Final = 6
STATUSES: Final = ("pending", "processing", "completed", "canceled", "refunded", "a_word_of_next_year")

Fault = Literal["run", "crash_before_commit", "crash_after_commit", "join", "lose_partition", "regain"]
_FAULTS: Final[tuple[tuple[Fault, dict[str, Any]], ...]] = (
    # Often all: who has consumed a partition before is refused by its stored offset, and not by there being one.
    *(("run", {}) for _ in range(3)),
    ("run", {"at_most": 1}),
    *(("crash_before_commit", {"at_most": n}) for n in (1, 2, 3)),
    *(("crash_after_commit", {"at_most": n}) for n in (1, 2, 3)),
    ("join", {}),
    *(("lose_partition", {"loser_writes_first": first}) for first in (False, True)),
    ("regain", {}),
)


@dataclass(frozen=True, slots=True)
class Step:
    """A call of a driver's method. Prints as one."""

    method: Literal["send"] | Fault
    event: Event | None
    options: dict[str, Any]

    def __call__(self, driver: ProjectionDriver[Any]) -> None:
        """Do it. A crash without anything to consume would be none, and is left out."""
        if self.method.startswith("crash") and driver.waiting == 0:
            return
        arguments = () if self.event is None else (self.event,)
        getattr(driver, self.method)(*arguments, **self.options)

    def __repr__(self) -> str:
        arguments = [] if self.event is None else [repr(self.event)]
        arguments += [f"{name}={value}" for name, value in self.options.items()]
        return f"driver.{self.method}({', '.join(arguments)})"


@dataclass(frozen=True, slots=True)
class Arrival:
    """Events in the order in which they come, and what befalls the consumer between them."""

    steps: tuple[Step, ...]

    def play(self, driver: ProjectionDriver[Any]) -> None:
        """Do all of it, and let the rest be consumed."""
        for step in self.steps:
            step(driver)
        driver.run()

    def assert_same_state(
        self, projection: Projection, *, database: StateSettings | None = None, **options: Any
    ) -> None:
        """Raise AssertionError unless the state is what the distinct events make of it, in order and undisturbed.

        The events are each taken once, where they lie first in their topics, by updatedAt and then by id; whole states
        are compared, evidence included, and what the derived topic tells of them, if there is one. database, options: of ProjectionDriver.
        """
        with ProjectionDriver(projection, database=database, **options) as driver:
            self.play(driver)
            if driver.waiting:
                raise AssertionError(f"{driver.waiting} records have not taken effect")
            found: object
            expected: object
            if isinstance(projection, FoldProjection):
                found, expected = driver.states(), driver.expected_states()
            else:
                found, expected = driver.rows(), driver.expected_rows()
            if found != expected:
                raise AssertionError(
                    f"The state of {projection.name} depends on how the events arrived.\n"
                    f"state:    {found}\nexpected: {expected}\n{self}"
                )
            if projection.derived is not None:
                driver.tell()
                if driver.derived() != driver.expected_derived():
                    raise AssertionError(
                        f"The derived topic of {projection.name} tells another state than its database.\n{self}"
                    )

    def __repr__(self) -> str:
        return "\n".join(["Arrival:", *(f"    {step}" for step in self.steps)])


def arrivals(events: "SearchStrategy[Event]") -> "SearchStrategy[Arrival]":
    """Return a strategy of ways in which a few such events may come. events: for example `order_events()`."""
    st = _strategies()

    def draw_arrival(draw: "DrawFn") -> Arrival:
        sent = draw(st.lists(events, min_size=1, max_size=MAX_EVENTS))
        again = draw(st.lists(st.sampled_from(sent), max_size=MAX_RETRIES))
        order = draw(st.permutations(sent + again))
        faults = draw(st.lists(st.tuples(st.integers(1, len(order)), st.sampled_from(_FAULTS)), max_size=MAX_FAULTS))
        return Arrival(tuple(_steps(order, faults)))

    drawn: SearchStrategy[Arrival] = st.composite(draw_arrival)()
    return drawn


def order_events(*, orders: int = 2) -> "SearchStrategy[Event]":
    """Return a strategy of order.status and order.complete: few orders and few instants, so that events meet."""
    st = _strategies()
    order_ids = st.integers(1, orders).map("O{}".format)
    instants = st.integers(0, 3).map(built.minutes)
    statuses = st.builds(built.order_status, order_id=order_ids, status=st.sampled_from(STATUSES), updated_at=instants)
    drawn: SearchStrategy[Event] = statuses | st.builds(built.order_complete, order_id=order_ids, updated_at=instants)
    return drawn


def product_events(*, products: int = 2) -> "SearchStrategy[Event]":
    """Return a strategy of product.update: few products and few instants, so that events meet."""
    st = _strategies()
    drawn: SearchStrategy[Event] = st.builds(
        built.product_update,
        kinguin_id=st.integers(1, products),
        qty=st.none() | st.integers(0, 2),
        text_qty=st.none() | st.integers(0, 2),
        updated_at=st.integers(0, 3).map(built.minutes),
    )
    return drawn


def _steps(order: Sequence[Event], faults: Sequence[tuple[int, tuple[Fault, dict[str, Any]]]]) -> Iterator[Step]:
    times: dict[str, int] = {}
    for number, event in enumerate(order, start=1):
        sent_before = times.get(event.event_id, 0)
        times[event.event_id] = sent_before + 1
        yield Step("send", built.retried(event, timedelta(seconds=sent_before)), {})
        for after, (method, options) in faults:
            if after == number:
                yield Step(method, None, options)


def _strategies() -> ModuleType:
    try:
        from hypothesis import strategies
    except ImportError as error:
        raise ImportError(
            "kinguin_streams.consumers.testing.arrivals draws its examples by hypothesis: "
            "pip install 'kinguin-streams[testing]'"
        ) from error
    return strategies
