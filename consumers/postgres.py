"""State in PostgreSQL: many processes of one group, on many machines.

READ COMMITTED: a writer takes its offsets' rows first, so that one which has lost its partition finds another offset there;
then it writes the rows of its states, in the order of their keys, so that two writers never wait for each other in a
circle, and only where they are what it has read (state_rows.py). A reader sees one instant (REPEATABLE READ).
"""

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Select,
    bindparam,
    create_engine,
    event,
    func,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.telemetry.operator_error import OperatorError

CONNECT_TIMEOUT_S = 5
# Any number that others in the database are unlikely to use: "kinguin\0" as eight bytes.
SCHEMA_LOCK = int.from_bytes(b"kinguin\0", "big")
_AWAY = ("08", "57P", "53300", "25P03", "25P04")
"""SQLSTATE: connection exceptions; the server is shutting down or starting; too many connections; the server has ended a
session whose process was paused within a transaction, as a frozen virtual machine is."""
_GAVE_WAY = ("40001", "40P01")
"""SQLSTATE: the transaction was undone in favour of another one."""


class GaveWay(OperatorError):
    """Nothing of the transaction has happened, and it can be done again at once."""


def refuse_unless_usable(url: URL) -> None:
    """Raise OperatorError unless the URL names a database, and the driver is there."""
    if url.get_driver_name() != "psycopg":
        raise OperatorError(
            "state_url_refused",
            "KINGUIN_STATE__URL names another driver than psycopg.",
            "Write postgresql+psycopg://USER:PASSWORD@HOST:5432/DATABASE.",
        )
    if not url.database:
        raise OperatorError(
            "state_url_refused",
            "KINGUIN_STATE__URL names no database.",
            "Write postgresql+psycopg://USER:PASSWORD@HOST:5432/DATABASE.",
        )
    try:
        import psycopg  # noqa: F401
    except ImportError as missing:
        raise OperatorError(
            "postgres_extra_missing",
            f"KINGUIN_STATE__URL names a PostgreSQL database, and its driver cannot be imported: {missing}.",
            "Install kinguin-streams[postgres].",
        ) from missing


def writing(url: URL, settings: StateSettings) -> Engine:
    """Return an engine for the one thread that writes."""
    return _engine(url, settings, "READ COMMITTED", "")


def reading(url: URL, settings: StateSettings) -> Engine | None:
    """Return an engine whose transactions see one instant and cannot write."""
    return _engine(url, settings, "REPEATABLE READ", " -c default_transaction_read_only=on")


def lock_schema(connection: Connection) -> None:
    """Shut out every other migration until the end of the transaction."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})


def explanation(url: URL, settings: StateSettings, error: BaseException) -> OperatorError | None:
    """Return what an error of the driver means to an operator, or None if it is a bug of ours."""
    import psycopg

    if not isinstance(error, psycopg.Error):
        return None
    where = f"{url.host or 'localhost'}:{url.port or 5432}/{url.database}"
    code = error.sqlstate or ""
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # What fails while connecting carries no code, only words.
    refused = not code and re.search(r"authentication failed|no password supplied|does not exist|no pg_hba", said)
    if refused or code in ("28P01", "28000", "3D000", "42501", "25006"):
        return OperatorError(
            "state_not_writable",
            f"PostgreSQL at {where} refuses us: {said}.",
            "Check user, password and database of KINGUIN_STATE__URL, and the user's rights to create and write tables.",
        )
    if code == "55P03":
        return OperatorError(
            "state_busy",
            f"Another process has held a row or table of {where} for {settings.busy_timeout_s:g} s.",
            "Nothing is lost: see pg_stat_activity for who holds it.",
        )
    if code in _GAVE_WAY:
        return GaveWay(
            "state_busy",
            f"PostgreSQL at {where} has undone our transaction in favour of another one: {said}.",
            "Nothing is lost: see the server's log for who else writes these tables.",
        )
    if code in ("53100", "53200"):
        return OperatorError(
            "state_disk_full", f"PostgreSQL at {where} has no room: {said}.", "Nothing is lost: make room."
        )
    if code.startswith(_AWAY) or (not code and isinstance(error, psycopg.OperationalError)):
        return OperatorError(
            "state_away", f"PostgreSQL at {where} does not answer: {said}.", "Nothing is lost: it is asked again."
        )
    return None


def unnested(alias: str, prefix: str = "", **columns: type[TypeEngine[Any]]) -> Any:
    """Return arrays as a table, so that one statement takes any number of rows.

    columns: name to type; the array of each is the parameter `<prefix><name>s`.
    """
    arrays = (bindparam(f"{prefix}{name}s", type_=ARRAY(kind)) for name, kind in columns.items())
    return func.unnest(*arrays).table_valued(*columns, name=alias).render_derived()


def of_each(wanted: Any, rows: Select[Any], id_column: Column[Any]) -> Select[Any]:
    """Return the rows of each key of a table of keys, with its columns store and id, by key; rows: in no order of their own.

    The OFFSET keeps the planner from turning it round. Measured on a table of 200,000 rows that PostgreSQL has not analysed yet (it
    takes few of them to be of this projection): joined plainly, or for `id IN (…)`, all of them are read for every 100 keys.
    """
    its_key = (id_column.table.c.store == wanted.c.store, id_column == wanted.c.id)
    its = rows.where(*its_key).offset(0).lateral("its")
    return select(its).join_from(wanted, its, true()).order_by(its.c.store, its.c[id_column.name])


def text_array(texts: Sequence[str]) -> str:
    """Return texts as PostgreSQL writes a text[].

    The driver makes one from a list item by item in Python, which took longer than everything else in a batch; here the
    items are quoted together. Raises ValueError for text with U+0000, which PostgreSQL does not take.
    """
    joined = "\0".join(texts)
    if joined.count("\0") >= max(len(texts), 1):
        raise ValueError("text with U+0000")
    quoted = joined.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","')
    return f'{{"{quoted}"}}' if texts else "{}"


def _engine(url: URL, settings: StateSettings, isolation: str, more: str) -> Engine:
    wait_ms = round(settings.busy_timeout_s * 1000)
    arguments: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "kinguin-streams",
        "options": f"-c lock_timeout={wait_ms} -c idle_in_transaction_session_timeout={max(wait_ms, 60_000)}{more}",
        # A server that vanishes without a word is noticed within half a minute.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        # Neither PGCLIENTENCODING nor the database's own encoding decides what a text is.
        "client_encoding": "utf8",
    }
    engine = create_engine(
        url, connect_args=arguments, isolation_level=isolation, pool_size=1, max_overflow=1, pool_pre_ping=True
    )
    event.listen(engine, "connect", lambda connection, _: _refuse_unless_utf_8(url, connection))
    return engine


def _refuse_unless_utf_8(url: URL, connection: Any) -> None:
    """Raise OperatorError unless the database keeps every text that a webhook may hold.

    A single-byte one fails at the first character that it does not have; SQL_ASCII checks nothing and counts bytes.
    """
    encoding = connection.info.parameter_status("server_encoding")  # said by the server when the connection is made
    if encoding != "UTF8":
        connection.close()
        raise OperatorError(
            "state_encoding_refused",
            f"The PostgreSQL database {url.database} has the encoding {encoding}: it cannot keep every text of a webhook.",
            "Make one for the state with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and name it in "
            "KINGUIN_STATE__URL; `kinguin-streams consume` fills it from the topics.",
        )
