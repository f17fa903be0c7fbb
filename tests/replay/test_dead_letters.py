"""`dead-letters` on a real Kafka: what is there, and that none is lost and none takes effect twice when they are redriven."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.dead_letters import SourcePosition, from_consumer, from_ingress
from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import DeadLetter, StoreName
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, wait_until

pytestmark = pytest.mark.kafka

STORE = StoreName("default")
AT_MS = 1_770_000_000_000
APP = """
import os
from kinguin_streams.consumers.app import App
from kinguin_streams.schemas.events import OrderStatus

app = App("mine")

@app.on(OrderStatus)
def take(event, context):
    if os.environ.get("BROKEN"):
        raise ValueError("still broken")
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{event.order_id} {context.replay}\\n")
"""


def body(number: int) -> bytes:
    return (
        f'{{"orderId":"O{number}","orderExternalId":null,"status":"processing","updatedAt":"2026-01-31T12:00:00.000+00:00"}}'
    ).encode()


def at_ingress(number: int, reason: str, content: bytes | None = None) -> DeadLetter:
    """Return the dead letter of a body that is right today, unless it is given."""
    return from_ingress(
        store=STORE,
        event="order.status",
        reason=reason,
        detail="of long ago",
        body=body(number) if content is None else content,
        headers=[("content-type", b"aplication/json")],
        received_at_ms=AT_MS,
    )


def at_consumer(number: int, consumer: str, topic: str) -> DeadLetter:
    """Return the dead letter of a record that is right today."""
    return from_consumer(
        consumer=consumer,
        reason="handler_failed",
        detail="ValueError: it was down",
        value=Encoder().encode(order_status("completed", 1, order_id=f"C{number}")),
        headers=[("ce_id", b"x")],
        source=SourcePosition(topic=topic, partition=0, offset=number, key=b"C", timestamp_ms=AT_MS),
        failed_at_ms=AT_MS,
    )


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix, partitions=2).make()


@pytest.fixture
def settings(streams: Streams, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "mine.py").write_text(APP)
    return {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": str(streams.kafka.bootstrap_servers),
        "KINGUIN_TOPICS__PREFIX": streams.prefix,
        "KINGUIN_TOPICS__PARTITIONS": "2",
        "KINGUIN_CONSUMER__GROUP_PREFIX": streams.prefix,
        "KINGUIN_STATE__URL": state_settings(tmp_path).url,
        "SEEN": str(tmp_path / "seen"),
    }


@pytest.fixture
def command(settings: dict[str, str]) -> Callable[..., Any]:
    def call(*arguments: str, **more: str) -> Any:
        return run({**settings, **more}, "dead-letters", *arguments, timeout_s=300)

    return call


def begin_state(folder: Path) -> None:
    """Make the database of order-state, as its consumer does when it starts."""
    StateStore(state_settings(folder), ORDER_STATE).close()


def values(streams: Streams, record: Any) -> list[Any]:
    ends = streams.ends(record)
    consumer = Consumer(
        {"bootstrap.servers": streams.kafka.bootstrap_servers, "group.id": "look"}, logger=CLIENT_LOGGER
    )
    found: list[Any] = []
    try:
        consumer.assign([TopicPartition(*part, 0) for part in ends])
        while len(found) < sum(ends.values()):
            found += consumer.consume(1_000, 1.0)
    finally:
        consumer.close()
    return found


def states(command: Callable[..., Any]) -> dict[str, int]:
    said = json.loads(command("list", "--json").stdout)
    counts: dict[str, int] = {}
    for group in said["groups"]:
        counts[group["state"]] = counts.get(group["state"], 0) + group["count"]
    return counts


def test_they_are_listed_in_groups_shown_and_exported(
    streams: Streams, command: Callable[..., Any], tmp_path: Path
) -> None:
    topic = streams.name("order.status")
    binary = at_ingress(0, "invalid_utf8", b"\xff\x00 not text")
    streams.write(
        *(at_ingress(number, "invalid_field") for number in range(5)),
        at_ingress(0, "invalid_field"),  # the same delivery again
        binary,
        *(at_consumer(number, "mine", topic) for number in range(3)),
    )
    listed = command("list", "--json")
    assert listed.returncode == 0, listed.stderr
    groups = json.loads(listed.stdout)["groups"]
    assert [
        (group["origin"], group["consumer"], group["reason"], group["count"], group["copies"]) for group in groups
    ] == [
        ("ingress", None, "invalid_field", 5, 1),
        ("consumer", "mine", "handler_failed", 3, 0),
        ("ingress", None, "invalid_utf8", 1, 0),
    ]
    shown = command("show", binary.dead_letter_id[:8])
    assert "ff 00 20 6e 6f 74" in shown.stdout
    assert "no dead letter" in command("show", "nonsense").stderr
    file = tmp_path / "letters.jsonl"
    exported = command("export", str(file), "--of", "mine")
    assert exported.returncode == 0, exported.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["source"]["offset"] for line in lines} == {0, 1, 2}
    assert command("export", str(file)).returncode == 1, "it would overwrite a file"


def test_the_ingress_s_go_through_today_s_validator_and_what_is_refused_is_parked_in_the_end(
    streams: Streams, command: Callable[..., Any]
) -> None:
    streams.write(*(at_ingress(number, "invalid_field") for number in range(4)), at_ingress(9, "malformed_json", b"{"))
    plan = command("redrive", "--all", "--json")
    assert plan.returncode == 0, plan.stderr
    assert {(row["now"], row["count"]) for row in json.loads(plan.stdout)["outcomes"]} == {
        ("an event order.status", 4),
        ("refused: malformed_json", 1),
    }
    assert streams.ends("order.status", "dead-letter.trail") == {}

    done = command("redrive", "--all", "--execute", "--json", KINGUIN_REPLAY__REDRIVE_ATTEMPTS="2")
    assert done.returncode == 1, "one was refused"
    said = json.loads(done.stdout)
    assert (said["redriven"], said["refused"], said["parked"]) == (4, 1, 0)
    found = [dict(message.headers()) for message in values(streams, "order.status")]
    assert {each["ce_id"].decode() for each in found} == {
        event_id(STORE, "order.status", body(number)) for number in range(4)
    }
    assert {each["origin"] for each in found} == {b"dead-letter"}

    again = command("redrive", "--all", "--execute", "--json", KINGUIN_REPLAY__REDRIVE_ATTEMPTS="2")
    assert json.loads(again.stdout)["parked"] == 1
    assert command("redrive", "--all", "--execute").stdout.startswith("0 redriven")
    assert states(command) == {"redriven": 4, "parked": 1}
    parked = json.loads(command("show", at_ingress(9, "malformed_json", b"{").dead_letter_id, "--json").stdout)
    assert [each["state"] for each in parked["trail"]] == ["refused", "parked"]
    assert "malformed_json" in parked["trail"][0]["why"]
    assert len(streams.dead_letters()) == 5, "the originals stay"


def test_an_event_too_large_for_its_topic_is_refused_and_its_batch_is_not(
    streams: Streams, command: Callable[..., Any]
) -> None:
    name = streams.name("order.status")
    limit = ConfigEntry("max.message.bytes", "4000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[limit])
    for future in streams.admin.incremental_alter_configs([resource]).values():
        future.result()
    large = at_ingress(99, "invalid_field", body(99)[:-1] + b',"note":"' + b"x" * 8_000 + b'"}')
    streams.write(*(at_ingress(number, "invalid_field") for number in range(20)), large)
    done = command("redrive", "--all", "--execute", "--json")
    assert done.returncode == 1, done.stderr
    assert (json.loads(done.stdout)["redriven"], json.loads(done.stdout)["refused"]) == (20, 1)
    assert len(values(streams, "order.status")) == 20
    why = json.loads(command("show", large.dead_letter_id, "--json").stdout)["trail"][0]["why"]
    assert why.startswith("refused_by_kafka: ")


def test_where_the_consumer_has_no_state_neither_a_plan_nor_a_redrive_makes_one(
    streams: Streams, command: Callable[..., Any], tmp_path: Path
) -> None:
    streams.write(at_consumer(1, "order-state", streams.name("order.status")))
    for arguments in (("redrive", "--all"), ("redrive", "--all", "--execute")):
        refused = command(*arguments)
        assert (refused.returncode, "KINGUIN_STATE__URL" in refused.stderr) == (1, True), refused.stderr
        assert not list(tmp_path.glob("state.db*"))
    StateStore(state_settings(tmp_path), PRODUCT_CHANGES).close()
    for arguments in (("redrive", "--all"), ("redrive", "--all", "--execute")):
        refused = command(*arguments)
        assert (refused.returncode, "no state of order-state" in refused.stderr) == (1, True), refused.stderr
    assert streams.ends("dead-letter.trail") == {}
    begin_state(tmp_path)
    assert command("redrive", "--all").returncode == 0
    assert states(command) == {"new": 1}


def test_a_consumer_s_go_back_to_that_consumer_and_no_other(
    streams: Streams, command: Callable[..., Any], tmp_path: Path
) -> None:
    topic = streams.name("order.status")
    streams.write(
        *(at_consumer(number, "mine", topic) for number in range(3)),
        *(at_consumer(number, "order-state", topic) for number in range(3)),
    )
    begin_state(tmp_path)
    done = command("redrive", "--all", "--execute", "--json")
    assert (done.returncode, json.loads(done.stdout)["redriven"], json.loads(done.stdout)["skipped"]) == (0, 3, 3)
    state = state_settings(tmp_path)
    assert reader.orders_by_status(state.url) == {"completed": 3}
    assert reader.stored_offsets(state.url, "order-state") == {}
    mine = ("redrive", "--of", "mine", "--consumer", f"{tmp_path / 'mine.py'}:app", "--execute", "--json")
    broken = command(*mine, BROKEN="1")
    assert json.loads(broken.stdout)["refused"] == 3
    assert not (tmp_path / "seen").exists()
    mended = command(*mine)
    assert json.loads(mended.stdout)["redriven"] == 3
    assert sorted((tmp_path / "seen").read_text().splitlines()) == [f"C{number} True" for number in range(3)]
    assert streams.ends("order.status") == {}
    assert len(streams.dead_letters()) == 6, "what failed again has no second dead letter"
    store = StateStore(state, ORDER_STATE)
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM projection_offset").scalar_one() == 0
    store.close()


def test_a_discard_leaves_a_trail_and_the_dead_letter(streams: Streams, command: Callable[..., Any]) -> None:
    streams.write(*(at_ingress(number, "invalid_field") for number in range(3)))
    assert command("discard", "--reason", "none of ours").returncode == 2, "nobody said which"
    assert command("discard", "--all", "--reason", "none of ours").returncode == 0
    assert streams.ends("dead-letter.trail") == {}
    done = command("discard", "--all", "--reason", "none of ours", "--execute", "--json")
    assert json.loads(done.stdout)["discarded"] == 3
    assert states(command) == {"discarded": 3}
    assert command("redrive", "--all", "--execute").stdout.startswith("0 redriven")
    one = at_ingress(0, "invalid_field").dead_letter_id
    assert "none of them is open" in command("redrive", one, "--execute").stderr
    back = command("redrive", one, "--state", "discarded", "--execute", "--json")
    assert json.loads(back.stdout)["redriven"] == 1


def test_a_record_that_its_consumer_has_failed_at_once_more_is_new_again(
    streams: Streams, command: Callable[..., Any], tmp_path: Path
) -> None:
    begin_state(tmp_path)
    topic = streams.name("order.status")
    streams.write(at_consumer(1, "order-state", topic))
    assert command("redrive", "--all", "--execute").returncode == 0
    assert states(command) == {"redriven": 1}
    in_a_minute_ms = round(time.time() * 1000) + 60_000
    again = msgspec.structs.replace(at_consumer(1, "order-state", topic), failed_at_ms=in_a_minute_ms)
    streams.write(again)
    assert json.loads(command("redrive", "--all", "--execute", "--json").stdout)["redriven"] == 1


def test_without_a_topic_for_trails_nothing_is_redriven(
    kafka: KafkaCluster, topic_prefix: str, command: Callable[..., Any], streams: Streams
) -> None:
    streams.write(at_ingress(1, "invalid_field"))
    streams.delete("dead-letter.trail")
    assert command("list").returncode == 0
    refused = command("redrive", "--all", "--execute")
    assert (refused.returncode, "topics apply" in refused.stderr) == (1, True)
    assert streams.ends("order.status") == {}


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(500, id="everyday"),
        pytest.param(10_000, id="long", marks=[pytest.mark.faults, pytest.mark.timeout(1800)]),
    ],
)
def test_dead_letters_of_five_kinds_redriven_after_a_fix_and_killed_in_between_none_lost_none_twice_in_effect(
    streams: Streams, command: Callable[..., Any], settings: dict[str, str], tmp_path: Path, count: int
) -> None:
    topic = streams.name("order.status")
    each = count // 5
    streams.write(
        *(at_ingress(number, "invalid_field") for number in range(each)),
        *(at_ingress(each + number, "bad_updated_at") for number in range(each)),
        *(at_ingress(2 * each + number, "refused_by_kafka") for number in range(each)),
        *(at_consumer(number, "mine", topic) for number in range(each)),
        *(at_consumer(number, "order-state", topic) for number in range(each)),
    )
    begin_state(tmp_path)
    arguments = ["redrive", "--all", "--consumer", f"{tmp_path / 'mine.py'}:app", "--execute"]
    slow = [*COMMAND, "dead-letters", *arguments, "--max-records-per-s", str(count / 10)]
    process = subprocess.Popen(slow, env=clean_environment({**os.environ, **settings}), stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: sum(streams.ends("dead-letter.trail").values()) > count // 5, "some trails", timeout_s=120)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert sum(streams.ends("dead-letter.trail").values()) < count, "it was done before it could be killed"
    done = command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert states(command) == {"redriven": count}
    assert {dict(message.headers())["ce_id"].decode() for message in values(streams, "order.status")} == {
        event_id(STORE, "order.status", body(number)) for number in range(3 * each)
    }
    seen = (tmp_path / "seen").read_text().splitlines()
    assert {line.split()[0] for line in seen} == {f"C{number}" for number in range(each)}
    assert len(seen) <= each + 500, "a handler was called again for more than the last chunk"
    state = state_settings(tmp_path)
    assert reader.orders_by_status(state.url) == {"completed": each}
    store = StateStore(state, ORDER_STATE)
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT max(revision) FROM projection_state").scalar_one() == 1
    store.close()
