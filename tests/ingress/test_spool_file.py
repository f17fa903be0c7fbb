"""One spool file: what `append` has returned is on disk, in order, and nobody else's."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kinguin_streams.ingress import spool_file
from kinguin_streams.ingress.spool_file import FileTaken, SpoolFailed, SpoolFile, is_owned, look, read_only
from kinguin_streams.schemas.outgoing import OutgoingRecord


def record(number: int = 0, size: int = 20) -> OutgoingRecord:
    headers = (("ce_id", f"id-{number}".encode()), ("ce_id", b"\xff\x00"))
    return OutgoingRecord(
        "kinguin.order.status", f"key-{number}".encode(), b"v" * size, headers, 1_700_000_000_000 + number
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.spool"


def test_records_come_back_as_they_were_oldest_first(path: Path) -> None:
    with SpoolFile(path) as file:
        for number in range(5):
            file.append(record(number), 5).result(5)
        assert [spooled.record for spooled in file.oldest(3)] == [record(0), record(1), record(2)]
        assert [spooled.record for spooled in file.oldest(100)] == [record(number) for number in range(5)]


def test_many_threads_share_the_disk_and_none_is_forgotten(path: Path) -> None:
    with SpoolFile(path) as file:
        with ThreadPoolExecutor(16) as pool:
            ids = list(pool.map(lambda number: file.append(record(number), 10).result(10), range(500)))
        assert len(set(ids)) == 500
        assert {spooled.record.key for spooled in file.oldest(1_000)} == {record(n).key for n in range(500)}
        assert (file.contents.records, file.contents) == (500, look(path))


def test_what_is_removed_is_gone_and_the_counts_follow(path: Path) -> None:
    with SpoolFile(path) as file:
        ids = [file.append(record(number, size=1000), 5).result(5) for number in range(10)]
        file.remove(ids[:7])
        file.remove([])
        file.remove(ids[:2])  # again: nothing happens
        assert [spooled.id for spooled in file.oldest(100)] == ids[7:]
        assert file.contents == look(path)
        assert 3_000 < file.contents.bytes < 4_000
        file.remove(ids[7:])
        assert (file.contents.records, file.contents.bytes, file.contents.oldest_ms) == (0, 0, None)


def test_an_id_is_never_used_twice(path: Path) -> None:
    with SpoolFile(path) as file:
        first = file.append(record(), 5).result(5)
        file.remove([first])
        assert file.append(record(), 5).result(5) > first


def test_what_kafka_refused_is_kept_for_a_person_and_not_offered_again(path: Path) -> None:
    with SpoolFile(path) as file:
        bad, good = file.append(record(1), 5).result(5), file.append(record(2), 5).result(5)
        file.refuse(bad, "MSG_SIZE_TOO_LARGE")
        file.refuse(bad, "MSG_SIZE_TOO_LARGE, said twice")
        assert [spooled.id for spooled in file.oldest(100)] == [good]
        assert [(spooled.id, spooled.refused) for spooled in read_only(path)] == [
            (bad, "MSG_SIZE_TOO_LARGE, said twice"),
            (good, None),
        ]
        assert (file.contents.records, file.contents.refused) == (2, 1)
        file.remove([bad, good])
        assert file.contents.refused == 0


def test_a_record_whose_report_is_awaited_is_not_offered_and_goes_as_the_report_says(path: Path) -> None:
    with SpoolFile(path) as file:
        landed, lost = (file.append(record(number), 5, awaited=True).result(5) for number in (1, 2))
        last = file.append(record(3), 5).result(5)
        assert [spooled.id for spooled in file.oldest(2)] == [last]
        file.report_came(landed, delivered=True)
        file.report_came(lost, delivered=False)
        file.remove([last])  # what was handed over before it has been done
        assert [spooled.id for spooled in file.oldest(100)] == [lost]
        assert file.contents == look(path)


def test_what_is_left_is_there_at_the_next_start_awaited_or_not(path: Path) -> None:
    with SpoolFile(path) as file:
        file.append(record(1), 5, awaited=True).result(5)
        file.append(record(2), 5).result(5)
        before = file.contents
    with SpoolFile(path) as again:
        assert again.contents == before
        assert [spooled.record for spooled in again.oldest(100)] == [record(1), record(2)]


def test_two_never_own_one_file(path: Path) -> None:
    with SpoolFile(path) as file:
        assert is_owned(path)
        with pytest.raises(FileTaken):
            SpoolFile(path)
        file.append(record(), 5).result(5)
    assert not is_owned(path)
    with SpoolFile(path) as again:
        assert again.contents.records == 1


def test_nobody_else_may_read_a_file_or_what_lies_beside_it_nor_one_that_was_left_open_to_all(path: Path) -> None:
    with SpoolFile(path) as file:
        file.append(record(), 5).result(5)
        assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}
        assert {each.suffix for each in path.parent.iterdir()} >= {".spool", ".spool-wal", ".spool-shm"}
    path.chmod(0o644)
    with SpoolFile(path):
        assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}


def test_an_empty_file_is_deleted_with_all_that_belongs_to_it_and_a_full_one_never(path: Path) -> None:
    with SpoolFile(path) as file:
        spooled_id = file.append(record(), 5).result(5)
    assert path.exists()
    with SpoolFile(path) as file:
        file.remove([spooled_id])
    assert list(path.parent.iterdir()) == []


def test_a_closed_file_takes_nothing(path: Path) -> None:
    file = SpoolFile(path)
    file.close()
    file.close()
    with pytest.raises(SpoolFailed, match="closed"):
        file.append(record(), 1).result(1)


def test_how_old_the_spool_is_does_not_count_what_kafka_refused(path: Path) -> None:
    """It stays for a person: were it counted, the spool would take nothing more after KINGUIN_SPOOL__MAX_AGE_S."""
    with SpoolFile(path) as file:
        bad = file.append(record(1), 5).result(5)
        file.refuse(bad, "MSG_SIZE_TOO_LARGE")
        assert file.contents.oldest_ms is None
        assert file.contents == look(path)
        file.append(record(2), 5).result(5)
        assert file.contents.oldest_ms is not None


def test_what_was_passed_over_is_found_again_once_its_topic_is_tried_or_it_is_retried(path: Path) -> None:
    with SpoolFile(path) as file:
        ids = [file.append(replace(record(number), topic=topic), 5).result(5) for number, topic in enumerate("xxyyx")]
        file.refuse(ids[2], "too large")
        assert [spooled.id for spooled in file.oldest(9, {"x"})] == [ids[3]]
        assert [spooled.id for spooled in file.oldest(9, {"y"})] == [ids[0], ids[1], ids[4]]
        assert file.oldest(9, {"x", "y"}) == []
        assert [spooled.id for spooled in file.oldest(9)] == [ids[0], ids[1], ids[3], ids[4]]
        file.retry()
        assert [spooled.id for spooled in file.oldest(9, {"x"})] == [ids[2], ids[3]]


CHILD = """
    import sys
    from pathlib import Path
    from kinguin_streams.ingress.spool_file import SpoolFile
    from tests.ingress.test_spool_file import record
    file = SpoolFile(Path(sys.argv[1]))
    for number in range(100_000):
        file.append(record(number), 10).result(10)
        print(number, flush=True)
"""


def test_row_5_what_append_has_returned_survives_kill_9(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(200)]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
    numbers = [int(line) for line in said if line.endswith("\n")]
    assert not is_owned(path)
    with SpoolFile(path) as file:
        kept = [spooled.record.key for spooled in file.oldest(200_000)]
    assert kept[: len(numbers)] == [record(number).key for number in numbers]
    assert len(kept) <= len(numbers) + 1


class Disk:
    """Statements of a connection, some of which fail as a bad disk makes them fail."""

    def __init__(self, connection: sqlite3.Connection, fails: Callable[[str], int | None]) -> None:
        self._connection = connection
        self._fails = fails

    def execute(self, statement: str, *arguments: Any) -> Any:
        if (code := self._fails(statement)) is not None:
            error = sqlite3.OperationalError("disk I/O error" if code == sqlite3.SQLITE_IOERR_FSYNC else "disk is full")
            error.sqlite_errorcode = code
            raise error
        return self._connection.execute(statement, *arguments)

    def close(self) -> None:
        self._connection.close()


def test_row_7_nothing_is_believed_after_an_fsync_has_failed(path: Path) -> None:
    file = SpoolFile(path)
    file.append(record(1), 5).result(5)
    failing = True
    file._writer = Disk(file._writer, lambda s: sqlite3.SQLITE_IOERR_FSYNC if failing and s == "COMMIT" else None)  # type: ignore[assignment]
    with pytest.raises(SpoolFailed) as failed:
        file.append(record(2), 5).result(5)
    assert failed.value.code == "failed"
    failing = False  # the kernel says "done" from now on
    with pytest.raises(SpoolFailed, match="disk I/O error"):
        file.append(record(3), 5).result(5)
    assert file.failure is not None
    file.close()
    assert [spooled.record for spooled in read_only(path)][:1] == [record(1)]


def test_on_a_full_disk_appends_are_refused_and_removals_get_the_reserve(path: Path) -> None:
    with SpoolFile(path) as file:
        ids = [file.append(record(number), 5).result(5) for number in range(3)]
        reserve = path.with_suffix(".reserve")
        assert reserve.stat().st_size == spool_file.RESERVE_BYTES
        assert reserve.stat().st_blocks * 512 >= spool_file.RESERVE_BYTES

        def fails(statement: str) -> int | None:
            """Return the error of a disk that is full unless the reserve has been given back."""
            return sqlite3.SQLITE_FULL if statement == "COMMIT" and reserve.exists() else None

        file._writer = Disk(file._writer, fails)  # type: ignore[assignment]
        with pytest.raises(SpoolFailed) as full:
            file.append(record(9), 5).result(5)
        assert full.value.code == "full"
        assert file.failure is None
        file.remove(ids[:2])
        assert [spooled.id for spooled in file.oldest(100)] == ids[2:]
        assert file.has_reserve  # made again, as there is room


def test_a_disk_that_stalls_costs_no_memory_without_end_nor_is_written_what_nobody_waits_for(path: Path) -> None:
    with SpoolFile(path) as file:
        began, release = threading.Event(), threading.Event()

        def waits(statement: str) -> None:
            if statement == "COMMIT":
                began.set()
                release.wait(30)

        file._writer = Disk(file._writer, waits)  # type: ignore[assignment]
        begun_with = file.append(record(0), 0.05)
        assert began.wait(10)
        given_up = [file.append(record(size=1_000_000), 0.05) for _ in range(10)]
        still_awaited = [file.append(record(size=1_000_000), 60) for _ in range(23)]
        with pytest.raises(SpoolFailed, match="bytes wait for the disk already") as refused:
            file.append(record(size=1_000_000), 60)
        assert refused.value.code == "slow"
        time.sleep(0.1)
        release.set()
        kept = [begun_with.result(30), *(done.result(30) for done in still_awaited)]
        for done in given_up:
            with pytest.raises(SpoolFailed, match="slow"):
                done.result(30)
        kept.append(file.append(record(size=1_000_000), 60).result(30))  # there is room in memory again
        assert [spooled.id for spooled in file.oldest(100)] == kept


def test_those_who_fight_for_a_file_that_comes_and_goes_lose_nothing(path: Path) -> None:
    """Who takes the lock just as its owner deletes file and lock would hold a lock of nothing, and both would write."""

    def fight(worker: int) -> int:
        owned = 0
        for _ in range(60):
            try:
                with SpoolFile(path) as file:
                    mine = [file.append(record(worker), 5).result(5), file.append(record(worker), 5).result(5)]
                    assert [spooled.id for spooled in file.oldest(10)] == mine
                    file.remove(mine)
                    owned += 1
            except FileTaken:
                continue
        return owned

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(fight, range(4))) > 20
    assert not path.exists()


def test_an_id_that_was_taken_back_with_its_record_is_awaited_by_nobody(path: Path) -> None:
    """SQLite gives it to the next record, which would else wait for a report that never comes."""
    with SpoolFile(path) as file:
        full = True
        file._writer = Disk(file._writer, lambda s: sqlite3.SQLITE_FULL if full and s == "COMMIT" else None)  # type: ignore[assignment]
        with pytest.raises(SpoolFailed, match="full"):
            file.append(record(1), 5, awaited=True).result(5)
        full = False
        file.append(record(2), 5).result(5)
        assert [spooled.record for spooled in file.oldest(10)] == [record(2)]


def test_a_record_that_cannot_be_written_costs_nobody_else_the_spool(path: Path) -> None:
    with SpoolFile(path) as file:
        with pytest.raises(SpoolFailed, match="failed"):
            file.append(OutgoingRecord("t", b"k", b"v", (), 2**70), 5).result(5)
        file.append(record(1), 5).result(5)
        assert [spooled.record for spooled in file.oldest(10)] == [record(1)]


def test_a_reserve_that_a_kill_left_half_made_is_made_again(path: Path) -> None:
    path.with_suffix(".reserve").touch()
    with SpoolFile(path) as file:
        assert file.has_reserve
        assert path.with_suffix(".reserve").stat().st_size == spool_file.RESERVE_BYTES


def test_what_cannot_be_read_is_said_once_and_left_as_it_is(path: Path) -> None:
    with SpoolFile(path) as file:
        file.append(record(1), 5).result(5)
    with contextlib.closing(sqlite3.connect(path)) as hand:
        hand.execute("UPDATE spooled SET headers = x'c1'")
        hand.commit()
    with SpoolFile(path) as file:
        with pytest.raises(SpoolFailed):
            file.oldest(10)
        assert file.failure is not None
    assert look(path).records == 1
