"""The webhooks that every reader must read back: deterministic by seed, all events and versions, fields at their edges.

    python -I -S tests/readers/corpus.py [SEED]

prints them, one JSON object a line. Standard library only; nothing here knows how a record is made of a webhook.
"""

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

SEED = 20201016
WEBHOOKS = 1_000
MAX_BODY_BYTES = 65_536
# (event, schema version it is written in) and how many.
SHARES = {
    ("product.update", 1): 160,
    ("product.update", 2): 320,
    ("product.update", 3): 220,
    ("order.status", 1): 180,
    ("order.complete", 1): 120,
}
STORES = ("default", "shop-2", "0", "a" * 32)
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
# On both sides of every length that Avro's variable-length numbers change at, and of every width that a reader may have.
QUANTITIES = (
    *(0, 1, -1, 63, 64, -64, -65, 8191, 8192, 127, 128, 255, 256, 32767, 32768, -32768, -32769),
    *(2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1),
    *(2**62, -(2**62), LONG_MAX - 1, LONG_MAX, LONG_MIN + 1, LONG_MIN),
)
KINGUIN_IDS = (0, *(number for number in QUANTITIES if number > 0))
# JSON text, not numbers: how it is written is part of what is tried. `"…"` is a price that was sent as a string.
PRICES = (
    *("0", "-0", "0.0", "-0.0", "5", "-5", "5.0", "5.99", "-5.99", '"5.99"', '"-0.01"', "0.1", "0.30000000000000004"),
    *(
        "1.28",
        "-1.28",
        "0.000127",
        "0.000128",
        "-0.000128",
        "-0.000129",
        "0.032767",
        "0.032768",
        "-0.032768",
        "8.388607",
    ),
    *("8.388608", "-8.388608", "2147.483647", "2147.483648", "-2147.483648", "549755.813887", "549755.813888"),
    *("0.000001", "-0.000001", "1e2", "1E-6", "2.5e+3", "123456789012.123456", "-123456789012.123456"),
    *("999999999999.999999", "-999999999999.999999", '"999999999999.999999"'),
    # More than six decimal places: rounded half to even, and flagged.
    *("0.0000005", "0.0000015", "-0.0000015", "0.00000150000000000000000000001", "1e-7", "-1e-30", "4.9999994999"),
    *("4.9999995", "999999999999.9999994", "12.3456785", "12.3456775"),
    # More digits than six that change nothing.
    *("3.10000000000000000000000", "7.0000000e0"),
)
INSTANTS = (
    *(
        "0001-01-01T00:00:00.000+00:00",
        "0001-01-01T00:00:00Z",
        "0001-01-01T14:00:00+14:00",
        "0001-01-01T00:00:00.001-12:00",
    ),
    *("9999-12-31T23:59:59.999+00:00", "9999-12-31T23:59:59Z", "9999-12-31T11:59:59.999-12:00"),
    *(
        "1969-12-31T23:59:59.999+00:00",
        "1970-01-01T00:00:00.000+00:00",
        "1969-12-31T23:59:59UTC",
        "1970-01-01T00:59:59.5+01:00",
    ),
    *("1582-10-04T12:00:00Z", "1582-10-15T12:00:00Z", "1900-02-28T23:59:59.999Z", "2000-02-29T12:00:00.000+00:00"),
    *("2020-10-16T11:24:08+00:00", "2020-10-16T11:24:08UTC", "2020-10-16T11:24:08.015+00:00", "2020-10-16T11:24:08.1Z"),
    *("2020-10-16T11:24:08.999999999+05:45", "1969-12-31T23:59:59.999999999Z", "2020-10-16T11:24:08.0009-03:30"),
    *(
        "2024-02-29T23:59:59.999-23:59",
        "2038-01-19T03:14:07Z",
        "2038-01-19T03:14:08Z",
        "2106-02-07T06:28:16Z",
        "1987-05-19T00:00:00.1Z",
    ),
)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "PHS84FJAG5U",
        "5c9b5f6b2539a4e8f172916a",
        " blanks around ",
        "two\nlines",
        "tab\tand\rreturn",
        "\x01\x08\x0c\x1f\x7f",
    ),
    *('quote " and backslash \\ and / slash', "comma, and = and ; and : and | and %s {}", "null", "true", "-1", "1e3"),
    *(
        "Grüße",
        "e\u0301 is not é",
        "\u202eright to left\u202c",
        "שָׁלוֹם",
        "한글 ㅎㅏㄴ",
        "\u0085\u2028\u2029\ufeff",
        "\uffff\ufffe\ue000",
    ),
    *("😀", "𝒳𐍈🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👩‍👩‍👧‍👦", "\U00010000\U0010ffff", "x" * 63, "x" * 64, "z" * 1024, "ä" * 512, "😀" * 256),
)
ID_TEXTS = tuple(text for text in TEXTS if text)
LONGEST_TEXT = "y" * 50_000
STATUSES = (
    "processing",
    "completed",
    "canceled",
    "refunded",
    "pending",
    "out_of_stock",
    "error",
    "Completed",
    "on hold",
    "возврат",
    "🎮",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One delivery, and the schema version that its record is to be written in. received_at_ms counts from the run's base."""

    store: str
    event: str
    version: int
    body: bytes
    received_after_ms: int
    traceparent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BadWebhook:
    """One delivery that can never become an event, and why."""

    store: str
    event: str
    body: bytes
    headers: tuple[tuple[str, bytes], ...]
    received_after_ms: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """One record that a consumer gave up, with the position it had."""

    consumer: str
    reason: str
    detail: str
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    topic: str
    partition: int
    offset: int
    key: bytes | None
    timestamp_ms: int | None
    failed_after_ms: int


def webhooks(seed: int = SEED) -> tuple[Webhook, ...]:
    """Return the WEBHOOKS webhooks, versions and events mixed; the same for the same seed, on every Python."""
    dice = random.Random(seed)
    made: list[Webhook] = []
    for (event, version), count in SHARES.items():
        bodies = _products(dice, version) if event == "product.update" else _orders(dice, event)
        for _ in range(count):
            body = next(body for body in bodies if len(body) <= MAX_BODY_BYTES)
            made.append(
                Webhook(
                    store=dice.choice(STORES),
                    event=event,
                    version=version,
                    body=body,
                    received_after_ms=dice.randrange(3_600_000),
                    traceparent=TRACEPARENT if dice.random() < 0.1 else None,
                )
            )
    dice.shuffle(made)
    return tuple(made)


def bad_webhooks() -> tuple[BadWebhook, ...]:
    """Return deliveries that end as dead letters of the ingress."""
    headers = (("content-type", b"aplication/json"), ("user-agent", "Gr\xfc\xdfe \U0001f600".encode()))
    raw = (("content-type", b"\xff\x00\xfe"),)
    return tuple(
        BadWebhook(
            store=store, event=event, body=body, headers=kept, received_after_ms=i * 1_000, reason=reason, detail=detail
        )
        for i, (store, event, body, kept, reason, detail) in enumerate(
            (
                ("default", "order.status", b"", (), "malformed_json", "the body is not JSON"),
                (
                    "default",
                    "order.status",
                    b'{"orderId": "PHS84FJAG5U", ',
                    headers,
                    "malformed_json",
                    "the body is not JSON",
                ),
                ("shop-2", "order.complete", b"\xff\xfe{}", raw, "invalid_utf8", "byte 0 of the body is not UTF-8"),
                (
                    "shop-2",
                    "order.status",
                    b'{"orderId": "\xc3\x28"}',
                    (),
                    "invalid_utf8",
                    "byte 13 of the body is not UTF-8",
                ),
                (
                    "0",
                    "order.complete",
                    b'{"orderId": "A", "orderId": "B", "updatedAt": "2020-10-16T11:24:08Z"}',
                    headers,
                    "duplicate_key",
                    "an object of the payload has the same key twice",
                ),
                (
                    "0",
                    "order.vanished",
                    '{"orderId": "😀"}'.encode(),
                    (),
                    "unknown_event",
                    "X-Event-Name is none of product.update, order.status, order.complete",
                ),
                (
                    "0",
                    "Ünknown 🎮",
                    bytes(range(256)) * 250,
                    raw,
                    "unknown_event",
                    "X-Event-Name is none of product.update, order.status, order.complete",
                ),
            )
        )
    )


def bad_records() -> tuple[BadRecord, ...]:
    """Return records that end as dead letters of a consumer: every optional field there, and every one absent."""
    return (
        BadRecord(
            consumer="order-state",
            reason="unknown_frame",
            detail="a value must begin with c301 or 00",
            value=bytes(range(255, -1, -1)),
            headers=(("ce_id", b"1"), ("", b""), ("none", None), ("ce_id", b"2"), ("bytes", b"\x00\xff")),
            topic="kinguin.order.status",
            partition=2**31 - 1,
            offset=LONG_MAX,
            key=b"\x00key\xff",
            timestamp_ms=253_402_300_799_999,
            failed_after_ms=0,
        ),
        BadRecord(
            consumer="product-changes",
            reason="no_value",
            detail="the record has no value; 😀 e\u0301",
            value=None,
            headers=(),
            topic="kinguin.product.update",
            partition=0,
            offset=0,
            key=None,
            timestamp_ms=None,
            failed_after_ms=1,
        ),
        BadRecord(
            consumer="handler-😀",
            reason="malformed",
            detail="",
            value=b"",
            headers=tuple((f"h{i}", bytes([i % 256]) * i) for i in range(300)),
            topic="kinguin.order.complete",
            partition=-(2**31),
            offset=LONG_MIN,
            key=b"",
            timestamp_ms=-1,
            failed_after_ms=2,
        ),
    )


def _products(dice: random.Random, version: int) -> Iterator[bytes]:
    ids, quantities, text_quantities = _each(dice, KINGUIN_IDS), _each(dice, QUANTITIES), _each(dice, QUANTITIES)
    prices, offers = _each(dice, PRICES), _offers(dice)
    product_ids, instants = _each(dice, ID_TEXTS), _each(dice, INSTANTS)
    while True:
        fields = {
            "kinguinId": str(next(ids)),
            "productId": _text(dice, next(product_ids)),
            "updatedAt": _text(dice, next(instants)),
        }
        if version > 1:
            fields |= _now_and_then(
                dice,
                {
                    "qty": str(next(quantities)),
                    "textQty": str(next(text_quantities)),
                    "cheapestOfferId": f"[{', '.join(_text(dice, offer) for offer in next(offers))}]",
                },
            )
        if version == 2 or (version == 3 and dice.random() < 0.2):
            fields |= _now_and_then(dice, {"price": next(prices)})
        yield _object(dice, fields)


def _orders(dice: random.Random, event: str) -> Iterator[bytes]:
    order_ids, external_ids, instants = (
        _each(dice, ID_TEXTS),
        _each(dice, (*TEXTS, LONGEST_TEXT)),
        _each(dice, INSTANTS),
    )
    statuses = _each(dice, (*STATUSES, *ID_TEXTS))
    while True:
        fields = {"orderId": _text(dice, next(order_ids)), "updatedAt": _text(dice, next(instants))}
        fields |= _now_and_then(dice, {"orderExternalId": _text(dice, next(external_ids))})
        if event == "order.status":
            fields["status"] = _text(dice, next(statuses))
        yield _object(dice, fields)


def _each(dice: random.Random, pool: Sequence[Item]) -> Iterator[Item]:
    """Yield all of the pool before any of it comes again, in another order each time."""
    while True:
        yield from dice.sample(pool, len(pool))


def _offers(dice: random.Random) -> Iterator[Sequence[str]]:
    texts = _each(dice, TEXTS)
    while True:
        for count in (0, 1, 2, 1, 3, 0, 63, 64, 65, 1):
            yield [next(texts)[:100] for _ in range(count)]
        yield ["5c9b5f6b2539a4e8f172916a"] * 800


def _now_and_then(dice: random.Random, fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields, one in five of them left out, and one in five null."""
    return {name: "null" if fate < 0.2 else value for name, value in fields.items() if (fate := dice.random()) < 0.8}


def _text(dice: random.Random, text: str) -> str:
    """Return the text as JSON: as it is, or escaped throughout, in pairs of surrogates beyond the BMP, or \\/ for /."""
    style = dice.randrange(3)
    if style == 0:
        return json.dumps(text, ensure_ascii=False)
    if style == 1:
        return json.dumps(text).replace("/", "\\/")
    units = text.encode("utf-16-be")[:8_000]
    if len(units) < 2 * len(text):  # escaped, it would not fit a body
        return json.dumps(text)
    return '"' + "".join(f"\\u{units[i]:02X}{units[i + 1]:02x}" for i in range(0, len(units), 2)) + '"'


def _object(dice: random.Random, fields: dict[str, str]) -> bytes:
    """Return the object's bytes: members in any order, any white space, now and then with what no schema knows."""
    members = list(fields.items())
    if dice.random() < 0.3:
        members += [("tomorrow", '{"nested": [1, 2.5e300, null, {"": "\\u0000"}], "price": "none"}')]
    if dice.random() < 0.1:
        members += [("Ünbekannt 🎮", "123456789012345678901234567890.5")]
    dice.shuffle(members)
    colon, comma, (start, end) = dice.choice(
        ((": ", ",\n   ", ("{\n   ", "\n}")), (":", ",", ("{", "}")), (" :\t", " ,\r\n", (" { ", " }\n")))
    )
    inner = comma.join(f"{json.dumps(name, ensure_ascii=False)}{colon}{value}" for name, value in members)
    return f"{start}{inner}{end}".encode()


if __name__ == "__main__":
    for webhook in webhooks(int(sys.argv[1]) if len(sys.argv) > 1 else SEED):
        print(json.dumps([webhook.store, webhook.event, webhook.version, webhook.body.decode()]))  # noqa: T201 - its output is what it is for
