"""ProjectionDriver: what the derived topic tells of the states, whatever dies."""

import pytest

from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import StateKey
from kinguin_streams.consumers.testing import ProjectionDriver, events
from kinguin_streams.schemas.events import OrderStateRecord, ProductStateRecord

A = StateKey("default", "A")


def test_a_topic_tells_the_newest_state_of_each_key_once_it_is_told() -> None:
    with ProjectionDriver(ORDER_STATE) as driver:
        driver.send(events.order_status(order_id="A", status="processing"))
        driver.send(events.order_status(order_id="A", status="completed", updated_at=events.minutes(1)))
        driver.send(events.order_status(order_id="B"))
        driver.run()
        assert (driver.derived(), driver.untold) == ({}, 2)
        assert driver.tell() == 2
        assert (driver.derived(), driver.untold) == (driver.expected_derived(), 0)
        told = driver.derived()[A]
        assert isinstance(told, OrderStateRecord)
        assert (told.status, len(told.facts)) == ("completed", 2)
        assert driver.tell() == 0


def test_a_crash_while_telling_tells_again_and_readers_see_no_difference() -> None:
    with ProjectionDriver(ORDER_STATE) as driver:
        driver.send(*(events.order_status(order_id=order_id) for order_id in "ABC"))
        driver.run()
        driver.crash_while_telling()
        assert (len(driver.derived()), driver.untold, driver.restarts) == (1, 3, 1)
        assert driver.tell() == 3
        assert len(driver.kafka.records("kinguin.order.state")) == 4
        assert driver.derived() == driver.expected_derived()
        with pytest.raises(ValueError, match="nothing waits"):
            driver.crash_while_telling()


def test_what_is_undone_by_a_crash_is_never_told() -> None:
    with ProjectionDriver(ORDER_STATE) as driver:
        driver.send(events.order_status(order_id="A"))
        driver.crash_before_commit()
        assert driver.tell() == 0
        driver.crash_after_commit()
        assert driver.tell() == 1


def test_a_forgotten_key_is_a_tombstone_until_it_is_known_again() -> None:
    with ProjectionDriver(ORDER_STATE) as driver:
        driver.send(events.order_status(order_id="A"))
        driver.run()
        driver.tell()
        assert driver.forget("A")
        assert not driver.forget("A")
        driver.tell()
        assert driver.derived() == {A: None}
        assert driver.kafka.records("kinguin.order.state")[-1].value() is None
        driver.send(events.order_status(order_id="A", status="completed", updated_at=events.minutes(1)))
        driver.run()
        driver.tell()
        assert driver.derived() == driver.expected_derived()


def test_rows_are_told_too_and_what_has_no_topic_says_so() -> None:
    with ProjectionDriver(PRODUCT_CHANGES) as driver:
        driver.send(events.product_update(kinguin_id=7, qty=1))
        driver.send(events.product_update(kinguin_id=7, qty=2, updated_at=events.minutes(1)))
        driver.run()
        driver.tell()
        told = driver.derived()[StateKey("default", "7")]
        assert isinstance(told, ProductStateRecord)
        assert (told.qty, told.changes) == (2, 2)
        with pytest.raises(TypeError, match="RowsProjection"):
            driver.forget("7")
