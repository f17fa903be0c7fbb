"""`consumers lag`: the numbers that a consumer itself goes by, members included, and an exit code for whoever watches."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from tests.commands import run
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import PATIENCE_S, Streams, running_loop, wait_until
from tests.consumers.running_handlers import running_app
from tests.consumers.test_handler_retries import Calls

pytestmark = pytest.mark.kafka

APP = """
from kinguin_streams.consumers.app import App, Context
from kinguin_streams.schemas.events import OrderStatus

app = App("notes")

@app.on(OrderStatus)
def note(event: OrderStatus, context: Context) -> None:
    pass
"""


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


def lag(streams: Streams, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    settings = {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": str(streams.kafka.bootstrap_servers),
        "KINGUIN_TOPICS__PREFIX": streams.prefix,
        "KINGUIN_CONSUMER__GROUP_PREFIX": streams.prefix,
        "KINGUIN_STATE__URL": state_settings(folder).url,
    }
    return run(settings, "consumers", "lag", *arguments)


def one(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    [consumer] = json.loads(done.stdout)["consumers"]
    return dict(consumer)


def by_partition(consumer: dict[str, Any], key: str) -> dict[tuple[str, int], Any]:
    return {
        (each["topic"].partition(".")[2], each["partition"]): each[key]
        for each in consumer["partitions"]
        if each["endOffset"] > 0
    }


@contextmanager
def member(streams: Streams, group: str, **config: Any) -> Iterator[Consumer]:
    """A program of somebody else's, in a group of its own."""
    consumer = Consumer(
        {
            "bootstrap.servers": streams.kafka.bootstrap_servers,
            "group.id": group,
            "client.id": "theirs",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            **config,
        },
        logger=CLIENT_LOGGER,
    )
    try:
        yield consumer
    finally:
        consumer.close()


def test_of_a_projection_the_database_counts_and_not_what_kafka_has(streams: Streams, tmp_path: Path) -> None:
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(20)))
    with running_loop(streams, tmp_path) as running:
        running.catch_up(done := streams.ends("order.status"))
        consumer = one(lag(streams, tmp_path, "order-state", "--json"))
        assert (consumer["state"], len(consumer["members"]), consumer["offsetsFrom"]) == ("stable", 1, "database")
        assert consumer["members"][0]["clientId"] == f"{streams.prefix}.order-state"
        assert len(consumer["members"][0]["partitions"]) == 4
        assert (consumer["lagRecords"], consumer["lagSeconds"]) == (0, 0)
    received_at_ms = time.time_ns() // 1_000_000 - 90_000
    streams.write(*(order_status("completed", 1, order_id=f"O{n}", received_at_ms=received_at_ms) for n in range(20)))
    with member(streams, f"{streams.prefix}.order-state") as stranger:
        moved = [TopicPartition(*key, end) for key, end in streams.ends("order.status").items()]
        stranger.commit(offsets=moved, asynchronous=False)
    answer = lag(streams, tmp_path, f"{streams.prefix}.order-state", "--json", "--max-records", "20", "--max-seconds", "3600")  # fmt: skip
    consumer = one(answer)
    assert answer.returncode == 0
    assert (consumer["state"], consumer["members"], consumer["lagRecords"]) == ("empty", [], 20)
    assert 89 < consumer["lagSeconds"] < 600
    assert by_partition(consumer, "nextOffset") == {("order.status", n): done[streams.name("order.status"), n] for n in (0, 1)}  # fmt: skip

    assert lag(streams, tmp_path, "order-state", "--max-records", "19").returncode == 1
    assert lag(streams, tmp_path, "order-state", "--max-seconds", "60").returncode == 1
    shown = lag(streams, tmp_path, "order-state")
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[0] == (
        f"order-state: group {streams.prefix}.order-state is empty, 0 members; offsets are those of the database"
    )
    assert shown.stdout.splitlines()[1].split() == [
        "topic",
        "partition",
        "next",
        "end",
        "lag",
        "seconds",
        "gone",
        "member",
    ]


def test_a_consumer_that_has_never_run_has_everything_before_it(streams: Streams, tmp_path: Path) -> None:
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(20)))
    consumer = one(lag(streams, tmp_path, "order-state", "--json"))
    assert (consumer["state"], consumer["lagRecords"], consumer["members"]) == (None, 20, [])
    assert set(by_partition(consumer, "nextOffset").values()) == {None}
    both = json.loads(lag(streams, tmp_path, "--json").stdout)
    assert [each["consumer"] for each in both["consumers"]] == ["order-state", "product-changes"]


def test_of_handlers_what_the_group_has_committed_counts(streams: Streams, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(20)))
    with running_app(streams, Calls().app) as running:
        running.catch_up(streams.ends("order.status"))
    streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(7)))
    consumer = one(lag(streams, tmp_path, f"{tmp_path / 'app.py'}:app", "--json"))
    assert (consumer["consumer"], consumer["offsetsFrom"], consumer["lagRecords"]) == ("notes", "kafka", 7)


def test_records_that_retention_has_taken_before_they_took_effect_are_named(streams: Streams, tmp_path: Path) -> None:
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(20)))
    with running_loop(streams, tmp_path) as running:
        running.catch_up(before := streams.ends("order.status"))
    streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(20)))
    topic, part = streams.name("order.status"), 0
    streams.delete_records("order.status", part, before[topic, part] + 2)
    consumer = one(lag(streams, tmp_path, "order-state", "--json"))
    assert by_partition(consumer, "gone") == {("order.status", 0): 2, ("order.status", 1): 0}
    assert consumer["lagRecords"] == 18


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_group_of_somebody_elses_is_shown_where_it_reads_our_topics(
    streams: Streams, tmp_path: Path, protocol: str
) -> None:
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(20)))
    group = f"{streams.prefix}-theirs"
    with member(streams, group, **{"group.protocol": protocol}) as theirs:
        theirs.subscribe([streams.name("order.status")])
        read: list[Any] = []
        deadline_s = time.monotonic() + PATIENCE_S
        while len(read) < 20 and time.monotonic() < deadline_s:
            read += theirs.consume(20, 0.5)
        theirs.commit(offsets=[TopicPartition(streams.name("order.status"), 0, 1)], asynchronous=False)
        wait_until(lambda: one(lag(streams, tmp_path, group, "--json"))["state"] == "stable", "a group at rest")
        consumer = one(lag(streams, tmp_path, group, "--json"))
    assert [member["clientId"] for member in consumer["members"]] == ["theirs"]
    assert by_partition(consumer, "nextOffset") == {("order.status", 0): 1, ("order.status", 1): None}
    assert consumer["lagRecords"] == 19


def test_what_is_not_there_is_a_sentence(streams: Streams, tmp_path: Path) -> None:
    missing = lag(streams, tmp_path, f"{streams.prefix}-nobody")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert f"There is no consumer group {streams.prefix}-nobody." in missing.stderr

    elsewhere = f"{streams.prefix}-elsewhere"
    with member(streams, elsewhere) as theirs:
        theirs.commit(offsets=[TopicPartition(streams.name("order.status"), 0, 0)], asynchronous=False)
    no_topic = lag(streams, tmp_path, elsewhere, "--topic", "no-such-topic")
    assert no_topic.returncode == 1
    assert "There is no topic no-such-topic." in no_topic.stderr

    unmade = lag(Streams(str(streams.kafka.bootstrap_servers), f"{streams.prefix}-unmade"), tmp_path, "order-state")
    assert unmade.returncode == 1
    assert "topics apply" in unmade.stderr
    for done in (missing, no_topic, unmade):
        assert "Traceback" not in done.stderr
