"""What the derived topics tell of a state: an order's or a product's record. Pure.

A record says what does not depend on a clock, so that the same facts make the same record whenever it is made.
"""

from collections.abc import Iterable
from decimal import Decimal
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from kinguin_streams.consumers import order_state, product_changes
from kinguin_streams.consumers.order_state import OrderState
from kinguin_streams.consumers.product_changes import Change
from kinguin_streams.consumers.projection import StateKey
from kinguin_streams.schemas.events import Derived, OrderStateRecord, ProductStateRecord, StoreName

DIGEST_BYTES: Final = 16


class Digested(NamedTuple):
    """What is kept of a record to compare it: for an order of ten facts, a twentieth of its memory."""

    generation: int
    revision: int
    digest: bytes


def order_record(key: StateKey, state: OrderState, generation: int, revision: int) -> OrderStateRecord:
    """Return the record of an order."""
    view = order_state.view(key, state)
    return OrderStateRecord(
        store=StoreName(key.store),
        order_id=key.id,
        generation=generation,
        revision=revision,
        received_at_ms=max(fact.seen.received_at_ms for fact in (*state.facts, *state.set_aside)),
        order_external_id=view.order_external_id,
        status=view.status,
        updated_at_ms=view.updated_at_ms,
        completed_at_ms=view.completed_at_ms,
        facts=tuple(
            (
                fact.updated_at_ms,
                fact.status,
                fact.seen.topic,
                fact.seen.partition,
                fact.seen.offset,
                fact.seen.received_at_ms,
            )
            for fact in view.facts
        ),
        truncated=view.truncated,
        transitions=tuple((change.fact.updated_at_ms, change.before, change.after) for change in view.transitions),
        contradictions=tuple(
            (
                pair.code,
                pair.earlier.updated_at_ms,
                pair.earlier.status,
                pair.later.updated_at_ms,
                pair.later.status,
            )
            for pair in view.contradictions
        ),
        set_aside=len(view.set_aside),
        set_aside_truncated=view.set_aside_truncated,
    )


def product_record(key: StateKey, changes: Iterable[Change], generation: int, revision: int) -> ProductStateRecord:
    """Return the record of a product that has changed at least once. changes: its distinct ones, in any order."""
    changes = tuple(changes)
    summary = product_changes.summarise(changes)
    last = max(
        ((change.updated_at_ms, change.event_id) for change in changes if not change.set_aside), default=(None, None)
    )
    values = {name: known.value for name, known in summary.known.items()}
    as_of_ms = {name: known.as_of_ms for name, known in summary.known.items()}
    return ProductStateRecord(
        store=StoreName(key.store),
        kinguin_id=int(key.id),
        generation=generation,
        revision=revision,
        received_at_ms=max(change.received_at_ms for change in changes),
        updated_at_ms=summary.updated_at_ms,
        last_event_id=last[1],
        changes=summary.changes,
        set_aside=summary.set_aside,
        product_id=values.get("product_id"),
        product_id_as_of_ms=as_of_ms.get("product_id"),
        qty=values.get("qty"),
        qty_as_of_ms=as_of_ms.get("qty"),
        text_qty=values.get("text_qty"),
        text_qty_as_of_ms=as_of_ms.get("text_qty"),
        price=values.get("price"),
        price_as_of_ms=as_of_ms.get("price"),
        cheapest_offer_ids=values.get("cheapest_offer_ids"),
        cheapest_offer_id_as_of_ms=as_of_ms.get("cheapest_offer_ids"),
    )


def digest(record: Derived) -> bytes:
    """Return 16 bytes that are equal for records that say the same, at whatever generation and revision.

    They are the BLAKE2b of the record as MessagePack. Not of its value in a topic: that would take ten times as long
    (50 µs for an order of ten facts), and a schema version need not have every field. A price is 5.79 in the database
    and 5.790000 in a topic; normalised, it is one text.
    """
    fields = zip(record.__struct_fields__, msgspec.structs.astuple(record), strict=True)
    prices = {name: value.normalize() for name, value in fields if isinstance(value, Decimal)}
    alike = msgspec.structs.replace(record, generation=0, revision=0, **prices)
    return blake2b(msgspec.msgpack.encode(alike), digest_size=DIGEST_BYTES).digest()


def digested(record: Derived) -> Digested:
    """Return it of a record."""
    return Digested(record.generation, record.revision, digest(record))
