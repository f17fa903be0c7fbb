"""The order of a run's steps, with a target that dies wherever it can."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinguin_streams.replay.checksum import Tally, tally
from kinguin_streams.replay.filters import Filters
from kinguin_streams.replay.plan import Destination, PaceLimit, Plan, Selection, Window
from kinguin_streams.replay.receipt import Gap, Receipt
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import StoppedWriting, Watch, prove, recall, run
from kinguin_streams.telemetry.operator_error import OperatorError

PARTITIONS, EACH = 3, 40
RECORDS = [
    Record("t", partition, offset, 1_000 + offset, b"%d" % (offset % 7), b"%d/%d" % (partition, offset), ())
    for offset in range(EACH)
    for partition in range(PARTITIONS)
]


class KilledError(Exception):
    """The process is gone: nothing after this line of it ever ran."""


class ListSource:
    """A Source over a list."""

    gaps: Sequence[Gap] = ()

    def __init__(self, records: Sequence[Record] = RECORDS) -> None:
        self._records = records

    def read(self, start: Any) -> Iterator[Sequence[Record]]:
        left = [record for record in self._records if record.offset >= start.get((record.topic, record.partition), 0)]
        for begin in range(0, len(left), 8):
            yield left[begin : begin + 8]

    def close(self) -> None:
        pass


class Landed(dict[tuple[str, int, int], Record]):
    """What was found."""

    def take(self, position: tuple[str, int, int]) -> Tally | None:
        return tally([self.pop(position)]) if position in self else None

    def leave(self, below: Any = None) -> Tally:
        return tally([self.pop(place) for place in list(self) if below is None or place[2] < below.get(place[:2], 0)])


class DyingTarget:
    """A Target whose process is killed after so many calls; what was in flight has landed in part."""

    def __init__(self, lying: list[Record], calls_to_live: int, chance: random.Random) -> None:
        self.lying, self._calls, self._chance = lying, calls_to_live, chance
        self._in_flight: list[Record] = []
        self._scan_from = 0
        self._landed = Landed()

    def _call(self) -> None:
        self._calls -= 1
        if self._calls < 0:
            self.lying += [record for record in self._in_flight if self._chance.random() < 0.5]
            raise KilledError

    def open(self, mark: Any) -> Landed:
        self._call()
        self._scan_from = 0 if mark is None else mark["end"]
        self._landed = (
            Landed() if mark is None else Landed({record[:3]: record for record in self.lying[mark["end"] :]})
        )
        return self._landed

    def carried(self, records: Sequence[Record]) -> Sequence[Record]:
        return records

    def write(self, records: Sequence[Record]) -> None:
        self._in_flight += records
        self._call()

    def sync(self) -> dict[str, Any]:
        self._call()
        self.lying += self._in_flight
        self._in_flight = []
        self._call()
        if not self._landed:
            self._scan_from = len(self.lying)
        return {"end": self._scan_from}

    def finish(self) -> None:
        pass

    def read_back(self) -> Iterator[Sequence[Record]]:
        yield self.lying

    def close(self) -> None:
        pass


def plan(**more: Any) -> Plan:
    windows = tuple(
        Window(topic="t", partition=number, start=0, end=EACH, earliest=0, latest=EACH) for number in range(PARTITIONS)
    )
    return Plan(replay_id="r", made_at_ms=0, windows=windows, destination=Destination(kind="list", name="list"), **more)


def undecoded(_value: bytes | None) -> Any:
    raise AssertionError


SOME_KEYS = Selection(keys=("1", "5"))
NOTHING_FILTERED = Filters(Selection(), {}, undecoded)


@settings(max_examples=60, deadline=None)
@given(
    lives=st.lists(st.integers(0, 25), max_size=6),
    every=st.integers(1, 60),
    keys=st.sampled_from([(), ("1", "4")]),
    seed=st.integers(0, 1_000),
)
def test_each_selected_record_gets_there_once_wherever_the_process_dies(
    tmp_path_factory: pytest.TempPathFactory, lives: list[int], every: int, keys: tuple[str, ...], seed: int
) -> None:
    selection = Selection(keys=keys)
    receipt = Receipt.create(tmp_path_factory.mktemp("r"), plan(selection=selection))
    lying: list[Record] = []
    watch = Watch(checkpoint_records=every)
    expected = [record for record in RECORDS if not keys or (record.key or b"").decode() in keys]
    for calls_to_live in [*lives, 1_000]:
        target = DyingTarget(lying, calls_to_live, random.Random(seed))
        try:
            moved = run(ListSource(), target, Filters(selection, {}, undecoded), receipt, watch)
        except KilledError:
            receipt.close()
            receipt = Receipt.open(receipt.path)
            continue
        break
    assert sorted(lying) == sorted(expected)
    assert moved.written == tally(expected)
    assert moved.read == tally(RECORDS)
    proof = prove(target, receipt, "list")
    assert proof is not None
    assert proof.holds
    assert receipt.contents().state == "done"
    receipt.close()


@settings(max_examples=60, deadline=None)
@given(
    lives=st.lists(st.integers(4, 25), min_size=1, max_size=4),
    every=st.integers(20, 60),
    lost=st.sets(st.sampled_from(RECORDS), max_size=60),
    seed=st.integers(0, 1_000),
)
def test_what_the_source_loses_after_it_was_written_counts_as_written(
    tmp_path_factory: pytest.TempPathFactory, lives: list[int], every: int, lost: set[Record], seed: int
) -> None:
    receipt = Receipt.create(tmp_path_factory.mktemp("r"), plan())
    lying: list[Record] = []
    left: Sequence[Record] = RECORDS
    for calls_to_live in [*lives, 1_000]:
        target = DyingTarget(lying, calls_to_live, random.Random(seed))
        try:
            moved = run(ListSource(left), target, NOTHING_FILTERED, receipt, Watch(checkpoint_records=every))
        except KilledError:
            left = [record for record in RECORDS if record not in lost]  # retention comes by while nobody runs
            receipt.close()
            receipt = Receipt.open(receipt.path)
            continue
        break
    assert len(set(lying)) == len(lying)
    assert set(left) <= set(lying)
    proof = prove(target, receipt, "list")
    assert proof is not None
    assert proof.holds
    assert moved.written == tally(lying)
    assert moved.vanished.records <= len(lost)
    receipt.close()


def test_who_stops_it_finds_it_at_a_checkpoint(tmp_path: Path) -> None:
    receipt = Receipt.create(tmp_path, plan())
    asked: list[int] = []
    lying: list[Record] = []

    def stop() -> bool:
        asked.append(len(asked))
        return len(asked) >= 3

    moved = run(
        ListSource(),
        DyingTarget(lying, 1_000, random.Random(1)),
        Filters(Selection(), {}, undecoded),
        receipt,
        Watch(stop=stop),
    )
    contents = receipt.contents()
    assert (moved.interrupted, contents.state, len(lying)) == (True, "interrupted", 24)
    assert contents.checkpoint is not None
    assert contents.checkpoint.written == tally(RECORDS[:24])
    receipt.close()


def test_who_stops_it_while_a_record_waits_finds_all_before_that_record_at_a_checkpoint(tmp_path: Path) -> None:
    class WaitingTarget(DyingTarget):
        """Takes all of partition 0, and of the others what is below offset 5, until it is asked again."""

        def write(self, records: Sequence[Record]) -> None:
            left = [record for record in records if record.partition and record.offset >= 5]
            super().write([record for record in records if record not in left])
            if left:
                raise StoppedWriting({record[:2]: record.offset for record in reversed(left)})

    receipt = Receipt.create(tmp_path, plan(selection=SOME_KEYS))
    lying: list[Record] = []
    filters = Filters(SOME_KEYS, {}, undecoded)
    moved = run(ListSource(), WaitingTarget(lying, 999, random.Random(1)), filters, receipt)
    assert (moved.interrupted, receipt.contents().state) == (True, "interrupted")
    assert moved.written == tally(lying)
    moved = run(ListSource(), DyingTarget(lying, 999, random.Random(1)), Filters(SOME_KEYS, {}, undecoded), receipt)
    expected = [record for record in RECORDS if record.key in (b"1", b"5")]
    assert sorted(lying) == sorted(expected)
    assert (moved.written, moved.read) == (tally(expected), tally(RECORDS))
    receipt.close()


def test_what_was_selected_before_a_kill_is_known_again_without_reading_the_target() -> None:
    selection = Selection(distinct=1_000)
    events = [record._replace(headers=(("ce_type", b"net.kinguin.x"), ("ce_id", record.key))) for record in RECORDS]
    before, after = Filters(selection, {}, undecoded), Filters(selection, {}, undecoded)
    before.split(events[:30])
    after.undecodable = 3
    assert recall(ListSource(events[:30]), after, lambda: False)
    assert after.split(events)[0] == before.split(events)[0]
    assert after.undecodable == 3
    assert not recall(ListSource(events), after, lambda: True)


def test_a_failure_is_in_the_receipt_and_can_be_resumed(tmp_path: Path) -> None:
    class FullTarget(DyingTarget):
        def write(self, _records: Sequence[Record]) -> None:
            raise OperatorError("not_delivered", "No room.", "Make some.")

    receipt = Receipt.create(tmp_path, plan())
    with pytest.raises(OperatorError):
        run(ListSource(), FullTarget([], 99, random.Random(1)), Filters(Selection(), {}, undecoded), receipt)
    assert (receipt.contents().state, receipt.contents().failure) == ("failed", "not_delivered: No room.")
    lying: list[Record] = []
    run(ListSource(), DyingTarget(lying, 999, random.Random(1)), Filters(Selection(), {}, undecoded), receipt)
    assert sorted(lying) == sorted(RECORDS)
    receipt.close()


def test_a_proof_that_does_not_hold_says_so(tmp_path: Path) -> None:
    receipt = Receipt.create(tmp_path, plan())
    lying: list[Record] = []
    target = DyingTarget(lying, 1_000, random.Random(1))
    run(ListSource(), target, Filters(Selection(), {}, undecoded), receipt)
    lying[3] = lying[3]._replace(value=b"another")
    proof = prove(target, receipt, "list")
    assert proof is not None
    assert not proof.holds
    assert receipt.contents().state == "differs"
    receipt.close()


def test_a_pace_is_kept_by_waiting_in_naps(tmp_path: Path) -> None:
    receipt = Receipt.create(tmp_path, plan(pace=PaceLimit(max_records_per_s=40)))
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        assert seconds <= 0.1
        now_s += seconds

    lying: list[Record] = []
    run(
        ListSource(),
        DyingTarget(lying, 1_000, random.Random(1)),
        Filters(Selection(), {}, undecoded),
        receipt,
        Watch(clock=lambda: now_s, sleep=sleep),
    )
    assert len(lying) == PARTITIONS * EACH
    assert now_s == pytest.approx(3.0, abs=0.2)
    receipt.close()
