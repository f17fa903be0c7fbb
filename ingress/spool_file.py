"""One file of the spool: records on disk, in order, fsynced before `append` returns. SQLite, WAL, synchronous=FULL.

One process owns a file; a lock beside it says so, and the kernel gives the lock back when the process dies. One thread
writes: whatever has come in while it waited for the disk goes into the next transaction, so that many requests share one
fsync. Nothing is believed after an fsync has failed: the kernel may have dropped the pages and will say "done" next time.
"""

import contextlib
import errno
import fcntl
import json
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import msgspec
import structlog

from kinguin_streams.cluster.durable_file import sync_folder
from kinguin_streams.schemas.outgoing import OutgoingRecord

log = structlog.get_logger()

SUFFIX: Final = ".spool"
MAX_OPERATIONS: Final = 512
"""In one transaction."""
MAX_QUEUED_BYTES: Final = 32 * 1024 * 1024
"""Of records that wait for the disk. Beyond it the next one is refused at once: a disk that stalls must not cost memory."""
RESERVE_BYTES: Final = 8 * 1024 * 1024
"""Kept free beside the file. On a full disk a DELETE fails too, so without it a full spool could not be drained."""
CLOSE_WAIT_S: Final = 3.0
"""How long closing waits for the disk: a stop has to end, also on one that hangs."""
_RETAKE_EVERY_S: Final = 1.0
"""How often room is looked for again while there is none for the reserve."""
_BUSY_TIMEOUT_S: Final = 5.0
# What a row costs beside the bytes that were sent: its place in the tree, lengths, times.
_ROW_BYTES: Final = 64

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS spooled (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    headers BLOB NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    spooled_at_ms INTEGER NOT NULL,
    refused TEXT
)
"""

_WAITING: Final = "refused IS NULL AND topic NOT IN (SELECT value FROM json_each(?))"
_REFUSED: Final = "refused IS NOT NULL AND id NOT IN (SELECT value FROM json_each(?))"

_HEADERS: Final = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...])

FailureCode = Literal["full", "failed", "slow", "closed"]


class SpoolFailed(Exception):
    """The record is not known to be on disk.

    code: full (no room by the limits, or on the disk), failed (the disk cannot be trusted any more), slow (no answer in
    time), closed.
    """

    def __init__(self, code: FailureCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: FailureCode = code


class FileTaken(Exception):
    """Another process owns the file."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A record in the spool."""

    id: int
    """Counts up within its file, and is never used twice."""
    record: OutgoingRecord
    spooled_at_ms: int
    refused: str | None = None
    """Why Kafka will never take it, if it has said so; it is kept for a person to look at."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a file."""

    records: int
    bytes: int
    oldest_ms: int | None
    """Of those that wait for Kafka: one that it refused may lie here for ever."""
    refused: int


@dataclass(slots=True)
class _Append:
    record: OutgoingRecord
    spooled_at_ms: int
    awaited: bool
    until_s: float
    done: "Future[int]"


@dataclass(slots=True)
class _Remove:
    ids: Sequence[int]
    done: "Future[int]"


@dataclass(slots=True)
class _Refuse:
    id: int
    why: str
    done: "Future[int]"


@dataclass(slots=True)
class _Retry:
    done: "Future[int]"


_Operation = _Append | _Remove | _Refuse | _Retry


class SpoolFile:
    """A spool file that this process owns."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises FileTaken, or OSError or sqlite3.Error if it cannot be used."""
        self.path = path
        self._lock_file = _take_lock(path)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._lock_file)
            self._reserve = path.with_suffix(".reserve")
            _make_private(path)
            self._writer = undo.enter_context(contextlib.closing(_connect(path)))
            self._writer.execute(_SCHEMA)
            self._reader = undo.enter_context(contextlib.closing(_connect(path)))
            self.contents = _contents(self._reader)
            # Taken and given back by the writer alone from now on: whoever else took it again, on a full disk, would take
            # it from a DELETE for which it has just been given back.
            self._has_reserve = self._take_reserve()
            sync_folder(path.parent)
            undo.pop_all()
        self.failure: str | None = None
        """Why the disk is not trusted any more, or None."""
        self._operations: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._retake_at_s = time.monotonic() + _RETAKE_EVERY_S
        self._queueing = threading.Lock()
        self._queued_bytes = 0
        self._closed = False
        self._awaited: set[int] = set()
        self._set_aside: set[int] = set()
        self._reading = threading.Lock()
        # By the topics passed over: below it is nothing else. 300,000 records before the first one took a second to pass.
        self._first_after: dict[frozenset[str], int] = {}
        self._thread = threading.Thread(target=self._write, name=f"spool-{path.stem[-6:]}", daemon=True)
        self._thread.start()

    def append(self, record: OutgoingRecord, timeout_s: float, *, awaited: bool = False) -> "Future[int]":
        """Return what will be the record's id once it is on disk, or SpoolFailed. Raises SpoolFailed if nothing is taken.

        timeout_s: for how long somebody waits for it. What the disk has not begun with by then is left out, as "slow"; what
        it has begun with may be on disk although nobody waits any more, and is then drained like the others.
        awaited: Kafka may have it already, and its report will come: `oldest` passes it over until `report_came`.
        What is called back is called on the thread that writes, and must not block.
        """
        done: Future[int] = Future()
        size = _ROW_BYTES + len(record.key) + len(record.value)
        with self._queueing:
            if self._queued_bytes + size > MAX_QUEUED_BYTES:
                raise SpoolFailed("slow", f"{self._queued_bytes} bytes wait for the disk already")
            self._queued_bytes += size
        done.add_done_callback(lambda _: self._unqueue(size))
        try:
            now_ms = time.time_ns() // 1_000_000
            self._submit(_Append(record, now_ms, awaited, time.monotonic() + timeout_s, done))
        except SpoolFailed:
            self._unqueue(size)
            raise
        return done

    def _unqueue(self, size: int) -> None:
        with self._queueing:
            self._queued_bytes -= size

    def report_came(self, spooled_id: int, *, delivered: bool) -> None:
        """Forget a record that was awaited, or let it wait for Kafka like any other. Does not wait for the disk."""
        if delivered and self.failure is None and not self._closed:
            done: Future[int] = Future()
            done.add_done_callback(lambda _: self._awaited.discard(spooled_id))
            self._operations.put(_Remove((spooled_id,), done))
        else:
            self._awaited.discard(spooled_id)

    def remove(self, ids: Sequence[int]) -> None:
        """Forget records that Kafka has; returns once that is on disk. Raises SpoolFailed."""
        if ids:
            done: Future[int] = Future()
            self._submit(_Remove(ids, done))
            done.result()

    def refuse(self, spooled_id: int, why: str, *, set_aside: bool = False) -> None:
        """Note of a record that Kafka will never take it; it does not wait any more. Raises SpoolFailed.

        set_aside: nor is there a dead letter to be made of it: `refused` passes it over as well, until a `retry`, or
        until another process opens the file, which may try once.
        """
        done: Future[int] = Future()
        self._submit(_Refuse(spooled_id, why, done))
        done.result()
        if set_aside:
            self._set_aside.add(spooled_id)

    def retry(self) -> int:
        """Let what Kafka has refused wait for it again, in its old place; return how many those are. Raises SpoolFailed."""
        done: Future[int] = Future()
        self._submit(_Retry(done))
        retried = done.result()
        self._set_aside.clear()
        with self._reading:
            self._first_after.clear()
        return retried

    @property
    def due_dead_letters(self) -> int:
        """How many records Kafka has refused that are not set aside. Does not ask the disk."""
        return max(0, self.contents.refused - len(self._set_aside))

    def refused(self, count: int) -> list[Spooled]:
        """Return up to `count` records that Kafka has refused and that are not set aside. Raises SpoolFailed, as `oldest` does."""
        if self.due_dead_letters <= 0:
            return []
        aside = json.dumps(list(self._set_aside))
        try:
            with self._reading:
                return list(_rows(self._reader, 0, count, _REFUSED, aside))
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            self._distrust(error)
            raise SpoolFailed("failed", str(error)) from error

    def oldest(self, count: int, held_up: Collection[str] = ()) -> list[Spooled]:
        """Return up to `count` records that wait for Kafka, oldest first. Raises SpoolFailed, once, if they are not readable.

        held_up: topics whose records are passed over.
        """
        awaited = frozenset(self._awaited)
        try:
            with self._reading:
                passed_over = frozenset(held_up)
                after = self._first_after.get(passed_over, 0)
                without = json.dumps(list(held_up))
                rows = list(_rows(self._reader, after, count + len(awaited), _WAITING, without))
                if rows:
                    self._first_after[passed_over] = rows[0].id - 1
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            self._distrust(error)
            raise SpoolFailed("failed", str(error)) from error
        return [spooled for spooled in rows if spooled.id not in awaited][:count]

    def close(self, timeout_s: float = CLOSE_WAIT_S, *, delete_if_empty: bool = True) -> None:
        """Finish what was handed over, give the file back, and delete it if there is nothing in it.

        On a disk that does not answer in time the file is left as a kill would leave it, and is this process's until its end.
        """
        if self._closed:
            return
        self._closed = True
        self._operations.put(None)
        until_s = time.monotonic() + timeout_s
        self._thread.join(timeout_s)
        if self._thread.is_alive() or not self._reading.acquire(timeout=max(0.0, until_s - time.monotonic())):
            log.error("spool_not_closed", path=str(self.path), hint="the disk does not answer; what is on it is kept")
            return
        try:
            empty = delete_if_empty and self.failure is None and self.contents.records == 0
            self._reader.close()
            self._writer.close()
        finally:
            self._reading.release()
        self._reserve.unlink(missing_ok=True)
        if empty:
            # The lock goes last: who opened it before holds a lock of nothing, sees that, and begins a file of its own.
            beside = (_beside(self.path, "-wal"), _beside(self.path, "-shm"), asked_retry_of(self.path))
            for file in (self.path, *beside, lock_of(self.path)):
                file.unlink(missing_ok=True)
        os.close(self._lock_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, operation: _Operation) -> None:
        if self._closed:
            raise SpoolFailed("closed", "the spool is closed")
        if self.failure is not None:
            raise SpoolFailed("failed", self.failure)
        self._operations.put(operation)

    def _write(self) -> None:
        going_on = True
        while going_on:
            if not self._has_reserve and time.monotonic() >= self._retake_at_s:
                self._retake_reserve()
            try:
                first = self._operations.get(timeout=None if self._has_reserve else _RETAKE_EVERY_S)
            except queue.Empty:
                continue
            batch: list[_Operation] = []
            while first is not None:
                batch.append(first)
                if len(batch) == MAX_OPERATIONS:
                    break
                try:
                    first = self._operations.get_nowait()
                except queue.Empty:
                    break
            going_on = first is not None
            if batch:
                self._commit(batch)

    def _commit(self, handed_over: Sequence[_Operation]) -> None:
        batch = []
        for operation in handed_over:
            if isinstance(operation, _Append) and operation.until_s < time.monotonic():
                # Its sender has been told to come again: on disk it would only be one more of the same.
                operation.done.set_exception(SpoolFailed("slow", "the disk did not get to it in time"))
            else:
                batch.append(operation)
        if not batch:
            return
        try:
            ids = self._transact(batch)
        except Exception as error:  # noqa: BLE001 - nobody starts this thread again, and requests wait for what it does
            if self._is_for_lack_of_room(error, batch):
                self._make_way(batch)
            else:
                self._fail(batch, error)
            return
        for operation, result in zip(batch, ids, strict=True):
            operation.done.set_result(result)

    def _transact(self, batch: Sequence[_Operation]) -> list[int]:
        if self.failure is not None:
            raise sqlite3.OperationalError(self.failure)
        changed = self.contents
        ids = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for operation in batch:
                result, changed = self._apply(operation, changed)
                ids.append(result)
            self._writer.execute("COMMIT")
        except Exception:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            # What has been taken back gives its ids back too: the next record to have one may be awaited by nobody.
            taken_back = {given for operation, given in zip(batch, ids, strict=False) if isinstance(operation, _Append)}
            self._awaited -= taken_back
            raise
        self.contents = changed
        return ids

    def _apply(self, operation: _Operation, before: Contents) -> tuple[int, Contents]:
        match operation:
            case _Append(record, spooled_at_ms, awaited):
                headers = msgspec.msgpack.encode(record.headers)
                cursor = self._writer.execute(
                    "INSERT INTO spooled (topic, key, value, headers, timestamp_ms, spooled_at_ms) VALUES (?,?,?,?,?,?)",
                    (record.topic, record.key, record.value, headers, record.timestamp_ms, spooled_at_ms),
                )
                spooled_id = int(cursor.lastrowid or 0)
                if awaited:  # before the row can be seen
                    self._awaited.add(spooled_id)
                return spooled_id, Contents(
                    records=before.records + 1,
                    bytes=before.bytes + _ROW_BYTES + len(record.key) + len(record.value) + len(headers),
                    oldest_ms=spooled_at_ms if before.oldest_ms is None else before.oldest_ms,
                    refused=before.refused,
                )
            case _Remove(ids):
                # Counting what goes, not what stays: a spool of a day would be read whole for each batch.
                gone = self._writer.execute(
                    "DELETE FROM spooled WHERE id IN (SELECT value FROM json_each(?))"
                    " RETURNING length(key) + length(value) + length(headers), refused IS NOT NULL",
                    (json.dumps(list(ids)),),
                ).fetchall()
                return len(gone), Contents(
                    records=before.records - len(gone),
                    bytes=before.bytes - sum(size + _ROW_BYTES for size, _ in gone),
                    oldest_ms=_oldest_ms(self._writer),
                    refused=before.refused - sum(refused for _, refused in gone),
                )
            case _Refuse(spooled_id, why):
                query = "SELECT count(*) FROM spooled WHERE id = ? AND refused IS NULL"
                newly = int(self._writer.execute(query, (spooled_id,)).fetchone()[0])
                changed = self._writer.execute(
                    "UPDATE spooled SET refused = ? WHERE id = ?", (why, spooled_id)
                ).rowcount
                now_refused = before.refused + newly
                return changed, replace(before, refused=now_refused, oldest_ms=_oldest_ms(self._writer))
            case _Retry():
                changed = self._writer.execute("UPDATE spooled SET refused = NULL WHERE refused IS NOT NULL").rowcount
                return changed, replace(before, refused=0, oldest_ms=_oldest_ms(self._writer))

    def _make_way(self, batch: Sequence[_Operation]) -> None:
        """On a full disk: refuse what wants room, and let what gives room have the reserve."""
        full = SpoolFailed("full", "there is no room on the disk")
        giving: list[_Operation] = []
        for operation in batch:
            if isinstance(operation, _Append):
                operation.done.set_exception(full)
            else:
                giving.append(operation)
        if not giving:
            return
        self._has_reserve = False
        self._reserve.unlink(missing_ok=True)
        try:
            results = self._transact(giving)
        except Exception as error:  # noqa: BLE001 - as above
            self._retake_reserve()
            self._fail(giving, error)
            return
        self._retake_reserve()
        for operation, result in zip(giving, results, strict=True):
            operation.done.set_result(result)

    def _fail(self, batch: Sequence[_Operation], error: Exception) -> None:
        code: FailureCode = "full" if self._is_for_lack_of_room(error, batch) else "failed"
        if code == "failed" and isinstance(error, sqlite3.Error):
            self._distrust(error)
        for operation in batch:
            operation.done.set_exception(SpoolFailed(code, str(error)))

    def _is_for_lack_of_room(self, error: Exception, batch: Sequence[_Operation]) -> bool:
        """Return whether a write failed because the disk, or the quota of this user, is full: no reason for distrust.

        SQLite says SQLITE_FULL for ENOSPC alone. A spent quota (EDQUOT) is SQLITE_IOERR_WRITE like a disk that is broken, and so
        is the log's index without room SQLITE_IOERR_SHMSIZE, whatever the cause (os_unix.c; seen with 3.40.1). Python does
        not hand over sqlite3_system_errno, so the disk is asked for as much again. If it has the room by then, it is not believed.
        """
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            return True
        if code not in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE):
            return False
        records = [operation.record for operation in batch if isinstance(operation, _Append)]
        return self._lacks(max(RESERVE_BYTES, 2 * sum(len(record.key) + len(record.value) for record in records)))

    def _lacks(self, size: int) -> bool:
        """Return whether so many bytes cannot be had beside the reserve, for lack of room and for no other reason."""
        try:
            descriptor = os.open(self._reserve, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                end = os.fstat(descriptor).st_size
                try:
                    os.posix_fallocate(descriptor, end, size)
                finally:
                    os.ftruncate(descriptor, end)
            finally:
                os.close(descriptor)
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        return False

    def _distrust(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = f"{self.path}: {error}"
            hint = "nothing more is spooled there, nor drained from it: see the disk"
            log.error("spool_failed", path=str(self.path), error=str(error), hint=hint)

    @property
    def has_reserve(self) -> bool:
        """Whether the room is there without which a full disk could not be drained. Does not ask the disk."""
        return self._has_reserve

    def _retake_reserve(self) -> None:
        self._has_reserve = self._take_reserve()
        self._retake_at_s = time.monotonic() + _RETAKE_EVERY_S

    def _take_reserve(self) -> bool:
        """Take the room, or half of it and so on: others take what is left free. Return whether all of it is taken.

        A kill may have left a part of the file, and a DELETE may have used a part of the room for good: its log grows.
        """
        try:
            descriptor = os.open(self._reserve, os.O_CREAT | os.O_WRONLY, 0o600)
        except OSError:
            return False
        try:
            for halved in range(4):
                with contextlib.suppress(OSError):
                    os.posix_fallocate(descriptor, 0, RESERVE_BYTES >> halved)
                    return halved == 0
        finally:
            os.close(descriptor)
        return False


def read_only(path: Path, count: int = 1_000) -> Iterator[Spooled]:
    """Yield all records of a file that anybody may own, oldest first, those that Kafka refused included."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
    try:
        after = 0
        while batch := list(_rows(connection, after, count)):
            yield from batch
            after = batch[-1].id
    finally:
        connection.close()


def look(path: Path) -> Contents:
    """Return what is in a file that anybody may own. Raises sqlite3.Error if it is none."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
    try:
        return _contents(connection)
    finally:
        connection.close()


def is_owned(path: Path) -> bool:
    """Return whether a living process owns the file."""
    try:
        descriptor = os.open(lock_of(path), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def asked_retry_of(path: Path) -> Path:
    """Return the file by whose presence the owner of a spool file is asked to `retry`: nobody else may write into it."""
    return path.with_suffix(".retry")


def lock_of(path: Path) -> Path:
    """Return the file whose lock says who owns a spool file."""
    return path.with_suffix(".lock")


def _take_lock(path: Path) -> int:
    while True:
        descriptor = os.open(lock_of(path), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise FileTaken(str(path)) from error
        # The one before may have deleted file and lock after we opened it: then this is a lock of nothing.
        try:
            if os.fstat(descriptor).st_ino == lock_of(path).stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _make_private(path: Path) -> None:
    """Let nobody else read what customers bought. SQLite gives the files that it makes beside this one the same mode."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    for file in (path, _beside(path, "-wal"), _beside(path, "-shm")):
        # It may be gone, or another user's, who has let us write it.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            file.chmod(0o600)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _contents(connection: sqlite3.Connection) -> Contents:
    count, size, refused = connection.execute(
        "SELECT count(*), coalesce(sum(length(key) + length(value) + length(headers)), 0), count(refused) FROM spooled"
    ).fetchone()
    return Contents(records=count, bytes=size + count * _ROW_BYTES, oldest_ms=_oldest_ms(connection), refused=refused)


def _oldest_ms(connection: sqlite3.Connection) -> int | None:
    query = "SELECT spooled_at_ms FROM spooled WHERE refused IS NULL ORDER BY id LIMIT 1"
    row = connection.execute(query).fetchone()
    return None if row is None else int(row[0])


def _rows(
    connection: sqlite3.Connection, after: int, count: int, condition: str = "TRUE", *arguments: str
) -> Iterator[Spooled]:
    columns = "id, topic, key, value, headers, timestamp_ms, spooled_at_ms, refused"
    query = f"SELECT {columns} FROM spooled WHERE id > ? AND {condition} ORDER BY id LIMIT ?"  # noqa: S608 - ours, all of it
    for number, topic, key, value, headers, timestamp_ms, spooled_at_ms, refused in connection.execute(
        query, (after, *arguments, count)
    ):
        record = OutgoingRecord(topic, key, value, _HEADERS.decode(headers), timestamp_ms)
        yield Spooled(number, record, spooled_at_ms, refused)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
