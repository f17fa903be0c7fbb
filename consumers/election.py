"""Who publishes a projection's outbox: one process at a time, by a lock that dies with its holder.

PostgreSQL: an advisory lock of the session that also takes the published rows away, so that who has lost the one cannot
do the other. SQLite: a lock on a file beside the database, which only processes of one machine share anyway.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from sqlalchemy import Connection, Engine, make_url, text

from kinguin_streams.consumers import database
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.telemetry.operator_error import OperatorError


class Election(Protocol):
    """A candidate for one projection's lock."""

    def leads(self) -> bool:
        """Return whether this candidate has the lock, having tried to take it. Raises OperatorError."""
        ...

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection whose work is committed at the end. That it is yielded says that the lock has lasted."""
        ...

    def resign(self) -> None:
        """Give the lock back, and be a candidate again."""
        ...

    def close(self) -> None:
        """Give the lock back for good."""
        ...


def candidate(settings: StateSettings, projection: str) -> Election:
    """Return a candidate. Raises OperatorError as database.open_for_writing does."""
    engine = database.open_for_writing(settings)
    kind = _PostgresElection if engine.dialect.name == "postgresql" else _SqliteElection
    return kind(settings, engine, projection)


class _PostgresElection:
    def __init__(self, settings: StateSettings, engine: Engine, projection: str) -> None:
        self._settings = settings
        self._engine = engine
        digest = hashlib.sha256(b"kinguin-relay\0" + projection.encode()).digest()
        self._lock = int.from_bytes(digest[:8], "big", signed=True)
        self._session: Connection | None = None

    def leads(self) -> bool:
        with database.explained(self._settings), self._giving_up():
            if self._session is not None:
                self._session.execute(text("SELECT 1"))  # a session that is gone has taken the lock along
                return True
            session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            got = session.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": self._lock}).scalar_one()
            if got:
                self._session = session
            else:
                session.close()
        return bool(got)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        # Each statement commits itself. Not in a session that has replaced a lost one: that one has no lock.
        if self._session is None:
            raise OperatorError("relay_lock_lost", "Another process publishes this outbox now.", "Nothing is lost.")
        with database.explained(self._settings), self._giving_up():
            self._session.execute(text("SELECT 1"))  # a proof also where the caller has nothing to write
            yield self._session

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.resign()
            raise

    def resign(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.invalidate()  # ends the session itself, and with it the lock; close() would put it into the pool
            session.close()

    def close(self) -> None:
        self.resign()
        self._engine.dispose()


class _SqliteElection:
    def __init__(self, settings: StateSettings, engine: Engine, projection: str) -> None:
        self._settings = settings
        self._engine = engine
        self._path = f"{make_url(settings.url).database}.{projection}.relay"
        self._file: int | None = None

    def leads(self) -> bool:
        if self._file is not None:
            return True
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(
                "state_not_writable",
                f"The lock file {self._path} cannot be made ({error.strerror}).",
                "Make the database's folder writable.",
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with database.explained(self._settings), self._engine.begin() as connection:
            yield connection

    def resign(self) -> None:
        # The file stays: whoever deleted it would let two processes lock two files of one name.
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def close(self) -> None:
        self.resign()
        self._engine.dispose()
