"""The publisher's promise, held by the real one on a real broker and by the fake that other tests may use."""

import base64
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kinguin_streams.cluster.connection import CLIENT_LOGGER, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher, Publisher, PublishFailed, TopicMissing
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import EventId, OrderStatus, StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import topics
from tests.conftest import KafkaCluster, OwnKafka, StartBroker
from tests.pausing import paused
from tests.readers import toolchains

AT_MS = 1_615_204_800_123
ORDER = OrderStatus(
    event_id=EventId("50d406bffa5122019e45b0f4352a2c31"),
    store=StoreName("default"),
    received_at_ms=AT_MS,
    order_id="PHS84FJAG5U",
    status="canceled",
    updated_at_ms=1_602_847_448_000,
    raw=b"{}",
)
MAX_RECORD_BYTES = 50_000


class ReadBack(Protocol):
    """Everything that is in a topic, per partition in order."""

    def __call__(self, topic: str) -> list[OutgoingRecord]: ...


class RecordingPublisher:
    """The fake: keeps what it is given, for topics that it was told of."""

    def __init__(self, topic: str) -> None:
        self.records: list[OutgoingRecord] = []
        self._topic = topic
        self._lock = threading.Lock()

    def publish(self, record: OutgoingRecord) -> None:
        if record.topic != self._topic:
            raise PublishFailed("no_report", f"{record.topic} does not exist", landed="maybe")
        if len(record.value) > MAX_RECORD_BYTES:
            raise PublishFailed("refused", "too large", landed="no")
        with self._lock:
            self.records.append(record)


class PublisherContract:
    """What every Publisher does. Subclasses have the fixtures publisher, topic and read_back."""

    def test_a_published_record_reads_back_as_it_was(
        self, publisher: Publisher, topic: str, read_back: ReadBack
    ) -> None:
        record = outgoing(ORDER, topics(topic.partition(".")[0]), Encoder(), TRACEPARENT)
        publisher.publish(record)
        assert read_back(topic) == [record]
        assert Decoder().decode(read_back(topic)[0].value) == ORDER

    def test_records_of_a_key_keep_their_order(self, publisher: Publisher, topic: str, read_back: ReadBack) -> None:
        sent = [OutgoingRecord(topic, b"A", str(number).encode(), (), AT_MS + number) for number in range(100)]
        for record in sent:
            publisher.publish(record)
        assert read_back(topic) == sent

    def test_any_thread_may_publish(self, publisher: Publisher, topic: str, read_back: ReadBack) -> None:
        sent = [OutgoingRecord(topic, str(number).encode(), b"v", (), AT_MS) for number in range(200)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(publisher.publish, sent))
        assert sorted(read_back(topic), key=lambda record: record.key) == sorted(sent, key=lambda record: record.key)

    def test_a_record_without_headers_or_value_bytes_is_a_record(
        self, publisher: Publisher, topic: str, read_back: ReadBack
    ) -> None:
        record = OutgoingRecord(topic, "\U0001f4e6".encode(), b"", (), AT_MS)
        publisher.publish(record)
        assert read_back(topic) == [record]

    def test_a_missing_topic_is_a_failure_not_a_wait(self, publisher: Publisher, topic: str) -> None:
        with pytest.raises(PublishFailed) as failed:
            publisher.publish(OutgoingRecord(f"{topic}.missing", b"A", b"v", (), AT_MS))
        assert failed.value.code in ("no_report", "not_delivered")

    def test_a_record_that_is_too_large_is_refused_for_good_and_is_not_there(
        self, publisher: Publisher, topic: str, read_back: ReadBack
    ) -> None:
        with pytest.raises(PublishFailed) as failed:
            publisher.publish(OutgoingRecord(topic, b"A", b"x" * (MAX_RECORD_BYTES + 1000), (), AT_MS))
        assert (failed.value.code, failed.value.landed) == ("refused", "no")
        publisher.publish(OutgoingRecord(topic, b"A", b"small", (), AT_MS))
        assert [record.value for record in read_back(topic)] == [b"small"]


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ACK_WAIT_S = 5.0


class TestRecordingPublisher(PublisherContract):
    @pytest.fixture
    def topic(self) -> str:
        return "fake.order.status"

    @pytest.fixture
    def publisher(self, topic: str) -> RecordingPublisher:
        return RecordingPublisher(topic)

    @pytest.fixture
    def read_back(self, publisher: RecordingPublisher) -> ReadBack:
        return lambda topic: [record for record in publisher.records if record.topic == topic]


@pytest.mark.kafka
class TestKafkaPublisher(PublisherContract):
    @pytest.fixture
    def topic(self, kafka: KafkaCluster, topic_prefix: str) -> str:
        return create_topic(kafka.bootstrap_servers, f"{topic_prefix}.order.status")

    @pytest.fixture
    def publisher(self, kafka: KafkaCluster) -> Iterator[KafkaPublisher]:
        with open_publisher(kafka.bootstrap_servers, ack_wait_s=ACK_WAIT_S) as publisher:
            yield publisher

    @pytest.fixture
    def read_back(self, kafka: KafkaCluster) -> ReadBack:
        return lambda topic: [_outgoing(message) for message in read_topic(kafka.bootstrap_servers, topic)]


# What only the real one can do


@pytest.mark.kafka
def test_what_the_client_itself_finds_too_large_is_refused_too(kafka: KafkaCluster, topic_prefix: str) -> None:
    topic = create_topic(kafka.bootstrap_servers, topic_prefix)
    with open_publisher(kafka.bootstrap_servers) as publisher, pytest.raises(PublishFailed) as failed:
        publisher.publish(OutgoingRecord(topic, b"A", b"x" * 1_000_001, (), AT_MS))  # message.max.bytes
    assert (failed.value.code, failed.value.landed) == ("refused", "no")


@pytest.mark.kafka
def test_row_18_a_key_lands_where_a_java_producer_puts_it(kafka: KafkaCluster, topic_prefix: str) -> None:
    """Java's own client sends the same keys; murmur2 below says so too, and would say which of the two has changed."""
    topic = create_topic(kafka.bootstrap_servers, topic_prefix, partitions=7)
    keys = [str(number).encode() for number in range(1949, 2449)]
    keys += [uuid.UUID(int=number).hex[-11:].upper().encode() for number in range(2**40, 2**40 + 490)]
    keys += [
        "\U0001f4e6-7".encode(),
        "é".encode(),
        b"A",
        b"\xff\xfe",
        b"x" * 1024,
        b"21",
        b"foobar",
        b"abc",
        b"0",
        b"\0",
    ]
    assert len(set(keys)) == 1000
    with open_publisher(kafka.bootstrap_servers) as publisher, ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda key: publisher.publish(OutgoingRecord(topic, key, b"", (), AT_MS)), keys))
    landed = {message.key(): message.partition() for message in read_topic(kafka.bootstrap_servers, topic)}
    assert landed == {key: (murmur2(key) & 0x7FFFFFFF) % 7 for key in keys}
    assert landed == dict(zip(keys, _java_partitions(kafka.bootstrap_servers, topic, keys), strict=True))


def _java_partitions(bootstrap_servers: str, topic: str, keys: list[bytes]) -> list[int]:
    """Return where Java's producer, with its default partitioner, has put a record of each key."""
    command = [*toolchains.java(Path(__file__).with_name("JavaProducer.java")), bootstrap_servers, topic]
    lines = "".join(f"{base64.b64encode(key).decode()}\n" for key in keys)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("key", "expected"), [(b"21", -973932308), (b"foobar", -790332482), (b"abc", 479470107)])
def test_our_murmur2_is_the_one_of_kafkas_own_tests(key: bytes, expected: int) -> None:
    """Values of org.apache.kafka.common.utils.UtilsTest.testMurmur2."""
    assert murmur2(key) == expected


@pytest.mark.kafka
def test_a_topics_partitions_are_asked_over_the_producers_own_connection(
    kafka: KafkaCluster, topic_prefix: str
) -> None:
    topic = create_topic(kafka.bootstrap_servers, topic_prefix, partitions=3)
    with open_publisher(kafka.bootstrap_servers) as publisher:
        assert publisher.partitions(topic, timeout_s=10) == 3
        with pytest.raises(TopicMissing, match="missing") as failed:
            publisher.partitions(f"{topic}.missing", timeout_s=10)
        assert failed.value.landed == "no"
    with open_publisher("127.0.0.1:1") as publisher, pytest.raises(PublishFailed) as unreachable:
        publisher.partitions(topic, timeout_s=0.3)
    assert unreachable.value.code == "not_delivered"


class Electing:
    """A client that is told of a topic that it has no leader now, as in a broker's restart."""

    def list_topics(self, topic: str, **_: float) -> Any:
        error = KafkaError(KafkaError.LEADER_NOT_AVAILABLE)
        return SimpleNamespace(cluster_id="c", topics={topic: SimpleNamespace(error=error, partitions={})})


def test_a_topic_without_a_leader_is_not_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_publisher("127.0.0.1:1") as publisher:
        with monkeypatch.context() as patched:
            publisher.close(0)  # its thread, which uses the client, ends
            patched.setattr(publisher, "_producer", Electing())
            with pytest.raises(PublishFailed, match="LEADER_NOT_AVAILABLE") as failed:
                publisher.partitions("t", timeout_s=1)
        assert not isinstance(failed.value, TopicMissing)


def test_a_cluster_that_is_not_there_is_a_failure_within_the_ack_wait() -> None:
    with open_publisher("127.0.0.1:1", ack_wait_s=0.2, delivery_timeout_s=0.4) as publisher:
        with pytest.raises(PublishFailed) as failed:
            publisher.publish(OutgoingRecord("t", b"A", b"v", (), AT_MS))
        assert (failed.value.code, failed.value.landed) == ("no_report", "maybe")


def test_a_record_that_the_client_gives_up_is_reported_as_maybe() -> None:
    """A delivery report is an answer too: it comes before the ack wait is over."""
    with open_publisher("127.0.0.1:1", ack_wait_s=30, delivery_timeout_s=0.3) as publisher:
        with pytest.raises(PublishFailed) as failed:
            publisher.publish(OutgoingRecord("t", b"A", b"v", (), AT_MS))
        assert (failed.value.code, failed.value.landed) == ("not_delivered", "maybe")
        assert "_MSG_TIMED_OUT" in str(failed.value)


def test_a_full_queue_is_said_at_once_and_the_record_is_not_in_it() -> None:
    with open_publisher("127.0.0.1:1", ack_wait_s=0.1, delivery_timeout_s=1, queue_records=3) as publisher:
        codes = [_failure(publisher, OutgoingRecord("t", b"A", b"v", (), AT_MS)) for _ in range(5)]
    assert codes == [("no_report", "maybe")] * 3 + [("queue_full", "no")] * 2


def test_threads_that_send_alone_at_once_share_one_more_producer_which_closes_with_the_first() -> None:
    before, at_once = threading.active_count(), threading.Barrier(8)
    publisher = open_publisher("127.0.0.1:1", delivery_timeout_s=0.5)

    def send(number: int) -> str | None:
        at_once.wait(10)
        failure = publisher.send_alone(OutgoingRecord("t", b"%d" % number, b"v", (), AT_MS)).result(20)
        return None if failure is None else failure.code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == ["not_delivered"] * 8
    polling = [thread for thread in threading.enumerate() if thread.name == "kafka-delivery-reports"]
    assert len(polling) == 2
    assert publisher.close(timeout_s=5) == 0
    assert threading.active_count() == before


def test_a_closed_publisher_takes_nothing() -> None:
    publisher = open_publisher("127.0.0.1:1")
    assert publisher.close(timeout_s=1) == 0
    assert _failure(publisher, OutgoingRecord("t", b"A", b"v", (), AT_MS)) == ("closed", "no")


def test_close_says_how_many_records_have_no_report() -> None:
    publisher = open_publisher("127.0.0.1:1", ack_wait_s=0.05, delivery_timeout_s=60)
    for _ in range(2):
        assert _failure(publisher, OutgoingRecord("t", b"A", b"v", (), AT_MS)) == ("no_report", "maybe")
    assert publisher.close(timeout_s=0.2) >= 2


@pytest.mark.kafka
def test_a_publisher_closes_only_after_the_reports_of_what_it_took(kafka: KafkaCluster, topic_prefix: str) -> None:
    topic = create_topic(kafka.bootstrap_servers, topic_prefix)
    publisher = open_publisher(kafka.bootstrap_servers, linger_ms=300)  # so that they wait in the queue
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(publisher.publish, OutgoingRecord(topic, b"A", b"v", (), AT_MS)) for _ in range(20)]
        while publisher.queue_records < 20 and not any(answer.done() for answer in answers):
            time.sleep(0.005)
        assert publisher.close(timeout_s=20) == 0
        assert [answer.exception() for answer in answers] == [None] * 20
    assert len(read_topic(kafka.bootstrap_servers, topic)) == 20


@pytest.mark.kafka
def test_a_fatal_state_is_known_and_nothing_is_taken_any_more(kafka: KafkaCluster, topic_prefix: str) -> None:
    """Fencing is the fatal state that a test can make: a second producer takes the first one's transactional id."""
    topic = create_topic(kafka.bootstrap_servers, topic_prefix)
    config = {
        **producer_config(KafkaSettings(bootstrap_servers=kafka.bootstrap_servers), client_id="test"),
        "transactional.id": topic_prefix,
    }
    with KafkaPublisher(config, ack_wait_s=20) as publisher:
        record = OutgoingRecord(topic, b"A", b"v", (), AT_MS)
        publisher._producer.init_transactions(20)
        publisher._producer.begin_transaction()
        publisher.publish(record)
        usurper = Producer(config, logger=CLIENT_LOGGER)
        usurper.init_transactions(20)

        assert _failure(publisher, record)[0] == "fatal"
        assert publisher.fatal is not None
        assert _failure(publisher, record) == ("fatal", "no")


@pytest.mark.kafka
def test_a_broker_that_pauses_longer_than_the_ack_wait_may_have_the_record_and_then_does(
    kafka_factory: StartBroker, tmp_path: Path
) -> None:
    broker = kafka_factory(tmp_path / "broker")
    topic = create_topic(broker.bootstrap_servers, "paused", partitions=1)
    with open_publisher(broker.bootstrap_servers, ack_wait_s=1.0, queue_records=5) as publisher:
        publisher.publish(OutgoingRecord(topic, b"A", b"before", (), AT_MS))
        with paused(broker.pid):
            records = [OutgoingRecord(topic, b"A", f"during {number}".encode(), (), AT_MS) for number in range(7)]
            with ThreadPoolExecutor(7) as pool:
                failures = list(pool.map(lambda record: (record.value, *_failure(publisher, record)), records))
        assert publisher.close(timeout_s=20) == 0

    maybe = {value for value, code, landed in failures if (code, landed) == ("no_report", "maybe")}
    not_taken = {value for value, code, landed in failures if (code, landed) == ("queue_full", "no")}
    assert (len(maybe), len(not_taken)) == (5, 2)
    assert {message.value() for message in read_topic(broker.bootstrap_servers, topic)} == {b"before", *maybe}


@pytest.mark.kafka
def test_a_record_that_only_a_later_ones_success_confirms_is_not_confirmed(
    own_kafka: OwnKafka, topic_prefix: str
) -> None:
    """Seen with a topic that was made anew: the client reported a record as delivered that no broker had ever taken.

    It concludes from the success of a later batch that the one before is there too. Kafka takes any first batch of a producer
    that a partition has not seen, so the conclusion is wrong where the partition began to be led between the two.
    """
    topic = create_topic(own_kafka.bootstrap_servers, topic_prefix, partitions=1)
    with (
        own_kafka.line.first_refused(topic) as refusing,
        open_publisher(own_kafka.slow_bootstrap_servers, batch_records=1) as publisher,
    ):
        first = publisher.send(OutgoingRecord(topic, b"A", b"first", (), AT_MS))
        assert refusing.held.wait(20)
        second = publisher.send(OutgoingRecord(topic, b"A", b"second", (), AT_MS))
        failure = first.result(20)
        assert second.result(20) is None
    assert refusing.in_flight_together
    assert [message.value() for message in read_topic(own_kafka.bootstrap_servers, topic)] == [b"second"]
    assert failure is not None
    assert (failure.code, failure.landed) == ("no_report", "maybe")


@pytest.mark.kafka
def test_a_publisher_made_before_fork_refuses_in_the_child(kafka: KafkaCluster, topic_prefix: str) -> None:
    """In a process of its own: forking this one would copy the threads' locks of every other test."""
    topic = create_topic(kafka.bootstrap_servers, topic_prefix)
    program = textwrap.dedent(
        f"""
        import os, sys
        from kinguin_streams.cluster.connection import producer_config
        from kinguin_streams.cluster.publisher import KafkaPublisher, PublishFailed, TopicMissing
        from kinguin_streams.cluster.settings import KafkaSettings
        from kinguin_streams.schemas.outgoing import OutgoingRecord

        settings = KafkaSettings(bootstrap_servers={kafka.bootstrap_servers!r})
        publisher = KafkaPublisher(producer_config(settings, client_id="fork"), ack_wait_s=20)
        record = OutgoingRecord({topic!r}, b"A", b"v", (), 1)
        publisher.publish(record)
        child = os.fork()
        if child == 0:
            try:
                publisher.publish(record)
            except PublishFailed as failed:
                os._exit(42 if (failed.code, failed.landed) == ("forked", "no") else 43)
            os._exit(44)
        _, status = os.waitpid(child, 0)
        publisher.publish(record)
        publisher.close(10)
        sys.exit(os.waitstatus_to_exitcode(status))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 42, done.stderr
    assert len(read_topic(kafka.bootstrap_servers, topic)) == 2


def murmur2(data: bytes) -> int:
    """org.apache.kafka.common.utils.Utils.murmur2, as the Java producer's partitioner uses it."""
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    number = (0x9747B28C ^ len(data)) & mask
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        number = (number * multiplier & mask) ^ word
    if rest := data[whole:]:
        number = (number ^ int.from_bytes(rest, "little")) * multiplier & mask
    number = (number ^ number >> 13) * multiplier & mask
    number ^= number >> 15
    return number - 2**32 if number >= 2**31 else number


def open_publisher(
    bootstrap_servers: str,
    *,
    ack_wait_s: float = 20.0,
    delivery_timeout_s: float = 30.0,
    queue_records: int = 10_000,
    linger_ms: int = 0,
    batch_records: int = 10_000,
) -> KafkaPublisher:
    wanted = {"linger.ms": linger_ms, "batch.num.messages": batch_records}
    settings = KafkaSettings(bootstrap_servers=bootstrap_servers, config=wanted)
    config = producer_config(
        settings, client_id="test", delivery_timeout_s=delivery_timeout_s, queue_records=queue_records
    )
    return KafkaPublisher(config, ack_wait_s=ack_wait_s)


def create_topic(bootstrap_servers: str, name: str, partitions: int = 3) -> str:
    client = AdminClient({"bootstrap.servers": bootstrap_servers}, logger=CLIENT_LOGGER)
    config = {"max.message.bytes": str(MAX_RECORD_BYTES)}
    topic = NewTopic(name, partitions, replication_factor=1, config=config)
    client.create_topics([topic], operation_timeout=20)[name].result(20)
    return name


def read_topic(bootstrap_servers: str, topic: str) -> list[Message]:
    """Return all records, per partition in order."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": "never-joined", "enable.auto.commit": False},
        logger=CLIENT_LOGGER,
    )
    try:
        partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        ends = {part: consumer.get_watermark_offsets(TopicPartition(topic, part), timeout=20)[1] for part in partitions}
        consumer.assign([TopicPartition(topic, part, 0) for part in partitions])
        found: list[Message] = []
        while len(found) < sum(ends.values()):
            message = consumer.poll(20)
            assert message is not None, f"{len(found)} of {sum(ends.values())} records within 20 s"
            if (error := message.error()) is not None:
                raise KafkaException(error)
            found.append(message)
        return sorted(found, key=lambda message: (message.partition() or 0, message.offset() or 0))
    finally:
        consumer.close()


def _outgoing(message: Any) -> OutgoingRecord:
    return OutgoingRecord(
        message.topic(), message.key(), message.value(), tuple(message.headers() or ()), message.timestamp()[1]
    )


def _failure(publisher: Publisher, record: OutgoingRecord) -> tuple[str, str]:
    with pytest.raises(PublishFailed) as failed:
        publisher.publish(record)
    return failed.value.code, failed.value.landed
