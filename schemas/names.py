"""Names that the contract fixes: of events, of records, of stores."""

import re
from typing import Literal, NewType

EventName = Literal["product.update", "order.status", "order.complete"]
RecordName = Literal["product.update", "order.status", "order.complete", "dead-letter"]
EventId = NewType("EventId", str)
StoreName = NewType("StoreName", str)

EVENT_NAMES: tuple[EventName, ...] = ("product.update", "order.status", "order.complete")
STORE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
