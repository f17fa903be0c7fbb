"""State and offsets in one transaction: the place where "each record takes effect exactly once" is kept.

Nothing but the database decides who may write. A process that has lost its partition, whatever it still believes,
finds another offset there than the one it read, and its transaction is undone.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import zip_longest
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    Connection,
    Engine,
    Table,
    and_,
    case,
    delete,
    func,
    not_,
    or_,
    select,
    tuple_,
    update,
)

from kinguin_streams.consumers import database, tables
from kinguin_streams.consumers.forgetting import not_forgotten
from kinguin_streams.consumers.generations import Build, insert_into, live_or_first, still_written
from kinguin_streams.consumers.in_order import AtOnce, Beside
from kinguin_streams.consumers.live_rows import LANE, not_lane
from kinguin_streams.consumers.outbox import OutboxWriter
from kinguin_streams.consumers.postgres import GaveWay
from kinguin_streams.consumers.projection import (
    ByKey,
    FoldProjection,
    Projection,
    Received,
    RowsProjection,
    StateKey,
)
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.source_changed import REBUILD_HINT, cluster_changed, topic_replaced
from kinguin_streams.consumers.state_rows import NO_REVISION, Changed, Overtaken, StateRows, Stored, state_rows
from kinguin_streams.schemas.events import Event
from kinguin_streams.telemetry.operator_error import OperatorError

KEYS_AT_ONCE: Final = 2_500
TRIES: Final = 4
"""Of a batch: who has been overtaken takes locks, and who makes rows of new keys before locking others may meet somebody who does
it the other way round (seen once in a replay of a million records beside its consumer)."""
_NO_ROW: Final = (None, NO_REVISION)


class PartitionSource(NamedTuple):
    """A partition that no other can be mistaken for: a topic made anew has its old name and another id."""

    cluster_id: str
    topic_id: str
    topic: str
    partition: int


class Advance(NamedTuple):
    """A partition's offsets [expected, next_offset) take effect with this batch. expected None: nothing ever has."""

    source: PartitionSource
    expected: int | None
    next_offset: int


class LostPartition(OperatorError):
    """Another process has written this partition's offset since this one read it. Stop: its view of the state is old."""

    def __init__(self, projection: str, advance: Advance) -> None:
        partition = f"{advance.source.topic}/{advance.source.partition}"
        super().__init__(
            "lost_partition",
            f"Another process has taken over {partition} of {projection}: its stored offset is not {advance.expected} "
            "any more. The batch in hand was undone.",
            "Nothing is lost or counted twice. Start this consumer again; if it recurs, two groups share one database.",
        )


class StateStore:
    """The states of one projection, in its live generation, or in one that is being built beside it."""

    def __init__(self, settings: StateSettings, projection: Projection, build: Build | None = None) -> None:
        """Open the database, and make it if it is new. build: the generation to write, if not the live one.

        Raises OperatorError: those of consumers/database.py, or "projection_version" if another version of the fold
        has made the state.
        """
        self._settings = settings
        self._projection = projection
        self._engine: Engine = database.open_for_writing(settings)
        try:
            database.prepare(self._engine, settings)
            with database.explained(settings), self._engine.begin() as connection:
                live = live_or_first(connection, projection)
        except BaseException:
            self._engine.dispose()
            raise
        if build is None and live.version != projection.version:
            self._engine.dispose()
            raise OperatorError(
                "projection_version",
                f"The state of {projection.name} was made by version {live.version} of its fold; this is version "
                f"{projection.version}.",
                REBUILD_HINT,
            )
        self._generation = live.generation if build is None else build.generation
        self._is_mine = still_written(projection, self._generation, is_build=build is not None)
        dialect = self._engine.dialect.name
        # Nobody is told of a state that is not live yet; the swap queues what differs.
        is_told = projection.derived is not None and build is None
        self._writer: _FoldWriter | _RowsWriter
        self._key_of: Callable[[Any], StateKey]
        if isinstance(projection, FoldProjection):
            self._key_of = projection.key
            self._writer = _FoldWriter(
                projection,
                state_rows(dialect, projection.name, self._generation, projection.state_type),
                is_told=is_told,
                is_build=build is not None,
            )
        else:
            self._key_of = _record_key
            outbox = OutboxWriter(projection.name, self._generation, dialect) if is_told else None
            self._writer = _RowsWriter(projection, self._generation, dialect, outbox)

    @property
    def engine(self) -> Engine:
        """The engine, so that a test may listen to its transactions."""
        return self._engine

    @property
    def generation(self) -> int:
        """The one that it writes."""
        return self._generation

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()

    def offsets(self, cluster_id: str, topic_ids: Mapping[str, str]) -> dict[PartitionSource, int]:
        """Return the next offset of each partition of these topics (name to id) that has ever taken effect.

        Raises OperatorError("cluster_changed") or ("topic_replaced") if the state was made from other records: reading
        on at its offsets would skip what the new topic holds below them, silently.
        """
        table = tables.projection_offset
        statement = select(table.c.cluster_id, table.c.topic_id, table.c.topic, table.c.partition, table.c.next_offset)
        mine = and_(
            table.c.projection == self._projection.name,
            table.c.generation == self._generation,
            table.c.topic.in_(list(topic_ids)),
            table.c.cluster_id == cluster_id if cluster_id.startswith(LANE) else not_lane(),
        )
        with database.explained(self._settings), self._engine.connect() as connection:
            rows = connection.execute(statement.where(mine)).all()
        found: dict[PartitionSource, int] = {}
        for *source_columns, next_offset in rows:
            source = PartitionSource(*source_columns)
            if source.cluster_id != cluster_id:
                raise cluster_changed(source.cluster_id, cluster_id)
            if source.topic_id != topic_ids[source.topic]:
                raise topic_replaced(source.topic, source.topic_id, topic_ids[source.topic])
            found[source] = next_offset
        return found

    def close_lane(self, cluster_id: str) -> None:
        """Forget how far a replay has come: it is at its end. cluster_id: begins with LANE."""
        table = tables.projection_offset
        mine = and_(table.c.projection == self._projection.name, table.c.cluster_id == cluster_id)
        with database.explained(self._settings), self._engine.begin() as connection:
            connection.execute(delete(table).where(mine))

    def by_key(self, batch: Sequence[Received[Any]]) -> ByKey:
        """Return a batch by the keys of its states. Asks nobody."""
        key_of = self._key_of
        by_key: dict[StateKey, list[Received[Any]]] = {}
        for received in batch:
            key = key_of(received.event)
            if (its := by_key.get(key)) is None:
                by_key[key] = [received]
            else:
                its.append(received)
        return sorted(by_key.items(), key=itemgetter(0))

    def apply(self, batch: Sequence[Received[Any]], advances: Sequence[Advance]) -> None:
        """Let a batch take effect, and move its partitions' offsets. Raises as `apply_by_key` does."""
        self.apply_by_key(self.by_key(batch), advances)

    def apply_by_key(self, batch: ByKey, advances: Sequence[Advance]) -> None:
        """Let a batch take effect, and move its partitions' offsets: both or neither, and only once.

        Raises LostPartition, OperatorError("generation_replaced"), or one of consumers/database.py; nothing has happened
        then.
        """
        lock = False
        for tries_left in reversed(range(TRIES)):
            try:
                return self._apply(batch, advances, lock=lock)
            except (Overtaken, GaveWay) as undone:
                if not tries_left:
                    raise
                lock = lock or isinstance(undone, Overtaken)
        return None

    def _apply(self, batch: ByKey, advances: Sequence[Advance], *, lock: bool) -> None:
        with database.explained(self._settings), self._engine.begin() as connection:
            if connection.execute(self._is_mine).first() is None:
                raise _replaced(self._projection, self._generation)
            for advance in sorted(advances):
                self._advance(connection, advance)
            self._writer.write(connection, batch, lock=lock)

    def _advance(self, connection: Connection, advance: Advance) -> None:
        table = tables.projection_offset
        key = {
            "projection": self._projection.name,
            "generation": self._generation,
            **advance.source._asdict(),
        }
        statement: Any
        if advance.expected is None:
            insert = insert_into(table, connection.dialect.name)
            statement = insert.values(**key, next_offset=advance.next_offset).on_conflict_do_nothing()
        else:
            statement = update(table).values(next_offset=advance.next_offset)
            statement = statement.where(*(table.c[column] == value for column, value in key.items()))
            statement = statement.where(table.c.next_offset == advance.expected)
        # Not rowcount: of an INSERT that may do nothing, SQLAlchemy does not keep it on every database.
        if connection.execute(statement.returning(table.c.next_offset)).first() is None:
            raise LostPartition(self._projection.name, advance)


class _FoldWriter:
    """Loads the states of a batch, folds it in, and writes what has changed, in the order of the keys."""

    def __init__(self, projection: FoldProjection[Any, Any], rows: StateRows, *, is_told: bool, is_build: bool) -> None:
        self._projection = projection
        self._is_build = is_build
        self._fold = projection.fold
        self._is_told = is_told
        self._rows = rows
        self._encode = msgspec.json.Encoder().encode

    def write(self, connection: Connection, by_key: ByKey, *, lock: bool) -> None:
        """lock: keep others from the rows between reading and writing them. Raises Overtaken without."""
        if self._is_build:
            by_key = not_forgotten(connection, self._projection.name, by_key)
        # Some at a time: of a large batch, all states together would take more memory than all of its records.
        slices = [by_key[start : start + KEYS_AT_ONCE] for start in range(0, len(by_key), KEYS_AT_ONCE)]
        queued: list[tuple[StateKey, int]] = []
        # While the database writes one slice and reads the next, the one between is folded: most of a transaction needs no
        # interpreter. For one slice alone there is nothing to do beside.
        with Beside() if len(slices) > 1 else AtOnce() as statements:
            loads = deque[Future[Any]]()
            for slice_, after in zip_longest(slices, slices[1:]):
                if not loads:
                    loads.append(statements.submit(self._rows.load, connection, _keys(slice_), lock=lock))
                if after is not None:
                    loads.append(statements.submit(self._rows.load, connection, _keys(after), lock=lock))
                changed = self._folded(slice_, self._rows.states(loads.popleft().result()))
                if changed:
                    statements.submit(self._rows.save, connection, changed)
                    queued += [(key, revision) for key, _, revision in changed]
            if queued and self._is_told:
                statements.submit(self._rows.queue, connection, queued)

    def _folded(self, by_key: ByKey, stored: Stored) -> Changed:
        fold, encode = self._fold, self._encode
        changed: Changed = []
        for key, its in by_key:
            before, revision = stored.get(key, _NO_ROW)
            state = before
            for received in its:
                state = fold(state, received)
            if state is not before:
                changed.append((key, encode(state).decode(), revision + 1))
        return changed


class _RowsWriter:
    """Writes a row for each event. Of several deliveries of one event the smallest position is kept.

    Every key of a batch is queued in the outbox, also where all its events were there already: telling a state again
    costs less than finding out.
    """

    def __init__(
        self, projection: RowsProjection[Any], generation: int, dialect: str, outbox: OutboxWriter | None
    ) -> None:
        self._outbox = outbox
        self._row = projection.row
        self._generation = generation
        self._table = tables.metadata.tables[projection.table]
        self._upsert = _keep_smallest_position(self._table, dialect)

    def write(self, connection: Connection, by_key: ByKey, *, lock: bool) -> None:  # noqa: ARG002
        """lock: there is nothing to lock, since nothing is read before it is written."""
        rows = [{"generation": self._generation, **self._row(received)} for _, its in by_key for received in its]
        if rows:
            key_columns = [column.name for column in self._table.primary_key]
            rows.sort(key=lambda row: [row[column] for column in key_columns])
            connection.execute(self._upsert, rows)
            if self._outbox is not None:
                self._outbox.count_and_queue(connection, _keys(by_key))


def _keys(by_key: ByKey) -> list[StateKey]:
    return [key for key, _ in by_key]


def _record_key(event: Event) -> StateKey:
    return StateKey(event.store, event.key)


def _keep_smallest_position(table: Table, dialect: str) -> Any:
    """Return an upsert whose result does not depend on the order of the deliveries of one event.

    Two deliveries of one event may have been written with different schema versions, while replicas are upgraded: each
    column keeps the value of the one that had it.
    """
    new = insert_into(table, dialect)
    position = ("topic", "partition", "offset")
    is_smaller = tuple_(*(new.excluded[column] for column in position)) < tuple_(
        *(table.c[column] for column in position)
    )
    is_plausible_now = and_(table.c.set_aside, not_(new.excluded.set_aside))
    optional = [column.name for column in table.columns if column.nullable]
    fills_a_gap = [and_(table.c[column].is_(None), new.excluded[column].is_not(None)) for column in optional]
    return new.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={
            **{column: func.coalesce(table.c[column], new.excluded[column]) for column in optional},
            "set_aside": and_(table.c.set_aside, new.excluded.set_aside),
            **{
                column: case((is_smaller, new.excluded[column]), else_=table.c[column])
                for column in (*position, "received_at_ms")
            },
        },
        where=or_(is_smaller, is_plausible_now, *fills_a_gap),
    )


def _replaced(projection: Projection, generation: int) -> OperatorError:
    return OperatorError(
        "generation_replaced",
        f"The state of {projection.name} has been rebuilt: nobody reads its generation {generation} any more, which this "
        "process writes. The batch in hand was undone.",
        "Nothing is lost. Start this consumer again, with the version of the fold that made the new state.",
    )
