"""What the consume loop relies on in a Kafka, shown of the real one and of the one in memory by the same tests."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from kinguin_streams.cluster.connection import admin_config, consumer_config, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher, Publisher, PublishFailed
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.consumers.client import Identity, kafka_client
from kinguin_streams.consumers.source_identity import SourceIdentity
from kinguin_streams.consumers.testing.memory_kafka import MemoryKafka
from kinguin_streams.consumers.testing.murmur2 import murmur2
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import KafkaCluster
from tests.consumers.kafka_streams import Streams, wait_until

PARTITIONS = 2
PATIENCE_S = 30.0
MAX_POLL_INTERVAL_S = 6
"""After so long without consume() a real member is given up; the broker's least session is as long."""


class Cluster(Protocol):
    """A Kafka, and what a test does to it."""

    def client(self, **config: Any) -> Any: ...
    def publisher(self) -> Publisher: ...
    def identity(self, *names: str) -> Identity: ...
    def write(self, partition: int, *values: bytes) -> None: ...
    def delete_records(self, partition: int, before_offset: int) -> None: ...
    def delete_topic(self) -> None: ...
    def make_topic(self) -> None: ...
    def lose(self, client: Any) -> None: ...
    @property
    def topic(self) -> str: ...


class Real:
    def __init__(self, bootstrap_servers: str, prefix: str) -> None:
        self._prefix = prefix
        self._settings = KafkaSettings(bootstrap_servers=bootstrap_servers)
        self._streams = Streams(bootstrap_servers, prefix, PARTITIONS).make("order.status")
        self._publishers: list[KafkaPublisher] = []

    @property
    def topic(self) -> str:
        return self._streams.name("order.status")

    def client(self, **config: Any) -> Any:
        settings = self._settings.model_copy(
            update={"config": {k: v for k, v in config.items() if k != "auto.offset.reset"}}
        )
        made = consumer_config(settings, group_id=f"{self._prefix}-group", client_id="contract")
        return kafka_client({"session.timeout.ms": 10_000, **made, **config})

    def publisher(self) -> Publisher:
        self._publishers.append(KafkaPublisher(producer_config(self._settings, client_id="contract"), ack_wait_s=5.0))
        return self._publishers[-1]

    def identity(self, *names: str) -> Identity:
        return SourceIdentity(admin_config(self._settings), list(names), 15.0)

    def write(self, partition: int, *values: bytes) -> None:
        self._streams.write_bytes("order.status", values, partition)

    def delete_records(self, partition: int, before_offset: int) -> None:
        self._streams.delete_records("order.status", partition, before_offset)

    def delete_topic(self) -> None:
        self._streams.delete("order.status")

    def make_topic(self) -> None:
        self._streams.make("order.status")

    def lose(self, client: Any) -> None:  # noqa: ARG002 - it is given up for not being used
        time.sleep(MAX_POLL_INTERVAL_S + 1.5)

    def close(self) -> None:
        for publisher in self._publishers:
            publisher.close(timeout_s=0)


class InMemory:
    topic = "kinguin.order.status"

    def __init__(self) -> None:
        self._kafka = MemoryKafka({self.topic: PARTITIONS})

    def client(self, **config: Any) -> Any:
        made = consumer_config(
            KafkaSettings(bootstrap_servers="memory:9092", config={k: v for k, v in config.items() if k != "auto.offset.reset"}),
            group_id="group", client_id="contract",
        )  # fmt: skip
        return self._kafka.client({**made, **config})

    def publisher(self) -> Publisher:
        return self._kafka.publisher()

    def identity(self, *names: str) -> Identity:
        return self._kafka.identity(names)

    def write(self, partition: int, *values: bytes) -> None:
        for value in values:
            self._kafka.append(self.topic, value, key=b"poison", partition=partition)

    def delete_records(self, partition: int, before_offset: int) -> None:
        [part] = [part for part in self._kafka.partitions(self.topic) if part.partition == partition]
        self._kafka.delete_records(part, before_offset)

    def delete_topic(self) -> None:
        self._kafka.delete_topic(self.topic)

    def make_topic(self) -> None:
        self._kafka.make_topic(self.topic, PARTITIONS)

    def lose(self, client: Any) -> None:
        client.cut_off()
        client.reconnect()


@pytest.fixture(params=["memory", pytest.param("real", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if request.param == "memory":
        yield InMemory()
        return
    kafka: KafkaCluster = request.getfixturevalue("kafka")
    real = Real(kafka.bootstrap_servers, request.getfixturevalue("topic_prefix"))
    yield real
    real.close()


@dataclass
class Member:
    """A client, and what it was told and given. starts: where partitions are read from, by number."""

    client: Any
    starts: dict[int, int] = field(default_factory=dict)
    is_incremental: bool = False
    owned: set[int] = field(default_factory=set)
    told: list[tuple[str, list[int]]] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)

    def subscribe(self, topic: str) -> "Member":
        self.client.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        return self

    def _assigned(self, client: Any, partitions: list[TopicPartition]) -> None:
        self.told.append(("assigned", sorted(p.partition for p in partitions)))
        self.owned |= {p.partition for p in partitions}
        starts = [
            TopicPartition(p.topic, p.partition, self.starts.get(p.partition, OFFSET_BEGINNING)) for p in partitions
        ]
        if self.is_incremental:
            client.incremental_assign(starts)
        else:
            client.assign(starts)

    def _revoked(self, _client: Any, partitions: list[TopicPartition]) -> None:
        self.told.append(("revoked", sorted(p.partition for p in partitions)))
        self.owned -= {p.partition for p in partitions}

    def _lost(self, _client: Any, partitions: list[TopicPartition]) -> None:
        self.told.append(("lost", sorted(p.partition for p in partitions)))
        self.owned -= {p.partition for p in partitions}

    def turn(self, most: int = 100) -> None:
        for message in self.client.consume(most, 0.1):
            (self.records if message.error() is None else self.errors).append(message)

    def values(self, partition: int) -> list[bytes]:
        return [record.value() for record in self.records if record.partition() == partition]


def turn_until(condition: Callable[[], bool], *members: Member) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, [(member.told, member.records, member.errors) for member in members]
        for member in members:
            member.turn()


def quiet(member: Member) -> None:
    """Turn a member for long enough that a record would have come."""
    deadline_s = time.monotonic() + (0 if not isinstance(member.client, Consumer) else 1.0)
    member.turn()
    while time.monotonic() < deadline_s:
        member.turn()


@pytest.fixture
def join(cluster: Cluster) -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def join(starts: dict[int, int] | None = None, **config: Any) -> Member:
        is_incremental = "cooperative" in config.get("partition.assignment.strategy", "")
        members.append(Member(cluster.client(**config), starts or {}, is_incremental).subscribe(cluster.topic))
        return members[-1]

    yield join
    for member in members:
        try:
            member.client.close()
        except RuntimeError as error:
            assert "closed" in str(error).lower()  # noqa: PT017 - the test has closed it


# Records


def test_a_partitions_records_come_in_their_order_from_the_beginning(
    cluster: Cluster, join: Callable[..., Member]
) -> None:
    cluster.write(0, b"a", b"b", b"c")
    cluster.write(1, b"x")
    member = join()
    turn_until(lambda: len(member.records) == 4, member)
    assert (member.values(0), member.values(1)) == ([b"a", b"b", b"c"], [b"x"])
    assert [record.offset() for record in member.records if record.partition() == 0] == [0, 1, 2]
    assert member.told == [("assigned", [0, 1])]
    first = member.records[0]
    assert (first.topic(), first.key(), first.headers(), first.error()) == (cluster.topic, b"poison", None, None)
    cluster.write(0, b"d")
    turn_until(lambda: len(member.records) == 5, member)
    assert member.values(0)[-1] == b"d"


def test_reading_starts_where_the_callback_says(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a", b"b", b"c")
    cluster.write(1, b"x", b"y")
    member = join({0: 2, 1: 2})
    turn_until(lambda: member.values(0) == [b"c"], member)
    quiet(member)
    assert member.values(1) == []
    cluster.write(1, b"z")
    turn_until(lambda: member.values(1) == [b"z"], member)


def test_no_more_records_come_at_once_than_were_asked_for(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, *(b"%d" % n for n in range(10)))
    member = join()
    deadline_s = time.monotonic() + PATIENCE_S
    while len(member.records) < 10 and time.monotonic() < deadline_s:
        before = len(member.records)
        member.turn(most=3)
        assert len(member.records) - before <= 3
    assert member.values(0) == [b"%d" % n for n in range(10)]


def test_a_record_comes_as_it_was_published(cluster: Cluster, join: Callable[..., Member]) -> None:
    headers = (("ce_id", b"1"), ("ce_id", b"2"), ("empty", b""))
    cluster.publisher().publish(OutgoingRecord(cluster.topic, b"key", b"value", headers, 1_700_000_000_123))
    member = join()
    turn_until(lambda: len(member.records) == 1, member)
    [record] = member.records
    assert (record.key(), record.value(), record.headers()) == (b"key", b"value", list(headers))
    assert record.timestamp() == (1, 1_700_000_000_123)


def test_a_key_goes_to_the_partition_of_its_hash(cluster: Cluster, join: Callable[..., Member]) -> None:
    keys = [
        b"",
        b"a",
        b"ab",
        b"abc",
        b"abcd",
        "заказ-😀".encode(),
        bytes(range(200, 256)),
        *(b"O%d" % n for n in range(40)),
    ]
    publisher = cluster.publisher()
    for key in keys:
        publisher.publish(OutgoingRecord(cluster.topic, key, key, (), 1_700_000_000_000))
    member = join()
    turn_until(lambda: len(member.records) == len(keys), member)
    assert {record.key(): record.partition() for record in member.records} == {
        key: (murmur2(key) & 0x7FFFFFFF) % PARTITIONS for key in keys
    }


@pytest.mark.parametrize(
    ("key", "hashed"),
    [  # of Kafka's own UtilsTest.testMurmur2
        (b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829), (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)  # fmt: skip
def test_the_hash_is_the_one_of_the_java_client(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed & 0xFFFFFFFF


# Pausing


def test_a_paused_partition_is_silent_and_goes_on_where_it_was(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a")
    cluster.write(1, b"x")
    member = join()
    turn_until(lambda: len(member.records) == 2, member)
    member.client.pause([TopicPartition(cluster.topic, 0)])
    cluster.write(0, b"b")
    cluster.write(1, b"y")
    turn_until(lambda: member.values(1) == [b"x", b"y"], member)
    quiet(member)
    assert member.values(0) == [b"a"]
    member.client.resume([TopicPartition(cluster.topic, 0)])
    turn_until(lambda: member.values(0) == [b"a", b"b"], member)


def test_a_pause_outlasts_a_new_assignment(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a")
    cluster.write(1, b"x")
    member = join()
    turn_until(lambda: len(member.records) == 2, member)
    member.client.pause([TopicPartition(cluster.topic, 0)])
    member.client.assign([TopicPartition(cluster.topic, 0, 0), TopicPartition(cluster.topic, 1, 0)])
    turn_until(lambda: member.values(1) == [b"x", b"x"], member)
    quiet(member)
    assert member.values(0) == [b"a"]
    member.client.resume([TopicPartition(cluster.topic, 0)])
    turn_until(lambda: member.values(0) == [b"a", b"a"], member)


def test_who_goes_on_before_a_new_assignment_reads_nothing_but_that(
    cluster: Cluster, join: Callable[..., Member]
) -> None:
    """In this order: measured, one of 1,800 partitions was never read again if it went on after it was assigned."""
    cluster.write(0, b"a", b"b")
    member = join()
    turn_until(lambda: len(member.records) == 2, member)
    part = TopicPartition(cluster.topic, 0, 1)
    member.client.pause([part])
    cluster.write(0, b"c")
    quiet(member)
    member.client.resume([part])
    member.client.assign([part])
    turn_until(lambda: member.values(0) == [b"a", b"b", b"b", b"c"], member)


def test_assigned_again_a_partition_is_read_again(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a", b"b")
    member = join(**{"partition.assignment.strategy": "cooperative-sticky"})
    turn_until(lambda: len(member.records) == 2, member)
    again = [TopicPartition(cluster.topic, 0, 1)]
    member.client.incremental_unassign(again)
    member.client.incremental_assign(again)
    turn_until(lambda: member.values(0) == [b"a", b"b", b"b"], member)


# Groups

STRATEGIES = pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])


@STRATEGIES
def test_a_second_member_gets_a_share_and_leaves_it(
    cluster: Cluster, join: Callable[..., Member], strategy: str
) -> None:
    config = {"partition.assignment.strategy": strategy}
    first = join(**config)
    turn_until(lambda: first.owned == {0, 1}, first)
    second = join(**config)
    turn_until(lambda: len(first.owned) == len(second.owned) == 1, first, second)
    assert first.owned != second.owned
    given_up = [0, 1] if strategy == "range" else sorted(second.owned)
    assert first.told[1] == ("revoked", given_up)
    for partition in (0, 1):
        cluster.write(partition, b"%d" % partition)
    turn_until(lambda: len(first.records) == len(second.records) == 1, first, second)
    assert {record.partition() for record in first.records} == first.owned
    second.client.close()
    assert second.owned == set()
    assert second.told[-1][0] == "revoked"
    turn_until(lambda: first.owned == {0, 1}, first)


def test_a_third_member_of_two_partitions_is_told_so(cluster: Cluster, join: Callable[..., Member]) -> None:
    members = [join() for _ in range(3)]
    turn_until(lambda: sorted(len(member.owned) for member in members) == [0, 1, 1], *members)


def test_what_was_committed_is_found_by_the_group(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a", b"b")
    member = join()
    turn_until(lambda: len(member.records) == 2, member)
    both = [TopicPartition(cluster.topic, partition) for partition in (0, 1)]
    assert [found.offset for found in member.client.committed(both, timeout=15.0)] == [OFFSET_INVALID] * 2
    member.client.commit(offsets=[TopicPartition(cluster.topic, 0, 1)], asynchronous=False)
    assert [found.offset for found in member.client.committed(both, timeout=15.0)] == [1, OFFSET_INVALID]
    assert member.client.commit(offsets=[TopicPartition(cluster.topic, 0, 2)], asynchronous=True) is None
    member.client.close()
    another = join()
    assert [found.offset for found in another.client.committed(both, timeout=15.0)] == [2, OFFSET_INVALID]


def test_a_commit_that_nobody_waits_for_is_reported_by_a_later_consume(
    cluster: Cluster, join: Callable[..., Member]
) -> None:
    """With the offset that was taken: two commits may be taken in the other order, and nothing else says so."""
    reports: list[tuple[Any, list[tuple[int, int, Any]]]] = []

    def on_commit(error: Any, partitions: list[TopicPartition]) -> None:
        reports.append((error, [(part.partition, part.offset, part.error) for part in partitions]))

    cluster.write(0, b"a", b"b")
    member = join(on_commit=on_commit)
    turn_until(lambda: len(member.records) == 2, member)
    member.client.commit(offsets=[TopicPartition(cluster.topic, 0, 1)], asynchronous=True)
    assert reports == []
    turn_until(lambda: len(reports) == 1, member)
    member.client.commit(offsets=[TopicPartition(cluster.topic, 0, 2)], asynchronous=True)
    turn_until(lambda: len(reports) == 2, member)
    assert reports == [(None, [(0, 1, None)]), (None, [(0, 2, None)])]


def test_what_was_committed_carries_what_was_said_with_it(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a", b"b")
    member = join()
    turn_until(lambda: len(member.records) == 2, member)
    both = [TopicPartition(cluster.topic, partition) for partition in (0, 1)]
    said = TopicPartition(cluster.topic, 0, 1, metadata="an id")
    member.client.commit(offsets=[said], asynchronous=False)
    found, none = member.client.committed(both, timeout=15.0)
    assert (found.offset, found.metadata) == (1, "an id")
    assert (none.offset, bool(none.metadata)) == (OFFSET_INVALID, False)
    member.client.commit(offsets=[TopicPartition(cluster.topic, 0, 2)], asynchronous=False)
    [moved, _] = member.client.committed(both, timeout=15.0)
    assert (moved.offset, bool(moved.metadata)) == (
        2,
        False,
    )  # as whoever moves a group with Kafka's own tools leaves it


@STRATEGIES
def test_a_member_that_was_given_up_is_told_and_comes_again(
    cluster: Cluster, join: Callable[..., Member], strategy: str
) -> None:
    cluster.write(0, b"a")
    interval_ms = MAX_POLL_INTERVAL_S * 1_000
    config = {
        "partition.assignment.strategy": strategy,
        "max.poll.interval.ms": interval_ms,
        "session.timeout.ms": interval_ms,
    }
    member = join(**config)
    turn_until(lambda: member.values(0) == [b"a"], member)
    cluster.lose(member.client)
    with pytest.raises(KafkaException):
        member.client.commit(offsets=[TopicPartition(cluster.topic, 0, 1)], asynchronous=False)
    turn_until(lambda: len(member.told) == 3 and member.values(0) == [b"a", b"a"], member)
    assert member.told == [("assigned", [0, 1]), ("lost", [0, 1]), ("assigned", [0, 1])]


def test_a_closed_client_does_nothing(cluster: Cluster, join: Callable[..., Member]) -> None:
    member = join()
    turn_until(lambda: member.owned == {0, 1}, member)
    member.client.close()
    with pytest.raises(RuntimeError):
        member.client.consume(1, 0.1)


# What is not there


def test_an_offset_that_retention_has_taken_is_an_error_of_its_partition(
    cluster: Cluster, join: Callable[..., Member]
) -> None:
    cluster.write(0, b"a", b"b", b"c")
    cluster.delete_records(0, 2)
    member = join({0: 1})
    turn_until(lambda: member.errors != [], member)
    error = member.errors[0]
    assert (error.topic(), error.partition()) == (cluster.topic, 0)
    assert error.error().code() == KafkaError._AUTO_OFFSET_RESET
    assert not error.error().fatal()
    assert member.records == []


def test_an_offset_beyond_the_end_is_an_error_too(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a")
    member = join({0: 7})
    turn_until(lambda: member.errors != [], member)
    assert member.errors[0].error().code() == KafkaError._AUTO_OFFSET_RESET


def test_the_beginning_is_the_first_record_that_is_left(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a", b"b", b"c")
    cluster.delete_records(0, 2)
    member = join()
    turn_until(lambda: member.values(0) == [b"c"], member)
    assert [record.offset() for record in member.records] == [2]


def test_who_asks_for_the_earliest_gets_it(cluster: Cluster, join: Callable[..., Member]) -> None:
    cluster.write(0, b"a", b"b", b"c")
    cluster.delete_records(0, 2)
    member = join({0: 1}, **{"auto.offset.reset": "earliest"})
    turn_until(lambda: member.values(0) == [b"c"], member)
    assert member.errors == []


def test_a_topic_made_anew_has_another_id(cluster: Cluster) -> None:
    identity = cluster.identity(cluster.topic)
    cluster_id, before = identity.ask()
    identity.ask_again()
    wait_until(identity.is_as_before, "an answer")
    cluster.delete_topic()
    with pytest.raises(OperatorError) as missing:
        identity.ask_again()
    assert missing.value.code == "topic_missing"
    cluster.make_topic()
    with pytest.raises(OperatorError) as replaced:
        identity.ask_again()
    assert replaced.value.code == "topic_replaced"
    now_cluster_id, now = identity.ask()
    assert now_cluster_id == cluster_id
    assert now[cluster.topic] != before[cluster.topic]


def test_a_topic_that_is_not_there_takes_no_record(cluster: Cluster) -> None:
    record = OutgoingRecord(f"{cluster.topic}.of-nobody", b"k", b"v", (), 0)
    with pytest.raises(PublishFailed):
        cluster.publisher().publish(record)
