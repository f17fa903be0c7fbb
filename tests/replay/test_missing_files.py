"""A file that is missing between two others is found, and what compaction has left out between them is not taken for one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from kinguin_streams.replay import container_files, file_source
from kinguin_streams.replay.container_files import ContainerWriter, read_header_of
from kinguin_streams.replay.file_source import FileSource
from kinguin_streams.replay.file_target import FileTarget
from kinguin_streams.replay.filters import Filters
from kinguin_streams.replay.json_lines import JsonLinesWriter
from kinguin_streams.replay.plan import Destination, Plan, Selection, Window
from kinguin_streams.replay.receipt import Gap, Receipt
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.rolled_writer import RolledWriter
from kinguin_streams.replay.run import prove, run
from kinguin_streams.replay.survey import Survey
from kinguin_streams.replay.topic_plan import Planner, Wanted
from kinguin_streams.replay.windows import EARLIEST, LATEST, Bounds, PartitionFacts, refuse_gaps
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.replay.file_records import PARTITION, TOPIC, made

WINDOW = Window(topic=TOPIC, partition=PARTITION, start=0, end=300, earliest=0, latest=300)


def three_files(folder: Path, records: Sequence[Record], kind: type[RolledWriter] = ContainerWriter) -> list[Path]:
    """Write one file for each hundred offsets, as an export that is killed and resumed twice does."""
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    mark = None
    for begin in range(0, 300, 100):
        writer = kind(folder, TOPIC, PARTITION, max_bytes=1, mark=mark)
        writer.write([record for record in records if begin <= record.offset < begin + 100])
        mark = writer.sync()
        paths += writer.close()
    return paths


def found_holes(folder: Path) -> list[tuple[int, int, bool]]:
    return [(hole.start, hole.end, hole.is_sure) for hole in file_source.holes(file_source.find([folder]))]


def test_a_container_says_where_the_one_before_it_ended(tmp_path: Path) -> None:
    paths = three_files(tmp_path, [record for record in made(300) if not 95 <= record.offset < 103])
    assert [read_header_of(path).follows for path in paths] == [None, 95, 200]


def test_what_was_never_written_between_two_files_is_no_hole(tmp_path: Path) -> None:
    three_files(tmp_path, [record for record in made(300) if not 95 <= record.offset < 103])
    assert found_holes(tmp_path) == []
    (facts,) = file_source.partition_facts(file_source.find([tmp_path]))
    assert facts.covers(0, 300)


@pytest.mark.parametrize(
    ("kind", "is_sure"),
    [
        pytest.param(ContainerWriter, True, id="the next container says that it is missing"),
        pytest.param(JsonLinesWriter, False, id="of lines nobody knows"),
    ],
)
def test_a_missing_file_is_a_hole(kind: type[RolledWriter], is_sure: bool, tmp_path: Path) -> None:
    _, middle, _ = three_files(tmp_path, made(300), kind)
    assert found_holes(tmp_path) == []
    middle.unlink()
    assert found_holes(tmp_path) == [(100, 200, is_sure)]


def test_a_hole_before_a_container_of_an_earlier_version_may_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_files, "FOLLOWS", "kinguin.of_no_version")
    three_files(tmp_path, [record for record in made(300) if not 95 <= record.offset < 103])
    monkeypatch.undo()
    assert found_holes(tmp_path) == [(95, 103, False)]


def test_the_files_of_two_exports_have_a_hole_where_they_do_not_meet(tmp_path: Path) -> None:
    for begin in (0, 150, 200):
        writer = ContainerWriter(tmp_path, TOPIC, PARTITION)
        writer.write(made(50, begin))
        writer.close()
    assert found_holes(tmp_path) == [(50, 150, False)]


@pytest.mark.parametrize("kind", [ContainerWriter, JsonLinesWriter])
@pytest.mark.parametrize(
    ("earliest", "is_refused"),
    [
        pytest.param(100, False, id="the files have all that is gone"),
        pytest.param(101, True, id="one record of the hole is gone"),
        pytest.param(250, True, id="the hole is gone"),
    ],
)
def test_what_lies_in_a_hole_of_the_files_is_not_covered_by_them(
    kind: type[RolledWriter], earliest: int, is_refused: bool, tmp_path: Path
) -> None:
    _, middle, _ = three_files(tmp_path, made(300), kind)
    middle.unlink()
    facts = file_source.partition_facts(file_source.find([tmp_path]))
    window = Window(
        topic=TOPIC, partition=PARTITION, start=earliest, end=400, earliest=earliest, latest=400, gone=earliest
    )
    if not is_refused:
        refuse_gaps([window], facts)
        return
    with pytest.raises(OperatorError) as refused:
        refuse_gaps([window], facts)
    assert refused.value.code == "history_gone"


def test_what_is_covered_is_what_lies_outside_of_the_holes() -> None:
    facts = PartitionFacts(topic="t", partition=0, earliest=10, latest=50, holes=((20, 25), (30, 31)))
    assert [span for span in ((10, 20), (25, 30), (31, 50), (15, 15)) if not facts.covers(*span)] == []
    assert [span for span in ((9, 12), (19, 21), (24, 26), (10, 50), (30, 31), (40, 51)) if facts.covers(*span)] == []


def test_a_copy_of_files_with_a_missing_one_is_a_copy_with_a_gap(tmp_path: Path) -> None:
    _, middle, last = three_files(tmp_path / "files", made(300))
    middle.unlink()
    files = file_source.find([tmp_path / "files"])
    made_plan = Plan(
        replay_id="r", made_at_ms=0, windows=(WINDOW,), destination=Destination(kind="file", name=str(tmp_path))
    )
    receipt = Receipt.create(tmp_path / "receipts", made_plan)
    target = FileTarget(tmp_path / "copy", {TOPIC: PARTITION + 1}, "r")
    run(FileSource(files, [WINDOW]), target, Filters(Selection(), {}, undecoded), receipt)
    prove(target, receipt, "copy")
    why = f"{last.name} follows a file that ended at offset 200, and it is not here"
    assert receipt.contents().gaps == (Gap(topic=TOPIC, partition=PARTITION, start=100, end=200, why=why),)
    receipt.close()


@pytest.mark.parametrize(
    ("start", "end", "gap"),
    [
        pytest.param(0, 300, [(100, 200)], id="all of it"),
        pytest.param(150, 180, [(150, 180)], id="what the window has of it"),
        pytest.param(200, 300, [], id="none behind it"),
        pytest.param(0, 100, [], id="none before it"),
    ],
)
def test_a_missing_file_is_a_gap_where_its_records_are_wanted(
    start: int, end: int, gap: list[tuple[int, int]], tmp_path: Path
) -> None:
    _, middle, _ = three_files(tmp_path, made(300))
    middle.unlink()
    window = Window(topic=TOPIC, partition=PARTITION, start=start, end=end, earliest=0, latest=300)
    source = FileSource(file_source.find([tmp_path]), [window])
    for batch in source.read({}):
        assert batch[-1].offset < 100 or [(one.start, one.end) for one in source.gaps] == gap
    assert [(one.start, one.end) for one in source.gaps] == gap


def test_a_plan_warns_of_what_the_files_may_lack(tmp_path: Path) -> None:
    _, middle, _ = three_files(tmp_path, made(300), JsonLinesWriter)
    middle.unlink()
    planner = Planner(cast("Survey", None), no_source, no_filters)  # files are planned without asking a cluster
    wanted = Wanted(
        topics=(),
        since=Bounds(EARLIEST),
        until=Bounds(LATEST),
        now_ms=0,
        files=tuple(file_source.find([tmp_path])),
    )
    (warning,) = planner.reading(wanted).warnings
    assert warning.startswith(f"{TOPIC}/{PARTITION}: no file has offsets 100 to 199")


def undecoded(_value: bytes | None) -> Any:
    raise AssertionError


def no_source(_windows: object) -> Any:
    raise AssertionError


def no_filters(_selection: object, _windows: object) -> Any:
    raise AssertionError
