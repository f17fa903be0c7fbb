"""Which schemas are in the topics, counted on a real Kafka by the headers of records."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from kinguin_streams.cluster.connection import CLIENT_LOGGER, admin_config, consumer_config, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.cluster.schema_usage import Survey, survey
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import topics
from kinguin_streams.schemas.versions import shipped
from kinguin_streams.telemetry.operator_error import OperatorError

AT_MS = 1_772_366_400_000
OLD, NEW = (b"\xc3\x01" + shipped().get("product.update", version).fingerprint for version in (1, 3))

pytestmark = pytest.mark.kafka


class Stretch:
    """Two topics of two partitions each, and what is written to them."""

    def __init__(self, settings: KafkaSettings, prefix: str) -> None:
        self.settings = settings
        declared = topics(prefix, partitions=2)
        self.products, self.orders = declared.name("product.update"), declared.name("order.status")
        admin = TopicAdmin(admin_config(settings))
        admin.apply(plan(declared, admin.describe(declared)))
        self.reader = TopicReader(consumer_config(settings, group_id=prefix, client_id="test"))

    def write(self, *records: tuple[str, bytes, bytes, int]) -> None:
        """records: topic, key (it decides on the partition), value, minutes after the start."""
        with KafkaPublisher(producer_config(self.settings, client_id="test"), ack_wait_s=20) as publisher:
            for topic, key, value, minutes in records:
                publisher.publish(OutgoingRecord(topic, key, value, (), AT_MS + minutes * 60_000))

    def survey(self, since_minutes: int | None = None) -> Survey:
        since_ms = None if since_minutes is None else AT_MS + since_minutes * 60_000
        return survey(self.reader, [self.products, self.orders], since_ms, lambda _done, _total: None)


@pytest.fixture
def stretch(kafka: Any, topic_prefix: str) -> Iterator[Stretch]:
    found = Stretch(KafkaSettings(bootstrap_servers=kafka.bootstrap_servers), topic_prefix)
    yield found
    found.reader.close()


def test_records_are_counted_by_header_over_all_partitions_with_the_first_and_the_last(stretch: Stretch) -> None:
    # Keys a and b are on different partitions; record times are not in the order of offsets.
    stretch.write(
        (stretch.products, b"a", OLD + b"body", 5),
        (stretch.products, b"b", OLD + b"body", 2),
        (stretch.products, b"b", OLD + b"other", 9),
        (stretch.products, b"a", NEW + b"body", 20),
        (stretch.products, b"a", b"\x00\x00\x00\x00\x07body", 21),
        (stretch.orders, b"a", b"{}", 1),
    )
    found = {(each.topic, each.header): each for each in stretch.survey().seen}

    old = found[stretch.products, OLD]
    assert (old.records, old.first_at_ms, old.last_at_ms) == (3, AT_MS + 120_000, AT_MS + 540_000)
    [first] = [
        message
        for message in stretch.reader.read({}, stretch.reader.end_offsets([stretch.products]))
        if message.timestamp()[1] == AT_MS + 120_000
    ]
    assert (old.partition, old.offset) == (first.partition(), first.offset())
    assert {key: each.records for key, each in found.items()} == {
        (stretch.products, OLD): 3,
        (stretch.products, NEW): 1,
        (stretch.products, b"\x00\x00\x00\x00\x07"): 1,
        (stretch.orders, b""): 1,
    }


def test_a_window_begins_at_the_first_record_of_its_time_and_ends_with_what_is_there(stretch: Stretch) -> None:
    stretch.write(*((stretch.products, b"a", OLD, minutes) for minutes in range(10)), (stretch.orders, b"a", NEW, 30))
    assert _counts(stretch.survey(since_minutes=7)) == {OLD: 3, NEW: 1}
    assert _counts(stretch.survey(since_minutes=30)) == {NEW: 1}
    assert _counts(stretch.survey(since_minutes=31)) == {}


def test_what_retention_has_taken_is_neither_counted_nor_waited_for(stretch: Stretch) -> None:
    stretch.write(*((stretch.products, b"a", OLD, minutes) for minutes in range(4)))
    [where] = [key for key, (low, high) in stretch.reader.bounds([stretch.products]).items() if high > low]
    client = AdminClient(admin_config(stretch.settings), logger=CLIENT_LOGGER)
    for future in client.delete_records([TopicPartition(*where, 3)]).values():
        future.result(15)
    assert _counts(stretch.survey()) == {OLD: 1}
    assert _counts(stretch.survey(since_minutes=0)) == {OLD: 1}


def test_a_topic_that_is_not_there_is_named_and_holds_nothing(stretch: Stretch) -> None:
    told: list[tuple[int, int]] = []
    found = survey(stretch.reader, ["missing", stretch.orders], 0, lambda *progress: told.append(progress))
    assert found == Survey(seen=(), missing=("missing",))
    assert told[-1] == (0, 0)


def test_a_cluster_that_is_away_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinguin_streams.cluster.topic_reader.REQUEST_TIMEOUT_S", 0.3)
    reader = TopicReader(
        consumer_config(KafkaSettings(bootstrap_servers="127.0.0.1:1"), group_id="test", client_id="test")
    )
    with pytest.raises(OperatorError) as away:
        reader.offsets_at(0, {("any", 0): 5})
    assert away.value.code == "kafka_unreachable"
    reader.close()


def _counts(found: Survey) -> dict[bytes, int]:
    counts: Counter[bytes] = Counter()
    for each in found.seen:
        counts[each.header] += each.records
    return dict(counts)
