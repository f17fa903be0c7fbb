"""Generations of a projection: the live one, which readers see, and one that may be built beside it until it takes its place.

Who writes a generation holds a shared lock on the row that says so, for the time of each transaction; the swap takes that row
for itself. So no batch of the old generation can be written after the swap, whatever its writer still believes.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from heapq import merge
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    Connection,
    Select,
    Table,
    and_,
    cast,
    delete,
    except_,
    func,
    literal,
    select,
    text,
    true,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from kinguin_streams.consumers import database, tables
from kinguin_streams.consumers.projection import FoldProjection, Projection, RowsProjection, StateKey
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.telemetry.operator_error import OperatorError

FIRST_GENERATION: Final = 1
ROWS_PER_DELETE: Final = 20_000
"""A live consumer waits for one such transaction at most."""


class Build(NamedTuple):
    """A generation that is being built, and the version of the fold that builds it."""

    generation: int
    version: int


class Behind(NamedTuple):
    """The new generation has not come as far as the live one in this partition."""

    topic: str
    partition: int
    live: int
    new: int | None


class Swapped(NamedTuple):
    """A generation went live. told: keys whose state differs, queued for the derived topic; vanished: of them, gone ones."""

    before: int
    generation: int
    told: int
    vanished: int


class Differing(NamedTuple):
    """A key that the two generations do not agree on; None: that one does not have it."""

    key: StateKey
    live: Any
    new: Any


def insert_into(table: Table, dialect: str) -> Any:
    """Return an INSERT that knows ON CONFLICT, which SQLAlchemy has for each database by itself."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def live(connection: Connection, projection: Projection) -> Build | None:
    """Return the live generation, or None if no consumer of this projection has ever started."""
    row = connection.execute(_live(projection)).first()
    return None if row is None else Build(*row)


def live_or_first(connection: Connection, projection: Projection) -> Build:
    """Return the live generation, which is the first one from now on where there was none, and the version that made it."""
    table = tables.projection
    first = insert_into(table, connection.dialect.name).values(
        name=projection.name, live_generation=FIRST_GENERATION, version=projection.version
    )
    connection.execute(first.on_conflict_do_nothing())
    return Build(*connection.execute(_live(projection)).one())


def held_live(connection: Connection, projection: Projection) -> Build | None:
    """Return the live generation, which no swap replaces until the end of this transaction; None if there is none."""
    row = connection.execute(_live(projection).with_for_update(read=True)).first()
    return None if row is None else Build(*row)


def _live(projection: Projection) -> Select[Any]:
    table = tables.projection
    return select(table.c.live_generation, table.c.version).where(table.c.name == projection.name)


def held_build(connection: Connection, projection: Projection) -> Build | None:
    """Return the generation that is being built, whose writer waits until the end of this transaction; None if there is none."""
    table = tables.projection_build
    mine = select(table.c.generation, table.c.version).where(table.c.projection == projection.name)
    row = connection.execute(mine.with_for_update()).first()
    return None if row is None else Build(*row)


def still_written(projection: Projection, generation: int, *, is_build: bool) -> Select[Any]:
    """Ask whether a writer may go on with its generation; until the end of its transaction nobody can change that."""
    if is_build:
        table, name, its = tables.projection_build, "projection", "generation"
    else:
        table, name, its = tables.projection, "name", "live_generation"
    mine = and_(table.c[name] == projection.name, table.c[its] == generation)
    return select(literal(1)).select_from(table).where(mine).with_for_update(read=True)


def begin(settings: StateSettings, projection: Projection, *, anew: bool = False) -> tuple[Build, bool]:
    """Return the generation to build, and whether somebody has begun it already with this version of the fold.

    Makes the database if it is new. What an earlier version has begun to build is given up, and with `anew` whatever was
    begun; its writer is refused, and `drop_others` deletes what it has made. Raises OperatorError as consumers/database.py
    does.
    """
    table = tables.projection_build
    with _writing(settings) as connection:
        live_or_first(connection, projection)
        held_live(connection, projection)
        if connection.dialect.name == "postgresql":
            # Waits for whoever is forgetting a key and has seen no build: the new one's writer is to know of it.
            connection.execute(text(f"LOCK TABLE {tables.projection_forgotten.name} IN SHARE MODE"))
        while True:
            begun = held_build(connection, projection)
            if begun is not None and begun.version == projection.version and not anew:
                return begun, True
            build = Build(_newest(connection, projection, begun) + 1, projection.version)
            if begun is not None:  # held since it was read; one that was not seen is another process's
                _forget_build(connection, projection)
            row = insert_into(table, connection.dialect.name).values(projection=projection.name, **build._asdict())
            # Nothing is inserted where another process has begun between the two statements: then its build is looked at.
            if connection.execute(row.on_conflict_do_nothing().returning(table.c.generation)).first() is not None:
                return build, False


def _newest(connection: Connection, projection: Projection, begun: Build | None) -> int:
    """Return the greatest generation that there is, also of rows that nobody needs: no build may begin with their content."""
    found = [live_or_first(connection, projection).generation, 0 if begun is None else begun.generation]
    for table in _tables(projection):
        newest = select(func.max(table.c.generation)).where(_of(projection, table))
        found.append(connection.execute(newest).scalar() or 0)
    return max(found)


def behind(
    connection: Connection, projection: Projection, build: Build, cluster_id: str, topic_ids: Mapping[str, str]
) -> tuple[Behind, ...]:
    """Return the partitions in which the live generation is ahead. topic_ids: name to id; state of other topics is past."""
    table = tables.projection_offset
    offsets = select(table.c.topic, table.c.topic_id, table.c.partition, table.c.generation, table.c.next_offset).where(
        table.c.projection == projection.name, table.c.cluster_id == cluster_id
    )
    live = live_or_first(connection, projection).generation
    found: dict[int, dict[tuple[str, int], int]] = {live: {}, build.generation: {}}
    for topic, topic_id, partition, generation, next_offset in connection.execute(offsets):
        if topic_ids.get(topic) == topic_id and generation in found:
            found[generation][topic, partition] = next_offset
    new = found[build.generation]
    return tuple(
        Behind(*part, next_offset, new.get(part))
        for part, next_offset in sorted(found[live].items())
        if new.get(part, -1) < next_offset
    )


def swap(
    settings: StateSettings, projection: Projection, build: Build, cluster_id: str, topic_ids: Mapping[str, str]
) -> Swapped | tuple[Behind, ...]:
    """Let the new generation take the live one's place, in one transaction, unless it is behind: then say where.

    The old generation's writers are refused from then on. What the derived topic does not tell in the same words is queued:
    new and differing states, and a tombstone for each that vanished.
    Raises OperatorError("build_replaced") if another process has begun a build of its own.
    """
    with _writing(settings) as connection:
        _lock(connection, projection, build)
        live = live_or_first(connection, projection)
        ahead = behind(connection, projection, build, cluster_id, topic_ids)
        if ahead:
            return ahead
        told, vanished = _queue_differences(connection, projection, live.generation, build.generation)
        for table in (tables.projection_outbox, tables.projection_offset):
            old = and_(table.c.projection == projection.name, table.c.generation != build.generation)
            connection.execute(delete(table).where(old))
        foreign = tables.projection_offset  # of files: they say where a rebuild goes on, and it has ended
        connection.execute(
            delete(foreign).where(foreign.c.projection == projection.name, foreign.c.cluster_id != cluster_id)
        )
        table = tables.projection
        connection.execute(
            update(table)
            .values(live_generation=build.generation, version=build.version)
            .where(table.c.name == projection.name)
        )
        _forget_build(connection, projection)
    return Swapped(live.generation, build.generation, told, vanished)


def differences(settings: StateSettings, projection: Projection, build: Build) -> Iterator[Differing]:
    """Yield the keys whose facts differ between the live and the new generation, by key; none of them is held in memory.

    Facts only: which delivery was the first to tell them may differ. Raises OperatorError as consumers/database.py does.
    """
    engine = database.open_for_reading(settings)
    try:
        with database.explained(settings), engine.connect() as connection:
            live = connection.execute(
                select(tables.projection.c.live_generation).where(tables.projection.c.name == projection.name)
            ).scalar_one()
            # One connection cannot stream two results on every database.
            with engine.connect() as another:
                yield from _differing(
                    _facts(connection, projection, live), _facts(another, projection, build.generation)
                )
    finally:
        engine.dispose()


def drop_others(settings: StateSettings, projection: Projection) -> int:
    """Delete what is left of generations that are neither live nor being built; return the number of rows.

    In transactions of ROWS_PER_DELETE rows, so that a live consumer goes on in between.
    """
    deleted = 0
    for table in _tables(projection):
        while rows := _delete_some(settings, projection, table):
            deleted += rows
    return deleted


def _tables(projection: Projection) -> list[Table]:
    own = [tables.metadata.tables[projection.table]] if isinstance(projection, RowsProjection) else []
    return [tables.projection_offset, tables.projection_outbox, tables.projection_state, *own]


def _delete_some(settings: StateSettings, projection: Projection, table: Table) -> int:
    with _writing(settings) as connection:
        kept = [live_or_first(connection, projection).generation]
        begun = held_build(connection, projection)
        if begun is not None:
            kept.append(begun.generation)
        key = [column for column in table.primary_key if column.name != "projection"]
        # Not what is newer: where a build begins after `kept` was read, PostgreSQL's DELETE sees its rows (READ COMMITTED).
        old = and_(_of(projection, table), table.c.generation.not_in(kept), table.c.generation < max(kept))
        last = connection.execute(select(*key).where(old).order_by(*key).limit(1).offset(ROWS_PER_DELETE - 1)).first()
        upto = old if last is None else and_(old, tuple_(*key) <= tuple_(*map(literal, last)))
        return connection.execute(delete(table).where(upto)).rowcount


def _of(projection: Projection, table: Table) -> Any:
    """Return the condition for the projection's rows: a table of its own has no others."""
    return table.c.projection == projection.name if "projection" in table.c else true()


def _forget_build(connection: Connection, projection: Projection) -> None:
    table = tables.projection_build
    connection.execute(delete(table).where(table.c.projection == projection.name))


def _lock(connection: Connection, projection: Projection, build: Build) -> None:
    """Wait for the transactions of both generations' writers to end, and let no further one begin."""
    live = tables.projection
    connection.execute(select(live.c.name).where(live.c.name == projection.name).with_for_update())
    if held_build(connection, projection) != build:
        raise OperatorError(
            "build_replaced",
            f"Another process has begun to rebuild {projection.name}, or has ended this rebuild.",
            "Look with `kinguin-streams state` whether the new state is there; rebuild again if not.",
        )


def _queue_differences(connection: Connection, projection: Projection, live: int, new: int) -> tuple[int, int]:
    """Queue, for the derived topic, what it does not tell already. Return how many keys, and how many of them are gone."""
    before, after = _content(projection, live), _content(projection, new)
    if not isinstance(projection, FoldProjection):
        _count_revisions(connection, projection, new, _keys(after))
    if projection.derived is None:
        return 0, 0
    vanished = _keys(except_(_keys(before), _keys(after)))
    gone = connection.execute(select(func.count()).select_from(vanished.subquery())).scalar_one()
    _count_revisions(connection, projection, new, vanished)
    state, outbox = tables.projection_state, tables.projection_outbox
    not_told = select(outbox.c.store, outbox.c.id).where(
        outbox.c.projection == projection.name, outbox.c.generation == live
    )
    # Also of keys without a state here: that they are gone is what nobody has been told yet.
    _count_revisions(connection, projection, new, not_told)
    keys = union(_keys(except_(after, before)), _keys(except_(before, after)), not_told).subquery()
    names = [column.name for column in outbox.columns]
    rows = (
        select(*(state.c[name] for name in names))
        .join_from(state, keys, and_(state.c.store == keys.c.store, state.c.id == keys.c.id))
        .where(state.c.projection == projection.name, state.c.generation == new)
    )
    connection.execute(outbox.insert().from_select(names, rows))
    mine = and_(outbox.c.projection == projection.name, outbox.c.generation == new)
    # Not rowcount: of such an INSERT SQLAlchemy does not keep it on every database.
    return connection.execute(select(func.count()).where(mine)).scalar_one(), gone


def _content(projection: Projection, generation: int) -> Select[Any]:
    """Ask for all that a generation says, a row a state or a change, with `store` and `id` first."""
    if isinstance(projection, FoldProjection):
        table = tables.projection_state
        mine = and_(table.c.projection == projection.name, table.c.state != tables.NONE_YET)
        return select(table.c.store, table.c.id, table.c.state).where(mine, table.c.generation == generation)
    table = tables.metadata.tables[projection.table]
    id_ = _id_column(table)
    others = [column for column in table.columns if column.name not in ("generation", "store", id_.name)]
    return select(table.c.store, cast(id_, tables.Text).label("id"), *others).where(table.c.generation == generation)


def _id_column(table: Table) -> Any:
    """Return the column of the sender's id: the one after the store in the primary key of a table of rows."""
    names = [column.name for column in table.primary_key]
    return table.c[names[names.index("store") + 1]]


def _keys(content: Any) -> Select[Any]:
    rows = content.subquery()
    return select(rows.c.store, rows.c.id).distinct()


def _count_revisions(connection: Connection, projection: Projection, generation: int, keys: Select[Any]) -> None:
    """Give each of these keys its row that counts revisions, where it has none."""
    state = tables.projection_state
    wanted = keys.subquery()
    rows = select(
        literal(projection.name), literal(generation), wanted.c.store, wanted.c.id, literal(tables.NONE_YET), literal(1)
    ).where(true())  # without a WHERE, SQLite takes ON CONFLICT for the ON of a join
    names = ["projection", "generation", "store", "id", "state", "revision"]
    insert = insert_into(state, connection.dialect.name).from_select(names, rows)
    connection.execute(insert.on_conflict_do_nothing())


def _facts(connection: Connection, projection: Projection, generation: int) -> Iterator[tuple[StateKey, Any]]:
    """Yield each key with what it says, by key, without its provenance."""
    content = _content(projection, generation).subquery()
    rows = connection.execution_options(yield_per=1_000).execute(
        select(content).order_by(content.c.store, content.c.id)
    )
    if isinstance(projection, FoldProjection):
        decode = msgspec.json.Decoder(projection.state_type).decode
        for store, id_, text in rows:
            yield StateKey(store, id_), projection.facts(decode(text))
        return
    for (store, id_), its in groupby(rows, key=lambda row: (row.store, row.id)):
        said = {tuple(value for name, value in row._mapping.items() if name not in tables.PROVENANCE) for row in its}
        yield StateKey(store, id_), said


def _differing(live: Iterable[tuple[StateKey, Any]], new: Iterable[tuple[StateKey, Any]]) -> Iterator[Differing]:
    """Return what differs between two lists that are in the order of their keys."""
    marked = merge(((*item, "live") for item in live), ((*item, "new") for item in new), key=lambda item: item[0])
    for key, its in groupby(marked, key=lambda item: item[0]):
        says = {generation: facts for _, facts, generation in its}
        if says.get("live") != says.get("new"):
            yield Differing(key, says.get("live"), says.get("new"))


@contextmanager
def _writing(settings: StateSettings) -> Iterator[Connection]:
    engine = database.open_for_writing(settings)
    try:
        database.prepare(engine, settings)
        with database.explained(settings), engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()
