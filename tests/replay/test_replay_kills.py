"""A replay that is killed, stopped or cut off goes on: each source record is in the target once, and the proof holds."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.replay import receipt as receipts
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import StartBroker
from tests.pausing import paused
from tests.replay.replay_topics import (
    Bench,
    digests,
    kill,
    numbered,
    receipt_of,
    sources,
    wait_for_checkpoints,
    without_replay,
)

pytestmark = pytest.mark.kafka
KILLS = 3
RECORDS = 10_000  # at 3,000/s: the kills take less than a third of them, and a slow machine has two seconds more
# Checkpoints every few records, and batches that leave much between them: every kill has something to find again.
OFTEN = {"KINGUIN_REPLAY__CHECKPOINT_RECORDS": "600", "KINGUIN_REPLAY__BATCH_RECORDS": "160"}


def killed_and_resumed(
    bench: Bench, source: str, target: str, settings: dict[str, str], kills: int, *options: str
) -> dict[str, Any]:
    """Copy, killing the process after every few checkpoints, and return what the last one says."""
    process = bench.start("topic", target, source, "--execute", *options, settings=settings)
    path = Path()
    for number in range(kills):
        if number:
            process = bench.start("resume", path.stem, settings=settings)
        path = receipt_of(bench, process)
        before = path.read_bytes().count(b'"kind":"checkpoint"')
        wait_for_checkpoints(path, before + 1 + number, process)
        kill(process)
        assert receipts.read(path).state == "interrupted", "it was done before it was killed: make it longer"
    resumed = bench.done("resume", path.stem)
    assert resumed["runs"] == kills + 1
    return resumed


def assert_each_once(bench: Bench, source: str, target: str, said: dict[str, Any], count: int) -> None:
    copy = bench.raw(target)
    assert set(sources(copy).values()) == {1}
    assert len(copy) == count
    original = bench.raw(source)
    assert sorted(map(repr, without_replay(copy))) == sorted(map(repr, original))
    assert (said["state"], said["proof"]["holds"]) == ("done", True)
    assert said["written"]["records"] == count


def test_killed_three_times_each_source_record_is_there_once(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(RECORDS))
    said = killed_and_resumed(bench, source, target, OFTEN, KILLS, "--max-records-per-s", "3000")
    assert_each_once(bench, source, target, said, RECORDS)
    assert bench.done("resume", said["replay_id"])["state"] == "done"  # once more changes nothing
    assert len(bench.raw(target)) == RECORDS


def test_killed_where_keys_decide_the_partition_and_duplicates_are_left_out(bench: Bench) -> None:
    """What has landed lies anywhere in the target, and event ids do not outlive the process that saw them."""
    source, target = bench.topic("source", 2), bench.topic("target", 5)
    records = [
        {
            "key": b"%d" % number,
            "value": b"%d" % number,
            "headers": [("ce_type", b"net.kinguin.x"), ("ce_id", b"%032x" % number)],
        }
        for number in range(6_000)
    ]
    bench.produce(source, [one for record in records for one in (record, record)])
    said = killed_and_resumed(bench, source, target, OFTEN, KILLS, "--distinct", "--max-records-per-s", "4000")
    copy = bench.raw(target)
    assert sorted(record[3] or b"" for record in copy) == sorted(b"%d" % number for number in range(6_000))
    assert (said["written"]["records"], said["filtered"]["records"]) == (6_000, 6_000)
    assert said["proof"]["holds"]


def test_ctrl_c_comes_to_a_checkpoint_and_exits_130(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(1_500))
    process = bench.start("topic", target, source, "--execute", "--max-records-per-s", "500", settings=OFTEN)
    path = receipt_of(bench, process)
    wait_for_checkpoints(path, 1, process)
    with pytest.raises(OperatorError) as owned:
        receipts.Receipt.open(path)
    assert owned.value.code == "receipt_owned"
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    assert f"replay resume {path.stem}" in talk
    contents = receipts.read(path)
    assert contents.state == "interrupted"
    assert contents.checkpoint is not None
    assert contents.checkpoint.written.records == len(bench.raw(target))
    assert bench.done("show", path.stem)["state"] == "interrupted"
    assert_each_once(bench, source, target, bench.done("resume", str(path), exit_code=0), 1_500)


def test_a_target_that_was_made_anew_is_not_written_to(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(3_000))
    process = bench.start("topic", target, source, "--execute", "--max-records-per-s", "500", settings=OFTEN)
    path = receipt_of(bench, process)
    wait_for_checkpoints(path, 1, process)
    kill(process)
    admin = bench.admin
    for future in admin.delete_topics([target], operation_timeout=15).values():
        future.result(15)
    while target in admin.list_topics(timeout=10).topics:
        time.sleep(0.05)
    bench.topic("target")
    refused = bench.replay("resume", path.stem)
    assert refused.returncode == 1
    assert "made anew" in refused.stderr
    assert bench.raw(target) == []


@pytest.mark.faults
def test_a_broker_that_hangs_and_dies_in_the_middle_costs_nothing(
    kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path
) -> None:
    """It hangs for longer than a record may wait: the replay fails, and what it was not told of is found by the next one."""
    broker = kafka_factory(tmp_path / "broker")
    bench = Bench(broker.bootstrap_servers, topic_prefix, tmp_path)
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(60_000, size=300))
    settings = {**OFTEN, "KINGUIN_REPLAY__DELIVERY_TIMEOUT_S": "3"}
    process = bench.start("topic", target, source, "--execute", "--max-records-per-s", "10000", settings=settings)
    path = receipt_of(bench, process)
    wait_for_checkpoints(path, 3, process)
    with paused(broker.pid):
        _, talk = process.communicate(timeout=120)
    assert process.returncode == 1, talk
    assert "replay resume" in talk
    process = bench.start("resume", path.stem, settings={**OFTEN, "KINGUIN_REPLAY__DELIVERY_TIMEOUT_S": "60"})
    wait_for_checkpoints(path, path.read_bytes().count(b'"kind":"checkpoint"') + 2, process)
    os.kill(broker.pid, signal.SIGKILL)
    kafka_factory(tmp_path / "broker")
    _, talk = process.communicate(timeout=180)
    assert process.returncode == 0, talk
    assert_each_once(bench, source, target, bench.done("show", path.stem), 60_000)


@pytest.mark.faults
@pytest.mark.timeout(1_800)
def test_a_million_records_killed_three_times(bench: Bench) -> None:
    source, target = bench.topic("source", 6), bench.topic("target", 6)
    count = 1_000_000
    bench.produce(source, numbered(count, size=300), **{"queue.buffering.max.messages": 100_000, "linger.ms": 20})
    said = killed_and_resumed(bench, source, target, {"KINGUIN_REPLAY__CHECKPOINT_RECORDS": "60000"}, KILLS)
    assert said["proof"]["holds"]
    assert said["written"]["records"] == count
    there = sources(bench.each(target))
    assert (len(there), max(there.values())) == (count, 1)
    assert digests(bench.each(target)) == digests(bench.each(source))  # the same order in each partition, too
