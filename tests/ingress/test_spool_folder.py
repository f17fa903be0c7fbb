"""The spool as a folder: files of the dead beside one's own, and what is wrong with one is no matter of the others."""

import contextlib
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinguin_streams.ingress import spool as spool_module
from kinguin_streams.ingress.settings import SpoolSettings
from kinguin_streams.ingress.spool import Spool
from kinguin_streams.ingress.spool_file import SpoolFailed, SpoolFile, look
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.telemetry.operator_error import OperatorError


def record(number: int) -> OutgoingRecord:
    return OutgoingRecord("kinguin.order.status", f"key-{number}".encode(), b"v", (), 1_700_000_000_000 + number)


def leave_behind(path: Path, *numbers: int) -> None:
    with SpoolFile(path) as file:
        for number in numbers:
            file.append(record(number), 5).result(5)


def test_files_of_the_dead_are_taken_over_and_offered_before_ones_own(tmp_path: Path) -> None:
    leave_behind(tmp_path / "a.spool", 1)
    leave_behind(tmp_path / "b.spool", 2, 3)
    spool = Spool(SpoolSettings(path=tmp_path))
    try:
        assert spool.waiting == 3
        while (found := spool.oldest(10)) is not None:
            file, waiting = found
            file.remove([spooled.id for spooled in waiting])
        spool.adopt()
        assert len(list(tmp_path.glob("*.spool"))) == 1  # the one that is its own now
    finally:
        spool.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_leaves_a_new_one_all_its_room_and_all_its_time(tmp_path: Path) -> None:
    leave_behind(tmp_path / "a.spool", *range(100))
    with contextlib.closing(sqlite3.connect(tmp_path / "a.spool")) as hand:
        hand.execute("UPDATE spooled SET spooled_at_ms = 1, value = zeroblob(20000)")
        hand.commit()
    leave_behind(tmp_path / "b.spool")
    SpoolFile(tmp_path / "b.spool").close(delete_if_empty=False)
    spool = Spool(SpoolSettings(path=tmp_path, max_bytes=1_048_576))
    try:
        assert [file.path.name for file in spool.files()] == ["a.spool", "b.spool"]  # an empty one is taken as its own
        assert spool.trouble() is None
        spool.append(record(1)).result(5)
        assert spool.waiting == 101
    finally:
        spool.close()


def test_a_full_disk_with_leftovers_is_no_reason_not_to_start(small_disk: Path) -> None:
    folder = small_disk / "spool"
    folder.mkdir()
    leave_behind(folder / "a.spool", 1)
    # As a kill leaves it: what SQLite needs beside the file is there, and the room that is kept.
    with SpoolFile(folder / "a.spool"):
        fill_up(small_disk / "of somebody else")
        kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    fill_up(small_disk / "of somebody else")
    spool = Spool(SpoolSettings(path=folder))
    try:
        found = spool.oldest(10)
        assert found is not None
        found[0].remove([spooled.id for spooled in found[1]])
        assert spool.waiting == 0
    finally:
        spool.close()


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b"no database at all, but a file of that name" * 100, id="another kind of file"),
        pytest.param(b"SQLite format 3\x00" + b"\x00" * 5_000, id="a database that begins well"),
    ],
)
def test_a_file_that_is_no_spool_is_left_as_it_is_and_holds_up_no_other(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "a.spool").write_bytes(broken)
    leave_behind(tmp_path / "b.spool", 1)
    spool = Spool(SpoolSettings(path=tmp_path))
    try:
        found = spool.oldest(10)
        assert found is not None
        assert [spooled.record for spooled in found[1]] == [record(1)]
        spool.append(record(2)).result(5)
    finally:
        spool.close()
    assert (tmp_path / "a.spool").read_bytes() == broken


def test_a_file_that_cannot_be_opened_now_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "OPEN_AGAIN_AFTER_S", 0.2)
    leave_behind(tmp_path / "a.spool", 1)
    (tmp_path / "a.lock").unlink()
    (tmp_path / "a.lock").mkdir()  # no lock can be taken
    spool = Spool(SpoolSettings(path=tmp_path))
    try:
        assert (spool.waiting, spool.unreadable) == (0, frozenset({tmp_path / "a.spool"}))
        (tmp_path / "a.lock").rmdir()
        time.sleep(0.25)
        spool.adopt()
        assert (spool.waiting, spool.unreadable) == (1, frozenset())
    finally:
        spool.close()


def test_a_file_that_cannot_be_read_further_on_holds_up_no_other(tmp_path: Path) -> None:
    leave_behind(tmp_path / "a.spool", 1)
    leave_behind(tmp_path / "b.spool", 2)
    with contextlib.closing(sqlite3.connect(tmp_path / "b.spool")) as hand:
        hand.execute("UPDATE spooled SET headers = x'c1'")
        hand.commit()
    spool = Spool(SpoolSettings(path=tmp_path))
    try:
        found = spool.oldest(10)
        assert found is not None
        assert [spooled.record for spooled in found[1]] == [record(1)]
        assert spool.trouble() is None
    finally:
        spool.close()
    assert look(tmp_path / "b.spool").records == 1


def test_the_spool_is_bounded_by_its_bytes_and_takes_again_once_drained(tmp_path: Path) -> None:
    spool = Spool(SpoolSettings(path=tmp_path, max_bytes=1_048_576))
    large = OutgoingRecord("t", b"k", b"v" * 100_000, (), 0)  # eleven are over a mebibyte
    try:
        for _ in range(11):
            spool.append(large).result(5)
        with pytest.raises(SpoolFailed) as failed:
            spool.append(large)
        assert failed.value.code == "full"
        assert "KINGUIN_SPOOL__MAX_BYTES" in str(failed.value)
        assert spool.contents.bytes < 1_300_000
        found = spool.oldest(100)
        assert found is not None
        found[0].remove([spooled.id for spooled in found[1]])
        spool.append(large).result(5)
    finally:
        spool.close()


def test_the_spool_takes_nothing_once_its_oldest_event_is_too_old_but_what_kafka_refused_does_not_count(
    tmp_path: Path,
) -> None:
    spool = Spool(SpoolSettings(path=tmp_path, max_age_s=0.5))
    try:
        file = spool.files()[-1]
        file.refuse(spool.append(record(1)).result(5), "too large")
        time.sleep(0.6)
        spool.append(record(2)).result(5)
        spool.append(record(3)).result(5)
        time.sleep(0.6)
        with pytest.raises(SpoolFailed, match="KINGUIN_SPOOL__MAX_AGE_S"):
            spool.append(record(4))
    finally:
        spool.close()


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs at /dev/shm")
def test_row_65_a_folder_that_a_restart_empties_is_refused_where_durability_is_required() -> None:
    folder = Path("/dev/shm") / f"kinguin-test-{os.getpid()}"
    try:
        with pytest.raises(OperatorError) as refused:
            Spool(SpoolSettings(path=folder, require_durable=True))
        assert refused.value.code == "spool_not_durable"
        Spool(SpoolSettings(path=folder)).close()  # elsewhere it is a warning
    finally:
        folder.rmdir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder that is a file system of its own, of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def fill_up(file: Path) -> None:
    """Leave no room on the disk."""
    with file.open("ab", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


def test_a_full_disk_is_drained_while_every_request_asks_whether_it_has_room(small_disk: Path) -> None:
    """What is given back for a DELETE must not be taken again by those who only ask."""
    spool = Spool(SpoolSettings(path=small_disk / "spool"))
    file, ended = spool.files()[-1], threading.Event()

    def ask() -> None:
        while not ended.wait(0.0005):
            spool.trouble()

    asking = [threading.Thread(target=ask) for _ in range(4)]
    try:
        with contextlib.suppress(SpoolFailed):
            while True:
                spool.append(OutgoingRecord("t", b"k", b"v" * 1_000, (), 0)).result(5)
        fill_up(small_disk / "of somebody else")
        for thread in asking:
            thread.start()
        for _ in range(10):
            file.remove([spooled.id for spooled in file.oldest(1_000)])
            fill_up(small_disk / "of somebody else")
    finally:
        ended.set()
        for thread in asking:
            thread.join()
        spool.close()


def test_room_that_a_full_disk_did_not_have_is_taken_once_there_is_some(small_disk: Path) -> None:
    fill_up(small_disk / "of somebody else")
    os.truncate(small_disk / "of somebody else", 20 * 1024 * 1024)  # four are left: too few for the reserve
    spool = Spool(SpoolSettings(path=small_disk / "spool"))
    try:
        assert "is full" in str(spool.trouble())
        (small_disk / "of somebody else").unlink()
        until_s = time.monotonic() + 5
        while spool.trouble() is not None:
            assert time.monotonic() < until_s
            time.sleep(0.05)
        spool.append(record(1)).result(5)
    finally:
        spool.close()
