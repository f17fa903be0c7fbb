"""`replay consumer` on a real Kafka: one consumer's code sees the records, nobody else does, and nothing is lost by kill -9."""

import json
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, running_loop, wait_until

pytestmark = pytest.mark.kafka

ORDERS = 300
APP = """
import os
from kinguin_streams.consumers.app import App, Reject
from kinguin_streams.schemas.events import OrderStatus

app = App("mine")

@app.on(OrderStatus)
def take(event, context):
    if event.order_id == "O7":
        raise Reject("unwanted", "seven")
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{event.order_id} {event.status} {context.replay} {context.offset}\\n")
"""


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make()
    streams.write(*(order_status("processing", 0, order_id=f"O{number}") for number in range(ORDERS)))
    streams.write(*(order_status("completed", 1, order_id=f"O{number}") for number in range(ORDERS)))
    return streams


def settings_of(streams: Streams, folder: Path, state: StateSettings | None = None, **more: str) -> dict[str, str]:
    return {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": str(streams.kafka.bootstrap_servers),
        "KINGUIN_TOPICS__PREFIX": streams.prefix,
        "KINGUIN_TOPICS__PARTITIONS": "3",
        "KINGUIN_CONSUMER__GROUP_PREFIX": streams.prefix,
        "KINGUIN_STATE__URL": (state or state_settings(folder)).url,
        "KINGUIN_REPLAY__RECEIPTS": str(folder / "receipts"),
        "SEEN": str(folder / "seen"),
        **more,
    }


def seen(folder: Path) -> Counter[str]:
    file = folder / "seen"
    return Counter(file.read_text().splitlines() if file.exists() else ())


def test_a_handler_sees_what_was_selected_and_knows_that_it_is_a_replay(streams: Streams, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(APP)
    settings = settings_of(streams, tmp_path)
    command = ("replay", "consumer", f"{tmp_path / 'mine.py'}:app", "--where", 'status == "completed"', "--json")
    plan = run(settings, *command)
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["records_at_most"] == 2 * ORDERS
    assert seen(tmp_path) == {}

    done = run(settings, *command, "--execute")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["state"], said["written"]["records"], said["filtered"]["records"]) == ("done", ORDERS, ORDERS)
    assert said["dead_lettered"] == 1
    assert "1 of the written have become dead letters" in run(settings, "replay", "show", said["replay_id"]).stdout
    lines = seen(tmp_path)
    assert {tuple(line.split()[:3]) for line in lines} == {
        (f"O{number}", "completed", "True") for number in range(ORDERS) if number != 7
    }
    assert set(lines.values()) == {1}
    (letter,) = streams.dead_letters()
    assert (letter.consumer, letter.reason, letter.detail) == ("mine", "unwanted", "seven")
    lag = run(settings, "consumers", "lag", f"{streams.prefix}.mine")
    assert "There is no consumer group" in lag.stderr  # it was never joined, and nothing was committed


def test_handlers_killed_in_the_middle_are_called_at_least_once_for_each_record(
    streams: Streams, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(APP)
    settings = settings_of(
        streams, tmp_path, KINGUIN_REPLAY__CHECKPOINT_RECORDS="50", KINGUIN_REPLAY__BATCH_RECORDS="20"
    )
    command = [*COMMAND, "replay", "consumer", f"{tmp_path / 'mine.py'}:app", "--max-records-per-s", "200", "--execute"]
    process = subprocess.Popen(command, env=clean_environment(settings), cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: sum(seen(tmp_path).values()) > 120, "some records", timeout_s=60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert len(seen(tmp_path)) < 2 * ORDERS - 2, "it was done before it could be killed"
    (receipt,) = (tmp_path / "receipts").iterdir()
    resumed = run(settings, "replay", "resume", str(receipt), "--json")
    assert resumed.returncode == 0, resumed.stderr
    said = json.loads(resumed.stdout)
    assert (said["state"], said["written"]["records"], said["runs"]) == ("done", 2 * ORDERS, 2)
    assert said["dead_lettered"] == 2, "those before the kill, and those after it"
    lines = seen(tmp_path)
    assert len(lines) == 2 * ORDERS - 2
    assert sum(lines.values()) < 2 * ORDERS + 120, "more was done again than lay behind the last checkpoint"


def test_an_event_that_came_twice_is_handled_once_though_the_process_was_replaced_in_between(
    streams: Streams, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(APP)
    streams.write(*(order_status("processing", 0, order_id=f"O{number}") for number in range(ORDERS)))
    settings = settings_of(streams, tmp_path, KINGUIN_REPLAY__BATCH_RECORDS="20")
    command = ("replay", "consumer", f"{file}:app", "--distinct", "--max-records-per-s", "200", "--execute")
    process = subprocess.Popen([*COMMAND, *command], env=clean_environment(settings), stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: sum(seen(tmp_path).values()) > ORDERS // 2, "some records", timeout_s=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait(30)
    (receipt,) = (tmp_path / "receipts").iterdir()
    resumed = run(settings, "replay", "resume", str(receipt), "--json")
    assert resumed.returncode == 0, resumed.stderr
    said = json.loads(resumed.stdout)
    assert (said["written"]["records"], said["filtered"]["records"]) == (2 * ORDERS, ORDERS)
    handled = Counter(" ".join(line.split()[:2]) for line in seen(tmp_path).elements())
    assert (len(handled), set(handled.values())) == (2 * ORDERS - 2, {1})


def test_ctrl_c_while_a_record_waits_for_its_next_attempt_is_a_checkpoint_and_exits_130(
    streams: Streams, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(APP.replace('raise Reject("unwanted", "seven")', 'raise OSError("away")'))
    settings = settings_of(streams, tmp_path, KINGUIN_CONSUMER__HANDLER_RETRY_S="60")
    process = subprocess.Popen(
        [*COMMAND, "replay", "consumer", f"{file}:app", "--execute"],
        env=clean_environment(settings),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: sum(seen(tmp_path).values()) > ORDERS, "all but one partition", timeout_s=60)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(30)
    assert process.returncode == 130, talk
    (receipt,) = (tmp_path / "receipts").iterdir()
    shown = json.loads(run(settings, "replay", "show", str(receipt), "--json").stdout)
    assert (shown["state"], shown["written"]["records"]) == ("interrupted", sum(seen(tmp_path).values()))
    file.write_text(APP)
    resumed = run(settings, "replay", "resume", str(receipt), "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["written"]["records"] == 2 * ORDERS
    assert set(seen(tmp_path).values()) == {1}
    assert len(seen(tmp_path)) == 2 * ORDERS - 2


def revisions(state: StateSettings) -> int:
    store = StateStore(state, ORDER_STATE)
    try:
        with store.engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT sum(revision) FROM projection_state").scalar_one())
    finally:
        store.close()


def test_a_projection_takes_each_record_in_once_beside_its_own_consumer(
    streams: Streams, state: StateSettings, tmp_path: Path
) -> None:
    StateStore(state, ORDER_STATE).close()
    settings = settings_of(streams, tmp_path, state, KINGUIN_REPLAY__BATCH_RECORDS="20")
    command = [*COMMAND, "replay", "consumer", "order-state", "--max-records-per-s", "200", "--execute"]
    process = subprocess.Popen(command, env=clean_environment(settings), cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (tmp_path / "receipts").exists() and reader.orders_by_status(state.url) != {}, "a state")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert reader.stored_offsets(state.url, "order-state") == {}, "a replay's progress is none of the consumer's"
    (receipt,) = (tmp_path / "receipts").iterdir()
    resumed = run(settings, "replay", "resume", str(receipt), "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["written"]["records"] == 2 * ORDERS
    assert reader.orders_by_status(state.url) == {"completed": ORDERS}
    assert revisions(state) == 2 * ORDERS
    # The consumer itself has taken nothing in yet; what it reads says nothing new.
    with running_loop(streams, tmp_path, state=state) as loop:
        loop.catch_up(streams.ends("order.status"))
    assert reader.orders_by_status(state.url) == {"completed": ORDERS}
    again = run(settings, *command[3:-3], "--execute", "--json")
    assert again.returncode == 0, again.stderr
    assert {len(view.facts) for view in reader.order_views(state.url)} == {2}


def test_where_a_projection_has_no_state_a_replay_makes_none(streams: Streams, tmp_path: Path) -> None:
    refused = run(settings_of(streams, tmp_path), "replay", "consumer", "order-state", "--execute")
    assert (refused.returncode, "KINGUIN_STATE__URL" in refused.stderr) == (1, True), refused.stderr
    assert not list(tmp_path.glob("state.db*"))


def test_the_state_may_be_named_and_a_replay_is_resumed_in_no_other(streams: Streams, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    live, other = state_settings(tmp_path / "live"), state_settings(tmp_path)
    for state in (live, other):
        StateStore(state, ORDER_STATE).close()
    settings = settings_of(streams, tmp_path, other)
    done = run(settings, "replay", "consumer", "order-state", "--state-url", live.url, "--execute", "--json")
    assert done.returncode == 0, done.stderr
    assert (reader.orders_by_status(live.url), reader.orders_by_status(other.url)) == ({"completed": ORDERS}, {})

    (receipt,) = (tmp_path / "receipts").iterdir()
    begun = tmp_path / "receipts" / "begun.jsonl"
    begun.write_bytes(receipt.read_bytes().splitlines(keepends=True)[0])
    refused = run(settings, "replay", "resume", "begun")
    assert (refused.returncode, "--state-url" in refused.stderr) == (1, True), refused.stderr
    assert reader.orders_by_status(other.url) == {}
    resumed = run(settings, "replay", "resume", "begun", "--state-url", live.url)
    assert resumed.returncode == 0, resumed.stderr


def test_records_of_a_topic_that_the_consumer_does_not_read_are_refused(streams: Streams, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(APP)
    settings = settings_of(streams, tmp_path)
    streams.write_bytes("product.update", [b"anything"])
    command = ("replay", "consumer", f"{tmp_path / 'mine.py'}:app", streams.name("product.update"))
    for arguments in (command, (*command, "--execute")):
        refused = run(settings, *arguments)
        assert refused.returncode == 1, "it was planned"
        assert "mine does not read" in refused.stderr
    assert not (tmp_path / "receipts").exists()
