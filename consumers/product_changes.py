"""Product changes: one row for each distinct change, and what can be said about a product from its rows. Pure.

A change is an event id: byte-equal retries are one change, and so are two changes within one second that the 2021 form
of the payload (no milliseconds, no quantities) cannot tell apart. A change whose fields equal the one before is still a
change: the sender also reports what the payload does not carry.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from kinguin_streams.consumers.plausible_time import is_plausible
from kinguin_streams.consumers.projection import Received, RowsProjection
from kinguin_streams.schemas.events import ProductUpdate

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
_MICROS: Final = Decimal(1_000_000)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One row. A field that the payload did not carry is None."""

    event_id: str
    updated_at_ms: int
    product_id: str
    qty: int | None = None
    text_qty: int | None = None
    price: Decimal | None = None
    cheapest_offer_ids: tuple[str, ...] | None = None
    set_aside: bool = False
    """Its updatedAt cannot be believed, see plausible_time.py: it counts for nothing but the number of such changes."""
    topic: str
    partition: int
    offset: int
    received_at_ms: int


FIELDS: Final = ("product_id", "qty", "text_qty", "price", "cheapest_offer_ids")


def row(received: Received[ProductUpdate]) -> dict[str, Any]:
    """Return the columns of the table product_change."""
    event = received.event
    return {
        "store": event.store,
        "kinguin_id": event.kinguin_id,
        "event_id": event.event_id,
        "updated_at_ms": event.updated_at_ms,
        "product_id": event.product_id,
        "qty": event.qty,
        "text_qty": event.text_qty,
        "price_micros": None if event.price is None else int(event.price * _MICROS),
        "cheapest_offer_ids": _offers_to_text(event.cheapest_offer_ids),
        "set_aside": not is_plausible(event),
        "received_at_ms": event.received_at_ms,
        "topic": received.topic,
        "partition": received.partition,
        "offset": received.offset,
    }


def change(columns: Any) -> Change:
    """Return the change that a row of the table is."""
    return Change(
        event_id=columns.event_id,
        updated_at_ms=columns.updated_at_ms,
        product_id=columns.product_id,
        qty=columns.qty,
        text_qty=columns.text_qty,
        price=None if columns.price_micros is None else Decimal(columns.price_micros) / _MICROS,
        cheapest_offer_ids=None
        if columns.cheapest_offer_ids is None
        else msgspec.json.decode(columns.cheapest_offer_ids, type=tuple[str, ...]),
        set_aside=columns.set_aside,
        topic=columns.topic,
        partition=columns.partition,
        offset=columns.offset,
        received_at_ms=columns.received_at_ms,
    )


def _offers_to_text(offers: tuple[str, ...] | None) -> str | None:
    return None if offers is None else msgspec.json.encode(offers).decode()


PRODUCT_CHANGES = RowsProjection(
    name="product-changes",
    version=1,
    events=("product.update",),
    table="product_change",
    row=row,
    derived="product.state",
    unused=("raw",),
)


class Known(msgspec.Struct, frozen=True):
    """The newest value of a field that any change carried, and when the sender said so."""

    value: Any
    as_of_ms: int


class FieldChange(msgspec.Struct, frozen=True):
    """A field's value differs from the one known before this change."""

    event_id: str
    updated_at_ms: int
    field: str
    before: Any
    after: Any


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What the changes of one product say, whatever the order in which they arrived."""

    changes: int
    set_aside: int
    updated_at_ms: int | None
    """None if every change was set aside."""
    known: dict[str, Known]
    """Field name (FIELDS) to its latest value; a field that no change carried is not in it."""
    per_hour: dict[int, int]
    """Start of the hour, in milliseconds UTC, to the number of changes whose updatedAt lies in it; oldest first."""
    per_day: dict[int, int]


def summarise(changes: Iterable[Change]) -> Summary:
    """Return the summary of one product's distinct changes, given in any order; holds none of them in memory."""
    counted = aside = 0
    newest: dict[str, tuple[int, str, Any]] = {}
    hours: Counter[int] = Counter()
    updated_at_ms: int | None = None
    for item in changes:
        if item.set_aside:
            aside += 1
            continue
        counted += 1
        hours[item.updated_at_ms // HOUR_MS * HOUR_MS] += 1
        updated_at_ms = item.updated_at_ms if updated_at_ms is None else max(updated_at_ms, item.updated_at_ms)
        for field in FIELDS:
            value = getattr(item, field)
            if value is None:
                continue
            best = newest.get(field)
            if best is None or (item.updated_at_ms, item.event_id) > best[:2]:
                newest[field] = (item.updated_at_ms, item.event_id, value)
    days: Counter[int] = Counter()
    for hour_ms, number in hours.items():
        days[hour_ms // DAY_MS * DAY_MS] += number
    return Summary(
        changes=counted,
        set_aside=aside,
        updated_at_ms=updated_at_ms,
        known={field: Known(newest[field][2], newest[field][0]) for field in FIELDS if field in newest},
        per_hour=dict(sorted(hours.items())),
        per_day=dict(sorted(days.items())),
    )


def differences(changes: Iterable[Change]) -> tuple[FieldChange, ...]:
    """Return what changed, field by field, by (updatedAt, event id): each value against the last one known before it.

    A field's first value is no difference, and neither is its absence: the sender adds and removes fields of the payload.
    """
    known: dict[str, Any] = {}
    found: list[FieldChange] = []
    for item in in_order(changes):
        for field in FIELDS:
            value = getattr(item, field)
            if value is None:
                continue
            if field in known and known[field] != value:
                found.append(FieldChange(item.event_id, item.updated_at_ms, field, known[field], value))
            known[field] = value
    return tuple(found)


def in_order(changes: Iterable[Change]) -> Sequence[Change]:
    """Return the changes that count, by (updatedAt, event id)."""
    return sorted(
        (item for item in changes if not item.set_aside), key=lambda item: (item.updated_at_ms, item.event_id)
    )
