"""Faults 51, 55 and 58 once more, met by a replay or a rebuild instead of by a consumer. On a real Kafka."""

import json
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from kinguin_streams.consumers import database, derived, reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.replay import receipt as receipts
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, running_loop, wait_until
from tests.consumers.test_consumer_faults import produce, set_topic
from tests.consumers.test_derived_topics import relaying, topic_reader, verified
from tests.replay.replay_topics import ORIGIN_MS, Bench, kill, receipt_of, sources, wait_for_checkpoints
from tests.replay.test_consumer_target import settings_of
from tests.replay.test_rebuild import hasty

pytestmark = pytest.mark.kafka

APP = """
import os
from kinguin_streams.consumers.app import App
from kinguin_streams.schemas.events import OrderStatus

app = App("mine")

@app.on(OrderStatus)
def take(event, context):
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{event.order_id} {context.partition} {context.offset}\\n")
"""


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make()


def handled(folder: Path) -> list[tuple[str, int, int]]:
    """Return what the handler of APP was called with: order, partition, offset."""
    file = folder / "seen"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(order_id, int(partition), int(offset)) for order_id, partition, offset in map(str.split, lines)]


def done(settings: dict[str, str], *arguments: str, exit_code: int = 0) -> dict[str, Any]:
    """Run `kinguin-streams replay` with --json, and return what it prints."""
    ended = run(settings, "replay", *arguments, "--json")
    assert ended.returncode == exit_code, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


# 51: a poison record


def write_one_bad_in_a_thousand(streams: Streams) -> int:
    """Write 999 orders and a record that is none, somewhere between them in partition 0; return its offset."""
    topic = streams.name("order.status")
    streams.write(*(order_status("processing", order_id=f"O{number}") for number in range(500)))
    offset = streams.ends("order.status")[topic, 0]
    streams.write_bytes("order.status", [b"no Avro"])
    streams.write(*(order_status("processing", order_id=f"O{number}") for number in range(500, 999)))
    return offset


def test_row_51_a_replay_dead_letters_one_bad_record_in_a_thousand_as_its_consumer_would_and_a_rebuild_counts_it(
    streams: Streams, state: StateSettings, tmp_path: Path
) -> None:
    bad_offset = write_one_bad_in_a_thousand(streams)
    settings = settings_of(streams, tmp_path, state)
    StateStore(state, ORDER_STATE).close()
    said = done(settings, "consumer", "order-state", "--execute")
    assert (said["state"], said["written"]["records"], said["undecodable"]) == ("done", 1_000, 0)
    assert reader.orders_by_status(state.url) == {"processing": 999}
    [letter] = streams.dead_letters()
    assert (letter.source_topic, letter.source_partition, letter.source_offset) == (streams.name("order.status"), 0, bad_offset)  # fmt: skip
    assert (letter.origin, letter.consumer, letter.reason) == ("consumer", "order-state", "unknown_frame")
    assert (letter.body, letter.source_key) == (b"no Avro", b"poison")

    # Its own consumer meets the record too: it is the same dead letter, that one redrive settles.
    with running_loop(streams, tmp_path, state=state) as loop:
        loop.catch_up(streams.ends("order.status"))
        assert loop.loop.dead_lettered == 1
    assert [each.dead_letter_id for each in streams.dead_letters()] == [letter.dead_letter_id] * 2

    rebuilt = done(settings, "rebuild", "order-state", "--execute")
    assert (rebuilt["applied"], rebuilt["unreadable"], rebuilt["gaps"]) == (1_000, 1, 0)
    assert (rebuilt["swapped"]["generation"], rebuilt["swapped"]["vanished"]) == (2, 0)
    assert reader.orders_by_status(state.url) == {"processing": 999}
    assert len(streams.dead_letters()) == 2, "the live consumer has dead-lettered it when it came"


@pytest.mark.parametrize("into", ["handlers", "a projection"])
def test_row_51_a_dead_letter_that_kafka_refuses_stops_the_replay_and_resume_begins_with_that_record(
    streams: Streams, tmp_path: Path, into: str
) -> None:
    bad_offset = write_one_bad_in_a_thousand(streams)
    (tmp_path / "mine.py").write_text(APP)
    name = f"{tmp_path / 'mine.py'}:app" if into == "handlers" else "order-state"
    state = state_settings(tmp_path)
    StateStore(state, ORDER_STATE).close()
    settings = settings_of(streams, tmp_path, KINGUIN_REPLAY__BATCH_RECORDS="20")
    set_topic(streams, "dead-letter", max_message_bytes=100)
    refused = run(settings, "replay", "consumer", name, "--execute")
    assert (refused.returncode, "stops instead of skipping it" in refused.stderr) == (1, True), refused.stderr
    [receipt] = (tmp_path / "receipts").iterdir()
    contents = receipts.read(receipt)
    assert (contents.state, (contents.failure or "").partition(":")[0]) == ("failed", "dead_letter_refused")
    assert streams.dead_letters() == []
    position = (streams.name("order.status"), 0)
    assert contents.checkpoint is None or contents.checkpoint.offsets().get(position, 0) <= bad_offset
    assert not any(partition == 0 and offset >= bad_offset for _, partition, offset in handled(tmp_path))

    set_topic(streams, "dead-letter", max_message_bytes=262_144)
    said = done(settings, "resume", str(receipt))
    assert (said["state"], said["runs"], said["written"]["records"]) == ("done", 2, 1_000)
    assert {each.source_offset for each in streams.dead_letters()} == {bad_offset}
    if into == "handlers":
        assert {order_id for order_id, *_ in handled(tmp_path)} == {f"O{number}" for number in range(999)}
    else:
        assert reader.orders_by_status(state.url) == {"processing": 999}


# 55: keys and compaction

QUICKLY_COMPACTED = {
    "segment_ms": "50",
    "min_cleanable_dirty_ratio": "0.001",
    "max_compaction_lag_ms": "50",
    "min_compaction_lag_ms": "0",
    "delete_retention_ms": "0",
}
ODD_KEYS = (b"", b"\xff\xfe not UTF-8", b"k" * 1_000_000)


def versions(key: bytes | None, *values: bytes) -> list[dict[str, Any]]:
    return [{"key": key, "value": value, "timestamp": ORIGIN_MS, "partition": 0} for value in values]


def test_row_55_a_record_without_a_key_stops_a_copy_into_a_compacted_topic_and_other_odd_keys_outlive_compaction(
    bench: Bench,
) -> None:
    bench.clean_often()
    source = bench.topic("source", 1, max_message_bytes="3000000")
    target = bench.topic("target", 1, cleanup_policy="compact", max_message_bytes="3000000", **QUICKLY_COMPACTED)
    keyed = [record for key in ODD_KEYS for record in versions(key, b"old", b"new")]
    offset = len(keyed)  # of the one without
    bench.produce(
        source, [*keyed, *versions(None, b"no key"), *versions(b"behind", b"it")], **{"message.max.bytes": 3_000_000}
    )
    too_large = bench.replay("topic", target, source, "--execute")
    assert (too_large.returncode, f"{source}/0/4 cannot be written" in too_large.stderr) == (1, True), too_large.stderr
    roomy = {"KINGUIN_KAFKA__CONFIG": '{"message.max.bytes": 3000000}'}
    refused = bench.replay("resume", bench.receipts[0].stem, settings=roomy)
    assert (refused.returncode, f"{source}/0/{offset} has no key" in refused.stderr) == (1, True), refused.stderr
    assert f"--from latest --from 0={offset + 1}" in refused.stderr
    around = ("--from", "latest", "--from", f"0={offset + 1}", "--execute")
    assert bench.done("topic", target, source, *around)["written"]["records"] == 1

    def is_compacted() -> bool:
        bench.produce(target, [{"key": b"roll", "value": b"."}])  # it closes the segment before it
        return sum(record[2] != b"roll" for record in bench.raw(target)) == len(ODD_KEYS) + 1

    wait_until(is_compacted, "each key to be there once", timeout_s=60)
    left = {record[2]: record[3] for record in bench.raw(target) if record[2] != b"roll"}
    assert left == {**dict.fromkeys(ODD_KEYS, b"new"), b"behind": b"it"}


@pytest.mark.faults
def test_row_55_a_rebuild_over_odd_keys_is_the_state_and_so_is_its_topic_after_forced_compaction(
    kafka: KafkaCluster, topic_prefix: str, state: StateSettings, bench: Bench, tmp_path: Path
) -> None:
    """The live state was made by a fold with a bug, so that the rebuild has something to tell of every order."""
    bench.clean_often()
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=1).make()
    topic, encode = streams.name("order.status"), Encoder().encode
    odd = {None: "odd-0", b"": "odd-1", b"\xff\xfe not UTF-8": "odd-2", b"k" * 200_000: "odd-3"}
    for key, order_id in odd.items():
        for minute, status in enumerate(("processing", "canceled")):
            assert produce(streams, topic, key, encode(order_status(status, minute, order_id=order_id))) is None
    streams.write(*(order_status("canceled", order_id=f"O{number}") for number in range(20)))
    set_topic(streams, "order.state", **QUICKLY_COMPACTED)
    keys = {f"default:{order_id}".encode() for order_id in (*odd.values(), *(f"O{number}" for number in range(20)))}

    def held() -> list[Any]:
        with topic_reader(streams) as made:
            return list(made.read({}, made.end_offsets([streams.name("order.state")])))

    with (
        running_loop(streams, tmp_path, replace(ORDER_STATE, fold=hasty), state=state) as loop,
        relaying(streams, state),
    ):
        loop.catch_up(streams.ends("order.status"))
        wait_until(lambda: verified(streams, state).waiting == 0, "all told")
    assert reader.orders_by_status(state.url) == {"refunded": 24}
    said = done(settings_of(streams, tmp_path, state), "rebuild", "order-state", "--execute")
    assert said["swapped"] == {"before": 1, "generation": 2, "told": 24, "vanished": 0}
    assert reader.orders_by_status(state.url) == {"canceled": 24}

    with running_loop(streams, tmp_path, state=state) as loop, relaying(streams, state):
        wait_until(lambda: verified(streams, state).waiting == 0, "all told")
        assert {message.key() for message in held()} == keys

        def is_compacted() -> bool:
            # A record more closes the segment; only closed ones are compacted.
            streams.write(order_status("canceled", time.monotonic() % 1_000, order_id="O0"))
            loop.catch_up(streams.ends("order.status"))
            counted = Counter(message.key() for message in held())
            return all(number == 1 for key, number in counted.items() if key != b"default:O0")

        wait_until(is_compacted, "the cleaner to have gone over all closed segments", 60)
        wait_until(lambda: verified(streams, state).waiting == 0, "all told")
    assert {message.key() for message in held()} == keys
    assert verified(streams, state) == derived.Comparison(24, 0, ())
    with topic_reader(streams) as made:
        told = derived.read_derived(made, streams.name("order.state"), Decoder())
    assert {key: each.status for key, each in told.items()} == dict.fromkeys(map(bytes.decode, keys), "canceled")  # type: ignore[union-attr]


# 58: retention passes what was to be read next


def test_row_58_what_retention_takes_behind_the_checkpoint_of_a_killed_copy_is_told_and_exits_1(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    count, partition = 3_000, 1
    bench.produce(
        source,
        [{"value": b"%d" % n, "partition": n % 3, "timestamp": ORIGIN_MS, "key": b"%d" % n} for n in range(count)],
    )
    quickly = {"KINGUIN_REPLAY__CHECKPOINT_RECORDS": "200", "KINGUIN_REPLAY__BATCH_RECORDS": "50"}
    process = bench.start("topic", target, source, "--execute", "--max-records-per-s", "900", settings=quickly)
    path = receipt_of(bench, process)
    wait_for_checkpoints(path, 4, process)
    kill(process)
    start, cut = overtaken(path, source, partition, count // 3)
    bench.delete_before(source, {partition: cut})
    said = bench.done("resume", path.stem, exit_code=1)
    assert [(gap["topic"], gap["partition"], gap["start"], gap["end"]) for gap in said["gaps"]] == [
        (source, partition, start, cut)
    ]
    assert said["proof"]["holds"], "what was there is in the target"
    there = sources(bench.raw(target))
    # Of the gap, what the killed process had written before.
    missing = {b"%s/%d/%d" % (source.encode(), n % 3, n // 3) for n in range(count)} - there.keys()
    assert set(there.values()) == {1}
    assert 0 < len(missing) == cut - start - said["vanished"]
    assert missing <= {b"%s/%d/%d" % (source.encode(), partition, offset) for offset in range(start, cut)}
    assert said["written"]["records"] == count - len(missing)


def overtaken(receipt: Path, topic: str, partition: int, end: int) -> tuple[int, int]:
    """Return where a killed replay goes on in the partition, and an offset a good deal behind that."""
    contents = receipts.read(receipt)
    assert contents.state == "interrupted", "it was done before it was killed"
    assert contents.checkpoint is not None
    start = contents.checkpoint.offsets().get((topic, partition), 0)
    cut = start + (end - start) * 3 // 4
    assert start < cut < end, "it had read all of the partition"
    return start, cut


@pytest.mark.parametrize("into", ["handlers", "a projection"])
def test_row_58_what_retention_takes_behind_the_checkpoint_of_a_killed_replay_into_a_consumer_is_told_and_exits_1(
    streams: Streams, tmp_path: Path, into: str
) -> None:
    orders = 1_500
    streams.write(*(order_status("completed", order_id=f"O{number}") for number in range(orders)))
    topic, ends = streams.name("order.status"), streams.ends("order.status")
    (tmp_path / "mine.py").write_text(APP)
    name = f"{tmp_path / 'mine.py'}:app" if into == "handlers" else "order-state"
    state = state_settings(tmp_path)
    StateStore(state, ORDER_STATE).close()
    settings = settings_of(
        streams, tmp_path, KINGUIN_REPLAY__CHECKPOINT_RECORDS="100", KINGUIN_REPLAY__BATCH_RECORDS="20"
    )
    command = [*COMMAND, "replay", "consumer", name, "--max-records-per-s", "400", "--execute"]
    with subprocess.Popen(command, env=clean_environment(settings), stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: any((tmp_path / "receipts").glob("*.jsonl")), "a receipt", timeout_s=60)
            [receipt] = (tmp_path / "receipts").iterdir()
            wait_until(lambda: receipt.read_bytes().count(b'"kind":"checkpoint"') >= 4, "some checkpoints")
        finally:
            process.send_signal(signal.SIGKILL)
    partition = max(range(3), key=lambda number: ends[topic, number] - _begun(receipt, topic, number))
    start, cut = overtaken(receipt, topic, partition, ends[topic, partition])
    streams.delete_records("order.status", partition, cut)
    said = done(settings, "resume", str(receipt), exit_code=1)
    assert [(gap["topic"], gap["partition"], gap["start"], gap["end"]) for gap in said["gaps"]] == [
        (topic, partition, start, cut)
    ]
    assert (said["state"], said["written"]["records"]) == ("done", orders - (cut - start))
    if into == "handlers":
        found = {(at, offset) for _, at, offset in handled(tmp_path)}
        everything = {(at, offset) for (_, at), end in ends.items() for offset in range(end)}
        assert everything - found <= {(partition, offset) for offset in range(start, cut)}
        missing = len(everything - found)
    else:
        missing = orders - sum(1 for _ in reader.order_views(state.url))
    assert 0 < missing <= cut - start


def _begun(receipt: Path, topic: str, partition: int) -> int:
    checkpoint = receipts.read(receipt).checkpoint
    return 0 if checkpoint is None else checkpoint.offsets().get((topic, partition), 0)


def built(state: StateSettings) -> dict[int, int]:
    """Return how far a rebuild has come in each partition of its topic."""
    ask = "SELECT o.partition, o.next_offset FROM projection_offset o JOIN projection_build b ON o.generation = b.generation"
    engine = database.open_for_reading(state)
    try:
        with engine.connect() as connection:
            return {int(partition): int(offset) for partition, offset in connection.execute(text(ask))}
    finally:
        engine.dispose()


def test_row_58_a_killed_rebuild_that_retention_has_passed_refuses_to_go_on_until_gaps_are_allowed(
    streams: Streams, state: StateSettings, tmp_path: Path
) -> None:
    orders = 1_500
    streams.write(*(order_status("completed", order_id=f"O{number}") for number in range(orders)))
    topic, ends = streams.name("order.status"), streams.ends("order.status")
    with running_loop(streams, tmp_path, state=state) as loop:
        loop.catch_up(ends)
    settings = settings_of(streams, tmp_path, state)
    slow = clean_environment({**settings, "KINGUIN_CONSUMER__BATCH_RECORDS": "10"})
    command = [*COMMAND, "replay", "rebuild", "order-state", "--execute"]
    with subprocess.Popen(command, env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: sum(built(state).values()) >= 100, "a part of it", timeout_s=60)
        finally:
            process.send_signal(signal.SIGKILL)
    before = built(state)
    assert sum(before.values()) < orders, "it was done before it could be killed"
    partition = max(range(3), key=lambda number: ends[topic, number] - before.get(number, 0))
    cut = before.get(partition, 0) + 50
    assert cut < ends[topic, partition]
    streams.delete_records("order.status", partition, cut)

    for _attempt in range(2):
        refused = run(settings, "replay", "rebuild", "order-state", "--execute")
        assert (refused.returncode, refused.stdout, "--allow-gaps" in refused.stderr) == (1, "", True), refused.stderr
    assert reader.orders_by_status(state.url) == {"completed": orders}, "the live state is as it was"
    assert built(state).get(partition, 0) == before.get(partition, 0), "nothing behind the gap was taken in"

    said = done(settings, "rebuild", "order-state", "--execute", "--allow-gaps")
    assert (said["resumed"], said["gaps"]) == (True, 50)
    assert (said["swapped"]["generation"], said["swapped"]["vanished"]) == (2, 50)
    assert reader.orders_by_status(state.url) == {"completed": orders - 50}


def test_row_58_a_state_that_retention_has_overtaken_is_made_whole_by_a_rebuild_from_files(
    streams: Streams, state: StateSettings, tmp_path: Path
) -> None:
    topic = streams.name("order.status")
    streams.write(*(order_status("processing", order_id=f"O{number}") for number in range(60)))
    with running_loop(streams, tmp_path, state=state) as loop:
        loop.catch_up(streams.ends("order.status"))
    streams.write(*(order_status("completed", 1, order_id=f"O{number}") for number in range(60)))
    settings, files = settings_of(streams, tmp_path, state), tmp_path / "files"
    assert done(settings, "file", str(files), topic, "--execute")["proof"]["holds"]
    ends = streams.ends("order.status")
    for (_, partition), end in ends.items():
        streams.delete_records("order.status", partition, end - 1)
    with running_loop(streams, tmp_path, state=state) as loop:
        failure = loop.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code == "offset_out_of_range"
    assert reader.orders_by_status(state.url) == {"processing": 60}, "nothing was skipped in silence"

    said = done(settings, "rebuild", "order-state", "--source", str(files), "--execute")
    assert (said["gaps"], said["swapped"]["vanished"]) == (0, 0)
    streams.write(*(order_status("refunded", 2, order_id=f"O{number}") for number in range(30)))
    with running_loop(streams, tmp_path, state=state) as loop:
        loop.catch_up(streams.ends("order.status"))
    assert reader.orders_by_status(state.url) == {"completed": 30, "refunded": 30}
    assert {len(view.facts) for view in reader.order_views(state.url)} == {2, 3}
