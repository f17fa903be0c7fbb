"""What is missing stops a rebuild before anything behind it is in the new state, however often it is run again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.replay import file_source
from kinguin_streams.replay.container_files import ContainerWriter
from kinguin_streams.replay.file_source import FileSource
from kinguin_streams.replay.plan import Window
from kinguin_streams.replay.rebuild import Files, Rebuild
from kinguin_streams.replay.receipt import Gap, Positions
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.windows import EARLIEST, LATEST, parse_bounds, windows
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import state_settings
from tests.replay.test_replay_filters import order_status

TOPIC = "kinguin.order.status"
RECORDS = [order_status(order=f"O{number}", offset=number) for number in range(30)]


class Topic:
    """A topic of one partition, and what retention leaves of it."""

    def __init__(self, end: int = 30, earliest: int = 0) -> None:
        self.end, self.earliest = end, earliest
        self.deletes: dict[int, int] = {}  # when a reader has come to this offset, what is before that one is deleted

    def windows(self) -> Sequence[Window]:
        return [
            Window(
                topic=TOPIC,
                partition=0,
                start=self.earliest,
                end=self.end,
                earliest=self.earliest,
                latest=self.end,
                gone=self.earliest,
            )
        ]

    def source(self, made: Sequence[Window]) -> "Reading":
        return Reading(self, made)


class Reading:
    """A Source over it: as replay/topic_source.py, it notes what is gone before it yields what is left."""

    def __init__(self, topic: Topic, made: Sequence[Window]) -> None:
        self._topic, self._windows = topic, made
        self.gaps: list[Gap] = []

    def read(self, start: Positions) -> Iterator[Sequence[Record]]:
        assert not start
        for window in self._windows:
            position = window.start
            while position < window.end:
                self._topic.earliest = max(self._topic.earliest, self._topic.deletes.pop(position, 0))
                if position < self._topic.earliest:
                    self.gaps.append(Gap(topic=TOPIC, partition=0, start=position, end=self._topic.earliest))
                    position = self._topic.earliest
                    continue
                yield RECORDS[position : position + 1]
                position += 1

    def close(self) -> None:
        pass


def exported(folder: Path) -> list[Path]:
    """Write the records into three files of two blocks each."""
    folder.mkdir()
    writer = ContainerWriter(folder, TOPIC, 0)
    for begin in range(0, 30, 5):
        writer.write(RECORDS[begin : begin + 5])
        writer.sync()  # ends a block
        if begin % 10:
            writer.close()
    return list(writer.close())


def damage(path: Path) -> bytes:
    """Flip a bit of the last block; return what was there."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    return whole


def rebuilding(
    state: StateSettings,
    folder: Path | None = None,
    topic: Topic | None = None,
    *,
    allow_gaps: bool = False,
    batch_records: int = 10_000,
) -> Rebuild:
    topic = topic or Topic(end=0)
    return Rebuild(
        ORDER_STATE,
        state=state,
        decoder=Decoder(),
        expected={TOPIC: "order.status"},
        identity=lambda: ("the-cluster", {TOPIC: "the-topic"}),
        windows=topic.windows,
        source=topic.source,
        files=None if folder is None else files(folder),
        allow_gaps=allow_gaps,
        batch_records=batch_records,
    )


def files(folder: Path) -> Files:
    found = file_source.find([folder])
    facts = file_source.partition_facts(found)
    whole = windows(facts, parse_bounds((), 0, EARLIEST), parse_bounds((), 0, LATEST))
    parts = tuple(TopicPart(each.topic, each.partition) for each in facts)
    return Files("the same", parts, FileSource(found, whole), tuple(facts))


def orders(state: StateSettings) -> set[str]:
    return {view.order_id for view in reader.order_views(state.url)}


@pytest.mark.parametrize("batch_records", [3, 10_000], ids=["small batches", "a batch over all files"])
def test_a_damaged_file_refuses_each_run_and_a_restored_one_lets_it_go_on(tmp_path: Path, batch_records: int) -> None:
    state = state_settings(tmp_path)
    first, *_ = exported(tmp_path / "files")
    whole = damage(first)
    for _run in range(3):
        with pytest.raises(OperatorError) as refused:
            rebuilding(state, tmp_path / "files", batch_records=batch_records).run()
        assert refused.value.code == "files_damaged"
        assert "offsets 5 to 9" in refused.value.what
        assert orders(state) == set(), "something was swapped in"
    first.write_bytes(whole)
    done = rebuilding(state, tmp_path / "files", batch_records=batch_records).run()
    assert (done.swapped is not None, done.resumed, done.applied, done.gaps) == (True, True, 25, 0)
    assert orders(state) == {f"O{number}" for number in range(30)}


def test_a_damage_in_the_last_file_refuses_each_run_too(tmp_path: Path) -> None:
    state = state_settings(tmp_path)
    *_, last = exported(tmp_path / "files")
    damage(last)
    for _run in range(2):
        with pytest.raises(OperatorError, match="offsets 25 to 29"):
            rebuilding(state, tmp_path / "files").run()
    assert orders(state) == set()


def test_what_was_allowed_to_be_missing_is_counted(tmp_path: Path) -> None:
    state = state_settings(tmp_path)
    damage(exported(tmp_path / "files")[0])
    done = rebuilding(state, tmp_path / "files", allow_gaps=True).run()
    assert (done.swapped is not None, done.applied, done.gaps) == (True, 25, 5)


def test_a_missing_file_refuses_each_run(tmp_path: Path) -> None:
    state = state_settings(tmp_path)
    _, middle, _ = exported(tmp_path / "files")
    middle.unlink()
    for _run in range(2):
        with pytest.raises(OperatorError) as refused:
            rebuilding(state, tmp_path / "files").run()
        assert refused.value.code == "files_damaged"
        assert "offsets 10 to 19" in refused.value.what
    assert orders(state) == set()
    done = rebuilding(state, tmp_path / "files", allow_gaps=True).run()
    assert (done.swapped is not None, done.applied, done.gaps) == (True, 10, 10)


@pytest.mark.parametrize("batch_records", [3, 10_000], ids=["small batches", "one batch"])
def test_what_retention_deletes_while_it_is_read_refuses_each_run(tmp_path: Path, batch_records: int) -> None:
    state, topic = state_settings(tmp_path), Topic()
    topic.deletes[10] = 20
    for _run in range(3):
        with pytest.raises(OperatorError) as refused:
            rebuilding(state, topic=topic, batch_records=batch_records).run()
        assert refused.value.code == "history_gone"
        assert "offsets 10 to 19" in refused.value.what
        assert orders(state) == set(), "something was swapped in"
    done = rebuilding(state, topic=topic, batch_records=batch_records, allow_gaps=True).run()
    assert (done.swapped is not None, done.applied, done.gaps) == (True, 10, 10)
    assert len(orders(state)) == 20


def test_what_retention_deletes_between_two_rounds_refuses_too(tmp_path: Path) -> None:
    state, topic = state_settings(tmp_path), Topic(end=10)
    first = rebuilding(state, topic=topic).run(compare=1)
    assert (first.applied, first.swapped) == (10, None)
    topic.end, topic.earliest = 30, 15
    with pytest.raises(OperatorError, match="offsets 10 to 14"):
        rebuilding(state, topic=topic).run()
    assert orders(state) == set()


def test_what_retention_deletes_before_the_first_record_is_read_refuses_too(tmp_path: Path) -> None:
    state, topic = state_settings(tmp_path), Topic(earliest=5)
    with pytest.raises(OperatorError, match="offsets 0 to 4"):
        rebuilding(state, topic=topic).run()
    assert orders(state) == set()


def test_a_build_that_has_read_what_is_gone_goes_on(tmp_path: Path) -> None:
    state, topic = state_settings(tmp_path), Topic(end=10)
    rebuilding(state, topic=topic).run(compare=1)
    topic.end, topic.earliest = 30, 10
    done = rebuilding(state, topic=topic).run()
    assert (done.swapped is not None, done.gaps, len(orders(state))) == (True, 0, 30)


@pytest.mark.parametrize("reached", [0, 10], ids=["before its first record", "in the middle"])
def test_what_the_files_have_may_be_deleted_meanwhile(tmp_path: Path, reached: int) -> None:
    state, topic = state_settings(tmp_path), Topic()
    exported(tmp_path / "files")
    topic.deletes[reached] = 20
    done = rebuilding(state, tmp_path / "files", topic).run()
    assert (done.swapped is not None, done.gaps, len(orders(state))) == (True, 0, 30)


def test_a_partition_of_which_nothing_is_left_does_not_keep_the_rebuild_behind(tmp_path: Path) -> None:
    state, topic = state_settings(tmp_path), Topic()
    rebuilding(state, topic=topic).run()
    topic.earliest = 30
    done = rebuilding(state, topic=topic, allow_gaps=True).run()
    assert (done.swapped is not None, done.applied, done.gaps, orders(state)) == (True, 0, 30, set())


def test_the_files_may_have_all_that_a_partition_has_ever_had(tmp_path: Path) -> None:
    state, topic = state_settings(tmp_path), Topic()
    rebuilding(state, topic=topic).run()
    exported(tmp_path / "files")
    topic.earliest = 30
    done = rebuilding(state, tmp_path / "files", topic).run()
    assert (done.swapped is not None, done.gaps, len(orders(state))) == (True, 0, 30)
