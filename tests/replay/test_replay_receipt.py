"""A receipt says what is true, whenever its process dies, and has one owner."""

from pathlib import Path

import pytest

from kinguin_streams.replay import receipt as receipts
from kinguin_streams.replay.checksum import Tally
from kinguin_streams.replay.plan import Destination, Plan
from kinguin_streams.replay.receipt import Checkpoint, Gap, Proof, Receipt
from kinguin_streams.telemetry.operator_error import OperatorError

PLAN = Plan(replay_id="01a2", made_at_ms=0, windows=(), destination=Destination(kind="topic", name="t"))
TALLY = Tally(2, 10, "0f" * 16)


def checkpoint(offset: int) -> Checkpoint:
    return Checkpoint(positions={"a.b/0": offset}, written=TALLY, mark={"ends": {"0": offset}})


def finished(folder: Path) -> Path:
    receipt = Receipt.create(folder, PLAN)
    receipt.begun()
    receipt.checkpoint(checkpoint(1))
    receipt.gap(Gap(topic="a.b", partition=0, start=1, end=3))
    receipt.checkpoint(checkpoint(7), undecodable=2)
    receipt.written()
    receipt.proven(Proof(written=TALLY, found=TALLY, target="t"))
    receipt.close()
    return receipt.path


def test_it_says_what_was_noted(tmp_path: Path) -> None:
    contents = receipts.read(finished(tmp_path))
    assert contents.plan == PLAN
    assert contents.checkpoint is not None
    assert contents.checkpoint.offsets() == {("a.b", 0): 7}
    assert (contents.state, contents.undecodable, contents.runs, len(contents.gaps)) == ("done", 2, 1, 1)


def test_a_process_may_die_at_any_byte(tmp_path: Path) -> None:
    """What was noted whole holds, what was not is cut, and it can be written on."""
    whole = finished(tmp_path / "whole").read_bytes()
    path = tmp_path / "cut.jsonl"
    first_line = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        receipt = Receipt.open(path)
        try:
            if length < first_line:
                with pytest.raises(OperatorError) as empty:
                    receipt.contents()
                assert empty.value.code == "receipt_empty"
                continue
            before = receipt.contents()
            lines = whole[:length].count(b"\n")
            assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:lines])
            receipt.checkpoint(checkpoint(99))
            after = receipt.contents()
            assert after.checkpoint == checkpoint(99)
            assert (after.plan, after.runs, after.gaps) == (before.plan, before.runs, before.gaps)
        finally:
            receipt.close()


def test_garbage_at_the_end_is_cut_as_a_power_failure_leaves_it(tmp_path: Path) -> None:
    path = finished(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)
    assert receipts.read(path).state == "done"
    Receipt.open(path).close()
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_refused_with_its_line(tmp_path: Path) -> None:
    path = finished(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[2:]]))
    with pytest.raises(OperatorError, match="line 3") as damaged:
        receipts.read(path)
    assert damaged.value.code == "receipt_damaged"


def test_it_says_whether_anything_came_after_the_last_checkpoint(tmp_path: Path) -> None:
    receipt = Receipt.create(tmp_path, PLAN)
    said = []
    for note in (receipt.begun, receipt.interrupted, receipt.begun, receipt.written):
        note()
        said.append(receipt.contents().at_rest)
    receipt.failed("x")
    assert (said, receipt.contents().at_rest) == ([False, True, False, True], False)
    receipt.close()


def test_it_has_one_owner(tmp_path: Path) -> None:
    owner = Receipt.create(tmp_path, PLAN)
    with pytest.raises(OperatorError) as owned:
        Receipt.open(owner.path)
    assert owned.value.code == "receipt_owned"
    assert receipts.read(owner.path).plan == PLAN  # anybody may look
    owner.close()
    Receipt.open(owner.path).close()


def test_it_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    path = finished(tmp_path)
    for name in ("01a2", "01", "01a2.jsonl", str(path)):
        assert receipts.find(tmp_path, name) == path
    (tmp_path / "01b.jsonl").touch()
    with pytest.raises(OperatorError) as several:
        receipts.find(tmp_path, "01")
    assert several.value.code == "receipt_ambiguous"
    with pytest.raises(OperatorError) as none:
        receipts.find(tmp_path, "99")
    assert none.value.code == "no_receipt"


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError) as refused:
        Receipt.create(tmp_path / "file", PLAN)
    assert refused.value.code == "receipt_not_writable"
