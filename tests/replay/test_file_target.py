"""Files as target and source of a replay: nothing missing and nothing twice, wherever the process dies, and damage is a gap."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinguin_streams.replay import file_source
from kinguin_streams.replay.checksum import tally
from kinguin_streams.replay.file_names import FORMATS, Format
from kinguin_streams.replay.file_source import FileSource
from kinguin_streams.replay.file_target import FileTarget, refuse_occupied
from kinguin_streams.replay.filters import Filters
from kinguin_streams.replay.folder_claim import FolderClaim
from kinguin_streams.replay.part_file import PartFile
from kinguin_streams.replay.plan import Destination, Plan, Selection, Window
from kinguin_streams.replay.receipt import Gap, Positions, Receipt
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Watch, prove, run
from kinguin_streams.telemetry.operator_error import OperatorError

PARTITIONS, EACH = 3, 400
COUNTS = {"t.a": PARTITIONS}


def record(partition: int, offset: int) -> Record:
    return Record("t.a", partition, offset, 1_000 + offset, b"%d" % (offset % 9), b"v" * (offset % 50), (("n", None),))


RECORDS = [record(partition, offset) for offset in range(EACH) for partition in range(PARTITIONS)]
WINDOWS = tuple(
    Window(topic="t.a", partition=number, start=0, end=EACH, earliest=0, latest=EACH) for number in range(PARTITIONS)
)


class ListSource:
    """The records, in batches of several partitions."""

    gaps: Sequence[Gap] = ()

    def read(self, start: Positions) -> Iterator[Sequence[Record]]:
        left = [one for one in RECORDS if one.offset >= start.get(one[:2], 0)]
        for begin in range(0, len(left), 70):
            yield left[begin : begin + 70]

    def close(self) -> None:
        pass


class KilledError(Exception):
    """Stands for kill -9: no finally of ours may matter, so nothing is closed properly after it."""


def plan(folder: Path, **more: Any) -> Plan:
    return Plan(
        replay_id="r", made_at_ms=0, windows=WINDOWS, destination=Destination(kind="file", name=str(folder)), **more
    )


def passes_all() -> Filters:
    return Filters(Selection(), {}, undecoded)


def undecoded(_value: bytes | None) -> Any:
    raise AssertionError


def read_all(folder: Path) -> list[Record]:
    files = file_source.find([folder])
    windows = [
        Window(
            topic=facts.topic,
            partition=facts.partition,
            start=facts.earliest,
            end=facts.latest,
            earliest=facts.earliest,
            latest=facts.latest,
        )
        for facts in file_source.partition_facts(files)
    ]
    return [one for batch in FileSource(files, windows).read({}) for one in batch]


def written(folder: Path, file_format: Format = "avro", max_bytes: int = 10**9) -> list[Path]:
    """Write all records; return the files."""
    target = FileTarget(folder, COUNTS, "r", file_format=file_format, max_bytes=max_bytes)
    target.open(None)
    target.write(RECORDS)
    target.finish()
    return sorted(folder.iterdir())


STEPS = (
    *((PartFile, name) for name in ("append", "patch", "sync", "finish")),
    *((FolderClaim, name) for name in ("take", "release")),
)


@pytest.mark.parametrize("file_format", FORMATS)
@settings(max_examples=15, deadline=None)
@given(lives=st.lists(st.integers(0, 40), max_size=6), every=st.integers(100, 600), seed=st.integers(0, 1_000))
def test_wherever_the_process_dies_each_record_is_in_the_files_once(
    tmp_path_factory: pytest.TempPathFactory, file_format: Format, lives: list[int], every: int, seed: int
) -> None:
    """It dies before or after any write, sync or rename; of what was not synced, any part may be there."""
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("files") / "out"
    receipt = Receipt.create(tmp_path_factory.mktemp("r"), plan(folder))
    watch = Watch(checkpoint_records=every)
    for steps_to_live in [*lives, 10**6]:
        target = FileTarget(folder, COUNTS, "r", file_format=file_format, max_bytes=3_000)
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, steps_to_live, chance)
            try:
                run(ListSource(), target, passes_all(), receipt, watch)
                proof = prove(target, receipt, "files")
            except KilledError:
                target.close()
                receipt.close()
                receipt = Receipt.open(receipt.path)
                continue
        break
    receipt.close()
    assert proof is not None
    assert proof.holds
    assert {path.suffix for path in folder.iterdir()} == {f".{file_format}"}  # no part, no claim
    assert read_all(folder) == sorted(RECORDS)


def dying(patch: pytest.MonkeyPatch, steps: int, chance: random.Random) -> None:
    """Let the process die after so many steps of files; a write that it dies in may be there in part."""
    left = [steps]

    def wrap(kind: type, name: str) -> None:
        real = getattr(kind, name)

        def step(self: object, *arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if name == "append":
                    real(self, arguments[0][: chance.randrange(len(arguments[0]))])
                elif name in ("finish", "take", "release") and chance.random() < 0.5:
                    real(self)
                raise KilledError
            return real(self, *arguments)

        patch.setattr(kind, name, step)

    for kind, name in STEPS:
        wrap(kind, name)


def test_a_folder_that_holds_files_of_the_topic_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(OperatorError) as found:
        FileTarget(tmp_path, COUNTS, "other").open(None)
    assert found.value.code == "folder_occupied"
    FileTarget(tmp_path, {"another": 1}, "other").open(None)


def test_a_file_of_another_replay_is_never_removed(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "mine", COUNTS, "mine")
    target.open(None)
    mark = target.sync()
    (stranger, *_) = written(tmp_path / "other")
    moved = tmp_path / "mine" / stranger.name
    moved.write_bytes(stranger.read_bytes())
    with pytest.raises(OperatorError) as found:
        FileTarget(tmp_path / "mine", COUNTS, "mine").open(mark)
    assert found.value.code == "folder_changed"
    assert moved.exists()


@pytest.mark.parametrize("begun", [True, False], ids=["has no record yet", "died before its first checkpoint"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_folder_that_a_stopped_replay_goes_on_with_is_refused_to_others(
    file_format: Format, begun: bool, tmp_path: Path
) -> None:
    """It has no file yet that would say so."""
    first = FileTarget(tmp_path, COUNTS, "first", file_format=file_format)
    first.open(None)
    mark = first.sync() if begun else None
    first.close()
    for refused in (
        lambda: refuse_occupied(tmp_path, COUNTS),  # the plan
        lambda: FileTarget(tmp_path, {"a.first": 1, **COUNTS}, "second", file_format=file_format).open(None),
    ):
        with pytest.raises(OperatorError, match="replay first has begun to write") as found:
            refused()
        assert found.value.code == "folder_occupied"
        assert "replay resume first" in found.value.hint
    refuse_occupied(tmp_path, {"a.first": 1})  # what was claimed on the way is free again
    resumed = FileTarget(tmp_path, COUNTS, "first", file_format=file_format)
    resumed.open(mark)
    resumed.write(RECORDS)
    resumed.sync()
    resumed.finish()
    assert read_all(tmp_path) == sorted(RECORDS)
    assert not list(tmp_path.glob("*.claim"))


def test_a_resumed_replay_never_removes_lines_of_another(tmp_path: Path) -> None:
    """Somebody has deleted its claim, and let another replay write there."""
    first = FileTarget(tmp_path, COUNTS, "first", file_format="jsonl")
    first.open(None)
    mark = first.sync()
    first.close()
    (tmp_path / "t.a.claim").unlink()
    second = FileTarget(tmp_path, COUNTS, "second", file_format="jsonl")
    second.open(None)
    second.write(RECORDS)
    with pytest.raises(OperatorError, match="replay second writes") as found:
        FileTarget(tmp_path, COUNTS, "first", file_format="jsonl").open(mark)
    assert found.value.code == "folder_changed"
    second.sync()
    second.finish()
    with pytest.raises(OperatorError, match="is not of this replay") as found:
        FileTarget(tmp_path, COUNTS, "first", file_format="jsonl").open(mark)
    assert found.value.code == "folder_changed"
    assert read_all(tmp_path) == sorted(RECORDS)


def test_a_claim_that_was_cut_off_by_a_crash_is_nobodys_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "t.a.claim").touch()
    with pytest.raises(OperatorError, match="Another replay has begun") as found:
        FileTarget(tmp_path, COUNTS, "r").open(None)
    assert f"delete {tmp_path / 't.a.claim'}" in found.value.hint


def test_a_damaged_file_is_read_up_to_the_damage_and_the_rest_is_a_gap(tmp_path: Path) -> None:
    paths = written(tmp_path / "out", "jsonl", max_bytes=20_000)
    victim = next(
        path for path in paths if path.name.startswith("t.a.1.") and ".00000000000000000000." not in path.name
    )
    begin = int(victim.name.split(".")[-2])
    content = victim.read_bytes()
    lines = content.splitlines(keepends=True)
    victim.write_bytes(b"".join([*lines[:3], b"x" + lines[3], *lines[4:]]))
    files = file_source.find([tmp_path / "out"])
    end = next(file.next_offset for file in files if file.path == victim)
    source = FileSource(files, WINDOWS)
    target = FileTarget(tmp_path / "copy", COUNTS, "r")
    receipt = Receipt.create(tmp_path / "receipts", plan(tmp_path / "copy"))
    run(source, target, passes_all(), receipt)
    proof = prove(target, receipt, "copy")
    lost = [one for one in RECORDS if one.partition == 1 and begin + 3 <= one.offset < end]
    assert lost
    assert proof is not None
    assert proof.written == proof.found == tally([one for one in RECORDS if one not in lost])
    (gap,) = receipt.contents().gaps
    assert (gap.topic, gap.partition, gap.start, gap.end) == ("t.a", 1, begin + 3, end)
    assert "damaged in block 4" in gap.why
    receipt.close()


@pytest.mark.parametrize("records", [0, 3], ids=["in its first line", "in its fourth line"])
@pytest.mark.parametrize("which", [0, 1, -1], ids=["the first file", "a file in the middle", "the last file"])
def test_lines_cut_in_the_middle_of_one_are_read_up_to_it(which: int, records: int, tmp_path: Path) -> None:
    paths = [path for path in written(tmp_path / "out", "jsonl", max_bytes=20_000) if path.name.startswith("t.a.1.")]
    assert len(paths) > 2
    victim = paths[which]
    lines = victim.read_bytes().splitlines(keepends=True)
    victim.write_bytes(b"".join(lines[:records]) + lines[records][:20])
    good = int(victim.name.split(".")[-2]) + records
    files = file_source.find([tmp_path / "out"])
    windows, _oldest_ms = file_source.sampled(files, WINDOWS)
    source = FileSource(files, windows)
    found = [one for batch in source.read({}) for one in batch]
    lost = [one for one in RECORDS if one.partition == 1 and good <= one.offset < good + len(lines) - records]
    assert found == sorted(one for one in RECORDS if one not in lost)
    gap = source.gaps[0]
    # How many lines stood behind it, the last file cannot say.
    end = good + 1 if victim == paths[-1] else good + len(lines) - records
    assert (gap.topic, gap.partition, gap.start, gap.end) == ("t.a", 1, good, end)
    assert f"damaged in block {records + 1}" in gap.why
    assert f"The {records} records before it are good" in gap.why


@pytest.mark.parametrize("file_format", FORMATS)
def test_files_are_described_without_reading_their_records(file_format: Format, tmp_path: Path) -> None:
    written(tmp_path, file_format)
    files = file_source.find([tmp_path])
    assert [(file.name[:2], file.name.first_offset, file.next_offset) for file in files] == [
        (("t.a", number), 0, EACH) for number in range(PARTITIONS)
    ]
    assert file_source.partition_counts(files) == COUNTS


def test_only_the_windows_are_read_and_from_where_a_resumed_replay_is(tmp_path: Path) -> None:
    written(tmp_path, max_bytes=5_000)
    windows = [Window(topic="t.a", partition=1, start=100, end=300, earliest=0, latest=EACH)]
    source = FileSource(file_source.find([tmp_path]), windows)
    assert [one for batch in source.read({}) for one in batch] == [record(1, offset) for offset in range(100, 300)]
    rest = [one for batch in source.read({("t.a", 1): 250}) for one in batch]
    assert rest == [record(1, offset) for offset in range(250, 300)]


def test_sources_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    (one, *_) = written(tmp_path / "a")
    empty = tmp_path / "empty"
    empty.mkdir()
    overlaps = tmp_path / "b" / one.name.replace("00.avro", "07.avro")
    overlaps.parent.mkdir()
    overlaps.write_bytes(one.read_bytes())
    part = tmp_path / "c" / (one.name + ".part")
    part.parent.mkdir()
    part.write_bytes(one.read_bytes())
    strange = tmp_path / "orders.avro"
    strange.write_bytes(one.read_bytes())
    for paths, code in (
        ([tmp_path / "nothing"], "source_missing"),
        ([empty], "source_empty"),
        ([one, overlaps], "source_overlaps"),
        ([part.parent], "source_incomplete"),
        ([part], "source_incomplete"),
        ([strange], "file_not_ours"),
    ):
        with pytest.raises(OperatorError) as found:
            file_source.find(paths)
        assert found.value.code == code


def test_a_file_under_another_partitions_name_is_not_read(tmp_path: Path) -> None:
    paths = written(tmp_path)
    paths[0].rename(paths[2])
    with pytest.raises(OperatorError, match="its name is not that of"):
        read_all(tmp_path)
