"""The records of the event topics and of the dead-letter topic, as immutable Python values.

A record here is the union of all shipped versions of its schema: what a version does not carry is None. Times are
integers in milliseconds since 1970-01-01T00:00:00Z, as they are on the wire: a consumer that only compares them pays
nothing for a datetime. `tests/schemas/test_events.py` holds these classes against the .avsc files.
"""

import re
from decimal import Decimal
from typing import ClassVar, Literal, NewType

import msgspec

EventName = Literal["product.update", "order.status", "order.complete"]
RecordName = Literal["product.update", "order.status", "order.complete", "dead-letter"]
EventId = NewType("EventId", str)
StoreName = NewType("StoreName", str)

EVENT_NAMES: tuple[EventName, ...] = ("product.update", "order.status", "order.complete")
STORE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

COMPLETED = "completed"
"""The status that an order.complete stands for."""


class ProductUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A product changed. An update whose fields equal the last one's is still a change: the price alone may have moved."""

    record_name: ClassVar[RecordName] = "product.update"

    event_id: EventId
    store: StoreName
    received_at_ms: int
    kinguin_id: int
    product_id: str
    updated_at_ms: int
    qty: int | None = None
    text_qty: int | None = None
    price: Decimal | None = None
    """EUR, six decimal places. Only schema version 2 carries it."""
    price_rounded: bool = False
    cheapest_offer_ids: tuple[str, ...] | None = None
    raw: bytes

    @property
    def key(self) -> str:
        """The record key: kinguinId in decimal."""
        return str(self.kinguin_id)


class OrderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An order changed its status."""

    record_name: ClassVar[RecordName] = "order.status"

    event_id: EventId
    store: StoreName
    received_at_ms: int
    order_id: str
    order_external_id: str | None = None
    status: str
    updated_at_ms: int
    raw: bytes

    @property
    def key(self) -> str:
        """The record key: orderId."""
        return self.order_id


class OrderComplete(msgspec.Struct, frozen=True, kw_only=True):
    """An order is complete: the same fact as an OrderStatus with status "completed" and the same updatedAt."""

    record_name: ClassVar[RecordName] = "order.complete"

    event_id: EventId
    store: StoreName
    received_at_ms: int
    order_id: str
    order_external_id: str | None = None
    updated_at_ms: int
    raw: bytes

    @property
    def key(self) -> str:
        """The record key: orderId."""
        return self.order_id

    @property
    def status(self) -> str:
        """Always "completed"."""
        return COMPLETED


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """What the ingress could not validate, or a consumer could not process. Made by `schemas/dead_letters.py`."""

    record_name: ClassVar[RecordName] = "dead-letter"

    dead_letter_id: str
    origin: Literal["ingress", "consumer"]
    reason: str
    detail: str
    failed_at_ms: int
    body: bytes
    body_size: int
    body_sha256: str
    headers: tuple[tuple[str, bytes | None], ...] = ()
    store: str | None = None
    event: str | None = None
    consumer: str | None = None
    source_topic: str | None = None
    source_partition: int | None = None
    source_offset: int | None = None
    source_key: bytes | None = None
    source_timestamp_ms: int | None = None

    @property
    def key(self) -> str:
        """The record key: the dead letter's id."""
        return self.dead_letter_id


Event = ProductUpdate | OrderStatus | OrderComplete
Record = Event | DeadLetter
