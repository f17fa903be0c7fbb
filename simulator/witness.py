"""The independent witness: from what was acked, what the state must be.

Written apart from the consumers and unlike them, on plain dicts and the JSON module of the standard library, so that it
does not share their mistakes. The rules it follows are the documented ones (docs/simulator.md), not their code.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Webhook = tuple[str, str, bytes]  # store, event name, body
Row = Mapping[str, Any]  # one object of `state dump … --format json`

_OUTCOME = {"pending": 0, "processing": 0, "out_of_stock": 2, "error": 2, "completed": 3, "canceled": 4, "refunded": 5}
_OUTCOME_UNKNOWN = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be there once everything acked has been consumed.

    orders: (store, orderId) → status, updatedAt (ms since 1970 UTC), orderExternalId.
    products: (store, kinguinId) → productId, updatedAt (ms), changes.
    topics: event name → ids of the events; no other id of these stores belongs in the topic unless a "maybe" landed.
    refused: ids of acked webhooks that can never be an event, so they belong in the dead letters.
    """

    orders: dict[tuple[str, str], dict[str, Any]]
    products: dict[tuple[str, int], dict[str, Any]]
    topics: dict[str, set[str]]
    refused: set[str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in a dump that is not as expected. field "row": the whole row is missing, repeated or unreadable."""

    table: str
    store: str
    key: str
    field: str
    expected: object
    found: object

    def __str__(self) -> str:
        return f"{self.table} {self.store}/{self.key}: {self.field} is {self.found!r}, must be {self.expected!r}"


def expected_event_id(store: str, event: str, body: bytes) -> str:
    """Return the id that every replica must give to this webhook, on every retry."""
    text = b"kinguin-event/1\0" + store.encode() + b"\0" + event.encode() + b"\0" + body
    return hashlib.sha256(text).hexdigest()[:32]


def recompute(acked: Iterable[Webhook]) -> Expected:
    """Return what must be there after these webhooks, in whatever order and however often they came."""
    topics: dict[str, set[str]] = {"product.update": set(), "order.status": set(), "order.complete": set()}
    refused: set[str] = set()
    facts: dict[tuple[str, str], set[tuple[int, int, str]]] = {}
    names: dict[tuple[str, str], set[tuple[int, str]]] = {}
    changes: dict[tuple[str, int], dict[tuple[int, str], str]] = {}

    for store, event, body in set(acked):
        event_id = expected_event_id(store, event, body)
        payload = _readable(event, body)
        if payload is None:
            refused.add(event_id)
            continue
        topics[event].add(event_id)
        at = payload["updatedAt"]
        if event == "product.update":
            changes.setdefault((store, payload["kinguinId"]), {})[at, event_id] = payload["productId"]
        else:
            order = (store, payload["orderId"])
            status = payload["status"] if event == "order.status" else "completed"
            facts.setdefault(order, set()).add((at, _OUTCOME.get(status, _OUTCOME_UNKNOWN), status))
            if payload.get("orderExternalId") is not None:
                names.setdefault(order, set()).add((at, payload["orderExternalId"]))

    orders: dict[tuple[str, str], dict[str, Any]] = {}
    for order, its_facts in facts.items():
        at, _, status = max(its_facts)
        name = max(names[order])[1] if order in names else None
        orders[order] = {"status": status, "updatedAt": at, "orderExternalId": name}
    products: dict[tuple[str, int], dict[str, Any]] = {}
    for product, its_changes in changes.items():
        newest = max(its_changes)
        products[product] = {"productId": its_changes[newest], "updatedAt": newest[0], "changes": len(its_changes)}
    return Expected(orders=orders, products=products, topics=topics, refused=refused)


def compare(expected: Expected, dumped_orders: Iterable[Row], dumped_products: Iterable[Row]) -> list[Difference]:
    """Return what is wrong in the dumps, in their order, and what is missing from them.

    Rows of keys that were never sent (of an earlier run, say) are no difference: see `foreign_keys`.
    """
    return [
        *_differences("orders", "orderId", expected.orders, dumped_orders),
        *_differences("products", "kinguinId", expected.products, dumped_products),
    ]


def foreign_keys(expected: Expected, dumped_orders: Iterable[Row], dumped_products: Iterable[Row]) -> int:
    """Return how many rows of the dumps belong to keys that were never sent."""
    orders = sum((row.get("store"), row.get("orderId")) not in expected.orders for row in dumped_orders)
    products = sum((row.get("store"), row.get("kinguinId")) not in expected.products for row in dumped_products)
    return orders + products


def _differences(
    table: str, id_name: str, expected: Mapping[tuple[str, Any], dict[str, Any]], dump: Iterable[Row]
) -> Iterable[Difference]:
    seen = set()
    for row in dump:
        key: tuple[Any, Any] = (row.get("store"), row.get(id_name))
        if key not in expected:
            continue
        store, id_ = key
        if key in seen:
            yield Difference(table, store, str(id_), "row", "once", "more than once")
            continue
        seen.add(key)
        for name, value in expected[key].items():
            found = row.get(name, "nothing")
            if name == "updatedAt":
                if _milliseconds(found) != value:
                    yield Difference(table, store, str(id_), name, _written(value), found)
            elif found != value or type(found) is not type(value):  # 1, 1.0 and true are equal to Python
                yield Difference(table, store, str(id_), name, value, found)
    for store, id_ in sorted(expected.keys() - seen):
        yield Difference(table, store, str(id_), "row", expected[store, id_], "nothing")


def _readable(event: str, body: bytes) -> dict[str, Any] | None:
    """Return the payload with updatedAt in ms, or None if it lacks what makes it an event.

    Looks for the faults that the plan sends and no others: what a receiver must refuse is for its own tests.
    """
    try:
        payload = json.loads(body.decode("utf-8"))
    except ValueError:
        return None
    if not isinstance(payload, dict):
        return None
    needed: dict[str, dict[str, type]] = {
        "product.update": {"kinguinId": int, "productId": str},
        "order.status": {"orderId": str, "status": str},
        "order.complete": {"orderId": str},
    }
    if event not in needed:
        return None
    for name, kind in needed[event].items():
        if type(payload.get(name)) is not kind:
            return None
    at = _milliseconds(payload.get("updatedAt"))
    return None if at is None else {**payload, "updatedAt": at}


def _milliseconds(text: object) -> int | None:
    """Return ms since 1970 UTC, cut down to whole ones; None for what is not an instant with an offset."""
    try:
        instant = datetime.fromisoformat(text)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None
    return None if instant.tzinfo is None else (instant - _EPOCH) // timedelta(milliseconds=1)


def _written(milliseconds: int) -> str:
    return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
