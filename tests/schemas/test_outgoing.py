"""A record as a producer sends it: CloudEvents 1.0 in Kafka's binary mode, read back by the CloudEvents SDK."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, to_binary
from cloudevents.core.formats.json import JSONFormat
from msgspec.structs import replace

from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.dead_letters import SourcePosition, from_consumer, from_ingress
from kinguin_streams.schemas.events import EventId, OrderStatus, ProductUpdate, Record, StoreName
from kinguin_streams.schemas.instants import MAX_MS, MIN_MS
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import topics

ORDER = OrderStatus(
    event_id=EventId("50d406bffa5122019e45b0f4352a2c31"),
    store=StoreName("shop-2"),
    received_at_ms=1_615_204_800_123,
    order_id="PHS84FJAG5U",
    status="canceled",
    updated_at_ms=1_602_847_448_000,
    raw=b"{}",
)
PRODUCT = ProductUpdate(
    event_id=EventId("e1a6caef4af5d5f02d40b7f87ab61e55"),
    store=StoreName("default"),
    received_at_ms=1_615_204_800_123,
    kinguin_id=1949,
    product_id="5c9b5f6b",
    updated_at_ms=1_602_847_448_999,
    price=Decimal("1.000000"),
    raw=b"{}",
)
REQUEST_LETTER = from_ingress(
    store=StoreName("default"), event="x", reason="r", detail="d", body=b"b", headers=[], received_at_ms=99
)
RECORD_LETTER = from_consumer(
    consumer="order-state",
    reason="r",
    detail="d",
    value=b"v",
    headers=[],
    source=SourcePosition(topic="t", partition=0, offset=0, key=None, timestamp_ms=None),
    failed_at_ms=99,
)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def send(record: Record, traceparent: str | None = None) -> OutgoingRecord:
    return outgoing(record, topics(), Encoder(), traceparent)


def test_headers_are_these_and_no_others_in_this_order() -> None:
    assert send(ORDER).headers == (
        ("ce_specversion", b"1.0"),
        ("ce_id", b"50d406bffa5122019e45b0f4352a2c31"),
        ("ce_source", b"urn:kinguin:store:shop-2"),
        ("ce_type", b"net.kinguin.order.status"),
        ("ce_time", b"2020-10-16T11:24:08.000Z"),
        ("ce_subject", b"PHS84FJAG5U"),
        ("content-type", b"application/avro"),
    )


@pytest.mark.parametrize(
    ("record", "topic", "key", "source", "kind"),
    [
        (ORDER, "kinguin.order.status", b"PHS84FJAG5U", "urn:kinguin:store:shop-2", "net.kinguin.order.status"),
        (PRODUCT, "kinguin.product.update", b"1949", "urn:kinguin:store:default", "net.kinguin.product.update"),
        (
            REQUEST_LETTER,
            "kinguin.dead-letter",
            REQUEST_LETTER.dead_letter_id.encode(),
            "urn:kinguin-streams:ingress:default",
            "kinguin-streams.dead-letter",
        ),
        (
            RECORD_LETTER,
            "kinguin.dead-letter",
            RECORD_LETTER.dead_letter_id.encode(),
            "urn:kinguin-streams:consumer:order-state",
            "kinguin-streams.dead-letter",
        ),
    ],
)
def test_a_record_goes_to_its_topic_under_its_key(
    record: Record, topic: str, key: bytes, source: str, kind: str
) -> None:
    sent = send(record)
    assert (sent.topic, sent.key) == (topic, key)
    assert sent.value == Encoder().encode(record)
    event = _read_by_the_sdk(sent)
    assert (event.get_source(), event.get_type()) == (source, kind)


@pytest.mark.parametrize("record", [ORDER, PRODUCT, REQUEST_LETTER, RECORD_LETTER])
def test_the_cloudevents_sdk_reads_and_writes_the_same_headers(record: Record) -> None:
    sent = send(record)
    event = _read_by_the_sdk(sent)
    assert event.get_specversion() == "1.0"
    assert event.get_id() == dict(sent.headers)["ce_id"].decode()
    assert event.get_subject() == record.key
    assert event.get_datacontenttype() == "application/avro"
    assert event.get_data() == sent.value

    again = to_binary(event, JSONFormat(), key_mapper=lambda _event: sent.key)
    ours = dict(sent.headers)
    # The SDK writes six fractional digits or none for the same instant, and the key as an attribute of its own.
    assert datetime.fromisoformat(again.headers.pop("ce_time").decode()) == datetime.fromisoformat(
        ours.pop("ce_time").decode()
    )
    assert again.headers.pop("ce_partitionkey") == sent.key
    assert again.headers == ours
    assert (again.key, again.value) == (sent.key, sent.value)


@pytest.mark.parametrize("updated_at_ms", [MIN_MS, -1, 0, 1_602_847_448_007, MAX_MS])
def test_ce_time_is_the_senders_instant_and_the_record_time_is_ours(updated_at_ms: int) -> None:
    sent = send(replace(ORDER, updated_at_ms=updated_at_ms))
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=updated_at_ms)
    assert _read_by_the_sdk(sent).get_time() == expected
    assert sent.timestamp_ms == ORDER.received_at_ms


def test_a_dead_letter_has_the_time_at_which_it_was_given_up() -> None:
    assert send(REQUEST_LETTER).timestamp_ms == 99
    assert dict(send(RECORD_LETTER).headers)["ce_time"] == b"1970-01-01T00:00:00.099Z"


def test_keys_and_subjects_are_utf_8() -> None:
    sent = send(replace(ORDER, order_id="\U0001f4e6-7"))
    assert sent.key == dict(sent.headers)["ce_subject"] == "\U0001f4e6-7".encode()


def test_a_valid_traceparent_is_passed_on() -> None:
    assert send(ORDER, TRACEPARENT).headers == (*send(ORDER).headers, ("traceparent", TRACEPARENT.encode()))


@pytest.mark.parametrize(
    "traceparent",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("00-00000000000000000000000000000000-b7ad6b7169203331-01", id="trace id of zeros"),
        pytest.param("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", id="span id of zeros"),
        pytest.param(TRACEPARENT.upper(), id="upper case"),
        pytest.param(TRACEPARENT.replace("00-", "ff-", 1), id="version ff"),
        pytest.param(TRACEPARENT.replace("00-", "01-", 1), id="version of tomorrow"),
        pytest.param(TRACEPARENT + "-00", id="longer than version 00 may be"),
        pytest.param(TRACEPARENT + "\n", id="newline after"),
        pytest.param(" " + TRACEPARENT, id="blank before"),
        pytest.param(TRACEPARENT[:-1], id="cut off"),
        pytest.param(TRACEPARENT.replace("0", "\u0660"), id="other digits"),
    ],
)
def test_an_invalid_traceparent_is_dropped(traceparent: str | None) -> None:
    assert send(ORDER, traceparent).headers == send(ORDER).headers


def _read_by_the_sdk(sent: OutgoingRecord) -> BaseCloudEvent:
    headers = dict(sent.headers)
    assert len(headers) == len(sent.headers), "a header is there twice"
    return from_binary(KafkaMessage(headers=headers, key=sent.key, value=sent.value), JSONFormat())
