"""Events to test with: valid by default, and what the ingress would make of a body like theirs.

Times are aware datetimes. An event is received five seconds after its updatedAt unless a test says otherwise; that
decides whether its updatedAt can be believed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import Event, OrderComplete, OrderStatus, ProductUpdate, StoreName
from kinguin_streams.schemas.instants import EPOCH, to_rfc3339

START: Final = datetime(2024, 1, 1, tzinfo=UTC)
RECEIVED_AFTER: Final = timedelta(seconds=5)


def minutes(count: float) -> datetime:
    """Return the instant that many minutes after START."""
    return START + timedelta(minutes=count)


def order_status(
    *,
    order_id: str = "PHS84FJAG5U",
    status: str = "processing",
    updated_at: datetime = START,
    order_external_id: str | None = "AL2FEEHOO2OHF",
    store: str = "default",
    received_at: datetime | None = None,
) -> OrderStatus:
    """Return an order.status."""
    body = _body(orderId=order_id, orderExternalId=order_external_id, status=status, updatedAt=updated_at)
    return OrderStatus(
        event_id=event_id(StoreName(store), "order.status", body),
        store=StoreName(store),
        received_at_ms=_received_ms(updated_at, received_at),
        order_id=order_id,
        order_external_id=order_external_id,
        status=status,
        updated_at_ms=_ms(updated_at),
        raw=body,
    )


def order_complete(
    *,
    order_id: str = "PHS84FJAG5U",
    updated_at: datetime = START,
    order_external_id: str | None = "AL2FEEHOO2OHF",
    store: str = "default",
    received_at: datetime | None = None,
) -> OrderComplete:
    """Return an order.complete."""
    body = _body(orderId=order_id, orderExternalId=order_external_id, updatedAt=updated_at)
    return OrderComplete(
        event_id=event_id(StoreName(store), "order.complete", body),
        store=StoreName(store),
        received_at_ms=_received_ms(updated_at, received_at),
        order_id=order_id,
        order_external_id=order_external_id,
        updated_at_ms=_ms(updated_at),
        raw=body,
    )


def product_update(
    *,
    kinguin_id: int = 1949,
    product_id: str = "5c9b5f6b2539a4e8f172916a",
    updated_at: datetime = START,
    qty: int | None = None,
    text_qty: int | None = None,
    price: str | Decimal | None = None,
    cheapest_offer_ids: tuple[str, ...] | None = None,
    store: str = "default",
    received_at: datetime | None = None,
) -> ProductUpdate:
    """Return a product.update; a field that is None is absent, as in the payload of 2021.

    price: in EUR, at most six decimal places. The newest schema version does not carry it: it is only in `raw` then.
    """
    euros = None if price is None else Decimal(price)
    body = _body(
        kinguinId=kinguin_id,
        productId=product_id,
        qty=qty,
        textQty=text_qty,
        price=None if euros is None else msgspec.Raw(f"{euros:f}".encode()),
        cheapestOfferId=cheapest_offer_ids,
        updatedAt=updated_at,
    )
    return ProductUpdate(
        event_id=event_id(StoreName(store), "product.update", body),
        store=StoreName(store),
        received_at_ms=_received_ms(updated_at, received_at),
        kinguin_id=kinguin_id,
        product_id=product_id,
        updated_at_ms=_ms(updated_at),
        qty=qty,
        text_qty=text_qty,
        price=euros,
        cheapest_offer_ids=cheapest_offer_ids,
        raw=body,
    )


def retried(event: Event, after: timedelta = timedelta(seconds=1)) -> Event:
    """Return the same body as the sender's retry brings it: nothing but the time of receipt differs."""
    return msgspec.structs.replace(event, received_at_ms=event.received_at_ms + after // timedelta(milliseconds=1))


def _ms(instant: datetime) -> int:
    """Return milliseconds since 1970; raises TypeError for a datetime without a time zone."""
    return (instant - EPOCH) // timedelta(milliseconds=1)


def _received_ms(updated_at: datetime, received_at: datetime | None) -> int:
    return _ms(updated_at + RECEIVED_AFTER if received_at is None else received_at)


def _body(*, updatedAt: datetime, **fields: Any) -> bytes:  # noqa: N803 - the sender's own names
    body: Mapping[str, Any] = {name: value for name, value in fields.items() if value is not None}
    return msgspec.json.encode({**body, "updatedAt": to_rfc3339(_ms(updatedAt))})
