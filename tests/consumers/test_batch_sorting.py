"""Which records take effect, which are dead letters, and which wait: pure, on the client's own messages."""

import msgspec
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_NOT_AVAILABLE, Message

from kinguin_streams.consumers.batch import (
    MAX_DETAIL_CHARACTERS,
    MAX_KEPT_HEADERS_BYTES,
    MAX_KEPT_KEY_BYTES,
    Batch,
    TopicPart,
    dead_letter,
    sort_out,
)
from kinguin_streams.schemas.codec import Decoder, Encoder, RegistryNeeded
from kinguin_streams.schemas.events import Record, RecordName
from kinguin_streams.schemas.instants import MAX_MS, MIN_MS
from tests.consumers.deliveries import order_complete, order_status

STATUS, COMPLETE = "kinguin.order.status", "kinguin.order.complete"
EXPECTED: dict[str, RecordName] = {STATUS: "order.status", COMPLETE: "order.complete"}
NOW_MS = 1_800_000_000_000
UNKNOWN_FINGERPRINT = b"\xc3\x01" + b"12345678" + b"body"

encode = Encoder().encode


def updated_at(instant_ms: int) -> bytes:
    return encode(msgspec.structs.replace(order_status("processing"), updated_at_ms=instant_ms))


def message(value: bytes | Record | None, offset: int = 0, *, topic: str = STATUS, partition: int = 0) -> Message:
    data = value if value is None or isinstance(value, bytes) else encode(value)
    return Message(
        topic, partition, offset, b"key", data, [("ce_id", b"1")], None, (TIMESTAMP_CREATE_TIME, 1_700_000_000_000)
    )


def sorted_out(*messages: Message) -> Batch:
    return sort_out(messages, decode=Decoder().decode, expected=EXPECTED, consumer="order-state", now_ms=NOW_MS)


def test_readable_records_take_effect_with_their_positions() -> None:
    batch = sorted_out(message(order_status("processing"), 7), message(order_complete(1), 3, topic=COMPLETE))
    assert [(r.event, r.topic, r.partition, r.offset, r.timestamp_ms) for r in batch.received] == [
        (order_status("processing"), STATUS, 0, 7, 1_700_000_000_000),
        (order_complete(1), COMPLETE, 0, 3, 1_700_000_000_000),
    ]
    assert batch.next_offsets == {TopicPart(STATUS, 0): 8, TopicPart(COMPLETE, 0): 4}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(None, "no_value", id="a tombstone in an event topic"),
        pytest.param(b"", "unknown_frame", id="an empty value"),
        pytest.param(b"hello", "unknown_frame", id="no Avro at all"),
        pytest.param(encode(order_status("processing"))[:-1], "truncated", id="cut short"),
        pytest.param(encode(order_status("processing")) + b"\0", "trailing_bytes", id="something follows"),
        pytest.param(encode(order_complete()), "unexpected_record", id="an event of another topic"),
        pytest.param(updated_at(MAX_MS + 1), "updated_at_out_of_range", id="year 10000"),
        pytest.param(updated_at(MIN_MS - 1), "updated_at_out_of_range", id="BC"),
    ],
)
def test_row_51_a_poison_record_is_a_dead_letter_with_its_origin(value: bytes | None, reason: str) -> None:
    batch = sorted_out(message(order_status("pending"), 4), message(value, 5), message(order_status("processing"), 6))
    assert [r.offset for r in batch.received] == [4, 6]
    [letter] = batch.dead_letters
    assert letter.reason == reason
    assert letter.consumer == "order-state"
    assert (letter.source_topic, letter.source_partition, letter.source_offset) == (STATUS, 0, 5)
    assert (letter.source_key, letter.source_timestamp_ms) == (b"key", 1_700_000_000_000)
    assert (letter.body, letter.headers, letter.failed_at_ms) == (value or b"", (("ce_id", b"1"),), NOW_MS)
    assert batch.next_offsets == {TopicPart(STATUS, 0): 7}


def test_a_record_read_again_makes_the_same_dead_letter() -> None:
    one, again = (sorted_out(message(b"hello", 5)).dead_letters[0] for _ in range(2))
    assert one.dead_letter_id == again.dead_letter_id


def test_an_unknown_schema_holds_its_partition_and_no_other() -> None:
    batch = sorted_out(
        message(order_status("pending"), 4),
        message(UNKNOWN_FINGERPRINT, 5),
        message(b"hello", 6),
        message(order_status("processing"), 9, partition=1),
    )
    assert [(r.partition, r.offset) for r in batch.received] == [(0, 4), (1, 9)]
    assert batch.dead_letters == []
    assert batch.next_offsets == {TopicPart(STATUS, 0): 5, TopicPart(STATUS, 1): 10}
    held = batch.held[TopicPart(STATUS, 0)]
    assert [m.offset() for m in held.messages] == [5, 6]
    assert b"12345678".hex() in held.reason


def test_a_registry_record_without_a_registry_stops_the_batch() -> None:
    with pytest.raises(RegistryNeeded, match="KINGUIN_REGISTRY__URL"):
        sorted_out(message(b"\x00\x00\x00\x00\x07body"))


def test_a_dead_letter_fits_its_topic_whatever_the_record_was() -> None:
    headers: list[tuple[str, str | bytes | None]] = [(f"h{n}", b"x" * 1_000) for n in range(100)]
    huge = Message(STATUS, 0, 0, b"k" * 100_000, b"v" * 10, headers, None, (TIMESTAMP_NOT_AVAILABLE, 0))
    letter = dead_letter(huge, "order-state", "malformed", "d" * 100_000, NOW_MS)
    assert len(letter.detail) == MAX_DETAIL_CHARACTERS
    assert len(letter.source_key or b"") == MAX_KEPT_KEY_BYTES
    assert 0 < sum(len(value or b"") for _, value in letter.headers) <= MAX_KEPT_HEADERS_BYTES
    assert letter.source_timestamp_ms is None
