"""`kinguin-streams consume FILE.py:NAME` as a process: stopped, killed with -9, restarted as a static member."""

import random
import signal
import sqlite3
import subprocess
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from kinguin_streams.consumers import reader
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, wait_until
from tests.consumers.running_handlers import committed
from tests.consumers.test_consumer_kill import environment, start

pytestmark = pytest.mark.kafka

CONSUMER = """
import os, time
from kinguin_streams.consumers.app import App, Context
from kinguin_streams.schemas.events import OrderStatus

app = App("to-a-file")
out = os.open("effects.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@app.on(OrderStatus)
def handle(event: OrderStatus, context: Context) -> None:
    if event.order_id == "O13" and context.attempt < 3:
        raise ValueError("not yet")
    time.sleep(0.001)
    os.write(out, f"{event.order_id} {context.partition} {context.offset}\\n".encode())
"""


PROJECTION = """
from __future__ import annotations
import msgspec
from kinguin_streams.consumers.projection import FoldProjection, Received, StateKey
from kinguin_streams.schemas.events import OrderStatus

class Seen(msgspec.Struct):
    times: int
    last: OneOf

class OneOf(msgspec.Struct):
    status: str

def fold(state: Seen | None, received: Received[OrderStatus]) -> Seen:
    return Seen((state.times if state else 0) + 1, OneOf(received.event.status))

counts = FoldProjection(
    name="my-counts", version=1, events=("order.status",), state_type=Seen,
    key=lambda event: StateKey(event.store, event.order_id), fold=fold,
)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_consumer.py").write_text(CONSUMER)
    return tmp_path


def effects(folder: Path) -> list[tuple[str, int, int]]:
    file = folder / "effects.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(order_id, int(partition), int(offset)) for order_id, partition, offset in map(str.split, lines)]


def started(streams: Streams, folder: Path, **settings: object) -> "subprocess.Popen[bytes]":
    env = environment(streams, folder, CONSUMER__HANDLER_RETRY_S=0.1, **settings)
    return start(env, folder / "consumer.log", "my_consumer.py:app")


def test_row_47_kill_9_in_the_middle_repeats_little_and_loses_nothing(
    kafka: KafkaCluster, topic_prefix: str, folder: Path
) -> None:
    count, kills = 3_000, 3
    dice = random.Random(seed := random.randrange(2**32))
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(*(order_status("processing", n / 100, order_id=f"O{n}") for n in range(count)))
    ends = streams.ends("order.status")
    for moment in sorted(dice.sample(range(1, count * 3 // 4), kills)):
        process = started(streams, folder)
        try:
            wait_until(lambda moment=moment: len(effects(folder)) >= moment, f"{moment} effects")  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    process = started(streams, folder)
    try:
        wait_until(lambda: committed(streams, "to-a-file", *ends) == ends, f"all to be committed, seed {seed}", 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    seen = Counter(order_id for order_id, _, _ in effects(folder))
    assert set(seen) == {f"O{n}" for n in range(count)}, f"seed {seed}"
    assert sum(seen.values()) < count + kills * 500, "what was done since the last commit is all that comes again"
    # In order, but for the steps back to what was committed.
    for partition in (0, 1):
        offsets = [offset for _, its, offset in effects(folder) if its == partition]
        assert sum(later != earlier + 1 for earlier, later in pairwise(offsets)) <= kills


def test_a_stop_ends_after_the_record_in_hand_and_nothing_comes_again(
    kafka: KafkaCluster, topic_prefix: str, folder: Path
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(*(order_status("processing", n / 100, order_id=f"O{n}") for n in range(2_000)))
    for ending, exit_code, moment in ((signal.SIGTERM, 0, 100), (signal.SIGINT, 130, 1_000)):
        process = started(streams, folder)
        try:
            wait_until(lambda moment=moment: len(effects(folder)) >= moment, f"{moment} effects")  # type: ignore[misc]
            process.send_signal(ending)
            assert process.wait(30) == exit_code
        finally:
            process.kill()
    assert len(effects(folder)) < 2_000
    assert Counter(effects(folder)).most_common(1)[0][1] == 1


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", ["time.sleep(60)", "lock(mutex), lock(mutex)"], ids=["python", "C"])
def test_a_second_signal_ends_it_at_once_and_what_was_in_hand_comes_again(
    kafka: KafkaCluster, topic_prefix: str, folder: Path, call: str, second: signal.Signals
) -> None:
    """Also while a handler is in C, where no signal interrupts it: then not even the first one is heard of in Python."""
    preparing = "import ctypes; lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)"
    hanging = f"{preparing}; print('called', flush=True); {call}"
    (folder / "my_consumer.py").write_text(CONSUMER.replace("time.sleep(0.001)", hanging))
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(order_status("processing", order_id="A"))
    process = started(streams, folder)
    log = folder / "consumer.log"
    try:
        wait_until(lambda: "called" in log.read_text(), f"a call ({log})")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(second)
        assert process.wait(5) == 128 + second
    finally:
        process.kill()
        process.wait()
    (folder / "my_consumer.py").write_text(CONSUMER)
    process = started(streams, folder)
    try:
        wait_until(lambda: [order_id for order_id, _, _ in effects(folder)] == ["A"], "the record to come again")
    finally:
        process.kill()
        process.wait()


def test_a_static_member_comes_back_without_a_rebalance_of_the_others(
    kafka: KafkaCluster, topic_prefix: str, folder: Path
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    names = {"KAFKA__CONFIG": '{"session.timeout.ms": 20000}'}
    processes = [started(streams, folder, CONSUMER__INSTANCE_ID=name, **names) for name in ("first", "second")]
    log = folder / "consumer.log"

    def assigned() -> int:
        return log.read_text().count('"partitions_assigned"')

    try:
        wait_until(lambda: len(log.read_text().split('"partitions_assigned"')) > 2, "both to have a partition")
        streams.write(*(order_status("processing", n / 100, order_id=f"O{n}") for n in range(100)))
        ends = streams.ends("order.status")
        wait_until(lambda: committed(streams, "to-a-file", *ends) == ends, "the first records")
        before = log.read_text().count('"partitions_revoked"')
        assigned_before = assigned()
        processes[0].send_signal(signal.SIGTERM)
        assert processes[0].wait(30) == 0
        processes[0] = started(streams, folder, CONSUMER__INSTANCE_ID="first", **names)
        streams.write(*(order_status("completed", n / 100, order_id=f"O{n}") for n in range(100)))
        ends = streams.ends("order.status")
        wait_until(lambda: committed(streams, "to-a-file", *ends) == ends, "the others")
        assert assigned() == assigned_before + 1, "only who came back was assigned anything"
        assert log.read_text().count('"partitions_revoked"') <= before + 1, "only who left gave anything away"
    finally:
        for process in processes:
            process.kill()
            process.wait(30)
    assert Counter(effects(folder)).most_common(1)[0][1] == 1


def test_a_projection_of_the_users_own_keeps_its_state(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> None:
    (tmp_path / "my_projection.py").write_text(PROJECTION)
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(*(order_status(status, order_id="A") for status in ("pending", "processing", "completed")))
    url = state_settings(tmp_path).url
    process = start(environment(streams, tmp_path), tmp_path / "consumer.log", "my_projection.py:counts")
    try:
        ends = streams.ends("order.status")
        wait_until(lambda: reader.stored_offsets(url, "my-counts") == ends, f"offsets ({tmp_path}/consumer.log)")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    with sqlite3.connect(tmp_path / "state.db") as database:
        [row] = database.execute("SELECT store, id, state FROM projection_state").fetchall()
    database.close()
    assert row == ("default", "A", '{"times":3,"last":{"status":"completed"}}')
