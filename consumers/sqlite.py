"""State in SQLite: one file, one writing process at a time.

WAL mode with synchronous=FULL: what was committed is on disk, readers never wait for writers nor writers for readers, and
of several writers one writes while the others wait. BEGIN is ours: the driver's own would start a transaction only at the
first write, after the read that the write depends on.
"""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event

from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.telemetry.operator_error import OperatorError

_WRITER_PRAGMAS: Final = (
    # In KiB. The default, 2 MiB, is less than a large batch changes: its pages went to the log several times.
    "PRAGMA cache_size=-65536",
    # In pages, 64 MiB; default 1,000. A page that many transactions change is copied from the log to the file once.
    "PRAGMA wal_autocheckpoint=16384",
)


def refuse_unless_usable(url: URL) -> None:
    """Raise OperatorError("state_url_refused") unless the URL names a file."""
    if not url.database or url.database == ":memory:" or url.query:
        raise OperatorError(
            "state_url_refused",
            "KINGUIN_STATE__URL must name a file: state in memory would be gone with the process.",
            "Set KINGUIN_STATE__URL to sqlite:///PATH.",
        )


def writing(url: URL, settings: StateSettings) -> Engine:
    """Return an engine whose transactions begin by taking the write lock. Makes the folder, if need be.

    Raises OperatorError("state_not_writable"), or what `explanation` explains.
    """
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, os.strerror(error.errno or 0)) from error
    engine = _engine(url, settings.busy_timeout_s, "BEGIN IMMEDIATE", *_WRITER_PRAGMAS)
    _into_wal_mode(engine, settings.busy_timeout_s)
    return engine


def reading(url: URL, settings: StateSettings) -> Engine | None:
    """Return an engine that cannot write, or None if there is no file."""
    if not Path(url.database or "").is_file():
        return None
    return _engine(url, settings.busy_timeout_s, "BEGIN", "PRAGMA query_only=ON")


def lock_schema(_connection: Connection) -> None:
    """Do nothing: BEGIN IMMEDIATE has shut out every other writer."""


def explanation(url: URL, settings: StateSettings, error: BaseException) -> OperatorError | None:
    """Return what an error of the driver means to an operator, or None if it is a bug of ours."""
    if not isinstance(error, sqlite3.Error):
        return None
    path = url.database
    # Extended codes carry the primary one in their lowest byte.
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return OperatorError(
                "state_busy",
                f"Another process has been writing to {path} for {settings.busy_timeout_s:g} s.",
                "Nothing is lost: end what holds it (`fuser` names it), then start again.",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return _not_writable(Path(path or ""), str(error))
        case sqlite3.SQLITE_FULL:
            return OperatorError(
                "state_disk_full",
                f"The disk is full: {path} cannot grow.",
                "Nothing is lost: make room, then start again.",
            )
        case sqlite3.SQLITE_IOERR:
            return OperatorError(
                "state_io_error",
                f"The disk refuses to read or write {path}: {error}.",
                "Check the disk and the mount, then start again.",
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return OperatorError(
                "state_damaged",
                f"{path} is not a sound SQLite database: {error}.",
                "Set KINGUIN_STATE__URL to a new file: the state is rebuilt from the topics.",
            )
    return None


def _engine(url: URL, busy_timeout_s: float, begin: str, *pragmas: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": busy_timeout_s})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for pragma in ("PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON", *pragmas):
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _into_wal_mode(engine: Engine, busy_timeout_s: float) -> None:
    """Switch a new database to WAL, which is then a property of the file.

    SQLite does not wait for other connections here, it fails at once: two consumers that start together meet.
    """
    deadline_s = time.monotonic() + busy_timeout_s
    raw = engine.raw_connection()
    try:
        while True:
            try:
                if raw.cursor().execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    raw.cursor().execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)
            else:
                return
    finally:
        raw.close()


def _not_writable(path: Path, reason: str) -> OperatorError:
    return OperatorError(
        "state_not_writable",
        f"The state database {path} cannot be written ({reason}).",
        "Make the folder writable, or name another file with KINGUIN_STATE__URL.",
    )
