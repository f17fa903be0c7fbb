"""Events for the tests of this folder, with times that are easy to read: minutes after 2024-01-01."""

import hashlib
from decimal import Decimal
from typing import TypeVar

from kinguin_streams.consumers.projection import Received
from kinguin_streams.schemas.events import Event, EventId, OrderComplete, OrderStatus, ProductUpdate, StoreName

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
    updated = at(minute) if updated_at_ms is None else updated_at_ms
    return OrderStatus(
        event_id=_id(store, order_id, external_id, status, updated),
        store=store,
        received_at_ms=updated + 5_000 if received_at_ms is None else received_at_ms,
        order_id=order_id,
        order_external_id=external_id,
        status=status,
        updated_at_ms=updated,
        raw=b"{}",
    )


def order_complete(
    minute: float = 0,
    *,
    order_id: str = "PHS84FJAG5U",
    external_id: str | None = "AL2FEEHOO2OHF",
    received_at_ms: int | None = None,
) -> OrderComplete:
    """Return an order.complete."""
    return OrderComplete(
        event_id=_id(order_id, external_id, "complete", at(minute)),
        store=STORE,
        received_at_ms=at(minute) + 5_000 if received_at_ms is None else received_at_ms,
        order_id=order_id,
        order_external_id=external_id,
        updated_at_ms=at(minute),
        raw=b"{}",
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
    return ProductUpdate(
        event_id=_id(kinguin_id, qty, text_qty, price, offers, product_id, at(minute)),
        store=STORE,
        received_at_ms=at(minute) + 5_000 if received_at_ms is None else received_at_ms,
        kinguin_id=kinguin_id,
        product_id=product_id,
        updated_at_ms=at(minute),
        qty=qty,
        text_qty=text_qty,
        price=None if price is None else Decimal(price),
        cheapest_offer_ids=offers,
        raw=b"{}",
    )


def received(event: E, offset: int = 0, *, partition: int = 0, topic: str | None = None) -> Received[E]:
    """Return the event as it comes out of Kafka."""
    return Received(event, topic or f"kinguin.{event.record_name}", partition, offset, event.received_at_ms)


def _id(*content: object) -> EventId:
    return EventId(hashlib.sha256(repr(content).encode()).hexdigest()[:32])
