"""The property that a user writes in three lines: it holds for our samples, and it finds what is wrong with others."""

import builtins
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.errors import NoSuchExample

from kinguin_streams.consumers.order_state import ORDER_STATE, OrderEvent, order_key
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import FoldProjection, Projection, Received, RowsProjection
from kinguin_streams.consumers.testing import Arrival, ProjectionDriver, arrivals, events, order_events, product_events

quick = settings(max_examples=20, deadline=None)


@quick
@given(arrivals(order_events()))
def test_row_52_order_state_is_the_same_however_events_arrive(arrival: Arrival) -> None:
    arrival.assert_same_state(ORDER_STATE)


@quick
@given(arrivals(product_events()))
def test_row_52_product_changes_are_the_same_however_events_arrive(arrival: Arrival) -> None:
    arrival.assert_same_state(PRODUCT_CHANGES)


@settings(max_examples=60, deadline=None)
@given(arrivals(order_events()))
def test_a_fold_that_counts_deliveries_counts_each_exactly_once_whatever_dies(arrival: Arrival) -> None:
    """Such a fold is wrong for what the sender does, and right for what the consumer promises."""
    sent = Counter(order_key(step.event) for step in arrival.steps if isinstance(step.event, OrderEvent))
    counting = FoldProjection(
        name="counting", version=1, events=ORDER_STATE.events, state_type=Newest, key=order_key, fold=counts_deliveries
    )
    with ProjectionDriver(counting, partitions=1) as driver:
        arrival.play(driver)
        assert {key: state.count for key, state in driver.states().items()} == sent


# Projections that are wrong


class Newest(msgspec.Struct, frozen=True):
    status: str
    as_of_ms: int
    count: int = 0


def order_dependent(state: Newest | None, received: Received[Any]) -> Newest:
    event = received.event
    if state is not None and event.updated_at_ms <= state.as_of_ms:
        return state
    return Newest(event.status, event.updated_at_ms)


def last_arrival_wins(_state: Newest | None, received: Received[Any]) -> Newest:
    return Newest(received.event.status, received.event.updated_at_ms)


def counts_deliveries(state: Newest | None, received: Received[Any]) -> Newest:
    return Newest("", 0, (state.count if state is not None else 0) + 1)


def by_time_of_receipt(state: Newest | None, received: Received[Any]) -> Newest:
    event = received.event
    new = Newest(event.status, event.received_at_ms)
    return new if state is None else max(state, new, key=lambda each: (each.as_of_ms, each.status))


def first_arrival_stays(state: Newest | None, received: Received[Any]) -> Newest:
    return state or Newest(received.event.status, received.event.updated_at_ms)


def remembers_beside_the_state() -> Callable[[Newest | None, Received[Any]], Newest]:
    """Deduplicates in memory, which a crash does not undo."""
    seen: set[tuple[str, str, int, int]] = set()

    def fold(state: Newest | None, received: Received[Any]) -> Newest:
        state = state or Newest("", 0)
        delivery = (received.event.event_id, received.topic, received.partition, received.offset)
        if delivery in seen:
            return state
        seen.add(delivery)
        return Newest("", 0, state.count | 1 << len(received.event.status) | received.event.updated_at_ms)

    return fold


def projection(fold: Callable[[Newest | None, Received[Any]], Newest]) -> Projection:
    return FoldProjection(
        name="wrong", version=1, events=("order.status", "order.complete"), state_type=Newest, key=order_key, fold=fold
    )


def counterexample(make: Callable[[], Projection], strategy: Any, *, smallest: bool = False) -> Arrival | None:
    """Return an arrival after which the state is wrong, looking as long as hypothesis does by default."""

    def is_wrong(arrival: Arrival) -> bool:
        try:
            arrival.assert_same_state(make())
        except AssertionError:
            return True
        return False

    phases = [Phase.generate, Phase.shrink] if smallest else [Phase.generate]
    searching = settings(
        deadline=None, database=None, derandomize=True, phases=phases, suppress_health_check=list(HealthCheck)
    )
    try:
        found: Arrival = find(strategy, is_wrong, settings=searching)
    except NoSuchExample:
        return None
    return found


@pytest.mark.parametrize(
    "fold", [order_dependent, last_arrival_wins, counts_deliveries, by_time_of_receipt, first_arrival_stays]
)
def test_a_fold_that_depends_on_how_events_arrive_is_caught(fold: Any) -> None:
    assert counterexample(lambda: projection(fold), arrivals(order_events())) is not None


def test_a_fold_that_remembers_beside_its_state_is_caught() -> None:
    def make() -> Projection:
        return projection(remembers_beside_the_state())

    assert counterexample(make, arrivals(order_events())) is not None
    with ProjectionDriver(make()) as driver:
        driver.send(events.order_status(order_id="A"))
        driver.crash_before_commit()
        driver.run()
        assert driver.state("A") == Newest("", 0, 0)  # the crash has undone the state, and not the memory


def test_a_row_that_depends_on_when_it_arrives_is_caught() -> None:
    """The offset is in the key: a change is another row each time."""

    def row(received: Received[Any]) -> dict[str, Any]:
        columns = dict(PRODUCT_CHANGES.row(received))
        return {**columns, "event_id": f"{columns['event_id']}/{received.offset}"}

    wrong = RowsProjection(name="wrong", version=1, events=("product.update",), table="product_change", row=row)
    assert counterexample(lambda: wrong, arrivals(product_events())) is not None


@pytest.mark.faults
@pytest.mark.parametrize(
    ("right", "strategy"),
    [(ORDER_STATE, order_events()), (PRODUCT_CHANGES, product_events())],
    ids=["orders", "products"],
)
def test_the_same_search_finds_nothing_against_a_right_projection(right: Projection, strategy: Any) -> None:
    assert counterexample(lambda: right, arrivals(strategy)) is None


def test_every_kind_of_fault_is_drawn() -> None:
    seen: set[str] = set()

    @settings(max_examples=200, deadline=None, database=None)
    @given(arrivals(order_events()))
    def look(arrival: Arrival) -> None:
        seen.update(step.method for step in arrival.steps)

    look()
    assert seen == {"send", "run", "crash_before_commit", "crash_after_commit", "join", "lose_partition", "regain"}


def test_a_failure_shows_what_to_type_into_a_driver() -> None:
    found = counterexample(lambda: projection(counts_deliveries), arrivals(order_events()), smallest=True)
    assert found is not None
    assert [step.method for step in found.steps] == ["send", "send"]  # one event, and its retry
    lines = repr(found).splitlines()
    assert lines[0] == "Arrival:"
    assert all(line.strip().startswith("driver.") for line in lines[1:])
    with pytest.raises(AssertionError, match=r"depends on how the events arrived(?s:.*)driver\.send"):
        found.assert_same_state(projection(counts_deliveries))


def test_an_arrival_can_be_played_on_ones_own_driver() -> None:
    found = counterexample(lambda: projection(counts_deliveries), arrivals(order_events()))
    assert found is not None
    with ProjectionDriver(ORDER_STATE) as driver:
        found.play(driver)
        assert driver.states() == driver.expected_states()


def test_without_hypothesis_the_rest_works_and_the_strategies_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "hypothesis":
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    for name in [name for name in sys.modules if name.startswith("kinguin_streams.consumers.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    from kinguin_streams.consumers import testing

    with testing.ProjectionDriver(ORDER_STATE) as driver:
        driver.send(events.order_status())
        driver.run()
        assert len(driver.states()) == 1
    with pytest.raises(ImportError, match=r"pip install 'kinguin-streams\[testing\]'"):
        testing.order_events()
