"""The records of the event topics and of the dead-letter topic, as immutable Python values.

Their fields stand in `records.py`, which is made from the .avsc files; what a record means beyond its fields stands here.
"""

from typing import ClassVar

from kinguin_streams.schemas.names import EVENT_NAMES, STORE_NAME, EventId, EventName, RecordName, StoreName
from kinguin_streams.schemas.records import (
    DeadLetterFields,
    OrderCompleteFields,
    OrderStatusFields,
    ProductUpdateFields,
)

__all__ = [
    "COMPLETED",
    "EVENT_NAMES",
    "STORE_NAME",
    "DeadLetter",
    "Event",
    "EventId",
    "EventName",
    "OrderComplete",
    "OrderStatus",
    "ProductUpdate",
    "Record",
    "RecordName",
    "StoreName",
]

COMPLETED = "completed"
"""The status that an order.complete stands for."""


class ProductUpdate(ProductUpdateFields, frozen=True, kw_only=True):
    """A product changed. An update whose fields equal the last one's is still a change: the price alone may have moved."""

    record_name: ClassVar[RecordName] = "product.update"

    @property
    def key(self) -> str:
        """The record key: kinguinId in decimal."""
        return str(self.kinguin_id)


class OrderStatus(OrderStatusFields, frozen=True, kw_only=True):
    """An order changed its status."""

    record_name: ClassVar[RecordName] = "order.status"

    @property
    def key(self) -> str:
        """The record key: orderId."""
        return self.order_id


class OrderComplete(OrderCompleteFields, frozen=True, kw_only=True):
    """An order is complete: the same fact as an OrderStatus with status "completed" and the same updatedAt."""

    record_name: ClassVar[RecordName] = "order.complete"

    @property
    def key(self) -> str:
        """The record key: orderId."""
        return self.order_id

    @property
    def status(self) -> str:
        """Always "completed"."""
        return COMPLETED


class DeadLetter(DeadLetterFields, frozen=True, kw_only=True):
    """What the ingress could not validate, or a consumer could not process. Made by `schemas/dead_letters.py`."""

    record_name: ClassVar[RecordName] = "dead-letter"

    @property
    def key(self) -> str:
        """The record key: the dead letter's id."""
        return self.dead_letter_id


Event = ProductUpdate | OrderStatus | OrderComplete
Record = Event | DeadLetter
