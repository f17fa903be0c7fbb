"""A body to an event: what is stored equals what was sent, or the payload is refused with a reason."""

import json
from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kinguin_streams.ingress.payloads import MAX_PRICE, InvalidWebhook, parse_updated_at, read_event, reasons
from kinguin_streams.schemas.events import EVENT_NAMES, Event, EventName, ProductUpdate, StoreName

STORE = StoreName("default")
RECEIVED_AT_MS = 1_700_000_000_000
UPDATED_AT = "2020-10-16T11:24:08+00:00"
UPDATED_AT_MS = 1_602_847_448_000

DOCUMENTED: dict[EventName, str] = {
    "product.update": """{
   "kinguinId": 1949,
   "productId": "5c9b5f6b2539a4e8f172916a",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}""",
    "order.complete": """{
   "orderId": "PHS84FJAG5U",
   "orderExternalId": "AL2FEEHOO2OHF",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}""",
    "order.status": """{
   "orderId": "PHS84FJAG5U",
   "orderExternalId": "AL2FEEHOO2OHF",
   "status": "canceled",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}""",
}


def read(event: EventName, body: bytes | str) -> Event:
    return read_event(STORE, event, body.encode() if isinstance(body, str) else body, RECEIVED_AT_MS)


def refusal(event: EventName, body: bytes | str) -> str:
    """Return the reason for which a body is refused."""
    with pytest.raises(InvalidWebhook) as refused:
        read(event, body)
    return refused.value.code


def product_update(**fields: str) -> str:
    """Return a product.update with these fields' JSON text instead of the usual ones."""
    usual = {"kinguinId": "1949", "productId": '"5c9b"', "updatedAt": f'"{UPDATED_AT}"'}
    return "{" + ", ".join(f'"{name}": {text}' for name, text in {**usual, **fields}.items()) + "}"


def order_status(**fields: str) -> str:
    """Return an order.status with these fields' JSON text instead of the usual ones."""
    usual = {"orderId": '"PHS84FJAG5U"', "status": '"canceled"', "updatedAt": f'"{UPDATED_AT}"'}
    return "{" + ", ".join(f'"{name}": {text}' for name, text in {**usual, **fields}.items()) + "}"


def price_of(text: str) -> tuple[Decimal | None, bool]:
    event = read("product.update", product_update(price=text))
    assert isinstance(event, ProductUpdate)
    return event.price, event.price_rounded


# --- what is kept ---


@pytest.mark.parametrize("event", EVENT_NAMES)
def test_the_documented_examples_are_events_and_keep_their_bytes(event: EventName) -> None:
    record = read(event, DOCUMENTED[event])
    assert record.record_name == event
    assert record.raw == DOCUMENTED[event].encode()
    assert (record.updated_at_ms, record.received_at_ms, record.store) == (UPDATED_AT_MS, RECEIVED_AT_MS, STORE)


@pytest.mark.parametrize(
    "external", [pytest.param("", id="absent"), pytest.param(', "orderExternalId": null', id="null")]
)
def test_an_order_need_not_have_an_external_id(external: str) -> None:
    record = read("order.complete", f'{{"orderId": "A", "updatedAt": "{UPDATED_AT}"{external}}}')
    assert not isinstance(record, ProductUpdate)
    assert record.order_external_id is None


def test_a_status_that_no_document_names_is_kept() -> None:
    record = read("order.status", order_status(status='"PARTIALLY_SHREDDED"'))
    assert not isinstance(record, ProductUpdate)
    assert record.status == "PARTIALLY_SHREDDED"


def test_fields_that_we_do_not_know_are_no_fault() -> None:
    record = read("order.status", order_status(tomorrow='{"deep": [1, 2.5, null]}'))
    assert b"tomorrow" in record.raw


def test_the_payload_of_2022_is_kept_with_every_field() -> None:
    body = product_update(qty="7", textQty="0", price="12.99", cheapestOfferId='["a", "b"]')
    record = read("product.update", body)
    assert isinstance(record, ProductUpdate)
    assert (record.qty, record.text_qty, record.price, record.cheapest_offer_ids) == (
        7,
        0,
        Decimal("12.99"),
        ("a", "b"),
    )


# --- numbers: stored as sent, or refused ---


@pytest.mark.parametrize("sent", ["0", "1", "2147483648", "9007199254740993", "9223372036854775807"])
def test_every_long_is_stored_as_sent(sent: str) -> None:
    record = read("product.update", product_update(kinguinId=sent))
    assert isinstance(record, ProductUpdate)
    assert str(record.kinguin_id) == sent


@pytest.mark.parametrize(
    "sent",
    ["9223372036854775808", "-1", "1.0", "1e3", "1.5", "1e400", "true", "null", '"1949"', "[1]", "9" * 5000],
)
def test_what_is_no_long_is_never_made_one(sent: str) -> None:
    assert refusal("product.update", product_update(kinguinId=sent)) == "invalid_field"


@pytest.mark.parametrize("sent", ["-9223372036854775808", "-5", "0", "9223372036854775807"])
def test_a_quantity_may_be_any_long(sent: str) -> None:
    record = read("product.update", product_update(qty=sent, textQty=sent))
    assert isinstance(record, ProductUpdate)
    assert (str(record.qty), str(record.text_qty)) == (sent, sent)


@pytest.mark.parametrize(
    ("sent", "stored", "rounded"),
    [
        ("12.99", "12.99", False),
        ("0.1", "0.1", False),
        ("7", "7", False),
        ("1E2", "100", False),
        ("-3.5", "-3.5", False),
        ('"12.99"', "12.99", False),
        ("999999999999.999999", "999999999999.999999", False),
        ("0.0000005", "0", True),
        ("0.0000015", "0.000002", True),
        ("0.30000000000000004", "0.3", True),
        ("1e-400", "0", True),
        ("1e-1000000", "0", True),
        ("0." + "1" * 5000, "0.111111", True),
    ],
)
def test_a_price_has_six_places_half_even_and_says_when_it_was_rounded(sent: str, stored: str, rounded: bool) -> None:
    assert price_of(sent) == (Decimal(stored), rounded)


@pytest.mark.parametrize(
    "sent",
    [
        "1000000000000",
        "-1000000000000",
        "999999999999.9999999",
        "1e400",
        "9" * 5000,
        "1e1000000",
        "-1e1000000",
        "1e9999999999999999999",
    ],
)
def test_a_price_that_decimal_18_6_cannot_hold_is_refused(sent: str) -> None:
    assert refusal("product.update", product_update(price=sent)) == "number_out_of_range"


@pytest.mark.parametrize(
    "sent", ['"NaN"', '"Infinity"', '"1_000"', '" 1 "', '"\uff11\uff12"', '"+1"', '"0x10"', '""', "true", "[]", "{}"]
)
def test_a_price_that_is_no_json_number_is_refused_not_interpreted(sent: str) -> None:
    assert refusal("product.update", product_update(price=sent)) == "invalid_field"


@pytest.mark.parametrize("sent", ["NaN", "Infinity", "-Infinity", "01", "1.", ".5", "+1", "0x10", "1_000"])
@pytest.mark.parametrize("field", ["kinguinId", "price", "unknown"])
def test_what_json_does_not_call_a_number_is_malformed(field: str, sent: str) -> None:
    assert refusal("product.update", product_update(**{field: sent})) == "malformed_json"


# --- texts ---


@pytest.mark.parametrize("field", ["orderId", "status"])
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param('""', id="empty"),
        pytest.param('"a\\u0000b"', id="NUL"),
        pytest.param('"' + "a" * 1025 + '"', id="over 1 KiB"),
        pytest.param('"' + "é" * 513 + '"', id="over 1 KiB in bytes only"),
        pytest.param("5", id="a number"),
        pytest.param("null", id="null"),
    ],
)
def test_an_id_is_1_to_1024_bytes_of_text_without_nul(field: str, sent: str) -> None:
    assert refusal("order.status", order_status(**{field: sent})) == "invalid_field"


@pytest.mark.parametrize("sent", ["é" * 512, "A", " ", "ﬀ", "e\u0301", "\u202e", "😀", "\ufeff", "\x7f"])
def test_an_id_is_stored_character_by_character(sent: str) -> None:
    record = read("order.status", order_status(orderId=json.dumps(sent, ensure_ascii=False)))
    assert record.key == sent
    assert read("order.status", order_status(orderId=json.dumps(sent))).key == sent


def test_a_detail_is_free_of_the_payloads_text_and_of_control_characters() -> None:
    with pytest.raises(InvalidWebhook) as refused:
        read("order.status", order_status(orderId='"c\\u0000anary"'))
    assert refused.value.detail.isprintable()
    assert "anary" not in refused.value.detail


# --- the whole body ---


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "malformed_json", id="nothing"),
        pytest.param(b"{", "malformed_json", id="cut off"),
        pytest.param(b"\xef\xbb\xbf" + order_status().encode(), "malformed_json", id="a byte order mark"),
        pytest.param(order_status().encode("utf-16"), "invalid_utf8", id="UTF-16"),
        pytest.param(order_status().encode() + b"{}", "malformed_json", id="two values"),
        pytest.param(order_status(x='"\\ud800"').encode(), "malformed_json", id="a lone surrogate, even if unread"),
        pytest.param(
            order_status(x="?").encode().replace(b"?", b'"\xff"'), "invalid_utf8", id="no UTF-8, even if unread"
        ),
        pytest.param(b"null", "invalid_field", id="null"),
        pytest.param(b"[]", "invalid_field", id="an array"),
        pytest.param(b"{}", "invalid_field", id="an object without fields"),
        pytest.param(order_status(x="[" * 20_000 + "]" * 20_000).encode(), "too_deep", id="20,000 arrays"),
        pytest.param(order_status(x='{"a":' * 10_000 + "1" + "}" * 10_000).encode(), "too_deep", id="10,000 objects"),
    ],
)
def test_a_body_that_is_no_payload_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    assert refusal("order.status", body) == reason


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(order_status()[:-1] + ', "orderId": "B"}', id="orderId twice"),
        pytest.param(order_status()[:-1] + ', "status": "canceled"}', id="status twice, the same value"),
        pytest.param(order_status()[:-1] + ', "\\u006frderId": "B"}', id="the same key, written otherwise"),
        pytest.param(order_status(x='{"a": 1, "a": 2}'), id="within a field that we do not read"),
        pytest.param(order_status(x='[{"a": {"b": 1, "b": 1}}]'), id="deep within"),
    ],
)
def test_the_same_key_twice_is_refused_since_parsers_differ_in_which_they_take(body: str) -> None:
    assert refusal("order.status", body) == "duplicate_key"


# --- updatedAt ---

TIMES: list[tuple[str, int | None]] = [
    ("2020-10-16T11:24:08+00:00", 1_602_847_448_000),
    ("2020-10-16T11:24:08UTC", 1_602_847_448_000),
    ("2020-10-16T11:24:08Z", 1_602_847_448_000),
    ("2020-10-16T11:24:08.123+00:00", 1_602_847_448_123),
    ("2020-10-16T11:24:08.1Z", 1_602_847_448_100),
    ("2020-10-16T11:24:08.1239999Z", 1_602_847_448_123),
    ("2020-10-16T11:24:08.123999999Z", 1_602_847_448_123),
    ("2020-10-16T13:24:08+02:00", 1_602_847_448_000),
    ("2020-10-16T05:54:08-05:30", 1_602_847_448_000),
    ("2020-02-29T00:00:00Z", 1_582_934_400_000),
    ("1969-12-31T23:59:59.999Z", -1),
    ("0001-01-01T00:00:00Z", -62_135_596_800_000),
    ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ("0001-01-01T00:00:00+14:00", None),
    ("9999-12-31T23:59:59-14:00", None),
    ("2020-10-16T11:24:08", None),
    ("2020-10-16 11:24:08+00:00", None),
    ("2020-10-16T11:24:60Z", None),
    ("2020-10-16T24:00:00Z", None),
    ("2021-02-29T00:00:00Z", None),
    ("2020-W42-5T11:24:08Z", None),
    ("2020-290T11:24:08Z", None),
    ("20201016T112408Z", None),
    ("2020-10-16T11:24:08+0000", None),
    ("2020-10-16T11:24:08+24:00", None),
    ("2020-10-16T11:24:08+00:60", None),
    ("2020-10-16T11:24:08.Z", None),
    ("2020-10-16T11:24:08.1234567890Z", None),
    ("2020-10-16t11:24:08z", None),
    ("\uff12020-10-16T11:24:08Z", None),
    ("2020-10-16T11:24:08Z\n", None),
    ("1602847448", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected_ms"), TIMES)
def test_row_41_a_time_is_exact_to_the_millisecond_or_refused(text: str, expected_ms: int | None) -> None:
    if expected_ms is None:
        assert refusal("order.status", order_status(updatedAt=json.dumps(text))) == "bad_updated_at"
    else:
        assert parse_updated_at(text) == expected_ms


@given(st.datetimes(), st.integers(-23 * 60 - 59, 23 * 60 + 59), st.integers(0, 999_999))
def test_the_senders_form_is_read_as_python_reads_it(local: Any, offset_minutes: int, micros: int) -> None:
    sign, (hours, minutes) = ("-" if offset_minutes < 0 else "+"), divmod(abs(offset_minutes), 60)
    text = f"{local.replace(microsecond=0).isoformat()}.{micros:06d}{sign}{hours:02d}:{minutes:02d}"
    seconds = (local.toordinal() - 719_163) * 86_400 + local.hour * 3600 + local.minute * 60 + local.second
    expected_ms = (seconds - offset_minutes * 60) * 1000 + micros // 1000
    try:
        assert parse_updated_at(text) == expected_ms
    except InvalidWebhook:
        assert not -62_135_596_800_000 <= expected_ms <= 253_402_300_799_999


# --- for any bytes at all ---

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = ("kinguinId", "productId", "updatedAt", "qty", "textQty", "price", "cheapestOfferId", "orderId", "status")


@settings(max_examples=400)
@given(
    st.sampled_from(EVENT_NAMES),
    st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON_VALUES).map(lambda value: json.dumps(value).encode()),
)
@example("product.update", product_update(price="1e9999999999999999999").encode())
def test_nothing_but_invalid_webhook_is_ever_raised(event: EventName, body: bytes) -> None:
    outcome: Event | str
    try:
        outcome = read(event, body)
    except InvalidWebhook as refused:
        outcome = refused.code
    assert outcome in set(reasons()) if isinstance(outcome, str) else outcome.raw == body


# U+0000 is refused and a lone surrogate is no text; both have tests of their own.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=200)
LONG = st.integers(-(2**63), 2**63 - 1)
PRICE = st.decimals(-MAX_PRICE + 1, MAX_PRICE - 1, places=6, allow_nan=False, allow_infinity=False)


@settings(max_examples=200)
@given(
    kinguin_id=st.integers(0, 2**63 - 1),
    product_id=TEXT,
    qty=st.none() | LONG,
    text_qty=st.none() | LONG,
    price=st.none() | PRICE,
    offers=st.none() | st.lists(TEXT, max_size=4),
    escaped=st.booleans(),
)
def test_every_field_of_a_valid_payload_is_stored_as_sent(
    *,
    kinguin_id: int,
    product_id: str,
    qty: int | None,
    text_qty: int | None,
    price: Decimal | None,
    offers: list[str] | None,
    escaped: bool,
) -> None:
    body = product_update(
        kinguinId=str(kinguin_id),
        productId=json.dumps(product_id, ensure_ascii=escaped),
        qty=json.dumps(qty),
        textQty=json.dumps(text_qty),
        price="null" if price is None else str(price),
        cheapestOfferId=json.dumps(offers, ensure_ascii=escaped),
    )
    record = read("product.update", body)
    assert isinstance(record, ProductUpdate)
    sent = (kinguin_id, product_id, qty, text_qty, price, False, None if offers is None else tuple(offers))
    assert (
        record.kinguin_id,
        record.product_id,
        record.qty,
        record.text_qty,
        record.price,
        record.price_rounded,
        record.cheapest_offer_ids,
    ) == sent


def test_the_id_covers_store_event_and_bytes_and_nothing_else() -> None:
    bodies = [order_status().encode(), order_status().encode() + b" "]
    stores = [STORE, StoreName("shop-2")]
    events: list[EventName] = ["order.status", "order.complete"]
    ids = {
        (store, event, body): read_event(store, event, body, RECEIVED_AT_MS).event_id
        for store, event, body in product(stores, events, bodies)
    }
    assert len(set(ids.values())) == 8
    assert all(
        read_event(store, event, body, RECEIVED_AT_MS + 1).event_id == event_id
        for (store, event, body), event_id in ids.items()
    )
