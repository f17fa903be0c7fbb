"""The records as their schemas have them. Made by schemas/generate_records.py from schemas/avro; edits are lost.

One class a record, with the fields of all shipped versions: what a version does not carry has its default. Times are
integers in milliseconds since 1970-01-01T00:00:00Z, as they are on the wire: who only compares them pays for no datetime.
"""

from decimal import Decimal
from typing import Literal

import msgspec

from kinguin_streams.schemas.names import EventId, StoreName


class ProductUpdateFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Webhook product.update, as documented from 2024-05: the price is gone, and qty is counted over the cheapest offers."""

    event_id: EventId
    """First 32 hex digits of SHA-256 over store, event name and body; the same for every retry of the same bytes."""
    store: StoreName
    """Name of the store whose webhook address was called."""
    received_at_ms: int
    """When the ingress received the request. The only field in which two deliveries of the same bytes differ."""
    kinguin_id: int
    """Product id, a number."""
    product_id: str
    """Another product id, a string."""
    updated_at_ms: int
    """The sender's time of the change, floored to the millisecond. Decides which of two webhooks is newer; arrival order does not."""
    qty: int | None = None
    """Total quantity from the cheapest offers; not the total stock. Only in schema versions 2 and 3."""
    text_qty: int | None = None
    """Quantity of keys that are text; absent for some senders. Only in schema versions 2 and 3."""
    price: Decimal | None = None
    """Price in EUR. Parsed from the number's text, never through a binary float. Only in schema version 2."""
    price_rounded: bool = False
    """True if the sender's price had more than six decimal places and was rounded half-even to fit. Only in schema version 2."""
    cheapest_offer_ids: tuple[str, ...] | None = None
    """Ids of the cheapest offers. Only in schema versions 2 and 3."""
    raw: bytes
    """The request body, byte for byte as received: nothing the sender adds is lost before a schema knows it."""


class OrderStatusFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Webhook order.status, as documented from 2021-03."""

    event_id: EventId
    """First 32 hex digits of SHA-256 over store, event name and body; the same for every retry of the same bytes."""
    store: StoreName
    """Name of the store whose webhook address was called."""
    received_at_ms: int
    """When the ingress received the request. The only field in which two deliveries of the same bytes differ."""
    order_id: str
    """Order id."""
    order_external_id: str | None = None
    """The shop's own id of the order; optional when ordering, so it may be absent or null."""
    status: str
    """Order status as sent. A string, since the sender has changed the set four times."""
    updated_at_ms: int
    """The sender's time of the change, floored to the millisecond. Decides which of two webhooks is newer; arrival order does not."""
    raw: bytes
    """The request body, byte for byte as received: nothing the sender adds is lost before a schema knows it."""


class OrderCompleteFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Webhook order.complete, as documented from 2021-03 and deprecated in 2024-06. The same fact as order.status with status completed."""

    event_id: EventId
    """First 32 hex digits of SHA-256 over store, event name and body; the same for every retry of the same bytes."""
    store: StoreName
    """Name of the store whose webhook address was called."""
    received_at_ms: int
    """When the ingress received the request. The only field in which two deliveries of the same bytes differ."""
    order_id: str
    """Order id."""
    order_external_id: str | None = None
    """The shop's own id of the order; optional when ordering, so it may be absent or null."""
    updated_at_ms: int
    """The sender's time of the change, floored to the millisecond. Decides which of two webhooks is newer; arrival order does not."""
    raw: bytes
    """The request body, byte for byte as received: nothing the sender adds is lost before a schema knows it."""


class DeadLetterFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the ingress could not validate, or a consumer could not process. Immutable."""

    dead_letter_id: str
    """Hash of origin, source position or event id, and consumer: the same failure has the same id."""
    origin: Literal["ingress", "consumer"]
    """Who gave up: ingress or consumer."""
    reason: str
    """Stable reason code, for example malformed_json."""
    detail: str
    """The reason in a sentence, for a person."""
    failed_at_ms: int
    """When it was given up. For the ingress, when the request was received."""
    body: bytes
    """The request body or record value, byte for byte; only the first 196,608 bytes of a larger one."""
    body_size: int
    """Size of the whole body, in bytes."""
    body_sha256: str
    """SHA-256 of the whole body, in hex."""
    headers: tuple[tuple[str, bytes | None], ...] = ()
    """Headers in their order: an allow-list of the request's, or all of the record's. Never a secret."""
    store: StoreName | None = None
    """Store whose webhook address was called."""
    event: str | None = None
    """Event name as the sender gave it, even if unknown."""
    consumer: str | None = None
    """Name of the consumer that gave up."""
    source_topic: str | None = None
    """Topic of the record that could not be processed."""
    source_partition: int | None = None
    """Its partition."""
    source_offset: int | None = None
    """Its offset."""
    source_key: bytes | None = None
    """Its key."""
    source_timestamp_ms: int | None = None
    """Its timestamp."""


class DeadLetterTrailFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What has become of a dead letter. The newest record of an id counts; the dead letter itself is never changed."""

    dead_letter_id: str
    """Id of the dead letter."""
    state: str
    """What counts now: redriven, refused (by today's validator or by the consumer, to be tried again), parked or discarded."""
    attempts: int
    """How often it was redriven so far, with or without success."""
    at_ms: int
    """When the last step was taken."""
    steps: tuple[tuple[int, str, str | None, str, str | None], ...] = ()
    """Its last steps, at most 20, oldest first."""


class OrderStateFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of an order after all its webhooks so far. The greatest (generation, revision) of a key counts; a tombstone says that the order was forgotten."""

    store: StoreName
    """Name of the store whose webhook address was called."""
    order_id: str
    """Order id."""
    generation: int
    """Which make of the state this is; a rebuild that has gone live has the next one."""
    revision: int
    """Grows with every change of this order's state within a generation."""
    received_at_ms: int
    """When the ingress received the newest of the deliveries that the state keeps as evidence."""
    order_external_id: str | None = None
    """The shop's own id of the order, from the newest event that carried one."""
    status: str | None = None
    """The status that counts: of the fact with the greatest updatedAt. Null if no fact's updatedAt can be believed."""
    updated_at_ms: int | None = None
    """The sender's time of that fact."""
    completed_at_ms: int | None = None
    """When the order was first completed; it may have been refunded since."""
    facts: tuple[tuple[int, str, str, int, int, int], ...] = ()
    """The distinct facts by time, the one that counts last; at most 64."""
    truncated: bool
    """True if older facts, with what follows from them, were left out."""
    transitions: tuple[tuple[int, str | None, str], ...] = ()
    """The changes of status, by time."""
    contradictions: tuple[tuple[str, int, str, int, str], ...] = ()
    """Pairs of facts that contradict each other."""
    set_aside: int
    """Number of facts kept apart because their updatedAt cannot be believed."""
    set_aside_truncated: bool
    """True if there were more of them than are kept."""


class ProductStateFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a product after all its webhooks so far. The greatest (generation, revision) of a key counts."""

    store: StoreName
    """Name of the store whose webhook address was called."""
    kinguin_id: int
    """Product id, a number."""
    generation: int
    """Which make of the state this is; a rebuild that has gone live has the next one."""
    revision: int
    """Grows with every delivery that concerns this product within a generation."""
    received_at_ms: int
    """When the ingress received the newest of the product's changes."""
    updated_at_ms: int | None = None
    """The sender's time of the last change. Null if no change's updatedAt can be believed."""
    last_event_id: str | None = None
    """Event id of the last change: of equal times, the greatest id."""
    changes: int
    """Number of distinct changes."""
    set_aside: int
    """Number of changes that count for nothing else, because their updatedAt cannot be believed."""
    product_id: str | None = None
    """Newest known value. Another product id, a string."""
    product_id_as_of_ms: int | None = None
    """The sender's time of the newest change that carried productId."""
    qty: int | None = None
    """Newest known value. Total quantity from the cheapest offers; not the total stock."""
    qty_as_of_ms: int | None = None
    """The sender's time of the newest change that carried qty."""
    text_qty: int | None = None
    """Newest known value. Quantity of keys that are text."""
    text_qty_as_of_ms: int | None = None
    """The sender's time of the newest change that carried textQty."""
    price: Decimal | None = None
    """Newest known value. Price in EUR; the sender has not sent it since 2024-05."""
    price_as_of_ms: int | None = None
    """The sender's time of the newest change that carried price."""
    cheapest_offer_ids: tuple[str, ...] | None = None
    """Newest known value. Ids of the cheapest offers."""
    cheapest_offer_id_as_of_ms: int | None = None
    """The sender's time of the newest change that carried cheapestOfferId."""
