"""Records to bytes and back, and what hostile bytes may do: be refused with a reason, quickly, and nothing else."""

import time
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kinguin_streams.schemas.codec import (
    CONFLUENT_MARKER,
    SINGLE_OBJECT_HEADER_BYTES,
    SINGLE_OBJECT_MARKER,
    Decoder,
    Encoder,
    RegistryNeeded,
    UndecodableRecord,
    UnknownSchema,
)
from kinguin_streams.schemas.events import (
    DeadLetter,
    DeadLetterTrail,
    Event,
    EventId,
    OrderComplete,
    OrderStateRecord,
    OrderStatus,
    ProductStateRecord,
    ProductUpdate,
    Record,
    RecordName,
    StoreName,
)
from kinguin_streams.schemas.instants import MAX_MS, MIN_MS
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaVersion, shipped

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
VERSIONS = [
    pytest.param(record, schema.version, id=f"{record}/{schema.version}")
    for record in RECORD_NAMES
    for schema in shipped().versions(record)
]
GOLDEN = [pytest.param(f, id=str(f.relative_to(EXAMPLES))) for f in sorted(EXAMPLES.glob("*/*/*.avro"))]
ONE_OF_EACH = [pytest.param(f, id=str(f.relative_to(EXAMPLES))) for f in sorted(EXAMPLES.glob("*/*/compact.avro"))]

ENVELOPE: dict[str, Any] = {
    "event_id": EventId("0" * 32),
    "store": StoreName("default"),
    "received_at_ms": 5,
    "raw": b"raw",
}
PRODUCT = ProductUpdate(
    **ENVELOPE,
    kinguin_id=1949,
    product_id="5c9b5f6b",
    updated_at_ms=9,
    qty=3,
    text_qty=0,
    price=Decimal("5.900000"),
    cheapest_offer_ids=("a", "b"),
)
ORDER = OrderStatus(**ENVELOPE, order_id="PHS84FJAG5U", status="canceled", updated_at_ms=9)
DEAD = DeadLetter(
    dead_letter_id="1" * 32,
    origin="consumer",
    reason="malformed",
    detail="a sentence",
    failed_at_ms=7,
    body=b"\x00body",
    body_size=5,
    body_sha256="2" * 64,
    headers=(("ce_id", b"x"), ("ce_id", None)),
    consumer="order-state",
    source_topic="kinguin.order.status",
    source_partition=3,
    source_offset=2**40,
    source_key=b"k",
    source_timestamp_ms=8,
)


class NumberedIds:
    """A registry that has numbered the shipped versions from 1 on."""

    def __init__(self) -> None:
        versions = [schema for record in RECORD_NAMES for schema in shipped().versions(record)]
        self._schemas = dict(enumerate(versions, start=1))

    def id_of(self, schema: SchemaVersion) -> int:
        return next(number for number, known in self._schemas.items() if known is schema)

    def schema_of(self, schema_id: int) -> SchemaVersion:
        try:
            return self._schemas[schema_id]
        except KeyError:
            raise UnknownSchema(str(schema_id)) from None


IDS = NumberedIds()

# Any record at all

longs = st.integers(-(2**63), 2**63 - 1)
instants = st.integers(MIN_MS, MAX_MS)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
envelopes: dict[str, Any] = {
    "event_id": texts,
    "store": st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True),
    "received_at_ms": instants,
    "updated_at_ms": instants,
    "raw": st.binary(max_size=200),
}
orders = {**envelopes, "order_id": texts, "order_external_id": st.none() | texts}
ints = st.integers(-(2**31), 2**31 - 1)
states = {"store": envelopes["store"], "generation": ints, "revision": longs, "received_at_ms": instants}
prices = st.decimals("-999999999999.999999", "999999999999.999999", places=6, allow_nan=False, allow_infinity=False)
records: dict[RecordName, st.SearchStrategy[Record]] = {
    "product.update": st.builds(
        ProductUpdate,
        **envelopes,
        kinguin_id=longs,
        product_id=texts,
        qty=st.none() | longs,
        text_qty=st.none() | longs,
        price=st.none() | prices,
        price_rounded=st.booleans(),
        cheapest_offer_ids=st.none() | st.lists(texts, max_size=5).map(tuple),
    ),
    "order.status": st.builds(OrderStatus, **orders, status=texts),
    "order.complete": st.builds(OrderComplete, **orders),
    "dead-letter": st.builds(
        DeadLetter,
        dead_letter_id=texts,
        origin=st.sampled_from(["ingress", "consumer"]),
        reason=texts,
        detail=texts,
        failed_at_ms=instants,
        body=st.binary(max_size=200),
        body_size=longs,
        body_sha256=texts,
        headers=st.lists(st.tuples(texts, st.none() | st.binary(max_size=20)), max_size=5).map(tuple),
        store=st.none() | texts,
        event=st.none() | texts,
        consumer=st.none() | texts,
        source_topic=st.none() | texts,
        source_partition=st.none() | st.integers(-(2**31), 2**31 - 1),
        source_offset=st.none() | longs,
        source_key=st.none() | st.binary(max_size=20),
        source_timestamp_ms=st.none() | instants,
    ),
    "dead-letter.trail": st.builds(
        DeadLetterTrail,
        dead_letter_id=texts,
        state=texts,
        attempts=ints,
        at_ms=instants,
        steps=st.lists(st.tuples(instants, texts, st.none() | texts, texts, st.none() | texts), max_size=3).map(tuple),
    ),
    "order.state": st.builds(
        OrderStateRecord,
        **states,
        order_id=texts,
        order_external_id=st.none() | texts,
        status=st.none() | texts,
        updated_at_ms=st.none() | instants,
        completed_at_ms=st.none() | instants,
        facts=st.lists(st.tuples(instants, texts, texts, ints, longs, instants), max_size=3).map(tuple),
        truncated=st.booleans(),
        transitions=st.lists(st.tuples(instants, st.none() | texts, texts), max_size=3).map(tuple),
        contradictions=st.lists(st.tuples(texts, instants, texts, instants, texts), max_size=3).map(tuple),
        set_aside=ints,
        set_aside_truncated=st.booleans(),
    ),
    "product.state": st.builds(
        ProductStateRecord,
        **states,
        kinguin_id=longs,
        updated_at_ms=st.none() | instants,
        last_event_id=st.none() | texts,
        changes=longs,
        set_aside=longs,
        product_id=st.none() | texts,
        product_id_as_of_ms=st.none() | instants,
        qty=st.none() | longs,
        qty_as_of_ms=st.none() | instants,
        text_qty=st.none() | longs,
        text_qty_as_of_ms=st.none() | instants,
        price=st.none() | prices,
        price_as_of_ms=st.none() | instants,
        cheapest_offer_ids=st.none() | st.lists(texts, max_size=5).map(tuple),
        cheapest_offer_id_as_of_ms=st.none() | instants,
    ),
}


@pytest.mark.parametrize("ids", [None, IDS], ids=["single-object", "confluent"])
@pytest.mark.parametrize(("record", "version"), VERSIONS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_record_comes_back_from_its_bytes(
    data: st.DataObject, record: RecordName, version: int, ids: NumberedIds | None
) -> None:
    written = data.draw(records[record])
    value = Encoder({record: version}, ids).encode(written)
    assert value.startswith(SINGLE_OBJECT_MARKER if ids is None else CONFLUENT_MARKER)
    assert Decoder(ids).decode(value) == _carried(written, version)


def test_both_formats_have_the_same_body_and_one_reader_takes_either() -> None:
    single_object, confluent = Encoder().encode(ORDER), Encoder(ids=IDS).encode(ORDER)
    assert confluent == b"\x00" + IDS.id_of(shipped().newest("order.status")).to_bytes(4, "big") + single_object[10:]
    assert [Decoder(IDS).decode(value) for value in (single_object, confluent)] == [ORDER, ORDER]


def test_the_newest_version_is_written_unless_one_is_held_back() -> None:
    assert Encoder().encode(PRODUCT)[2:10] == shipped().get("product.update", 3).fingerprint
    assert Encoder({"product.update": 2}).encode(PRODUCT)[2:10] == shipped().get("product.update", 2).fingerprint
    with pytest.raises(KeyError):
        Encoder({"product.update": 4})


def test_duplicates_differ_in_nothing_but_received_at() -> None:
    first, second = (Encoder().encode(replace(ORDER, received_at_ms=at_ms)) for at_ms in (64, 127))
    assert len(first) == len(second)
    assert sum(a != b for a, b in zip(first, second, strict=True)) == 1


# What has no schema here


def test_a_missing_value_is_no_record() -> None:
    assert _refusal(None) == "no_value"


def test_an_unknown_fingerprint_waits_for_an_upgrade() -> None:
    value = SINGLE_OBJECT_MARKER + b"\0" * 8 + Encoder().encode(ORDER)[10:]
    with pytest.raises(UnknownSchema, match="0000000000000000"):
        Decoder().decode(value)


def test_a_confluent_frame_without_a_registry_names_the_setting() -> None:
    with pytest.raises(RegistryNeeded, match="KINGUIN_REGISTRY__URL"):
        Decoder().decode(Encoder(ids=IDS).encode(ORDER))


def test_an_unknown_id_waits_for_an_upgrade() -> None:
    with pytest.raises(UnknownSchema):
        Decoder(IDS).decode(b"\x00\x7f\xff\xff\xff" + Encoder().encode(ORDER)[10:])


@pytest.mark.parametrize("value", [b"", b"\x01", b"\xc3", b"\xc3\x02", b'{"orderId":"A"}', b"\xff" * 20])
def test_what_is_in_neither_frame_is_refused(value: bytes) -> None:
    assert _refusal(value) == "unknown_frame"


@pytest.mark.parametrize("value", [b"\xc3\x01", b"\xc3\x01\0\0\0\0\0\0\0", b"\x00", b"\x00\0\0\0"])
def test_half_a_header_is_truncated(value: bytes) -> None:
    assert _refusal(value) == "truncated"


# Damage


@pytest.mark.parametrize("golden", GOLDEN)
def test_no_part_of_a_record_is_a_record(golden: Path) -> None:
    value = golden.read_bytes()
    reasons = {_refusal(value[:length]) for length in range(len(value))}
    assert reasons == {"unknown_frame", "truncated"}


@pytest.mark.parametrize("golden", GOLDEN)
def test_a_byte_too_many_is_refused(golden: Path) -> None:
    for more in (b"\0", b"\x02", golden.read_bytes()):
        assert _refusal(golden.read_bytes() + more) == "trailing_bytes"


@pytest.mark.parametrize("golden", ONE_OF_EACH)
def test_a_flipped_bit_is_refused_or_makes_another_valid_record(golden: Path) -> None:
    value = golden.read_bytes()
    event, version = golden.parts[-3:-1]
    encoder = Encoder({event: int(version)})  # type: ignore[dict-item]
    for bit in range(len(value) * 8):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << (bit % 8)
        _refused_or_canonical(bytes(damaged), encoder)


@settings(max_examples=500, deadline=None)
@given(body=st.binary(max_size=120), which=st.sampled_from(VERSIONS))
def test_random_bytes_are_refused_or_make_a_valid_record(body: bytes, which: Any) -> None:
    record, version = which.values
    _refused_or_canonical(_frame(record, version) + body, Encoder({record: version}))
    _refused_or_canonical(body, Encoder({record: version}))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), which=st.sampled_from(VERSIONS))
def test_records_spliced_together_are_refused_or_make_a_valid_record(data: st.DataObject, which: Any) -> None:
    record, version = which.values
    encoder = Encoder({record: version})
    one, other = (encoder.encode(data.draw(records[record])) for _ in range(2))
    cut, cut_other = data.draw(st.integers(0, len(one))), data.draw(st.integers(0, len(other)))
    _refused_or_canonical(one[:cut] + other[cut_other:], encoder)


# Bytes that a lenient Avro reader takes, or chokes on


def zigzag(number: int) -> bytes:
    """Return an Avro long."""
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while rest > 0x7F:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def text(value: bytes) -> bytes:
    """Return an Avro string or bytes."""
    return zigzag(len(value)) + value


NULL, NO_BOOLEAN = b"\0", b"\0"
ENVELOPE_BYTES = text(b"0" * 32) + text(b"default") + zigzag(5)
PRODUCT_BYTES = ENVELOPE_BYTES + zigzag(1949) + text(b"5c9b5f6b") + zigzag(9)
RAW_BYTES = text(b"raw")


def product_2(
    *, qty: bytes = NULL, price: bytes = NULL, rounded: bytes = NO_BOOLEAN, offers: bytes = NULL
) -> tuple[RecordName, int, bytes]:
    return "product.update", 2, PRODUCT_BYTES + qty + NULL + price + rounded + offers + RAW_BYTES


def product_1(
    *, kinguin_id: bytes = zigzag(1949), product_id: bytes = text(b"5c9b5f6b")
) -> tuple[RecordName, int, bytes]:
    return "product.update", 1, ENVELOPE_BYTES + kinguin_id + product_id + zigzag(9) + RAW_BYTES


def order(*, external_id: bytes = NULL) -> tuple[RecordName, int, bytes]:
    return "order.complete", 1, ENVELOPE_BYTES + text(b"A") + external_id + zigzag(9) + RAW_BYTES


def dead_letter(*, headers: bytes = b"\0", partition: bytes = NULL) -> tuple[RecordName, int, bytes]:
    begin = b"".join(map(text, (b"id", b"ingress", b"r", b"d"))) + zigzag(7) + text(b"b") + zigzag(1) + text(b"h")
    return "dead-letter", 1, begin + headers + NULL * 4 + partition + NULL * 3


@pytest.mark.parametrize(
    "by_hand",
    [
        pytest.param(product_1(), id="product 1"),
        pytest.param(product_2(), id="product 2"),
        pytest.param(order(), id="order"),
        pytest.param(order(external_id=zigzag(1) + text(b"x")), id="order with an external id"),
        pytest.param(dead_letter(), id="dead letter"),
        pytest.param(product_2(price=zigzag(1) + text(b"\x5a\x06\xe0")), id="a price of 5.9"),
        pytest.param(product_2(price=zigzag(1) + text(b"\x80")), id="a price of -0.000128"),
        pytest.param(
            product_2(offers=zigzag(1) + zigzag(2) + text(b"a") + text(b"b") + zigzag(0)), id="offers in one block"
        ),
    ],
)
def test_records_built_by_hand_are_read_so_the_hostile_ones_below_differ_in_one_thing(
    by_hand: tuple[RecordName, int, bytes],
) -> None:
    record, version, body = by_hand
    value = _frame(record, version) + body
    assert Encoder({record: version}).encode(Decoder().decode(value)) == value


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        pytest.param(order(external_id=zigzag(-1) + text(b"x")), "malformed", id="union index -1"),
        pytest.param(order(external_id=zigzag(-2)), "malformed", id="union index -2"),
        pytest.param(order(external_id=zigzag(2)), "malformed", id="union index past the end"),
        pytest.param(order(external_id=zigzag(2**62)), "malformed", id="union index huge"),
        pytest.param(order(external_id=b"\x80\x00"), "not_canonical", id="overlong null"),
        pytest.param(product_1(kinguin_id=b"\x80" * 9 + b"\x00"), "not_canonical", id="overlong zero"),
        pytest.param(product_1(kinguin_id=b"\xff" * 9 + b"\x03"), "malformed", id="long of 65 bits"),
        pytest.param(product_1(kinguin_id=b"\xff" * 30 + b"\x01"), "malformed", id="long of 200 bits"),
        pytest.param(product_1(product_id=zigzag(-1)), "malformed", id="length -1"),
        pytest.param(product_1(product_id=zigzag(-(2**63))), "malformed", id="smallest length"),
        pytest.param(product_1(product_id=zigzag(2**31)), "truncated", id="length of 2 GiB"),
        pytest.param(product_1(product_id=zigzag(2**63 - 1)), "truncated", id="largest length"),
        pytest.param(product_1(product_id=text(b"\xff\xfe")), "malformed", id="text that is no UTF-8"),
        pytest.param(product_1(product_id=text(b"\xed\xa0\x80")), "malformed", id="text with a surrogate"),
        pytest.param(product_1(product_id=text(b"\xc0\x80")), "malformed", id="text with an overlong NUL"),
        pytest.param(product_2(rounded=b"\x02"), "malformed", id="a boolean of 2"),
        pytest.param(product_2(price=zigzag(1) + text(b"")), "not_canonical", id="price of no bytes"),
        pytest.param(product_2(price=zigzag(1) + text(b"\0\1")), "not_canonical", id="price with a zero in front"),
        pytest.param(product_2(price=zigzag(1) + text(b"\xff\x80")), "not_canonical", id="price with a sign in front"),
        pytest.param(
            product_2(price=zigzag(1) + text((10**18).to_bytes(8, "big"))), "not_canonical", id="price of 19 digits"
        ),
        pytest.param(product_2(price=zigzag(1) + text(b"\1" * 9)), "not_canonical", id="price of 9 bytes"),
        pytest.param(product_2(offers=zigzag(1) + zigzag(2**62)), "truncated", id="huge block count"),
        pytest.param(
            product_2(offers=zigzag(1) + zigzag(-(2**62)) + zigzag(3)), "not_canonical", id="huge sized block"
        ),
        pytest.param(product_2(offers=zigzag(1) + zigzag(-(2**63))), "not_canonical", id="smallest block count"),
        pytest.param(
            product_2(offers=zigzag(1) + zigzag(-1) + zigzag(2) + text(b"a") + zigzag(0)),
            "not_canonical",
            id="a block that tells its size",
        ),
        pytest.param(
            product_2(offers=zigzag(1) + zigzag(1) + text(b"a") + zigzag(1) + text(b"b") + zigzag(0)),
            "not_canonical",
            id="two blocks for one",
        ),
        pytest.param(dead_letter(headers=zigzag(2**62)), "truncated", id="huge number of headers"),
        pytest.param(dead_letter(partition=zigzag(1) + zigzag(2**31)), "malformed", id="an int of 33 bits"),
        pytest.param(dead_letter(partition=zigzag(1) + zigzag(2**40)), "malformed", id="an int of 42 bits"),
    ],
)
def test_bytes_that_no_writer_of_ours_wrote_are_refused(hostile: tuple[RecordName, int, bytes], reason: str) -> None:
    record, version, body = hostile
    assert _refusal(_frame(record, version) + body) == reason


MEGABYTE = 1_000_000
RECORD_BYTES = 262_144  # what a topic takes


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(product_2(price=zigzag(1) + text(b"\x7f" * MEGABYTE)), id="price of a megabyte"),
        pytest.param(product_2(price=zigzag(1) + text(b"\x80" * MEGABYTE)), id="negative price of a megabyte"),
        pytest.param(product_1(kinguin_id=b"\xff" * MEGABYTE + b"\x01"), id="long of seven million bits"),
        pytest.param(product_1(product_id=zigzag(2**40) + b"x" * MEGABYTE), id="length of a terabyte"),
        pytest.param(product_2(offers=zigzag(1) + zigzag(2**62) + b"\0" * RECORD_BYTES), id="a record of empty offers"),
        pytest.param(product_2(offers=zigzag(1) + b"\x01\x00" * (RECORD_BYTES // 2)), id="a record of sized blocks"),
        pytest.param(dead_letter(headers=zigzag(2**62) + b"\0" * RECORD_BYTES), id="a record of empty headers"),
    ],
)
def test_hostile_bytes_cost_no_more_than_their_length(hostile: tuple[RecordName, int, bytes]) -> None:
    """The bounds are generous: without care, the first one takes 79 s and the fourth a terabyte."""
    record, version, body = hostile
    value = _frame(record, version) + body
    tracemalloc.start()
    try:
        began_s = time.process_time()
        _refusal(value)
        took_s = time.process_time() - began_s
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took_s < 15
    assert peak_bytes < 300 * len(value)


# Fields that a reader does without


@pytest.mark.parametrize("golden", GOLDEN)
def test_a_reader_may_do_without_some_fields_and_refuses_what_it_refused(golden: Path) -> None:
    value = golden.read_bytes()
    whole, decode = Decoder().decode(value), Decoder().without(["raw", "event_id"]).decode
    left_out = {name: msgspec.UNSET for name in ("raw", "event_id") if hasattr(whole, name)}
    assert bool(left_out) == isinstance(whole, Event)
    assert msgspec.structs.asdict(decode(value)) == {**msgspec.structs.asdict(whole), **left_out}
    for damaged in (value[:-1], value + b"x"):
        with pytest.raises(UndecodableRecord):
            decode(damaged)


def test_a_field_that_is_left_out_is_still_to_be_text() -> None:
    value = Encoder().encode(ORDER)
    damaged = value.replace(ORDER.event_id.encode(), b"\xff" * len(ORDER.event_id))
    with pytest.raises(UndecodableRecord, match="malformed"):
        Decoder().without(["event_id"]).decode(damaged)


def test_events_of_one_store_share_its_name() -> None:
    """And their status: a batch of 100,000 would hold 11 MB of the same two words."""
    first, second = (Decoder().decode(Encoder().encode(ORDER)) for _ in range(2))
    assert isinstance(first, OrderStatus)
    assert isinstance(second, OrderStatus)
    assert first.store is second.store
    assert first.status is second.status


def _refusal(value: bytes | None) -> str:
    with pytest.raises(UndecodableRecord) as refused:
        Decoder().decode(value)
    assert refused.value.detail
    return refused.value.code


def _refused_or_canonical(value: bytes, encoder: Encoder) -> None:
    try:
        record = Decoder().decode(value)
    except (UndecodableRecord, UnknownSchema, RegistryNeeded):
        return
    assert encoder.encode(record) == value


def _frame(record: RecordName, version: int) -> bytes:
    header = SINGLE_OBJECT_MARKER + shipped().get(record, version).fingerprint
    assert len(header) == SINGLE_OBJECT_HEADER_BYTES
    return header


def _carried(record: Record, version: int) -> Record:
    """Return the record without what this version has no field for."""
    match record, version:
        case ProductUpdate(), 1:
            return replace(record, qty=None, text_qty=None, price=None, price_rounded=False, cheapest_offer_ids=None)
        case ProductUpdate(), 3:
            return replace(record, price=None, price_rounded=False)
        case _:
            return record
