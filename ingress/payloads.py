"""A webhook's body to an event, or the reason why it can never be one. Pure.

Lenient where the sender's documents are unsure (absent or null optional fields, any further fields), strict where a
wrong guess would store something that was not sent: numbers, times, duplicate keys.
"""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from functools import partial
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import (
    Event,
    EventName,
    OrderComplete,
    OrderStatus,
    ProductUpdate,
    StoreName,
)
from kinguin_streams.schemas.instants import MAX_MS, MIN_MS

MAX_ID_BYTES: Final = 1024
"""An id becomes a record key and a state key; the sender's are 11 to 24 characters."""
MAX_PRICE: Final = Decimal(10) ** 12
"""decimal(18,6) holds twelve digits before the point."""
_PRICE_STEP: Final = Decimal("0.000001")
_LONG_MIN: Final = -(2**63)
_LONG_MAX: Final = 2**63 - 1

# PHP's `P`, its `T` for UTC, and Z. The sender has written whole seconds (until 2022-02) and milliseconds (since).
_UPDATED_AT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(?:Z|UTC|([+-])([0-9]{2}):([0-9]{2}))"
)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - both sides are naive: the offset is subtracted as a number, which cannot overflow
# Escaped, since msgspec quotes the pattern in its message, which goes into logs and dead letters.
_NO_NUL: Final = r"^[^\u0000]*$"
# What JSON calls a number. Decimal() would also take "1_000", " 1 " and the digits of every other script.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

# The same rules as JSON Schema can say them, for the OpenAPI document; nothing here validates by them.
_UPDATED_AT_SCHEMA: Final = {
    "pattern": "^(?!0000)"
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
    "T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|UTC|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$",
}
_PRICE_SCHEMA: Final = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": -(10**12), "exclusiveMaximum": 10**12},
        # Without the few that rounding to six places would take to the bound, and without exponents, which are taken too.
        {"type": "string", "pattern": "^-?(?!9{12}\\.9{6}[5-9])(?:0|[1-9][0-9]{0,11})(?:\\.[0-9]+)?$"},
        {"type": "null"},
    ]
}

Long = Annotated[int, Meta(ge=_LONG_MIN, le=_LONG_MAX)]
Text = Annotated[str, Meta(pattern=_NO_NUL)]  # PostgreSQL's text cannot hold U+0000
UpdatedAt = Annotated[str, Meta(extra_json_schema=_UPDATED_AT_SCHEMA)]
Price = Annotated[msgspec.Raw, Meta(extra_json_schema=_PRICE_SCHEMA)]
Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES, pattern=_NO_NUL)]


class InvalidWebhook(Exception):
    """The payload can never become an event; sending it again will not help.

    code: a stable word, also a metric's label. detail: a sentence for a person, free of the payload's own text.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class ProductUpdatePayload(msgspec.Struct, frozen=True, rename="camel"):
    kinguin_id: Annotated[int, Meta(ge=0, le=_LONG_MAX)]
    product_id: Id
    updated_at: UpdatedAt
    qty: Long | None = None
    text_qty: Long | None = None
    price: Price = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))  # a schema cannot show a Raw default
    cheapest_offer_id: tuple[Text, ...] | None = None


class OrderStatusPayload(msgspec.Struct, frozen=True, rename="camel"):
    order_id: Id
    status: Id
    updated_at: UpdatedAt
    order_external_id: Text | None = None


class OrderCompletePayload(msgspec.Struct, frozen=True, rename="camel"):
    order_id: Id
    updated_at: UpdatedAt
    order_external_id: Text | None = None


_product_update = msgspec.json.Decoder(ProductUpdatePayload)
_order_status = msgspec.json.Decoder(OrderStatusPayload)
_order_complete = msgspec.json.Decoder(OrderCompletePayload)


def read_event(store: StoreName, event: EventName, body: bytes, received_at_ms: int) -> Event:
    """Return the event that this body stands for.

    body: JSON in UTF-8 as the sender wrote it. Raises InvalidWebhook and nothing else, in time proportional to the
    body's length. Codes: invalid_utf8, malformed_json, too_deep, duplicate_key, invalid_field, number_out_of_range,
    bad_updated_at.
    """
    envelope = partial(_envelope, event_id(store, event, body), store, received_at_ms, body)
    match event:
        case "product.update":
            product = _decode(_product_update, body)
            price, rounded = _price(product.price)
            return ProductUpdate(
                **envelope(product.updated_at),
                kinguin_id=product.kinguin_id,
                product_id=_short(product.product_id, "productId"),
                qty=product.qty,
                text_qty=product.text_qty,
                price=price,
                price_rounded=rounded,
                cheapest_offer_ids=product.cheapest_offer_id,
            )
        case "order.status":
            order = _decode(_order_status, body)
            return OrderStatus(
                **envelope(order.updated_at),
                order_id=_short(order.order_id, "orderId"),
                order_external_id=order.order_external_id,
                status=_short(order.status, "status"),
            )
        case "order.complete":
            complete = _decode(_order_complete, body)
            return OrderComplete(
                **envelope(complete.updated_at),
                order_id=_short(complete.order_id, "orderId"),
                order_external_id=complete.order_external_id,
            )


def parse_updated_at(text: str) -> int:
    """Return the instant of a webhook's updatedAt in milliseconds since the epoch, floored.

    text: the sender's three documented forms: whole seconds or a fraction, then an offset as +00:00, or UTC, or Z.
    Raises InvalidWebhook("bad_updated_at") for anything else: a time without an offset, a date that is none, second 60,
    an instant that is not within the years 1 to 9999 in UTC.
    """
    match = _UPDATED_AT.fullmatch(text)
    if match is None:
        raise InvalidWebhook("bad_updated_at", "updatedAt is not of the form 2020-10-16T11:24:08.000+00:00")
    local, fraction, sign, hours, minutes = match.groups()
    try:
        since_epoch = datetime.fromisoformat(local) - _EPOCH
    except ValueError as error:
        raise InvalidWebhook("bad_updated_at", "updatedAt names a date or a time of day that does not exist") from error
    offset_minutes = 0 if sign is None else int(hours) * 60 + int(minutes)
    if sign is not None and (int(hours) > 23 or int(minutes) > 59):
        raise InvalidWebhook("bad_updated_at", "updatedAt has an offset of a day or more")
    local_ms = since_epoch // timedelta(milliseconds=1) + int((fraction or "0").ljust(3, "0")[:3])
    instant_ms = local_ms - (-1 if sign == "-" else 1) * offset_minutes * 60_000
    if not MIN_MS <= instant_ms <= MAX_MS:
        raise InvalidWebhook("bad_updated_at", "updatedAt is not within the years 1 to 9999 in UTC")
    return instant_ms


def _envelope(event_id: str, store: StoreName, received_at_ms: int, body: bytes, updated_at: str) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "store": store,
        "received_at_ms": received_at_ms,
        "updated_at_ms": parse_updated_at(updated_at),
        "raw": body,
    }


Payload = TypeVar("Payload")


def _decode(decoder: "msgspec.json.Decoder[Payload]", body: bytes) -> Payload:
    # One place turns everything that a JSON decoder can raise into one error. msgspec alone would pass bytes that are
    # no UTF-8 in fields it does not know, and takes the last of duplicate keys without a word.
    try:
        text = body.decode("utf-8")
        payload = decoder.decode(text)
        _duplicates.decode(text)
    except UnicodeDecodeError as error:
        raise InvalidWebhook("invalid_utf8", f"byte {error.start} of the body is not UTF-8") from error
    except RecursionError as error:
        raise InvalidWebhook("too_deep", "the JSON is nested too deeply") from error
    except msgspec.ValidationError as error:
        raise InvalidWebhook("invalid_field", str(error)) from error
    except (msgspec.MsgspecError, json.JSONDecodeError) as error:
        raise InvalidWebhook("malformed_json", "the body is not JSON") from error
    return payload


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise InvalidWebhook("duplicate_key", "an object of the payload has the same key twice")


def _skip(_number: str) -> None:
    """Leave numbers alone: an int of 5,000 digits in a field that we do not read is no fault."""


_duplicates = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_int=_skip, parse_float=_skip)


def _short(text: str, field: str) -> str:
    if len(text.encode()) > MAX_ID_BYTES:
        raise InvalidWebhook("invalid_field", f"{field} is longer than {MAX_ID_BYTES} bytes")
    return text


def _price(sent: msgspec.Raw) -> tuple[Decimal | None, bool]:
    """Return the price with at most six decimal places, and whether that changed it.

    sent: the JSON text: a number, or a number in quotes, since the sender's documents mix the two up elsewhere.
    """
    text = bytes(sent).decode()
    if text == "null":
        return None, False
    number = text[1:-1] if text.startswith('"') else text
    if _NUMBER.fullmatch(number) is None:
        raise InvalidWebhook("invalid_field", "price is not a number")
    try:
        exact = Decimal(number)
    except InvalidOperation as error:  # an exponent of 19 digits
        raise InvalidWebhook("number_out_of_range", "price has an exponent that is out of range") from error
    if exact.copy_abs() < MAX_PRICE:  # abs() would round to 28 digits, and raises Overflow for 1e1000000
        price = exact.quantize(_PRICE_STEP, rounding=ROUND_HALF_EVEN)
        if abs(price) < MAX_PRICE:
            return price, price != exact
    raise InvalidWebhook("number_out_of_range", "price is not below 1,000,000,000,000")


def reasons() -> Iterator[str]:
    """Yield every code that an InvalidWebhook of this module can carry: the fixed set of a metric's label."""
    yield from (
        "invalid_utf8",
        "malformed_json",
        "too_deep",
        "duplicate_key",
        "invalid_field",
        "number_out_of_range",
        "bad_updated_at",
    )
