"""What the rows of one product say: pure."""

from decimal import Decimal
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinguin_streams.consumers.product_changes import Change, FieldChange, Known, change, differences, row, summarise
from kinguin_streams.schemas.events import ProductUpdate
from tests.consumers.deliveries import START_MS, at, product_update, received

HOUR_MIN = 60
DAY_MIN = 24 * HOUR_MIN


def stored(*events: ProductUpdate) -> list[Change]:
    """Return what is read back from the rows of these events."""
    return [change(SimpleNamespace(**row(received(event, offset)))) for offset, event in enumerate(events)]


def test_a_row_keeps_the_payload_exactly() -> None:
    event = product_update(1, qty=0, text_qty=3, price="12.345678", offers=("b", "a"))
    assert stored(event)[0] == Change(
        event_id=event.event_id,
        updated_at_ms=at(1),
        product_id="5c9b5f6b2539a4e8f172916a",
        qty=0,
        text_qty=3,
        price=Decimal("12.345678"),
        cheapest_offer_ids=("b", "a"),
        topic="kinguin.product.update",
        partition=0,
        offset=0,
        received_at_ms=at(1) + 5_000,
    )


@pytest.mark.parametrize("price", ["999999999999.999999", "-999999999999.999999", "0.000001", "0"])
def test_the_largest_prices_of_the_schema_survive(price: str) -> None:
    assert stored(product_update(price=price))[0].price == Decimal(price)


def test_latest_known_values_are_per_field_the_newest_that_was_sent() -> None:
    summary = summarise(stored(product_update(1, qty=5, price="9.99"), product_update(2, qty=4), product_update(3)))
    assert summary.updated_at_ms == at(3)
    assert summary.known["qty"] == Known(4, at(2))
    assert summary.known["price"] == Known(Decimal("9.99"), at(1))
    assert "text_qty" not in summary.known


def test_an_update_without_a_visible_difference_is_a_change() -> None:
    changes = stored(product_update(1, qty=5), product_update(2, qty=5))
    assert summarise(changes).changes == 2
    assert differences(changes) == ()


def test_differences_are_against_the_value_known_before() -> None:
    first, silent, last = product_update(1, qty=5, offers=("a",)), product_update(2), product_update(3, qty=7)
    assert differences(stored(last, first, silent)) == (FieldChange(last.event_id, at(3), "qty", 5, 7),)


def test_changes_are_counted_by_hour_and_day_of_the_event() -> None:
    minutes = [0, HOUR_MIN - 0.01, HOUR_MIN, DAY_MIN]
    summary = summarise(stored(*(product_update(minute) for minute in minutes)))
    assert summary.per_hour == {at(0): 2, at(HOUR_MIN): 1, at(DAY_MIN): 1}
    assert summary.per_day == {at(0): 3, at(DAY_MIN): 1}


def test_a_change_whose_time_cannot_be_believed_counts_for_nothing_else() -> None:
    summary = summarise(stored(product_update(0, qty=1), product_update(3 * DAY_MIN, qty=9, received_at_ms=START_MS)))
    assert (summary.changes, summary.set_aside, summary.updated_at_ms) == (1, 1, at(0))
    assert summary.known["qty"] == Known(1, at(0))
    assert differences(stored(product_update(3 * DAY_MIN, qty=9, received_at_ms=START_MS), product_update(qty=1))) == ()


UPDATES = st.builds(
    product_update,
    st.integers(0, 3),
    qty=st.none() | st.integers(0, 3),
    price=st.none() | st.sampled_from(["1", "2.5"]),
    offers=st.none() | st.just(("a", "b")),
)


@given(st.lists(UPDATES, min_size=1, max_size=8, unique_by=lambda event: event.event_id), st.randoms())
def test_the_summary_is_equal_for_any_order_of_the_rows(events: list[ProductUpdate], random: Random) -> None:
    changes = stored(*events)
    shuffled = changes[:]
    random.shuffle(shuffled)
    assert summarise(shuffled) == summarise(changes)
    assert differences(shuffled) == differences(changes)
