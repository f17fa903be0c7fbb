"""The database of states and offsets: opening it, its schema version, and its errors in words.

SQLite in WAL mode with synchronous=FULL: what was committed is on disk, readers never wait for writers nor writers for
readers, and of several writers one writes while the others wait. BEGIN is ours: the driver's own would start a
transaction only at the first write, after the read that the write depends on.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import structlog
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError

from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.tables import REVISIONS, schema_version
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

MIGRATIONS = Path(__file__).with_name("migrations")
_URL_HINT = "Set KINGUIN_STATE__URL to sqlite:///PATH."

SchemaVerdict = Literal["new", "current", "older", "newer"]


def judge(found: str | None, known: tuple[str, ...] = REVISIONS) -> SchemaVerdict:
    """Return how a database's schema version relates to this code's."""
    if found is None:
        return "new"
    if found == known[-1]:
        return "current"
    return "older" if found in known else "newer"


def open_for_writing(settings: StateSettings) -> Engine:
    """Return an engine whose transactions begin by taking the write lock. Makes the folder, if need be.

    Raises OperatorError("state_not_writable" and others of `explained`, "state_url_refused").
    """
    url = _checked(settings.url)
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, os.strerror(error.errno or 0)) from error
    engine = _engine(url, settings.busy_timeout_s, "BEGIN IMMEDIATE")
    with explained(settings):
        _into_wal_mode(engine, settings.busy_timeout_s)
    return engine


def open_for_reading(settings: StateSettings) -> Engine:
    """Return an engine that cannot write. Raises OperatorError("state_missing") if no consumer has made a state yet."""
    url = _checked(settings.url)
    path = Path(url.database or "")
    if not path.is_file():
        raise _missing(settings, f"There is no state at {path}.")
    engine = _engine(url, settings.busy_timeout_s, "BEGIN", "PRAGMA query_only=ON")
    with explained(settings), engine.connect() as connection:
        verdict = judge(_found_version(connection))
    if verdict == "new":
        raise _missing(settings, f"There is no state in {path} yet.")
    _refuse_unless_current(verdict)
    return engine


def prepare(engine: Engine, settings: StateSettings) -> None:
    """Make the tables of a new database; refuse one whose schema is older or newer than this code.

    Raises OperatorError("state_schema_old") or ("state_schema_new").
    """
    with explained(settings), engine.connect() as connection:
        verdict = judge(_found_version(connection))
    if verdict == "new":
        migrate(settings)
    else:
        _refuse_unless_current(verdict)


def migrate(settings: StateSettings) -> tuple[str | None, str]:
    """Bring the database to this code's schema version, in one transaction; return the versions before and after.

    Several processes may do so at once: the first one does it. Raises OperatorError("state_schema_new") and as above.
    """
    engine = open_for_writing(settings)
    try:
        with explained(settings), engine.begin() as connection:
            found = _found_version(connection)
            verdict = judge(found)
            if verdict == "newer":
                _refuse_unless_current(verdict)
            if verdict != "current":
                _upgrade(connection)
                log.info("state_migrated", before=found, after=REVISIONS[-1])
        return found, REVISIONS[-1]
    finally:
        engine.dispose()


@contextmanager
def explained(settings: StateSettings) -> Iterator[None]:
    """Turn errors of the database into an OperatorError: state_not_writable, state_busy, state_disk_full, state_damaged."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:  # what fails while connecting comes as the driver raised it
        explanation = _explanation(settings, error.orig if isinstance(error, DBAPIError) else error)
        if explanation is None:
            raise
        raise explanation from error


def _explanation(settings: StateSettings, error: BaseException | None) -> OperatorError | None:
    if not isinstance(error, sqlite3.Error):
        return None
    path = _checked(settings.url).database
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


def _checked(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise OperatorError("state_url_refused", "KINGUIN_STATE__URL is not a database URL.", _URL_HINT) from error
    if url.get_backend_name() == "postgresql":
        raise OperatorError(
            "state_url_refused",
            "KINGUIN_STATE__URL names a PostgreSQL database, which comes with a later release.",
            _URL_HINT,
        )
    if url.get_backend_name() != "sqlite":
        what = f"KINGUIN_STATE__URL names {url.get_backend_name()}, and only sqlite is supported."
        raise OperatorError("state_url_refused", what, _URL_HINT)
    if not url.database or url.database == ":memory:" or url.query:
        what = "KINGUIN_STATE__URL must name a file: state in memory would be gone with the process."
        raise OperatorError("state_url_refused", what, _URL_HINT)
    return url


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


def _found_version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(schema_version.name):
        return None
    found: str | None = connection.execute(select(schema_version.c.version_num)).scalar()
    return found


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)  # ten lines at info that nobody asked for
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _refuse_unless_current(verdict: SchemaVerdict) -> None:
    if verdict == "older":
        raise OperatorError(
            "state_schema_old",
            "The state was made by an older kinguin-streams, with other tables.",
            "Stop all consumers, copy the database, then run `kinguin-streams state migrate`.",
        )
    if verdict == "newer":
        raise OperatorError(
            "state_schema_new",
            "The state was made by a newer kinguin-streams, whose tables this one does not know.",
            "Upgrade kinguin-streams, or set KINGUIN_STATE__URL to a new database.",
        )


def _missing(settings: StateSettings, what: str) -> OperatorError:
    return OperatorError(
        "state_missing",
        what,
        "Start `kinguin-streams consume order-state` or `consume product-changes`, or check KINGUIN_STATE__URL "
        f"({settings.url}): a relative path starts at the working folder.",
    )


def _not_writable(path: Path, reason: str) -> OperatorError:
    return OperatorError(
        "state_not_writable",
        f"The state database {path} cannot be written ({reason}).",
        "Make the folder writable, or name another file with KINGUIN_STATE__URL.",
    )
