"""The records of the event topics, of the dead-letter topic and of the derived topics, as immutable Python values.

Their fields stand in `records.py`, which is made from the .avsc files; what a record means beyond its fields stands here.
"""

from typing import ClassVar

from kinguin_streams.schemas.names import (
    DERIVED_NAMES,
    EVENT_NAMES,
    STORE_NAME,
    DerivedName,
    EventId,
    EventName,
    RecordName,
    StoreName,
)
from kinguin_streams.schemas.records import (
    DeadLetterFields,
    DeadLetterTrailFields,
    OrderCompleteFields,
    OrderStateFields,
    OrderStatusFields,
    ProductStateFields,
    ProductUpdateFields,
)

__all__ = [
    "COMPLETED",
    "DERIVED_NAMES",
    "EVENT_NAMES",
    "STORE_NAME",
    "DeadLetter",
    "DeadLetterTrail",
    "Derived",
    "DerivedName",
    "Event",
    "EventId",
    "EventName",
    "OrderComplete",
    "OrderStateRecord",
    "OrderStatus",
    "ProductStateRecord",
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


class DeadLetterTrail(DeadLetterTrailFields, frozen=True, kw_only=True):
    """What has become of a dead letter. Made by `replay/trail.py`."""

    record_name: ClassVar[RecordName] = "dead-letter.trail"

    @property
    def key(self) -> str:
        """The record key: the dead letter's id."""
        return self.dead_letter_id


class OrderStateRecord(OrderStateFields, frozen=True, kw_only=True):
    """What is known of an order. Made by `consumers/derived_records.py`."""

    record_name: ClassVar[DerivedName] = "order.state"

    @property
    def key(self) -> str:
        """The record key: `<store>:<orderId>`. A store's name has no colon, so the first one ends it."""
        return f"{self.store}:{self.order_id}"


class ProductStateRecord(ProductStateFields, frozen=True, kw_only=True):
    """What is known of a product. Made by `consumers/derived_records.py`."""

    record_name: ClassVar[DerivedName] = "product.state"

    @property
    def key(self) -> str:
        """The record key: `<store>:<kinguinId>`."""
        return f"{self.store}:{self.kinguin_id}"


Event = ProductUpdate | OrderStatus | OrderComplete
Derived = OrderStateRecord | ProductStateRecord
Record = Event | DeadLetter | DeadLetterTrail | Derived
