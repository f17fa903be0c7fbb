"""`replay import` on a real Kafka: every line is there once as what it is, whatever dies, and newer state stays."""

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from kinguin_streams.consumers import reader
from kinguin_streams.replay import receipt as receipts
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import OrderStatus, StoreName
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, running_loop, wait_until

pytestmark = pytest.mark.kafka

STORE = StoreName("default")
LINES = 5_000
BROKEN = (7, 1_234, 4_999)


def body(number: int, orders: int = 500) -> str:
    return (
        f'{{"orderId":"O{number % orders}","orderExternalId":null,"status":"processing",'
        f'"updatedAt":"2021-03-04T05:{number // 60 % 60:02}:{number % 60:02}.{number % 1000:03}+00:00"}}'
    )


def history(file: Path, *, count: int = LINES, orders: int = 500, broken: Collection[int] = BROKEN) -> list[str]:
    """Write lines of order.status; return the bodies that are valid. broken: numbers, from 1, of bodies that are not."""
    bodies = []
    with file.open("w") as lines:
        for number in range(1, count + 1):
            text = body(number, orders)
            if number in broken:
                text = text.replace("updatedAt", "updated")
            else:
                bodies.append(text)
            said = {"store": "default", "event": "order.status", "body": text, "received_at": "2021-03-04T06:00:00Z"}
            lines.write(json.dumps(said) + "\n")
    return bodies


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make()


def settings_of(streams: Streams, folder: Path, **more: str) -> dict[str, str]:
    return {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": str(streams.kafka.bootstrap_servers),
        "KINGUIN_TOPICS__PREFIX": streams.prefix,
        "KINGUIN_TOPICS__PARTITIONS": "3",
        "KINGUIN_REPLAY__RECEIPTS": str(folder / "receipts"),
        **more,
    }


def messages(streams: Streams) -> Iterator[Any]:
    ends = streams.ends("order.status")
    consumer = Consumer(
        {"bootstrap.servers": streams.kafka.bootstrap_servers, "group.id": "look"}, logger=CLIENT_LOGGER
    )
    try:
        consumer.assign([TopicPartition(*part, 0) for part in ends])
        seen = 0
        while seen < sum(ends.values()):
            for message in consumer.consume(1_000, 1.0):
                seen += 1
                yield message
    finally:
        consumer.close()


def ids(bodies: list[str]) -> set[str]:
    return {event_id(STORE, "order.status", text.encode()) for text in bodies}


def test_every_line_becomes_its_event_or_its_dead_letter_with_its_number(streams: Streams, tmp_path: Path) -> None:
    file = tmp_path / "webhooks.jsonl"
    bodies = history(file)
    settings = settings_of(streams, tmp_path)
    plan = run(settings, "replay", "import", str(file), "--json")
    assert plan.returncode == 0, plan.stderr
    said = json.loads(plan.stdout)
    assert (said["lines"], said["by_event"], said["by_reason"]) == (
        LINES,
        {"order.status": LINES - len(BROKEN)},
        {"invalid_field": len(BROKEN)},
    )
    assert [note["line"] for note in said["letters"]] == list(BROKEN)
    assert streams.ends("order.status") == {}

    done = run(settings, "replay", "import", str(file), "--execute", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["events"], result["dead_letters"]) == (LINES - len(BROKEN), len(BROKEN))
    assert (result["state"], result["proof"]) == ("done", {"holds": True, "found": result["written"]})
    assert result["written"]["records"] == LINES
    found = list(messages(streams))
    assert len(found) == len(bodies)
    headers = [dict(message.headers()) for message in found]
    assert {each["ce_id"].decode() for each in headers} == ids(bodies)
    assert {(each["origin"], each["origin-time"]) for each in headers} == {(b"import", b"2021-03-04T06:00:00.000Z")}
    assert {Decoder().decode(message.value()).raw.decode() for message in found} == set(bodies)  # type: ignore[union-attr]
    assert {letter.reason for letter in streams.dead_letters()} == {"invalid_field"}
    shown = run(settings, "replay", "show", result["replay_id"], "--json")
    assert json.loads(shown.stdout)["state"] == "done"


def test_an_import_killed_in_the_middle_goes_on_and_loses_no_line(streams: Streams, tmp_path: Path) -> None:
    file = tmp_path / "webhooks.jsonl"
    bodies = history(file)
    settings = settings_of(streams, tmp_path, KINGUIN_REPLAY__CHECKPOINT_S="0.2")
    command = [*COMMAND, "replay", "import", str(file), "--max-records-per-s", "2000", "--execute"]
    process = subprocess.Popen(command, env=clean_environment(settings), cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: sum(streams.ends("order.status").values()) > 500, "some events", timeout_s=60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert sum(streams.ends("order.status").values()) < len(bodies), "it was done before it could be killed"
    (receipt,) = (tmp_path / "receipts").iterdir()
    resumed = run(settings, "replay", "resume", str(receipt), "--json")
    assert resumed.returncode == 0, resumed.stderr
    said = json.loads(resumed.stdout)
    assert (said["lines"], said["state"], said["proof"]["holds"]) == (LINES, "done", True)
    found = list(messages(streams))
    assert {dict(message.headers())["ce_id"].decode() for message in found} == ids(bodies)
    assert len(found) == len(bodies), "a line that the killed process had sent was sent again"
    file.write_text(file.read_text() + "\n")
    (tmp_path / "receipts" / "other.jsonl").write_bytes(receipt.read_bytes().splitlines(keepends=True)[0])
    changed = run(settings, "replay", "resume", "other")
    assert (changed.returncode, "is not what it was" in changed.stderr) == (1, True)


def test_what_is_gone_from_the_topics_when_an_import_ends_is_told_and_exits_1(streams: Streams, tmp_path: Path) -> None:
    file = tmp_path / "webhooks.jsonl"
    history(file)
    settings = settings_of(streams, tmp_path)
    command = [*COMMAND, "replay", "import", str(file), "--max-records-per-s", "2000", "--execute"]
    process = subprocess.Popen(command, env=clean_environment(settings), cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(streams.ends("order.status")) == 3, "some events", timeout_s=60)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    streams.delete_records("order.status", 1, 1)
    (receipt,) = (tmp_path / "receipts").iterdir()
    resumed = run(settings, "replay", "resume", str(receipt), "--json")
    assert resumed.returncode == 1, resumed.stderr
    said = json.loads(resumed.stdout)
    assert (said["lines"], said["state"], said["proof"]["holds"]) == (LINES, "differs", False)
    assert (said["written"]["records"], said["proof"]["found"]["records"]) == (LINES, LINES - 1)
    again = run(settings, "replay", "resume", str(receipt))
    assert (again.returncode, "IT DOES NOT HOLD" in again.stdout) == (1, True)


def test_history_that_is_imported_later_never_overtakes_newer_state(streams: Streams, tmp_path: Path) -> None:
    live = [order_status("completed", 0, order_id=f"O{number}") for number in range(500)]  # of 2024
    streams.write(*live)
    state = state_settings(tmp_path)
    with running_loop(streams, tmp_path, state=state) as loop:
        loop.catch_up(streams.ends("order.status"))
        assert reader.orders_by_status(state.url) == {"completed": 500}
        file = tmp_path / "webhooks.jsonl"
        history(file, broken=())
        done = run(settings_of(streams, tmp_path), "replay", "import", str(file), "--execute")
        assert done.returncode == 0, done.stderr
        loop.catch_up(streams.ends("order.status"))
    assert reader.orders_by_status(state.url) == {"completed": 500}
    assert {len(view.facts) for view in reader.order_views(state.url)} == {LINES // 500 + 1}


def test_a_line_that_cannot_be_read_stops_the_import_before_it_begins(streams: Streams, tmp_path: Path) -> None:
    file = tmp_path / "webhooks.jsonl"
    history(file, broken=())
    file.write_text("what is this\n" + file.read_text())
    settings = settings_of(streams, tmp_path)
    refused = run(settings, "replay", "import", str(file), "--execute")
    assert (refused.returncode, streams.ends("order.status")) == (1, {})
    assert "the first one is line 1" in refused.stderr
    done = run(settings, "replay", "import", str(file), "--skip-faults", "--execute", "--json")
    assert (done.returncode, json.loads(done.stdout)["events"]) == (0, LINES)


@pytest.mark.faults
@pytest.mark.timeout(1_800)
def test_200000_lines_killed_three_times_are_all_there_under_the_ids_that_they_had_on_arrival(
    streams: Streams, tmp_path: Path, record_property: Any
) -> None:
    file, count = tmp_path / "webhooks.jsonl", 200_000
    broken = range(999, count, 1_000)
    wanted = ids(history(file, count=count, orders=499, broken=broken))
    assert len(wanted) == count - len(broken)
    settings = settings_of(streams, tmp_path, KINGUIN_REPLAY__CHECKPOINT_S="0.5")

    def sent() -> int:
        return sum(streams.ends("order.status", "dead-letter").values())

    began_s = time.monotonic()
    arguments = ["import", str(file), "--execute"]
    receipt: Path | None = None
    for _kill in range(3):
        before = sent()
        process = subprocess.Popen(
            [*COMMAND, "replay", *arguments], env=clean_environment(settings), cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(
                lambda before=before: sent() > before + count // 5,  # type: ignore[misc]
                "a fifth more",
                timeout_s=300,
            )
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        (receipt,) = (tmp_path / "receipts").iterdir()
        assert receipts.read(receipt).state == "interrupted", "it was done before it could be killed"
        arguments = ["resume", str(receipt)]
    resumed = run(settings, "replay", "resume", str(receipt), "--json", timeout_s=600)
    import_s = round(time.monotonic() - began_s, 1)
    assert resumed.returncode == 0, resumed.stderr
    said = json.loads(resumed.stdout)
    assert (said["lines"], said["events"], said["dead_letters"]) == (count, len(wanted), len(broken))
    shown = json.loads(run(settings, "replay", "show", str(receipt), "--json").stdout)
    assert (shown["state"], shown["runs"], shown["written"]["records"]) == ("done", 4, count)

    decode, found = Decoder().decode, Counter[str]()
    for message in messages(streams):
        name = dict(message.headers())["ce_id"].decode()
        event = decode(message.value())
        assert isinstance(event, OrderStatus)
        assert name == event.event_id == event_id(STORE, "order.status", event.raw)
        found[name] += 1
    assert found.keys() == wanted
    assert max(found.values()) == 1, "a line that a killed process had sent was sent again"
    letters = streams.dead_letters()
    assert {letter.reason for letter in letters} == {"invalid_field"}
    assert len({letter.dead_letter_id for letter in letters}) == len(broken)
    record_property("figures", json.dumps({"lines": count, "import_s": import_s}))
