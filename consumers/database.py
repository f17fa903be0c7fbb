"""The database of states and offsets: opening it, its schema version, and its errors in words.

What differs between SQLite and PostgreSQL is in the file of each.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Protocol

import structlog
from sqlalchemy import URL, Connection, Engine, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError

from kinguin_streams.consumers import postgres, sqlite
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.tables import REVISIONS, schema_version
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

MIGRATIONS = Path(__file__).with_name("migrations")
_URL_HINT = "Set KINGUIN_STATE__URL to sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST:5432/DATABASE."

SchemaVerdict = Literal["new", "current", "older", "newer"]


def judge(found: str | None, known: tuple[str, ...] = REVISIONS) -> SchemaVerdict:
    """Return how a database's schema version relates to this code's."""
    if found is None:
        return "new"
    if found == known[-1]:
        return "current"
    return "older" if found in known else "newer"


def open_for_writing(settings: StateSettings) -> Engine:
    """Return an engine for a process that writes.

    Raises OperatorError("state_not_writable" and others of `explained`, "state_url_refused").
    """
    url = _checked(settings.url)
    with explained(settings):
        return _backend(url).writing(url, settings)


def open_for_reading(settings: StateSettings) -> Engine:
    """Return an engine that cannot write. Raises OperatorError("state_missing") if no consumer has made a state yet."""
    url = _checked(settings.url)
    engine = _backend(url).reading(url, settings)
    if engine is None:
        raise _missing(settings, f"There is no state at {url.database}.")
    try:
        with explained(settings), engine.connect() as connection:
            verdict = judge(_found_version(connection))
        if verdict == "new":
            raise _missing(settings, f"There is no state in {url.database} yet.")
        _refuse_unless_current(verdict)
    except BaseException:
        engine.dispose()
        raise
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
            _backend(engine.url).lock_schema(connection)
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
    """Turn errors of the database into an OperatorError: state_not_writable, state_busy, state_disk_full, state_io_error,
    state_damaged, or state_away, of which only the last one goes by itself.
    """
    try:
        yield
    except Exception as error:
        # What fails while connecting comes as the driver raised it.
        original = error.orig if isinstance(error, DBAPIError) else error
        url = _checked(settings.url)
        explanation = None if original is None else _backend(url).explanation(url, settings, original)
        if explanation is None:
            raise
        raise explanation from error


class _Backend(Protocol):
    """What a kind of database knows of itself: consumers/sqlite.py, consumers/postgres.py."""

    def refuse_unless_usable(self, url: URL) -> None: ...
    def writing(self, url: URL, settings: StateSettings) -> Engine: ...
    def reading(self, url: URL, settings: StateSettings) -> Engine | None: ...
    def lock_schema(self, connection: Connection) -> None: ...
    def explanation(self, url: URL, settings: StateSettings, error: BaseException) -> OperatorError | None: ...


_BACKENDS: Final[Mapping[str, _Backend]] = {"sqlite": sqlite, "postgresql": postgres}


def _backend(url: URL) -> _Backend:
    return _BACKENDS[url.get_backend_name()]


def check_url(text: str) -> None:
    """Raise OperatorError("state_url_refused") unless a state can be kept there. Opens nothing."""
    _checked(text)


def _checked(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise OperatorError("state_url_refused", "KINGUIN_STATE__URL is not a database URL.", _URL_HINT) from error
    if url.get_backend_name() not in _BACKENDS:
        what = f"KINGUIN_STATE__URL names {url.get_backend_name()}, and only sqlite and postgresql are supported."
        raise OperatorError("state_url_refused", what, _URL_HINT)
    _backend(url).refuse_unless_usable(url)
    return url


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
        f"({make_url(settings.url).render_as_string()}): a relative path starts at the working folder.",
    )
