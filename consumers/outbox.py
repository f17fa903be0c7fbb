"""The outbox: which keys have a state that their derived topic does not tell yet. One row a key, the newest revision.

Rows are written in the transaction of the state itself, and taken away when Kafka has confirmed that very revision. Who
publishes them is in consumers/relay.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Text,
    and_,
    any_,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from kinguin_streams.consumers import tables
from kinguin_streams.consumers.postgres import of_each, unnested
from kinguin_streams.consumers.projection import StateKey


class Queued(NamedTuple):
    """A row: this revision of the key's state is to be told."""

    key: StateKey
    revision: int


class OutboxWriter:
    """Queues the keys that a transaction has changed, with the revisions that it has given them."""

    def __init__(self, projection: str, generation: int, dialect: str) -> None:
        self._scope = {"projection": projection, "generation": generation}
        self._is_postgres = dialect == "postgresql"
        self._count = self._counting()
        self._queue = self._queueing()

    def queue(self, connection: Connection, keys: Sequence[StateKey]) -> None:
        """Queue these keys, which are in their order, each once; their rows in projection_state are locked by now."""
        self._run(connection, self._queue, keys)

    def count_and_queue(self, connection: Connection, keys: Sequence[StateKey]) -> None:
        """The same for keys whose state is elsewhere: their row in projection_state does nothing but count."""
        self._run(connection, self._count, keys)
        self._run(connection, self._queue, keys)

    def _run(self, connection: Connection, statement: Any, keys: Sequence[StateKey]) -> None:
        if not keys:
            return
        parameters: Any = [{"key_store": key.store, "key_id": key.id} for key in keys]
        if self._is_postgres:
            parameters = {"key_stores": [key.store for key in keys], "key_ids": [key.id for key in keys]}
        connection.execute(statement, parameters)

    def _keys(self) -> Any:
        """Return the keys as a table: all of them in PostgreSQL, one at a time in SQLite."""
        if not self._is_postgres:
            return select(
                bindparam("key_store", type_=Text).label("store"), bindparam("key_id", type_=Text).label("id")
            )
        return unnested("changed", "key_", store=Text, id=Text)

    def _counting(self) -> Any:
        table = tables.projection_state
        row = {**self._scope, "state": tables.NONE_YET, "revision": 1}
        names = [column.name for column in table.columns]
        if self._is_postgres:
            keys = self._keys()
            key_columns = {"store": keys.c.store, "id": keys.c.id}
        else:
            key_columns = {name: bindparam(f"key_{name}", type_=Text) for name in ("store", "id")}
        values = [key_columns[name] if name in key_columns else literal(row[name]) for name in names]
        wanted = select(*values)
        if self._is_postgres:
            insert: Any = postgresql.insert(table)
            wanted = wanted.order_by(keys.c.store, keys.c.id)
        else:
            # Without a WHERE, SQLite takes ON CONFLICT for the ON of a join.
            insert = sqlite.insert(table)
            wanted = wanted.where(literal(True))
        return insert.from_select(names, wanted).on_conflict_do_update(
            index_elements=list(table.primary_key), set_={"revision": table.c.revision + 1}
        )

    def _queueing(self) -> Any:
        table, state = tables.projection_outbox, tables.projection_state
        names = [column.name for column in table.columns]
        mine = and_(*(state.c[name] == value for name, value in self._scope.items()))
        rows = select(*(state.c[name] for name in names)).where(mine)
        if self._is_postgres:
            rows = of_each(self._keys(), rows, state.c.id)
            insert: Any = postgresql.insert(table)
        else:
            one = (state.c[name] == bindparam(f"key_{name}", type_=Text) for name in ("store", "id"))
            rows = rows.where(*one)
            insert = sqlite.insert(table)
        insert = insert.from_select(names, rows)
        return insert.on_conflict_do_update(
            index_elements=list(table.primary_key), set_={"revision": insert.excluded.revision}
        )


def peek(
    connection: Connection, projection: str, generation: int, most: int, after: StateKey | None = None
) -> list[Queued]:
    """Return at most that many rows, in the order of their keys, from the first one after `after` on."""
    table = tables.projection_outbox
    wanted = select(table.c.store, table.c.id, table.c.revision).where(
        table.c.projection == projection, table.c.generation == generation
    )
    if after is not None:
        wanted = wanted.where(tuple_(table.c.store, table.c.id) > tuple_(literal(after.store), literal(after.id)))
    rows = connection.execute(wanted.order_by(table.c.store, table.c.id).limit(most))
    return [Queued(StateKey(store, id_), revision) for store, id_, revision in rows]


def confirm(connection: Connection, projection: str, generation: int, told: Sequence[Queued]) -> None:
    """Take away the rows whose revision is still the one that Kafka has confirmed.

    A row that a writer is just changing is left, not waited for: its revision will be another one.
    """
    if not told:
        return
    table = tables.projection_outbox
    mine = and_(table.c.projection == projection, table.c.generation == generation)
    if connection.dialect.name != "postgresql":
        columns = [{"told_store": key.store, "told_id": key.id, "told_revision": revision} for key, revision in told]
        same = (table.c[name] == bindparam(f"told_{name}") for name in ("store", "id", "revision"))
        connection.execute(delete(table).where(mine, *same), columns)
        return
    its = unnested("told", store=Text, id=Text, revision=BigInteger)
    # By where they lie: told by their columns, PostgreSQL may look for each of them among all.
    row_id: Any = literal_column(f"{table.name}.ctid").label("row_id")
    rows = select(table.c.store, table.c.id, row_id).where(mine, table.c.revision == its.c.revision)
    free = of_each(its, rows.with_for_update(skip_locked=True), table.c.id).subquery()
    values = {
        "stores": [row.key.store for row in told],
        "ids": [row.key.id for row in told],
        "revisions": [row.revision for row in told],
    }
    where_they_lie = func.array(select(free.c.row_id).scalar_subquery())
    connection.execute(delete(table).where(row_id.element == any_(where_they_lie)), values)


def forget(connection: Connection, projection: str, generation: int, key: StateKey) -> bool:
    """Delete the state of a key of a fold, and queue that it is gone. Return whether there was one."""
    if not empty(connection, projection, generation, key):
        return False
    OutboxWriter(projection, generation, connection.dialect.name).queue(connection, [key])
    return True


def empty(connection: Connection, projection: str, generation: int, key: StateKey) -> bool:
    """Delete the state of a key of a fold, of which nobody is to be told. Return whether there was one.

    Its row stays with the key and the revision, so that what comes later counts on from there.
    """
    table = tables.projection_state
    gone = (
        update(table)
        .values(state=tables.NONE_YET, revision=table.c.revision + 1)
        .where(
            table.c.projection == projection,
            table.c.generation == generation,
            table.c.store == key.store,
            table.c.id == key.id,
            table.c.state != tables.NONE_YET,
        )
        .returning(table.c.revision)
    )
    return connection.execute(gone).first() is not None
