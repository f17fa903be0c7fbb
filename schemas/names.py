"""Names that the contract fixes: of events, of records, of stores."""

import re
from typing import Literal, NewType

EventName = Literal["product.update", "order.status", "order.complete"]
DerivedName = Literal["order.state", "product.state"]
RecordName = Literal[
    "product.update",
    "order.status",
    "order.complete",
    "dead-letter",
    "dead-letter.trail",
    "order.state",
    "product.state",
]
EventId = NewType("EventId", str)
StoreName = NewType("StoreName", str)

EVENT_NAMES: tuple[EventName, ...] = ("product.update", "order.status", "order.complete")
DERIVED_NAMES: tuple[DerivedName, ...] = ("order.state", "product.state")
"""What consumers make of the events: the newest state of each key, in compacted topics."""
STORE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
