"""Events for the tests of this folder: those of consumers/testing, with times as minutes after 2024-01-01 or in milliseconds."""

from datetime import datetime, timedelta
from typing import TypeVar

from kinguin_streams.consumers.projection import Received
from kinguin_streams.consumers.testing import events
from kinguin_streams.schemas.events import Event, OrderComplete, OrderStatus, ProductUpdate, StoreName
from kinguin_streams.schemas.instants import EPOCH

E = TypeVar("E", bound=Event)
START_MS = 1_704_067_200_000
MINUTE_MS = 60_000
STORE = StoreName("default")


def at(minute: float) -> int:
    """Return the instant that many minutes after 2024-01-01T00:00:00Z, in milliseconds."""
    return START_MS + round(minute * MINUTE_MS)


def order_status(
    status: str,
    minute: float = 0,
    *,
    order_id: str = "PHS84FJAG5U",
    external_id: str | None = "AL2FEEHOO2OHF",
    updated_at_ms: int | None = None,
    received_at_ms: int | None = None,
    store: StoreName = STORE,
) -> OrderStatus:
    """Return an order.status whose updatedAt is at(minute), received five seconds later."""
    return events.order_status(
        order_id=order_id,
        status=status,
        updated_at=_instant(at(minute) if updated_at_ms is None else updated_at_ms),
        order_external_id=external_id,
        store=store,
        received_at=_received(received_at_ms),
    )


def order_complete(
    minute: float = 0,
    *,
    order_id: str = "PHS84FJAG5U",
    external_id: str | None = "AL2FEEHOO2OHF",
    received_at_ms: int | None = None,
) -> OrderComplete:
    """Return an order.complete."""
    return events.order_complete(
        order_id=order_id,
        updated_at=_instant(at(minute)),
        order_external_id=external_id,
        received_at=_received(received_at_ms),
    )


def product_update(
    minute: float = 0,
    *,
    kinguin_id: int = 1949,
    qty: int | None = None,
    text_qty: int | None = None,
    price: str | None = None,
    offers: tuple[str, ...] | None = None,
    product_id: str = "5c9b5f6b2539a4e8f172916a",
    received_at_ms: int | None = None,
) -> ProductUpdate:
    """Return a product.update; a field that is not given is absent, as in the payload of 2021."""
    return events.product_update(
        kinguin_id=kinguin_id,
        product_id=product_id,
        updated_at=_instant(at(minute)),
        qty=qty,
        text_qty=text_qty,
        price=price,
        cheapest_offer_ids=offers,
        received_at=_received(received_at_ms),
    )


def received(event: E, offset: int = 0, *, partition: int = 0, topic: str | None = None) -> Received[E]:
    """Return the event as it comes out of Kafka."""
    return Received(event, topic or f"kinguin.{event.record_name}", partition, offset, event.received_at_ms)


def _instant(instant_ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=instant_ms)


def _received(received_at_ms: int | None) -> datetime | None:
    return None if received_at_ms is None else _instant(received_at_ms)
