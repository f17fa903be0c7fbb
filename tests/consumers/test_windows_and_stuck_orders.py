"""What is asked of the state across orders and products, on both databases."""

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import DAY_MS, HOUR_MS, PRODUCT_CHANGES
from kinguin_streams.consumers.reader import BusyProduct, Window
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from tests.consumers.databases import PRODUCT_TOPIC, STATUS_TOPIC, advance
from tests.consumers.deliveries import START_MS, at, order_status, product_update, received


def test_changes_are_counted_in_windows_of_event_time(settings: StateSettings) -> None:
    store = StateStore(settings, PRODUCT_CHANGES)
    events = [product_update(5), product_update(65), product_update(70, kinguin_id=7), product_update(60 * 24)]
    retried = [*events, events[0]]
    store.apply(
        [received(event, offset) for offset, event in enumerate(retried)], [advance(PRODUCT_TOPIC, None, len(retried))]
    )
    store.close()
    hours = reader.changes_per_window(settings.url, HOUR_MS, START_MS)
    assert hours == [Window(START_MS, 1, 1), Window(START_MS + HOUR_MS, 2, 2), Window(START_MS + DAY_MS, 1, 1)]
    assert reader.changes_per_window(settings.url, DAY_MS, at(60 * 24)) == [Window(START_MS + DAY_MS, 1, 1)]
    assert reader.busiest_products(settings.url, 1, since_ms=at(66)) == [BusyProduct("default", 7, 1)]


def test_an_order_is_stuck_by_what_the_sender_said_last(settings: StateSettings) -> None:
    store = StateStore(settings, ORDER_STATE)
    events = [order_status("processing", 1, order_id="A"), order_status("processing", 30, order_id="B")]
    store.apply([received(event, offset) for offset, event in enumerate(events)], [advance(STATUS_TOPIC, None, 2)])
    store.close()
    [one] = reader.stuck_orders(settings.url, at(61), after_ms=45 * 60_000)
    assert (one.view.order_id, one.waits_ms) == ("A", HOUR_MS)
