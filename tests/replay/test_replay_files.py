"""Topic to files to a new topic: equal to the byte, resumable, and state is what it was. On a real Kafka."""

import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.replay import receipt as receipts
from kinguin_streams.schemas.events import OrderComplete, OrderStatus, RecordName
from tests.commands import COMMAND, clean_environment
from tests.conftest import KafkaCluster
from tests.consumers.deliveries import order_complete, order_status
from tests.consumers.kafka_streams import RunningLoop, Streams
from tests.replay.replay_topics import (
    ORIGIN_MS,
    Bench,
    digests,
    kill,
    numbered,
    receipt_of,
    wait_for_checkpoints,
    without_replay,
)

pytestmark = pytest.mark.kafka
RECORDS = 10_000
OFTEN = {"KINGUIN_REPLAY__CHECKPOINT_RECORDS": "600", "KINGUIN_REPLAY__BATCH_RECORDS": "160"}
formats = pytest.mark.parametrize("file_format", ["avro", "jsonl"])


@formats
def test_a_topic_comes_back_from_files_to_the_byte(bench: Bench, file_format: str) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(RECORDS))
    folder = str(bench.folder / "files")
    size = ("--max-file-bytes", "30000")
    planned = bench.done("file", folder, source, "--format", file_format, *size)
    assert (planned["records_at_most"], Path(folder).exists(), bench.receipts) == (RECORDS, False, [])
    exported = bench.done("file", folder, source, "--format", file_format, *size, "--execute")
    assert (exported["state"], exported["proof"]["holds"]) == ("done", True)
    assert len(list(Path(folder).iterdir())) > 3
    planned = bench.done("topic", target, "--source", folder)
    assert (planned["records_at_most"], planned["gone"]) == (RECORDS, 0)
    assert planned["bytes_estimated"] > 0
    back = bench.done("topic", target, "--source", folder, "--execute")
    assert (back["state"], back["proof"]["holds"]) == ("done", True)
    assert without_replay(bench.raw(target)) == bench.raw(source)
    assert back["written"] == exported["written"]


@pytest.mark.parametrize("file_format", ["avro", pytest.param("jsonl", marks=pytest.mark.faults)])
def test_an_export_killed_three_times_holds_each_record_once(bench: Bench, file_format: str) -> None:
    source = bench.topic("source")
    bench.produce(source, numbered(RECORDS))
    folder = bench.folder / "files"
    process = bench.start(
        *("file", str(folder), source, "--format", file_format, "--max-file-bytes", "30000", "--execute"),
        *("--max-records-per-s", "3000"),
        settings=OFTEN,
    )
    path = Path()
    for number in range(3):
        if number:
            process = bench.start("resume", path.stem, settings=OFTEN)
        path = receipt_of(bench, process)
        before = path.read_bytes().count(b'"kind":"checkpoint"')
        wait_for_checkpoints(path, before + 1 + number, process)
        kill(process)
        assert receipts.read(path).state == "interrupted", "it was done before it was killed: make it longer"
    resumed = bench.done("resume", path.stem)
    assert (resumed["state"], resumed["proof"]["holds"], resumed["runs"]) == ("done", True, 4)
    assert resumed["written"]["records"] == RECORDS
    assert not list(folder.glob("*.part"))
    target = bench.topic("target")
    assert bench.done("topic", target, "--source", str(folder), "--execute")["proof"]["holds"]
    assert without_replay(bench.raw(target)) == bench.raw(source)


def test_a_copy_from_files_killed_in_the_middle_goes_on(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(RECORDS))
    folder = str(bench.folder / "files")
    bench.done("file", folder, source, "--execute")
    bench.receipts[0].unlink()
    process = bench.start(
        "topic", target, "--source", folder, "--execute", "--max-records-per-s", "5000", settings=OFTEN
    )
    path = receipt_of(bench, process)
    wait_for_checkpoints(path, 3, process)
    kill(process)
    assert bench.done("resume", path.stem)["proof"]["holds"]
    assert without_replay(bench.raw(target)) == bench.raw(source)


def test_a_file_that_has_lost_its_end_gives_what_it_has_and_exits_1(bench: Bench) -> None:
    source, target = bench.topic("source", 1), bench.topic("target", 1)
    bench.produce(source, numbered(5_000))
    folder = bench.folder / "files"
    bench.done("file", str(folder), source, "--execute")
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-5_000])
    said = bench.done("topic", target, "--source", str(folder), "--execute", exit_code=1)
    (gap,) = said["gaps"]
    assert (gap["end"], said["proof"]["holds"]) == (5_000, True)
    assert "is damaged in block" in gap["why"]
    assert without_replay(bench.raw(target)) == bench.raw(source)[: gap["start"]]
    assert 0 < said["written"]["records"] == gap["start"] < 5_000


def test_the_gap_of_a_damaged_file_is_read_from_a_copy_of_it_by_what_the_warning_says(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(20_000))
    folder = bench.folder / "files"
    bench.done("file", str(folder), source, "--execute")
    path = folder / f"{source}.1.{0:020}.avro"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5_000])
    ended = bench.replay("topic", target, "--source", str(folder), "--execute")
    (gap,) = receipts.read(bench.receipts[-1]).gaps
    advice = f"{source} --from latest --from 1={gap.start} --until 1={gap.end}"
    assert (ended.returncode, advice in ended.stderr) == (1, True), ended.stderr
    path.write_bytes(whole)
    mended = bench.done("topic", target, *advice.split(), "--source", str(folder), "--execute")
    assert mended["written"]["records"] == gap.end - gap.start
    assert sorted(map(repr, without_replay(bench.raw(target)))) == sorted(map(repr, bench.raw(source)))


def test_two_topics_of_one_folder_go_back_each_into_its_own(bench: Bench) -> None:
    """What moves a cluster, and what restores a lost topic: one export of both, and one command for each."""
    sources = [bench.topic("a.one"), bench.topic("a.two")]
    for number, source in enumerate(sources):
        bench.produce(source, numbered(300, begin=1_000 * number))
    folder = str(bench.folder / "files")
    bench.done("file", folder, *sources, "--execute")
    targets = [bench.topic("b.one"), bench.topic("b.two")]
    mixed = bench.replay("topic", targets[0], "--source", folder, "--execute")
    assert (mixed.returncode, "would go into" in mixed.stderr) == (1, True), mixed.stderr
    unknown = bench.replay("topic", targets[0], targets[1], "--source", folder, "--execute")
    assert (unknown.returncode, f"nothing of {targets[1]}" in unknown.stderr) == (1, True), unknown.stderr
    for source, target in zip(sources, targets, strict=True):
        assert bench.raw(target) == []
        said = bench.done("topic", target, source, "--source", folder, "--execute")
        assert (said["written"]["records"], said["proof"]["holds"]) == (300, True)
    for source, target in zip(sources, targets, strict=True):
        assert without_replay(bench.raw(target)) == bench.raw(source)


def test_sources_are_topics_or_files_and_a_full_folder_is_refused(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(10))
    folder = str(bench.folder / "files")
    assert bench.replay("topic", target).returncode == 2
    assert bench.replay("topic", target, source, "--from", "99=5").returncode == 2
    missing = bench.replay("topic", target, "--source", folder)
    assert (missing.returncode, "no file or folder" in missing.stderr) == (1, True)
    bench.done("file", folder, source, "--execute")
    again = bench.replay("file", folder, source, "--execute")
    assert (again.returncode, "already" in again.stderr) == (1, True)
    filtered = bench.done("file", folder + "-2", "--source", folder, "--format", "jsonl", "--key", "key-1", "--execute")
    assert (filtered["written"]["records"], filtered["proof"]["holds"]) == (1, True)


def test_a_disk_that_takes_no_more_stops_the_export_and_resume_goes_on(bench: Bench) -> None:
    source = bench.topic("source", 1)
    bench.produce(source, numbered(RECORDS))
    folder = str(bench.folder / "files")
    arguments = [*COMMAND, "replay", "file", folder, source, "--format", "jsonl", "--execute"]
    limited = ["bash", "-c", 'ulimit -f 1000 && exec "$@"', "bash", *arguments]  # files of 1 MB at most
    environment = clean_environment({**bench.settings, **OFTEN})
    ended = subprocess.run(limited, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, "cannot be written" in ended.stderr) == (1, True), ended.stderr
    failed = receipts.read(bench.receipts[0])
    assert failed.state == "failed"
    assert failed.checkpoint is not None
    assert 0 < failed.checkpoint.written.records < RECORDS
    resumed = bench.done("resume", bench.receipts[0].stem)
    assert (resumed["written"]["records"], resumed["proof"]["holds"]) == (RECORDS, True)


def test_a_window_of_times_is_the_same_of_files_and_of_their_topic(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(2_000))
    folder = str(bench.folder / "files")
    bench.done("file", folder, source, "--execute")
    begin, end = (datetime.fromtimestamp((ORIGIN_MS + after) / 1000, UTC).isoformat() for after in (5_000, 12_000))
    times = ("--from", begin, "--until", end, "--exact")
    of_topic = bench.done("topic", target, source, *times)
    of_files = bench.done("topic", target, "--source", folder, *times)
    assert of_files["records"] == of_topic["records"] > 100
    assert (of_files["gone"], of_files["warnings"]) == (0, [])


def test_values_of_a_registry_that_nobody_can_look_up_do_not_come_back_under_another_meaning(bench: Bench) -> None:
    source, target, other = bench.topic("source", 1), bench.topic("order.status", 1), bench.topic("other", 1)
    bench.produce(source, [{"value": b"\x00\x00\x00\x00\x07\x02", "timestamp": 1_700_000_000_000}])
    folder = str(bench.folder / "files")
    assert bench.done("file", folder, source, "--execute")["proof"]["holds"]
    refused = bench.replay("topic", target, "--source", folder, "--execute")
    assert (refused.returncode, "by the id 7" in refused.stderr) == (1, True)
    assert bench.raw(target) == []
    assert bench.done("topic", other, "--source", folder, "--execute")["proof"]["holds"]  # there it may be anything


def test_state_from_files_is_the_state_of_the_original(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> None:
    """Orders out of order and twice, exported, brought into the topics of another prefix, and folded by the consumer."""
    original = Streams(kafka.bootstrap_servers, f"{topic_prefix}-a").make()
    copied = Streams(kafka.bootstrap_servers, f"{topic_prefix}-b").make()
    chance = random.Random(20201016)
    statuses = [
        order_status(
            chance.choice(("processing", "completed", "canceled", "refunded")), minute, order_id=f"ORDER{order}"
        )
        for order in range(200)
        for minute in range(6)
    ]
    completes = [order_complete(3, order_id=f"ORDER{order}") for order in range(0, 200, 3)]
    sent: list[OrderStatus | OrderComplete] = [*statuses, *completes, *statuses[:300]]
    chance.shuffle(sent)
    original.write(*sent)

    bench = Bench(kafka.bootstrap_servers, topic_prefix, tmp_path)
    folder = tmp_path / "archive"
    names: tuple[RecordName, ...] = ("order.status", "order.complete")
    bench.done("file", str(folder), *map(original.name, names), "--execute")
    for name in names:
        paths = folder.glob(f"{original.name(name)}.*.avro")
        sources = [argument for path in paths for argument in ("--source", str(path))]
        assert bench.done("topic", copied.name(name), *sources, "--execute")["proof"]["holds"]
        assert without_replay(bench.raw(copied.name(name))) == bench.raw(original.name(name))
    state = folded(original, tmp_path / "a")
    assert len(state) == 200
    assert folded(copied, tmp_path / "b") == state


def folded(streams: Streams, folder: Path) -> list[str]:
    """Return the state of all orders with their evidence, to the partition and offset; of topics' names, without the prefix."""
    folder.mkdir()
    running = RunningLoop(streams, folder)
    try:
        running.catch_up(streams.ends("order.status", "order.complete"))
    finally:
        running.stop()
    return [repr(view).replace(streams.prefix, "prefix") for view in reader.order_views(running.state.url)]


@pytest.mark.faults
@pytest.mark.timeout(1_800)
def test_a_million_records_killed_three_times_come_back_from_files_to_the_byte(bench: Bench) -> None:
    source, target = bench.topic("source", 6), bench.topic("target", 6)
    count = 1_000_000
    bench.produce(source, numbered(count, size=300), **{"queue.buffering.max.messages": 100_000, "linger.ms": 20})
    settings = {"KINGUIN_REPLAY__CHECKPOINT_RECORDS": "60000"}
    folder = bench.folder / "files"
    process = bench.start("file", str(folder), source, "--max-file-bytes", "2000000", "--execute", settings=settings)
    path = Path()
    for number in range(3):
        if number:
            process = bench.start("resume", path.stem, settings=settings)
        path = receipt_of(bench, process)
        wait_for_checkpoints(path, path.read_bytes().count(b'"kind":"checkpoint"') + 2, process)
        kill(process)
        assert receipts.read(path).state == "interrupted"
    resumed = bench.done("resume", path.stem)
    assert (resumed["written"]["records"], resumed["proof"]["holds"]) == (count, True)
    assert len(list(folder.glob("*.avro"))) > 6
    back = bench.done("topic", target, "--source", str(folder), "--execute")
    assert (back["written"], back["proof"]["holds"]) == (resumed["written"], True)
    assert digests(bench.each(target)) == digests(bench.each(source))
