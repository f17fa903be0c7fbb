"""Readers and writers of different releases on one real topic: every pair of shipped versions, in both directions."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import avro.io
import avro.schema
import fastavro
import pytest
from confluent_kafka import Consumer, TopicPartition

from kinguin_streams.cluster.connection import CLIENT_LOGGER, consumer_config
from kinguin_streams.consumers import reader
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.ingress.payloads import read_event
from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Decoder, Encoder
from kinguin_streams.schemas.events import EVENT_NAMES, Event, EventName, StoreName
from kinguin_streams.schemas.versions import SchemaCatalogue, SchemaVersion, shipped
from tests.conftest import KafkaCluster
from tests.consumers.kafka_streams import Streams, running_loop, wait_until

pytestmark = pytest.mark.kafka

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
RECEIVED_AT_MS = 1_790_000_000_000  # 2026-09-21, after all that the examples say but the far dates
FIRST_PLAUSIBLE_MS = 1_514_764_800_000  # 2018-01-01: what is older, or later than received, is set aside
PAIRS = [
    pytest.param(event, writer.version, reads.version, id=f"{event} {writer.version} read by {reads.version}")
    for event in EVENT_NAMES
    for writer in shipped().versions(event)
    for reads in shipped().versions(event)
]


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix, partitions=1).make()


def bodies(event: EventName) -> list[Event]:
    """Return the events of all example bodies, whichever version they are examples of."""
    files = sorted((EXAMPLES / event).glob("*/*.json"))
    return [read_event(StoreName("default"), event, file.read_bytes(), RECEIVED_AT_MS) for file in files]


@pytest.mark.parametrize(("event", "written", "read"), PAIRS)
def test_a_foreign_reader_of_any_version_reads_what_a_writer_of_any_version_wrote(
    streams: Streams, event: EventName, written: int, read: int
) -> None:
    """What another language's reader does with our schemas: two libraries, each resolving by itself."""
    sent = bodies(event)
    streams.write(*sent, encoder=Encoder({event: written}))
    writer, wanted = shipped().get(event, written), shipped().get(event, read)
    carried = {field["name"] for field in json.loads(writer.text)["fields"]}
    values = list(_values(streams, event, len(sent)))
    for value in values:
        body = value[SINGLE_OBJECT_HEADER_BYTES:]
        assert value[2:SINGLE_OBJECT_HEADER_BYTES] == writer.fingerprint
        as_written = _by_fastavro(body, writer, writer)
        fields = _by_fastavro(body, writer, wanted)
        assert fields == {
            field["name"]: as_written[field["name"]] if field["name"] in carried else field["default"]
            for field in json.loads(wanted.text)["fields"]
        }
        assert fields == _by_apache(body, writer, wanted)
    assert [_by_fastavro(value[SINGLE_OBJECT_HEADER_BYTES:], writer, wanted)["raw"] for value in values] == [
        record.raw for record in sent
    ]


@pytest.mark.parametrize("release", [schema.version for schema in shipped().versions("product.update")])
def test_a_consumer_of_an_older_release_reads_what_it_knows_waits_at_the_rest_and_an_upgrade_goes_on_from_there(
    streams: Streams, tmp_path: Path, release: int
) -> None:
    sent = bodies("product.update")
    versions = shipped().versions("product.update")
    for schema in versions:
        streams.write(*sent[schema.version - 1 :: len(versions)], encoder=Encoder({"product.update": schema.version}))
    known = sum(len(sent[schema.version - 1 :: len(versions)]) for schema in versions if schema.version <= release)
    topic = streams.name("product.update")

    with running_loop(streams, tmp_path, PRODUCT_CHANGES, decoder=_decoder_of(release)) as older:
        older.catch_up({(topic, 0): known})
        if release < versions[-1].version:
            time.sleep(0.5)
            assert older.failure is None
            assert older.stored() == {(topic, 0): known}
    with running_loop(streams, tmp_path, PRODUCT_CHANGES) as upgraded:
        upgraded.catch_up(streams.ends("product.update"))

    (tmp_path / "anew").mkdir()
    with running_loop(streams, tmp_path / "anew", PRODUCT_CHANGES) as newest:
        newest.catch_up(streams.ends("product.update"))
    assert streams.dead_letters() == []
    assert reader.product_count(upgraded.state.url) == reader.product_count(newest.state.url) > 0
    for product in {record.kinguin_id for record in sent if hasattr(record, "kinguin_id")}:
        assert reader.product_view(upgraded.state.url, "default", product) == reader.product_view(
            newest.state.url, "default", product
        )


def test_a_writer_that_is_held_back_and_one_that_is_not_may_share_a_topic(streams: Streams, tmp_path: Path) -> None:
    """In the middle of a roll-out ingresses of two releases write side by side: one state, whoever took the webhook."""
    sent = bodies("product.update")
    held_back, newest = Encoder({"product.update": 1}), Encoder()
    for number, record in enumerate(sent):
        streams.write(record, encoder=held_back if number % 2 else newest)
        if number % 3 == 0:  # the sender's retry, taken by the other one
            streams.write(record, encoder=newest if number % 2 else held_back)
    with running_loop(streams, tmp_path, PRODUCT_CHANGES) as running:
        running.catch_up(streams.ends("product.update"))
        wait_until(lambda: running.loop.applied == len(sent) + len(sent[::3]), "all records")
    distinct = {r.event_id for r in sent if FIRST_PLAUSIBLE_MS <= r.updated_at_ms <= RECEIVED_AT_MS}
    assert len(distinct) > len(sent) / 2
    changes = [view.changes for view in reader.busiest_products(running.state.url, 1_000)]
    assert sum(changes) == len(distinct)


def _decoder_of(release: int) -> Decoder:
    """Return the decoder of a release that shipped product.update up to a version."""
    versions: list[SchemaVersion] = []
    for event in EVENT_NAMES:
        versions += [s for s in shipped().versions(event) if event != "product.update" or s.version <= release]
    return Decoder(catalogue=SchemaCatalogue(tuple(versions)))


def _values(streams: Streams, event: EventName, count: int) -> Iterator[bytes]:
    config = consumer_config(streams.kafka, group_id=f"{streams.prefix}.skew", client_id="skew")
    consumer = Consumer(config, logger=CLIENT_LOGGER)
    try:
        consumer.assign([TopicPartition(streams.name(event), 0, 0)])
        read = 0
        while read < count:
            for message in consumer.consume(count - read, 1.0):
                assert message.error() is None
                read += 1
                yield message.value() or b""
    finally:
        consumer.close()


def _by_fastavro(body: bytes, writer: SchemaVersion, wanted: SchemaVersion) -> Any:
    written, read = (fastavro.parse_schema(json.loads(schema.text)) for schema in (writer, wanted))
    return fastavro.schemaless_reader(io.BytesIO(body), written, read)


def _by_apache(body: bytes, writer: SchemaVersion, wanted: SchemaVersion) -> Any:
    schemas = [avro.schema.parse(schema.text) for schema in (writer, wanted)]
    return avro.io.DatumReader(*schemas).read(avro.io.BinaryDecoder(io.BytesIO(body)))
