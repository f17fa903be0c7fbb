"""`replay group` and `replay undo` on a real Kafka: a group's offsets are moved, shown, refused and moved back."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, TopicPartition

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from tests.commands import run
from tests.conftest import KafkaCluster
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, wait_until
from tests.replay.many_orders import RECORDS as MILLION
from tests.replay.many_orders import ManyOrders
from tests.replay.replay_topics import ORIGIN_MS, Bench

pytestmark = pytest.mark.kafka

RECORDS = 40


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=1).make("order.status", "dead-letter")
    streams.write(*(order_status("processing", number, order_id=f"O{number}") for number in range(RECORDS)))
    return streams


@pytest.fixture
def command_over(tmp_path: Path) -> Callable[[Streams], Callable[..., Any]]:
    def over(streams: Streams) -> Callable[..., Any]:
        settings = {
            "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": str(streams.kafka.bootstrap_servers),
            "KINGUIN_TOPICS__PREFIX": streams.prefix,
            "KINGUIN_CONSUMER__GROUP_PREFIX": streams.prefix,
            "KINGUIN_REPLAY__RECEIPTS": str(tmp_path / "receipts"),
        }
        return lambda *arguments: run(settings, "replay", *arguments)

    return over


@pytest.fixture
def command(streams: Streams, command_over: Callable[[Streams], Callable[..., Any]]) -> Callable[..., Any]:
    return command_over(streams)


def member(streams: Streams, group: str) -> Any:
    return closing(
        Consumer(
            {
                "bootstrap.servers": streams.kafka.bootstrap_servers,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            },
            logger=CLIENT_LOGGER,
        )
    )


def commit(streams: Streams, group: str, offset: int, partition: int = 0) -> None:
    with member(streams, group) as consumer:
        consumer.commit(offsets=[TopicPartition(streams.name("order.status"), partition, offset)], asynchronous=False)


def committed(streams: Streams, group: str, partition: int = 0) -> int:
    with member(streams, group) as consumer:
        return int(consumer.committed([TopicPartition(streams.name("order.status"), partition)], timeout=30)[0].offset)


def first_offset_read(streams: Streams, group: str) -> int:
    with member(streams, group) as consumer:
        consumer.subscribe([streams.name("order.status")])
        found: list[int] = []

        def has_read() -> bool:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                found.append(message.offset())
            return bool(found)

        wait_until(has_read, "a record")
        return found[0]


def test_a_group_is_moved_and_moved_back(streams: Streams, command: Callable[..., Any]) -> None:
    group, topic = f"{streams.prefix}.theirs", streams.name("order.status")
    commit(streams, group, 30)
    plan = command("group", group, topic, "--from", "offset:12", "--json")
    assert plan.returncode == 0, plan.stderr
    said = json.loads(plan.stdout)
    row = {"topic": topic, "partition": 0, "before": 30, "after": 12, "again": 18, "skipped": 0, "gone": None}
    assert (said["executed"], said["partitions"]) == (False, [row])
    assert committed(streams, group) == 30

    done = command("group", group, topic, "--from", "offset:12", "--execute", "--json")
    assert done.returncode == 0, done.stderr
    assert first_offset_read(streams, group) == 12

    said = json.loads(done.stdout)
    replay_id = said["replay_id"]
    assert (said["holds"], Path(said["receipt"]).stem) == (True, replay_id)
    shown = command("show", replay_id, "--json")
    assert (json.loads(shown.stdout)["state"], json.loads(shown.stdout)["proof"]["holds"]) == ("done", True)
    in_words = command("show", replay_id).stdout.splitlines()
    assert in_words[1:] == ["  partitions: 1", "  proof: the group is there"], "it has read and written no records"
    back = command("undo", replay_id, "--execute", "--json")
    assert back.returncode == 0, back.stderr
    assert committed(streams, group) == 30


def test_a_partition_that_has_come_past_its_old_offset_again_stays_there(
    streams: Streams, command: Callable[..., Any]
) -> None:
    group, topic = f"{streams.prefix}.theirs", streams.name("order.status")
    commit(streams, group, 30)
    done = command("group", group, topic, "--from", "earliest", "--execute", "--json")
    commit(streams, group, 35)
    back = command("undo", json.loads(done.stdout)["replay_id"], "--execute")
    assert back.returncode == 0, back.stderr
    assert "come past 30 again, to 35" in back.stderr
    assert committed(streams, group) == 35


def test_a_live_group_is_refused(streams: Streams, command: Callable[..., Any]) -> None:
    group, topic = f"{streams.prefix}.theirs", streams.name("order.status")
    commit(streams, group, 30)
    with member(streams, group) as consumer:
        consumer.subscribe([topic])
        wait_until(lambda: consumer.poll(0.2) is not None and bool(consumer.assignment()), "an assignment")
        refused = command("group", group, topic, "--from", "earliest", "--execute")
    assert refused.returncode == 1
    assert "Stop its consumers first" in refused.stderr
    assert "rdkafka on" in refused.stderr
    assert committed(streams, group) == 30


def test_retention_is_reported_and_the_group_is_moved_to_what_is_left(
    streams: Streams, command: Callable[..., Any]
) -> None:
    group, topic = f"{streams.prefix}.theirs", streams.name("order.status")
    commit(streams, group, 30)
    streams.delete_records("order.status", 0, 10)
    done = command("group", group, topic, "--from", "offset:4", "--execute", "--json")
    assert "retention has deleted" in done.stderr
    assert json.loads(done.stdout)["partitions"][0]["gone"] == 6
    assert committed(streams, group) == 10


def test_where_one_partition_is_named_the_others_stay_where_they_are(
    kafka: KafkaCluster, topic_prefix: str, command_over: Callable[[Streams], Callable[..., Any]]
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make("order.status")
    streams.write(*(order_status("processing", number, order_id=f"O{number}") for number in range(60)))
    group, topic, command = f"{streams.prefix}.theirs", streams.name("order.status"), command_over(streams)
    ends = [streams.ends("order.status")[topic, number] for number in range(3)]
    for number in (0, 1):
        commit(streams, group, ends[number], number)
    done = command("group", group, topic, "--from", "1=2", "--execute", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["partition"] for row in json.loads(done.stdout)["partitions"]] == [1]
    assert [committed(streams, group, number) for number in range(3)] == [ends[0], 2, OFFSET_INVALID]

    unknown = command("group", group, topic, "--from", "99=5", "--execute")
    assert (unknown.returncode, "no partition 99" in unknown.stderr) == (2, True), unknown.stderr
    assert committed(streams, group, 1) == 2


@pytest.mark.parametrize("name", ["order-state", "{prefix}.product-changes"])
def test_the_group_of_a_projection_is_refused_and_the_mend_is_named(
    streams: Streams, command: Callable[..., Any], name: str
) -> None:
    refused = command("group", name.format(prefix=streams.prefix), streams.name("order.status"), "--execute")
    assert refused.returncode == 1
    assert "replay rebuild" in refused.stderr


def test_an_app_is_named_by_its_file_and_its_topics_are_known(
    streams: Streams, command: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from kinguin_streams.consumers.app import App\n"
        "from kinguin_streams.schemas.events import OrderStatus\n"
        'app = App("mine")\n'
        "@app.on(OrderStatus)\n"
        "def take(event, context): ...\n"
    )
    commit(streams, f"{streams.prefix}.mine", 30)
    done = command("group", f"{file}:app", "--from", "offset:3", "--execute", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["group"] == f"{streams.prefix}.mine"
    assert committed(streams, f"{streams.prefix}.mine") == 3


def read_on(streams: Streams, group: str, ends: dict[tuple[str, int], int]) -> dict[int, tuple[int, int]]:
    """Let the group's own consumer read to these ends and commit; return each partition's first offset and the records."""
    found: dict[int, tuple[int, int]] = {}
    at: dict[tuple[str, int], int] = {}
    deadline_s = time.monotonic() + 600
    with member(streams, group) as consumer:
        consumer.subscribe([streams.name("order.status")])
        while at != ends and time.monotonic() < deadline_s:
            for message in consumer.consume(10_000, 0.5):
                assert message.error() is None, message.error()
                partition, offset = message.partition(), message.offset()
                first, records = found.get(partition, (offset, 0))
                assert offset == first + records, "a record was left out, or came twice"
                found[partition] = first, records + 1
                at[message.topic(), partition] = offset + 1
        consumer.commit(asynchronous=False)
    assert at == ends
    return found


@pytest.mark.faults
@pytest.mark.timeout(1_800)
def test_a_group_over_a_million_records_is_moved_by_time_and_back_and_reads_what_the_plan_says(
    *,
    kafka: KafkaCluster,
    topic_prefix: str,
    tmp_path: Path,
    command_over: Callable[[Streams], Callable[..., Any]],
    record_property: Any,
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=6).make("order.status")
    ManyOrders(streams).write(MILLION)
    group, topic, command = f"{streams.prefix}.theirs", streams.name("order.status"), command_over(streams)
    ends = streams.ends("order.status")
    assert sum(ends.values()) == MILLION
    assert read_on(streams, group, ends) == {number: (0, end) for (_, number), end in ends.items()}

    # Worked out by reading all of it: where each partition first has a record of that time or later.
    since_ms = ORIGIN_MS + MILLION // 3 * 10
    begins: dict[int, int] = {}
    seen = dict.fromkeys(range(6), 0)
    for partition, at_ms, *_ in Bench(kafka.bootstrap_servers, topic_prefix, tmp_path).each(topic):
        if at_ms >= since_ms:
            begins.setdefault(partition, seen[partition])
        seen[partition] += 1
    rows = [
        {
            "topic": topic,
            "partition": number,
            "before": ends[topic, number],
            "after": begins[number],
            "again": ends[topic, number] - begins[number],
            "skipped": 0,
            "gone": None,
        }
        for number in range(6)
    ]

    def moved(*arguments: str) -> dict[str, Any]:
        ended = command(*arguments, "--json")
        assert ended.returncode == 0, ended.stderr
        said: dict[str, Any] = json.loads(ended.stdout)
        return said

    def at() -> list[int]:
        return [committed(streams, group, number) for number in range(6)]

    since = datetime.fromtimestamp(since_ms / 1_000, UTC).isoformat()
    began_s = time.monotonic()
    assert moved("group", group, topic, "--from", since)["partitions"] == rows
    assert at() == [ends[topic, number] for number in range(6)]
    said = moved("group", group, topic, "--from", since, "--execute")
    moved_s = round(time.monotonic() - began_s, 1)
    assert (said["partitions"], at()) == (rows, [begins[number] for number in range(6)])

    assert moved("undo", said["replay_id"], "--execute")["left"] == []
    assert at() == [ends[topic, number] for number in range(6)]

    said = moved("group", group, topic, "--from", since, "--execute")
    assert read_on(streams, group, ends) == {number: (begins[number], rows[number]["again"]) for number in range(6)}
    # It has come to where it was by itself, and no further: there is nothing to move back.
    moved("undo", said["replay_id"], "--execute")
    assert at() == [ends[topic, number] for number in range(6)]

    said = moved("group", group, topic, "--from", "earliest", "--execute")
    assert sum(row["again"] for row in said["partitions"]) == MILLION
    assert read_on(streams, group, ends) == {number: (0, end) for (_, number), end in ends.items()}
    record_property("figures", json.dumps({"records": MILLION, "plan_and_move_s": moved_s}))
