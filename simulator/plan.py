"""What the simulated sender sends, and in which order: pure, and the same for the same seed and start.

Three steps, each with a random stream of its own, so that turning one knob leaves the others' choices alone:
what happens in the shop (occurrences, in the order of their times), disorder, then copies and broken payloads.
Only `Random.random()` is drawn and only IEEE-exact arithmetic follows: Python promises that sequence for ever,
and promises nothing about `choice`, `shuffle` or `expovariate`.
"""

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count as count_from
from itertools import islice
from random import Random
from typing import Literal

PRODUCT_UPDATE = "product.update"
ORDER_STATUS = "order.status"
ORDER_COMPLETE = "order.complete"

Era = Literal["2021", "2022", "2024"]
Kind = Literal["first", "copy", "broken"]

# Mean time between two occurrences, in the shop's own time. Not tied to the sending rate: the same seed and start must
# give the same bytes at any rate.
DEFAULT_SPACING_S = 0.1

_FARTHEST_DISPLACEMENT = 200  # positions; well beyond what eight clients reorder by themselves
_COPIED_FROM_LAST = 500  # deliveries; a copy is of one of these
_PRODUCTS = 250
_PRODUCT_SHARE = 0.75  # of arrivals; the others are new orders
_OCCURRENCES_PER_ARRIVAL = 1.5  # one for a product, three in the life of an order: counted over this plan
_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that happened in the shop, once, whatever the network makes of it.

    number: its place in the order in which things happened, from 0.
    subject: the orderId, or the kinguinId in decimal.
    status: what order.status says; None for the other events.
    updated_at_ms: the instant its updatedAt states, in milliseconds since 1970 UTC.
    """

    number: int
    event: str
    subject: str
    status: str | None
    updated_at_ms: int
    era: Era
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook to send; its retries are the sender's matter.

    number: its place in the order of sending, from 0. At r a second it is due number / r seconds after the first.
    kind: "first" delivery of its occurrence, byte-equal "copy" of an earlier one, or "broken" (stands for nothing).
    displaced_by: how many occurrences that happened later were let past it.
    """

    number: int
    event: str
    body: bytes
    kind: Kind
    displaced_by: int
    occurrence: Occurrence | None


def plan_deliveries(
    seed: int,
    *,
    start: datetime,
    count: int | None = None,
    duplicates: float = 0.1,
    disorder: float = 0.2,
    broken: float = 0.0,
    spacing_s: float = DEFAULT_SPACING_S,
) -> Iterator[Delivery]:
    """Yield `count` deliveries, or deliveries without end; a longer plan begins with the shorter one.

    start: an instant with an offset, cut to milliseconds; no updatedAt is before its second, and they grow by `spacing_s`
    an occurrence on average. Other seeds and other starts have other products and orders, so that two runs into one
    database do not meet.
    duplicates, broken: shares of all deliveries. disorder: share of the occurrences. Each 0 to 1.
    Raises ValueError for shares, counts, spacings or starts that make no sense.
    """
    for name, share in (("duplicates", duplicates), ("disorder", disorder), ("broken", broken)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share from 0 to 1, not {share}")
    if duplicates + broken > 1:
        raise ValueError(f"duplicates and broken are shares of the same deliveries: {duplicates} + {broken} is over 1")
    if count is not None and count < 0:
        raise ValueError(f"count cannot be negative, and is {count}")
    spacing_ms = round(spacing_s * 1000)
    if spacing_ms < 1:
        raise ValueError(f"spacing_s is at least 0.001, not {spacing_s}")
    if start.tzinfo is None:
        raise ValueError("start needs an offset from UTC")
    start_ms = (start - _EPOCH) // timedelta(milliseconds=1)

    def stream(name: str) -> Random:
        return Random(f"kinguin-simulator/1/{name}/{seed}/{start_ms}")

    occurrences = _occurrences(stream("shop"), start_ms, spacing_ms)
    displaced = _displace(stream("disorder"), occurrences, disorder)
    deliveries = _deliver(stream("delivery"), displaced, duplicates, broken, start_ms)
    return islice(deliveries, count)


# --- what happens in the shop ---


@dataclass(slots=True)
class _Product:
    kinguin_id: int
    product_id: str
    price_cents: int
    qty: int
    text_qty: int
    offers: list[str]


@dataclass(frozen=True, slots=True)
class _Order:
    order_id: str
    era: Era
    external_id: str | None
    says_null: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """One webhook in the life of an order. status: None is order.complete."""

    at_ms: int
    status: str | None


def _occurrences(rng: Random, start_ms: int, spacing_ms: int) -> Iterator[Occurrence]:
    """Yield what happens, ordered by time; arrivals are product changes and new orders, whose later steps wait in a heap."""
    products = _catalogue(rng)
    busy = _cumulative_weights(len(products))
    between_arrivals_ms = spacing_ms * _OCCURRENCES_PER_ARRIVAL
    steps: list[tuple[int, int, _Order, _Step]] = []
    tie_break = count_from()
    number = count_from()
    now_ms = float(start_ms)
    while True:
        now_ms += rng.random() * 2 * between_arrivals_ms
        at_ms = int(now_ms)
        while steps and steps[0][0] <= at_ms:
            _, _, order, step = heappop(steps)
            yield _order_occurrence(rng, next(number), order, step)
        if rng.random() < _PRODUCT_SHARE:
            product = products[bisect_right(busy, rng.random() * busy[-1])]
            yield _product_occurrence(rng, next(number), product, at_ms)
        else:
            order, life = _new_order(rng, at_ms, spacing_ms)
            for step in life:
                heappush(steps, (step.at_ms, next(tie_break), order, step))


def _catalogue(rng: Random) -> list[_Product]:
    # Ids from the whole of int32, so that two catalogues hardly ever share one.
    kinguin_ids: set[int] = set()
    products: list[_Product] = []
    while len(products) < _PRODUCTS:
        kinguin_id = 1 + _below(rng, 2**31 - 1)
        if kinguin_id in kinguin_ids:
            continue
        kinguin_ids.add(kinguin_id)
        qty = _below(rng, 400)
        products.append(
            _Product(
                kinguin_id=kinguin_id,
                product_id=_hex24(rng),
                price_cents=50 + _below(rng, 6000),
                qty=qty,
                text_qty=_below(rng, qty + 1),
                offers=[_hex24(rng) for _ in range(1 + _below(rng, 2))],
            )
        )
    return products


def _cumulative_weights(number_of_products: int) -> list[float]:
    """A few products change all the time and most hardly ever: weight 1 / (rank + 3)."""
    sums: list[float] = []
    total = 0.0
    for rank in range(number_of_products):
        total += 1 / (rank + 3)
        sums.append(total)
    return sums


def _product_occurrence(rng: Random, number: int, product: _Product, at_ms: int) -> Occurrence:
    """Change one thing of the product and say so in the words of some year.

    A change of price shows nothing in a payload of 2024, and an update without a visible change is still a change.
    """
    era = _era(rng)
    what = rng.random()
    if what < 0.4:
        product.price_cents = max(1, product.price_cents + _below(rng, 101) - 50)
    elif what < 0.8:
        product.qty = 0 if rng.random() < 0.1 else _below(rng, 400)
        product.text_qty = min(product.qty, product.text_qty)
    elif what < 0.9:
        product.text_qty = _below(rng, product.qty + 1)
    else:
        product.offers = [_hex24(rng) for _ in range(_below(rng, 3))]
    updated_at_ms = _as_stated(at_ms, era)
    payload: dict[str, object] = {"kinguinId": product.kinguin_id, "productId": product.product_id}
    if era != "2021":
        payload["qty"] = product.qty
        if rng.random() < 0.7:  # only stores with a permission for text keys were told textQty
            payload["textQty"] = product.text_qty
        if era == "2022":
            payload["price"] = _php_float(product.price_cents)
        payload["cheapestOfferId"] = product.offers
    payload["updatedAt"] = _timestamp(updated_at_ms, era)
    return Occurrence(number, PRODUCT_UPDATE, str(product.kinguin_id), None, updated_at_ms, era, _php_json(payload))


def _new_order(rng: Random, at_ms: int, spacing_ms: int) -> tuple[_Order, list[_Step]]:
    """Return an order and its whole life. Kinguin publishes no table of transitions: the paths and shares are guesses."""
    era = _era(rng)
    external = rng.random()
    order = _Order(
        order_id=_order_id(rng),
        era=era,
        external_id=_external_id(rng) if external < 0.7 else None,
        says_null=external < 0.85,
    )

    def later(ms: int) -> int:
        """Some time after `ms`, about two hundred occurrences on average."""
        return ms + 1 + _below(rng, spacing_ms * 400)

    life: list[_Step] = []
    if era == "2021" and rng.random() < 0.4:
        life.append(_Step(at_ms, "pending"))
        at_ms = later(at_ms)
    life.append(_Step(at_ms, "processing"))
    if rng.random() < 0.03:  # a status no document names: the set has changed four times
        at_ms = later(at_ms)
        life.append(_Step(at_ms, ("on_hold", "partially_completed", "dispatched")[_below(rng, 3)]))
    # A code that was in stock is dispatched within the instant in which the order was made.
    ends_ms = at_ms if rng.random() < 0.1 else later(at_ms)

    outcome = rng.random()
    if outcome < 0.05:  # a pre-order: processing until the release, which may be months away
        return order, life
    if outcome < 0.17:
        life.append(_Step(ends_ms, "canceled"))
        return order, life
    if outcome < 0.25 and era == "2021":
        life.append(_Step(ends_ms, "out_of_stock" if rng.random() < 0.6 else "error"))
        return order, life

    # Both are sent for one completion, in either order; order.complete is deprecated since 2024, not switched off.
    complete_ms = ends_ms if rng.random() < 0.6 else ends_ms + 1 + _below(rng, 1500)
    completion = [_Step(ends_ms, "completed"), _Step(complete_ms, None)]
    life.extend(completion if rng.random() < 0.5 else reversed(completion))
    afterwards = rng.random()
    if afterwards < 0.03:
        life.append(_Step(ends_ms, "canceled"))
    elif afterwards < 0.06:
        life.append(_Step(ends_ms, "refunded"))
    elif afterwards < 0.16:
        life.append(_Step(later(complete_ms), "refunded"))
    return order, life


def _order_occurrence(rng: Random, number: int, order: _Order, step: _Step) -> Occurrence:
    updated_at_ms = _as_stated(step.at_ms, order.era)
    payload: dict[str, object] = {"orderId": order.order_id}
    # A shop may name its order only after placing it, or name it anew.
    changed_mind = rng.random()
    if order.external_id is not None and changed_mind >= 0.05:
        payload["orderExternalId"] = order.external_id if changed_mind < 0.99 else order.external_id + "-2"
    elif order.says_null:
        payload["orderExternalId"] = None
    if step.status is not None:
        payload["status"] = step.status
    payload["updatedAt"] = _timestamp(updated_at_ms, order.era)
    event = ORDER_COMPLETE if step.status is None else ORDER_STATUS
    return Occurrence(number, event, order.order_id, step.status, updated_at_ms, order.era, _php_json(payload))


# --- what the network makes of it ---


def _displace(rng: Random, occurrences: Iterator[Occurrence], share: float) -> Iterator[tuple[Occurrence, int]]:
    """Yield each occurrence and the number of later ones that were let past it."""
    held: list[tuple[int, int, Occurrence]] = []
    for occurrence in occurrences:
        while held and held[0][0] < occurrence.number:
            goes_after, number, late = heappop(held)
            yield late, goes_after - number
        if rng.random() < share:
            goes_after = occurrence.number + 1 + _below(rng, _FARTHEST_DISPLACEMENT)
            heappush(held, (goes_after, occurrence.number, occurrence))
        else:
            yield occurrence, 0


def _deliver(
    rng: Random, displaced: Iterator[tuple[Occurrence, int]], duplicates: float, broken: float, start_ms: int
) -> Iterator[Delivery]:
    recent: deque[Occurrence] = deque(maxlen=_COPIED_FROM_LAST)
    for number in count_from():
        chance = rng.random()
        if chance < broken:
            event, body = _broken(rng, start_ms + number)
            yield Delivery(number, event, body, "broken", 0, None)
        elif chance < broken + duplicates and recent:
            copied = recent[_below(rng, len(recent))]
            yield Delivery(number, copied.event, copied.body, "copy", 0, copied)
        else:
            occurrence, displaced_by = next(displaced)
            recent.append(occurrence)
            yield Delivery(number, occurrence.event, occurrence.body, "first", displaced_by, occurrence)


def _broken(rng: Random, at_ms: int) -> tuple[str, bytes]:
    """Return (event name, body) that no receiver can turn into an event. Each body is sent once."""
    order_id = _order_id(rng)
    payload: dict[str, object] = {"orderId": order_id, "status": "completed", "updatedAt": _timestamp(at_ms, "2022")}
    fault = _below(rng, 5)
    if fault == 0:
        return ORDER_STATUS, _php_json(payload)[:-9]
    if fault == 1:
        del payload["orderId"]
        return ORDER_STATUS, _php_json({**payload, "orderExternalId": order_id})
    if fault == 2:
        return ORDER_COMPLETE, _php_json({"orderId": order_id, "updatedAt": "yesterday"})
    if fault == 3:  # no offset: whose midnight?
        return ORDER_STATUS, _php_json({**payload, "updatedAt": _timestamp(at_ms, "2022")[:-6]})
    return "order.shipped", _php_json(payload)


# --- how it is written ---


def _era(rng: Random) -> Era:
    chance = rng.random()
    return "2021" if chance < 0.25 else "2022" if chance < 0.5 else "2024"


def _as_stated(at_ms: int, era: Era) -> int:
    """The part of an instant that an updatedAt of that year can say: whole seconds until 2022-02."""
    return at_ms - at_ms % 1000 if era == "2021" else at_ms


def _timestamp(at_ms: int, era: Era) -> str:
    """`Y-m-d\\TH:i:sP` in 2021, with `.v` (milliseconds) from 2022-02; the offset of every documented example is +00:00."""
    instant = _EPOCH + timedelta(milliseconds=at_ms)
    return instant.isoformat(timespec="seconds" if era == "2021" else "milliseconds")


def _php_float(cents: int) -> float | int:
    """PHP's json_encode writes 12.00 as `12`, so a price may come without a fraction."""
    return cents // 100 if cents % 100 == 0 else cents / 100


def _php_json(payload: dict[str, object]) -> bytes:
    """PHP's json_encode with its defaults: no blanks, `\\uXXXX` outside ASCII, and `/` escaped. That it is PHP is a guess
    from the date formats in the documents."""
    return json.dumps(payload, separators=(",", ":")).replace("/", "\\/").encode("ascii")


def _below(rng: Random, limit: int) -> int:
    """A whole number from 0 to limit - 1."""
    return int(rng.random() * limit)


def _order_id(rng: Random) -> str:
    return "P" + _letters(rng, 10)


def _letters(rng: Random, how_many: int) -> str:
    return "".join([_ID_ALPHABET[int(rng.random() * 36)] for _ in range(how_many)])


def _hex24(rng: Random) -> str:
    return f"{_below(rng, 2**48):012x}{_below(rng, 2**48):012x}"


def _external_id(rng: Random) -> str:
    """The shop's own id of the order: any text."""
    style = rng.random()
    if style < 0.6:
        return "A" + _letters(rng, 12)
    number = _below(rng, 2**40)
    if style < 0.8:
        return f"2026/{number}"
    if style < 0.95:
        return f"shop-{number:x}"
    return f"Zamówienie №{number}"
