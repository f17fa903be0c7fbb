"""The states of projection_state and the rows of projection_outbox as a fold reads and writes them, thousands in one transaction.

SQL as text, for each database, and parameters as its driver takes them: measured in PostgreSQL, loading, folding and writing
took 39 µs of CPU a record through SQLAlchemy's parameters and psycopg's lists, and takes 17. What a state is, and when it is
written, is in store.py.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from kinguin_streams.consumers import tables
from kinguin_streams.consumers.live_rows import ids_by_store
from kinguin_streams.consumers.postgres import text_array
from kinguin_streams.consumers.projection import StateKey

ROWS_PER_INSERT: Final = 1_250
"""Measured: 1,000 rows in a statement cost SQLite no more than one each, 5,000 twice as much."""
IDS_PER_SELECT: Final = 5_000
NO_REVISION: Final = 0
"""Of a key that has no row."""


Key = tuple[str, str]
"""A StateKey, or what equals one: thousands of them are made and looked up for each batch."""
Stored = dict[Key, tuple[Any, int]]
"""By key, the state (None: none yet) and its revision."""
Changed = list[tuple[StateKey, str, int]]
"""Key, the state to store (JSON), and the revision that it is to have then."""


class Overtaken(Exception):
    """A row has another revision than the one that was read: somebody has written it since. Undo, and read it again."""


class SqliteRows:
    """BEGIN IMMEDIATE has shut out every other writer: what was read is what is there when it is written.

    A statement takes or gives hundreds of rows at once. Python's sqlite3 lets other threads run during a step of SQLite, and
    a step is a row: the loop's thread, which decodes meanwhile, would be waited for after each of them.
    """

    def __init__(self, projection: str, generation: int, state_type: type[Any]) -> None:
        self._scope = (projection, generation)
        self._decode = msgspec.json.Decoder(list[tuple[str, int, state_type | None]]).decode  # type: ignore[valid-type]
        self._load = (
            "SELECT CAST('[' || group_concat("  # noqa: S608
            f"'[' || json_quote(id) || ',' || revision || ',' || iif(state = '{tables.NONE_YET}', 'null', state) || ']'"
            ") || ']' AS BLOB) "
            "FROM projection_state WHERE projection = ? AND generation = ? AND store = ? AND id IN ({})"
        )
        self._save = (
            "INSERT INTO projection_state (projection, generation, store, id, state, revision) VALUES {} "
            "ON CONFLICT (projection, generation, store, id) "
            "DO UPDATE SET state = excluded.state, revision = excluded.revision"
        )
        self._queue = (
            "INSERT INTO projection_outbox (projection, generation, store, id, revision) VALUES {} "
            "ON CONFLICT (projection, generation, store, id) DO UPDATE SET revision = excluded.revision"
        )

    def load(self, connection: Connection, keys: Sequence[StateKey], *, lock: bool) -> list[tuple[str, bytes]]:  # noqa: ARG002
        """Return what `states` makes states of, for these keys, which are in their order. lock: they need none."""
        found: list[tuple[str, bytes]] = []
        for store, ids in ids_by_store(keys, IDS_PER_SELECT):
            statement = self._load.format(",".join("?" * len(ids)))
            rows = connection.exec_driver_sql(statement, (*self._scope, store, *ids)).scalar()
            if rows is not None:
                found.append((store, rows))
        return found

    def states(self, loaded: list[tuple[str, bytes]]) -> Stored:
        """Return the states that were loaded. Asks nobody."""
        return {
            (store, id_): (state, revision) for store, rows in loaded for id_, revision, state in self._decode(rows)
        }

    def save(self, connection: Connection, rows: Changed) -> None:
        """Write them."""
        self._insert(connection, self._save, [(*key, state, revision) for key, state, revision in rows])

    def queue(self, connection: Connection, revisions: Sequence[tuple[StateKey, int]]) -> None:
        """Queue in the outbox that these keys have these revisions."""
        self._insert(connection, self._queue, [(*key, revision) for key, revision in revisions])

    def _insert(self, connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        scope = self._scope
        for start in range(0, len(rows), ROWS_PER_INSERT):
            some = rows[start : start + ROWS_PER_INSERT]
            values = _values(len(some), len(scope) + len(some[0]))
            parameters = tuple(chain.from_iterable((*scope, *row) for row in some))
            connection.exec_driver_sql(statement.format(values), parameters)


@lru_cache(maxsize=16)
def _values(rows: int, columns: int) -> str:
    """Return rows of a VALUES clause.

    The scope comes with every row, and not once by number: since 3.12 Python asks for each parameter's name, and SQLite looks
    for it among those of all that have one, `?7` too. Measured, 1,250 rows of four columns: 1.0 ms, and 24 ms with numbers.
    """
    row = f"({','.join('?' * columns)})"
    return ",".join([row] * rows)


class PostgresRows:
    """Other processes write at the same time, each for partitions of its own; two topics of one key may have two owners.

    Rows are read without a lock and written only where they still have the revision that was read: a lock is
    one more write for each row, and nearly always nobody else wants it. Who has been overtaken asks for the locks. A row
    that is not there cannot be locked, so it is made first. Rows are written and locked in the order of their keys, and
    those of the outbox after all of them, so that nobody waits in a circle: the statements take them in the order of the
    arrays, whatever the planner chooses.
    """

    def __init__(self, projection: str, generation: int, state_type: type[Any]) -> None:
        self._scope = {"projection": projection, "generation": generation}
        self._decode = msgspec.json.Decoder(state_type).decode
        # Of our own words only; what comes from outside is a parameter.
        wanted = "unnest(%(stores)s::text[], %(ids)s::text[]) AS wanted (store, id)"
        self._make = (
            "INSERT INTO projection_state (projection, generation, store, id, state, revision) "  # noqa: S608
            f"SELECT %(projection)s, %(generation)s, store, id, %(none_yet)s, %(no_revision)s FROM {wanted} "
            "ON CONFLICT DO NOTHING"
        )
        # With a LIMIT the planner does not turn it round. Measured on 200,000 rows that PostgreSQL has not analysed yet (it takes
        # few of them to be of this projection): joined plainly, all are read for every 100 keys, in 150 ms; so it is 1 ms.
        row = (
            "SELECT store, id, state, revision FROM projection_state WHERE projection = %(projection)s "
            "AND generation = %(generation)s AND store = wanted.store AND id = wanted.id LIMIT 1"
        )
        self._load = f"SELECT kept.* FROM {wanted} CROSS JOIN LATERAL ({row}) AS kept"  # noqa: S608
        self._lock = f"SELECT kept.* FROM {wanted} CROSS JOIN LATERAL ({row} FOR UPDATE) AS kept"  # noqa: S608
        self._save = (
            "INSERT INTO projection_state AS old (projection, generation, store, id, state, revision) "
            "SELECT %(projection)s, %(generation)s, new.* "
            "FROM unnest(%(stores)s::text[], %(ids)s::text[], %(states)s::text[], %(revisions)s::bigint[]) AS new "
            "ON CONFLICT (projection, generation, store, id) "
            "DO UPDATE SET state = excluded.state, revision = excluded.revision "
            "WHERE old.revision = excluded.revision - 1"
        )
        self._queue = (
            "INSERT INTO projection_outbox (projection, generation, store, id, revision) "
            "SELECT %(projection)s, %(generation)s, new.* "
            "FROM unnest(%(stores)s::text[], %(ids)s::text[], %(revisions)s::bigint[]) AS new "
            "ON CONFLICT (projection, generation, store, id) DO UPDATE SET revision = excluded.revision"
        )

    def load(self, connection: Connection, keys: Sequence[StateKey], *, lock: bool) -> Sequence[Any]:
        """Return what `states` makes states of, for these keys, which are in their order; with lock, a row of every key."""
        parameters = {**self._scope, **_keys(keys)}
        if lock:
            connection.exec_driver_sql(
                self._make, {**parameters, "none_yet": tables.NONE_YET, "no_revision": NO_REVISION}
            )
        return connection.exec_driver_sql(self._lock if lock else self._load, parameters).all()

    def states(self, loaded: Sequence[Any]) -> Stored:
        """Return the states that were loaded. Asks nobody."""
        decode = self._decode
        return {
            (store, id_): (None if state == tables.NONE_YET else decode(state), revision)
            for store, id_, state, revision in loaded
        }

    def save(self, connection: Connection, rows: Changed) -> None:
        """Write them. Raises Overtaken."""
        parameters = {
            **self._scope,
            **_keys([key for key, _, _ in rows]),
            "states": text_array([state for _, state, _ in rows]),
            "revisions": _numbers(revision for _, _, revision in rows),
        }
        if connection.exec_driver_sql(self._save, parameters).rowcount != len(rows):
            raise Overtaken

    def queue(self, connection: Connection, revisions: Sequence[tuple[StateKey, int]]) -> None:
        """Queue in the outbox that these keys have these revisions."""
        parameters = {
            **self._scope,
            **_keys([key for key, _ in revisions]),
            "revisions": _numbers(revision for _, revision in revisions),
        }
        connection.exec_driver_sql(self._queue, parameters)


StateRows = SqliteRows | PostgresRows


def state_rows(dialect: str, projection: str, generation: int, state_type: type[Any]) -> StateRows:
    """Return those of a database. state_type: a msgspec Struct."""
    return (PostgresRows if dialect == "postgresql" else SqliteRows)(projection, generation, state_type)


def _keys(keys: Sequence[StateKey]) -> dict[str, str]:
    return {"stores": text_array([store for store, _ in keys]), "ids": text_array([id_ for _, id_ in keys])}


def _numbers(numbers: Iterable[int]) -> str:
    return f"{{{','.join(map(str, numbers))}}}"
