"""`replay consumer` with a million records, killed three times: a projection's beside its own consumer, and an App's handlers."""

import json
import signal
import subprocess
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.consumers import loading, reader
from kinguin_streams.consumers.projection import FoldProjection
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.replay import receipt as receipts
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import KafkaCluster
from tests.consumers.kafka_streams import Streams, wait_until
from tests.replay.many_orders import RECORDS, ManyOrders
from tests.replay.test_consumer_target import settings_of

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(3_600)]

KILLS = 3
RECORDS_A_RUN = RECORDS // 5
CHECKPOINT_RECORDS = RECORDS // 16
BATCH_RECORDS = 500
LONG_S = 1_500

# A fold that counts: what is lost, or takes effect twice, is a wrong number.
COUNTING = """
import msgspec
from kinguin_streams.consumers.projection import FoldProjection, StateKey

class Count(msgspec.Struct, frozen=True):
    deliveries: int

counting = FoldProjection(
    name="counting",
    version=1,
    events=("order.status",),
    state_type=Count,
    key=lambda event: StateKey(event.store, event.order_id),
    fold=lambda state, _received: Count((state.deliveries if state else 0) + 1),
)
"""
REJECTED = ("O0000007", "O0001001", "O0001999")
APP = f"""
import os
from kinguin_streams.consumers.app import App, Reject
from kinguin_streams.schemas.events import OrderStatus

app = App("mine")

@app.on_batch(OrderStatus)
def take(events, contexts):
    if not {set(REJECTED)!r}.isdisjoint(event.order_id for event in events):
        raise Reject("unwanted", "as the test says")
    lines = "".join(f"{{each.partition}} {{each.offset}} {{each.replay}}\\n" for each in contexts)
    with open(f"{{os.environ['SEEN']}}.{{os.getpid()}}", "a") as seen:
        seen.write(lines)
"""


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make()


def killed_three_times(command: Sequence[str], settings: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run a replay, killing its process wherever it is after so many records, and return what the last run says."""
    path: Path | None = None

    def noted() -> int:
        nonlocal path
        path = path or next((folder / "receipts").glob("*.jsonl"), None)
        checkpoint = None if path is None else receipts.read(path).checkpoint
        return 0 if checkpoint is None else checkpoint.written.records + checkpoint.filtered.records

    for _kill in range(KILLS):
        begun = command if path is None else ("resume", str(path))
        enough = noted() + RECORDS_A_RUN
        with (folder / "replay.log").open("ab") as log:
            process = subprocess.Popen(
                [*COMMAND, "replay", *begun], env=clean_environment(settings), cwd=folder, stdout=log, stderr=log
            )
        try:
            wait_until(
                lambda process=process, enough=enough: process.poll() is not None or noted() >= enough,  # type: ignore[misc]
                f"{enough} records",
                timeout_s=LONG_S,
            )
            time.sleep(0.3)  # so that there is something behind the checkpoint
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        assert path is not None, (folder / "replay.log").read_text()
        contents = receipts.read(path)
        assert (contents.state, contents.failure) == ("interrupted", None), "it was done before it could be killed"
    resumed = run(settings, "replay", "resume", str(path), "--json", timeout_s=LONG_S)
    assert resumed.returncode == 0, resumed.stderr
    said: dict[str, Any] = json.loads(resumed.stdout)
    assert (said["state"], said["runs"], said["gaps"], said["undecodable"]) == ("done", KILLS + 1, [], 0)
    return said


def test_a_projection_takes_each_of_a_million_records_in_once_beside_its_own_consumer_that_does_too(
    streams: Streams, state: StateSettings, tmp_path: Path, record_property: Any
) -> None:
    (tmp_path / "mine.py").write_text(COUNTING)
    orders = ManyOrders(streams)
    orders.write(RECORDS)
    name = f"{tmp_path / 'mine.py'}:counting"
    settings = settings_of(
        streams,
        tmp_path,
        state,
        KINGUIN_REPLAY__CHECKPOINT_RECORDS=str(CHECKPOINT_RECORDS),
        KINGUIN_CONSUMER__BATCH_RECORDS="5000",  # so that one does not wait for the other for long
    )
    began_s = time.monotonic()
    with (tmp_path / "consumer.log").open("ab") as log:
        own = subprocess.Popen(
            [*COMMAND, "consume", name], env=clean_environment(settings), cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: reader.stored_offsets(state.url, "counting") != {}, "a state", timeout_s=120)
        said = killed_three_times(("consumer", name, "--execute"), settings, tmp_path)
        replay_s = round(time.monotonic() - began_s, 1)
        ends = streams.ends("order.status")
        wait_until(lambda: reader.stored_offsets(state.url, "counting") == ends, "its own consumer", timeout_s=LONG_S)
        assert own.poll() is None, (tmp_path / "consumer.log").read_text()
    finally:
        own.send_signal(signal.SIGTERM)
        own.wait(60)
    assert (said["written"]["records"], said["filtered"]["records"]) == (RECORDS, 0)
    counting = loading.load(name)
    assert isinstance(counting, FoldProjection)
    once = {f"O{order:07d}": count for order, count in enumerate(orders.deliveries) if count}
    counted = {key.id: found.deliveries for key, found in reader.states(state.url, counting)}
    assert sum(once.values()) == RECORDS
    assert counted == {order_id: 2 * count for order_id, count in once.items()}
    record_property("figures", json.dumps({"records": RECORDS, "replay_s": replay_s}))


def test_handlers_are_given_each_of_a_million_records_at_least_once_and_the_receipt_counts_each_once(
    streams: Streams, tmp_path: Path, record_property: Any
) -> None:
    (tmp_path / "mine.py").write_text(APP)
    orders = ManyOrders(streams)
    orders.write(RECORDS)
    settings = settings_of(streams, tmp_path, KINGUIN_REPLAY__CHECKPOINT_RECORDS=str(CHECKPOINT_RECORDS))
    command = ("consumer", f"{tmp_path / 'mine.py'}:app", "--where", 'status != "refunded"', "--execute")
    began_s = time.monotonic()
    said = killed_three_times(command, settings, tmp_path)
    replay_s = round(time.monotonic() - began_s, 1)

    statuses = Counter(orders.fact_of(number).status for number in range(RECORDS))
    wanted = RECORDS - statuses["refunded"]
    assert (said["written"]["records"], said["filtered"]["records"]) == (wanted, RECORDS - wanted)
    assert said["read"]["records"] == RECORDS
    rejected = sum(
        orders.fact_of(number).status != "refunded"
        for number in range(RECORDS)
        if f"O{orders.order_of(number):07d}" in REJECTED
    )
    letters = {(each.source_partition or 0, each.source_offset or 0) for each in streams.dead_letters()}
    assert len(letters) == rejected > 0

    calls = {partition: array("H", [0]) * end for (_, partition), end in streams.ends("order.status").items()}
    for file in tmp_path.glob("seen.*"):
        with file.open() as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break  # the process was killed while it wrote, so that its handler has not returned
                partition, offset, is_replay = line.split()
                assert is_replay == "True"
                calls[int(partition)][int(offset)] += 1
    handled = sum(1 for counts in calls.values() for count in counts if count)
    again = sum(sum(counts) for counts in calls.values()) - handled
    assert handled == wanted - rejected
    assert not any(calls[partition][offset] for partition, offset in letters)
    assert 0 < again <= KILLS * (CHECKPOINT_RECORDS + BATCH_RECORDS), "more than lay behind the checkpoints"
    record_property("figures", json.dumps({"records": RECORDS, "replay_s": replay_s, "again": again}))
