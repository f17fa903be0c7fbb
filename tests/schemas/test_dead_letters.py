"""Dead letters: the same failure has the same id, whatever is too large is cut and said."""

import hashlib
import io
from datetime import UTC, datetime

import avro.io
import avro.schema

from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Decoder, Encoder
from kinguin_streams.schemas.dead_letters import MAX_KEPT_BODY_BYTES, SourcePosition, from_consumer, from_ingress
from kinguin_streams.schemas.events import DeadLetter, StoreName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import MAX_RECORD_BYTES, topics
from kinguin_streams.schemas.versions import shipped

PINNED_SHA256 = "f97781e77f4ca34595d056964f5c71a7c3611921a1410e5fc52fedb9c01afa47"
AT_MS = 1_615_204_800_123
SOURCE = SourcePosition(topic="kinguin.order.status", partition=3, offset=41, key=b"A", timestamp_ms=7)


def of_a_request(body: bytes = b"{}", at_ms: int = AT_MS) -> DeadLetter:
    return from_ingress(
        store=StoreName("default"),
        event="order.unknown",
        reason="unknown_event",
        detail="no such event",
        body=body,
        headers=[("content-type", b"aplication/json")],
        received_at_ms=at_ms,
    )


def of_a_record(
    value: bytes | None = b"\x00", source: SourcePosition = SOURCE, consumer: str = "order-state"
) -> DeadLetter:
    return from_consumer(
        consumer=consumer,
        reason="malformed",
        detail="not an order",
        value=value,
        headers=[("ce_id", b"1"), ("ce_id", None)],
        source=source,
        failed_at_ms=AT_MS,
    )


def test_ids_never_change() -> None:
    # printf 'kinguin-dead-letter/1\0ingress\0default\0order.unknown\0{}' | sha256sum | cut -c-32
    assert of_a_request().dead_letter_id == "f8d4fd73f77712bba96bb7f88dd71ff6"
    # printf 'kinguin-dead-letter/1\0consumer\0order-state\0kinguin.order.status/3/41' | sha256sum | cut -c-32
    assert of_a_record().dead_letter_id == "e6bffffa5cdaa549b3559a4d6bf3220f"


def test_a_retry_of_a_bad_request_has_the_same_id_at_any_time() -> None:
    assert of_a_request(at_ms=AT_MS + 5).dead_letter_id == of_a_request().dead_letter_id
    assert of_a_request(body=b"{ }").dead_letter_id != of_a_request().dead_letter_id


def test_a_record_is_given_up_once_by_each_consumer() -> None:
    assert of_a_record(value=b"other").dead_letter_id == of_a_record().dead_letter_id
    assert of_a_record(consumer="other").dead_letter_id != of_a_record().dead_letter_id
    elsewhere = SourcePosition(topic=SOURCE.topic, partition=3, offset=42, key=b"A", timestamp_ms=7)
    assert of_a_record(source=elsewhere).dead_letter_id != of_a_record().dead_letter_id


def test_a_dead_letter_says_where_it_comes_from() -> None:
    letter = of_a_record()
    assert (letter.origin, letter.consumer, letter.store, letter.event) == ("consumer", "order-state", None, None)
    assert (letter.source_topic, letter.source_partition, letter.source_offset) == ("kinguin.order.status", 3, 41)
    assert (letter.source_key, letter.source_timestamp_ms) == (b"A", 7)
    assert letter.headers == (("ce_id", b"1"), ("ce_id", None))
    assert (of_a_request().origin, of_a_request().store, of_a_request().event) == (
        "ingress",
        "default",
        "order.unknown",
    )


def test_a_value_that_is_missing_is_kept_as_nothing() -> None:
    assert (of_a_record(value=None).body, of_a_record(value=None).body_size) == (b"", 0)


def test_of_a_large_body_the_first_part_the_size_and_the_hash_are_kept() -> None:
    body = bytes(range(256)) * 4096
    letter = of_a_request(body=body)
    assert letter.body == body[:MAX_KEPT_BODY_BYTES]
    assert letter.body_size == len(body)
    assert letter.body_sha256 == hashlib.sha256(body).hexdigest()


def test_the_largest_dead_letter_fits_its_topic_with_room_for_headers() -> None:
    record = outgoing(of_a_record(value=b"x" * 2**20), topics(), Encoder())
    headers = sum(len(name) + len(value) for name, value in record.headers)
    assert len(record.key) + len(record.value) + headers < MAX_RECORD_BYTES - 32_768


def test_bytes_of_a_dead_letter_never_change() -> None:
    value = Encoder().encode(of_a_request())
    assert hashlib.sha256(value).hexdigest() == PINNED_SHA256
    assert Decoder().decode(value) == of_a_request()


def test_apache_avro_reads_a_dead_letter() -> None:
    schema = avro.schema.parse(shipped().get("dead-letter", 1).text)
    source = io.BytesIO(Encoder().encode(of_a_record())[SINGLE_OBJECT_HEADER_BYTES:])
    fields = avro.io.DatumReader(schema).read(avro.io.BinaryDecoder(source))
    assert source.read() == b""
    assert fields == {
        "deadLetterId": "e6bffffa5cdaa549b3559a4d6bf3220f",
        "origin": "consumer",
        "reason": "malformed",
        "detail": "not an order",
        "failedAt": datetime(2021, 3, 8, 12, 0, 0, 123_000, UTC),
        "body": b"\x00",
        "bodySize": 1,
        "bodySha256": "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "headers": [{"name": "ce_id", "value": b"1"}, {"name": "ce_id", "value": None}],
        "store": None,
        "event": None,
        "consumer": "order-state",
        "sourceTopic": "kinguin.order.status",
        "sourcePartition": 3,
        "sourceOffset": 41,
        "sourceKey": b"A",
        "sourceTimestamp": datetime(1970, 1, 1, 0, 0, 0, 7_000, UTC),
    }
