"""The fold of order events, and what follows from the facts: pure, so tested by example and by property."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinguin_streams.consumers.order_state import (
    MAX_FACTS,
    MAX_SET_ASIDE,
    OrderEvent,
    OrderState,
    OrderView,
    fold,
    order_key,
    rank,
    time_in_status_ms,
    view,
)
from kinguin_streams.consumers.plausible_time import EARLIEST_MS, TOLERANCE_MS, implausible_because, is_plausible
from kinguin_streams.consumers.projection import Received
from tests.consumers.deliveries import MINUTE_MS, START_MS, at, order_complete, order_status, received

STATUSES = ["pending", "processing", "out_of_stock", "error", "completed", "canceled", "refunded", "on_the_moon"]


def folded(deliveries: list[Received[Any]]) -> OrderState:
    state: OrderState | None = None
    for delivery in deliveries:
        state = fold(state, delivery)
    assert state is not None
    return state


def seen(*events: OrderEvent) -> OrderView:
    """Return the view after these events, in this order."""
    return view(order_key(events[0]), folded([received(event, offset) for offset, event in enumerate(events)]))


# What a status is


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        pytest.param(
            order_status("completed", 2), order_status("processing", 1), "completed", id="a late event is old"
        ),
        pytest.param(order_status("processing", 1), order_status("completed", 2), "completed", id="a newer event wins"),
        pytest.param(
            order_status("completed", 1), order_status("refunded", 2), "refunded", id="completed ends nothing"
        ),
        pytest.param(order_status("completed", 1), order_status("processing", 2), "processing", id="time beats rank"),
        pytest.param(order_status("refunded", 1), order_status("new_word", 2), "new_word", id="unknown words are kept"),
    ],
)
def test_the_greatest_updated_at_decides_not_arrival(first: OrderEvent, second: OrderEvent, status: str) -> None:
    assert seen(first, second).status == status


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("pending", "processing"),  # equal rank: the text decides
        ("processing", "on_the_moon"),
        ("on_the_moon", "out_of_stock"),
        ("error", "completed"),
        ("completed", "canceled"),
        ("canceled", "refunded"),
    ],
)
def test_of_one_instant_the_higher_rank_counts(below: str, above: str) -> None:
    assert rank(START_MS, below) < rank(START_MS, above)
    assert seen(order_status(above), order_status(below)).status == above
    assert seen(order_status(below), order_status(above)).status == above


def test_row_53_equal_updated_at_has_one_winner_in_every_order() -> None:
    facts = [order_status(status) for status in ("processing", "completed", "canceled", "refunded")]
    views = {repr(view(order_key(facts[0]), folded([received(e, facts.index(e)) for e in order])))
             for order in permutations(facts)}  # fmt: skip
    assert len(views) == 1
    assert seen(*facts).status == "refunded"


def test_order_complete_and_status_completed_are_one_fact() -> None:
    both = seen(order_complete(3), order_status("completed", 3))
    assert len(both.facts) == 1
    assert both.completed_at_ms == at(3)
    assert both.contradictions == ()


def test_a_duplicate_changes_nothing_and_is_the_same_object() -> None:
    state = folded([received(order_status("processing"), 5)])
    assert fold(state, received(order_status("processing"), 5)) is state
    assert fold(state, received(order_status("processing"), 9)) is state


def test_the_smallest_position_is_the_evidence() -> None:
    late_first = folded([received(order_status("processing"), 9), received(order_status("processing"), 5)])
    assert late_first.facts[0].seen.offset == 5


@pytest.mark.parametrize(
    ("carried", "external_id"),
    [
        pytest.param([("A", 1), ("B", 2)], "B", id="the newest one"),
        pytest.param([("A", 2), (None, 3)], "A", id="absence takes nothing back"),
        pytest.param([("A", 1), ("B", 1)], "B", id="of one instant the greater text"),
        pytest.param([(None, 1)], None, id="none was sent"),
    ],
)
def test_the_external_id_is_the_newest_one_that_was_sent(
    carried: list[tuple[str | None, int]], external_id: str | None
) -> None:
    events = [order_status("processing", minute, external_id=value) for value, minute in carried]
    assert seen(*events).order_external_id == external_id
    assert seen(*reversed(events)).order_external_id == external_id


# What follows from the facts


def test_transitions_tell_the_way_and_repetitions_are_none() -> None:
    order = seen(
        order_status("processing", 1), order_status("processing", 2), order_status("completed", 5), order_complete(6)
    )
    assert [(change.before, change.after, change.fact.updated_at_ms) for change in order.transitions] == [
        (None, "processing", at(1)),
        ("processing", "completed", at(5)),
    ]
    assert order.completed_at_ms == at(5)
    assert time_in_status_ms(order.facts, at(9)) == {"processing": 4 * MINUTE_MS, "completed": 4 * MINUTE_MS}


def test_time_in_status_adds_up_over_several_stays() -> None:
    order = seen(*(order_status(status, minute) for minute, status in enumerate(["pending", "error", "pending"])))
    assert time_in_status_ms(order.facts, at(4)) == {"pending": 3 * MINUTE_MS, "error": MINUTE_MS}
    assert time_in_status_ms((), at(4)) == {}


@pytest.mark.parametrize(
    ("events", "codes"),
    [
        pytest.param(
            [("completed", 1), ("canceled", 1)], ["two_outcomes_at_once"], id="completed and canceled at once"
        ),
        pytest.param([("completed", 1), ("processing", 2)], ["open_after_outcome"], id="open again"),
        pytest.param([("completed", 1), ("pending", 2), ("processing", 3)], ["open_after_outcome"] * 2, id="each once"),
        pytest.param([("processing", 1), ("completed", 1)], [], id="work and outcome at once is only a coarse clock"),
        pytest.param([("completed", 1), ("refunded", 2)], [], id="a refund after completion is life"),
        pytest.param([("refunded", 1), ("error", 2)], [], id="an error is no outcome"),
    ],
)
def test_contradictions_are_flagged(events: list[tuple[str, float]], codes: list[str]) -> None:
    order = seen(*(order_status(status, minute) for status, minute in events))
    assert [contradiction.code for contradiction in order.contradictions] == codes


# Times that cannot be believed


@pytest.mark.parametrize(
    ("updated_at_ms", "received_at_ms", "is_fact"),
    [
        pytest.param(EARLIEST_MS, EARLIEST_MS, True, id="2018-01-01T00:00:00Z is the first instant"),
        pytest.param(EARLIEST_MS - 1, EARLIEST_MS, False, id="before it is not"),
        pytest.param(START_MS + TOLERANCE_MS, START_MS, True, id="a day after receipt is the last instant"),
        pytest.param(START_MS + TOLERANCE_MS + 1, START_MS, False, id="after it is not"),
    ],
)
def test_a_time_before_2018_or_a_day_ahead_is_set_aside(updated_at_ms: int, received_at_ms: int, is_fact: bool) -> None:
    order = seen(order_status("completed", updated_at_ms=updated_at_ms, received_at_ms=received_at_ms))
    assert (len(order.facts), len(order.set_aside)) == ((1, 0) if is_fact else (0, 1))
    assert order.status == ("completed" if is_fact else None)
    assert order.order_external_id == ("AL2FEEHOO2OHF" if is_fact else None)


@given(st.integers(EARLIEST_MS - 2, EARLIEST_MS + 2), st.integers(-2, 2), st.booleans())
def test_what_is_set_aside_has_a_reason_and_nothing_else_has(updated_at_ms: int, by_ms: int, is_early: bool) -> None:
    received_at_ms = updated_at_ms - by_ms - (TOLERANCE_MS if is_early else 0)
    event = order_status("completed", updated_at_ms=updated_at_ms, received_at_ms=received_at_ms)
    reason = implausible_because(updated_at_ms, received_at_ms)
    assert (reason is None) == is_plausible(event)
    assert (reason == "before_2018") == (updated_at_ms < EARLIEST_MS)


def test_a_fact_that_any_delivery_shows_as_plausible_is_a_fact() -> None:
    early = order_status("completed", 0, received_at_ms=START_MS - 2 * TOLERANCE_MS)
    retry = order_status("completed", 0, received_at_ms=START_MS)
    for events in permutations([early, retry]):
        order = seen(*events)
        assert (order.status, order.set_aside) == ("completed", ())


# Any order, any duplicates

MINUTES = st.integers(0, 6)
ORDER_EVENTS = st.one_of(
    st.builds(
        order_status,
        st.sampled_from(STATUSES),
        MINUTES,
        external_id=st.sampled_from([None, "A", "B"]),
        # 0 to 2 days before updatedAt: at one day sharp the judgement changes.
        received_at_ms=st.sampled_from([at(6), START_MS - TOLERANCE_MS, START_MS - TOLERANCE_MS + 3 * MINUTE_MS]),
    ),
    st.builds(order_complete, MINUTES, external_id=st.sampled_from([None, "A"]), received_at_ms=st.just(at(6))),
    st.builds(order_status, st.sampled_from(STATUSES), updated_at_ms=st.sampled_from([0, EARLIEST_MS - 1])),
)


@st.composite
def arrivals(
    draw: st.DrawFn, events: st.SearchStrategy[OrderEvent], min_size: int, max_size: int
) -> tuple[list[Received[Any]], list[Received[Any]]]:
    """Return deliveries, and the same ones in another order with some of them again."""
    drawn = draw(st.lists(events, min_size=min_size, max_size=max_size))
    deliveries = [received(event, offset, partition=offset % 3) for offset, event in enumerate(drawn)]
    again = draw(st.lists(st.sampled_from(deliveries), max_size=10))
    return deliveries, draw(st.permutations(deliveries + again))


@given(arrivals(ORDER_EVENTS, 1, 12))
@settings(max_examples=300)
def test_row_52_order_state_is_equal_for_any_arrival_order_and_duplicates(
    both: tuple[list[Received[Any]], list[Received[Any]]],
) -> None:
    straight, shuffled = both
    assert folded(straight) == folded(shuffled)


@given(arrivals(ORDER_EVENTS, 1, 12))
def test_order_state_is_what_its_distinct_facts_say(both: tuple[list[Received[Any]], list[Received[Any]]]) -> None:
    """An oracle that knows nothing of folding: sets and max()."""
    deliveries, shuffled = both
    order = view(order_key(deliveries[0].event), folded(shuffled))
    events = [delivery.event for delivery in deliveries]
    sane = [e for e in events if EARLIEST_MS <= e.updated_at_ms <= e.received_at_ms + TOLERANCE_MS]
    facts = {(e.updated_at_ms, e.status) for e in sane}
    assert {(fact.updated_at_ms, fact.status) for fact in order.facts} == facts
    assert {(fact.updated_at_ms, fact.status) for fact in order.set_aside} == {
        (e.updated_at_ms, e.status) for e in events
    } - facts
    assert order.status == (max(facts, key=lambda fact: rank(*fact))[1] if facts else None)
    carried = [(e.updated_at_ms, e.order_external_id) for e in sane if e.order_external_id is not None]
    assert order.order_external_id == (max(carried)[1] if carried else None)


MANY = st.builds(order_status, st.sampled_from(STATUSES), st.integers(0, 40))
MANY_SET_ASIDE = st.builds(order_status, st.sampled_from(STATUSES), updated_at_ms=st.integers(0, 10))


@given(arrivals(MANY, MAX_FACTS - 5, MAX_FACTS + 60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a hundred events each
def test_beyond_the_cap_the_same_facts_are_kept_in_any_order(
    both: tuple[list[Received[Any]], list[Received[Any]]],
) -> None:
    straight, shuffled = both
    state = folded(shuffled)
    distinct = {rank(delivery.event.updated_at_ms, delivery.event.status) for delivery in straight}
    assert state == folded(straight)
    assert [rank(fact.updated_at_ms, fact.status) for fact in state.facts] == sorted(distinct, reverse=True)[:MAX_FACTS]
    assert state.truncated == (len(distinct) > MAX_FACTS)


@given(arrivals(MANY_SET_ASIDE, MAX_SET_ASIDE - 3, MAX_SET_ASIDE + 20))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a hundred events each
def test_what_is_set_aside_has_a_cap_of_its_own(both: tuple[list[Received[Any]], list[Received[Any]]]) -> None:
    straight, shuffled = both
    distinct = {(delivery.event.updated_at_ms, delivery.event.status) for delivery in straight}
    state = folded(shuffled)
    assert state == folded(straight)
    assert len(state.set_aside) == min(MAX_SET_ASIDE, len(distinct))
    assert state.set_aside_truncated == (len(distinct) > MAX_SET_ASIDE)


def test_a_fact_beyond_the_cap_writes_nothing_when_it_comes_again() -> None:
    events: list[Received[Any]] = [
        received(order_status("processing", minute), minute) for minute in range(MAX_FACTS + 1)
    ]
    state = folded(events)
    assert fold(state, events[0]) is state
