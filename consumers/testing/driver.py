"""A projection under test: the real loop, codec, state database and relay, over a Kafka in memory, turned step by step."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, overload

import msgspec
from sqlalchemy import Connection, Engine, event, select

from kinguin_streams.cluster.publisher import Report
from kinguin_streams.consumers import outbox, tables
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.database import open_for_reading
from kinguin_streams.consumers.derived import ALL_KEYS, newest
from kinguin_streams.consumers.derived_states import every_state
from kinguin_streams.consumers.effect import StateEffect
from kinguin_streams.consumers.forgetting import forget_state
from kinguin_streams.consumers.projection import FoldProjection, Projection, Received, RowsProjection, StateKey
from kinguin_streams.consumers.relay import Relay
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.consumers.testing.memory_kafka import MemoryPublisher
from kinguin_streams.consumers.testing.processes import Died, Driver, Process
from kinguin_streams.schemas.codec import Decoder, RecordEncoder, UndecodableRecord, UnknownSchema
from kinguin_streams.schemas.events import Derived, Event
from kinguin_streams.schemas.outgoing import OutgoingRecord, OutgoingTombstone

DEFAULT_STORE: Final = "default"

S = TypeVar("S", bound=msgspec.Struct)


class ProjectionDriver(Driver, Generic[S]):
    """Runs one projection. A context manager: its folder is gone at the end."""

    @overload
    def __init__(
        self: "ProjectionDriver[S]",
        projection: FoldProjection[Any, S],
        *,
        database: StateSettings | None = None,
        partitions: int = 3,
        decoder: Decoder | None = None,
        encoder: RecordEncoder | None = None,
        **settings: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: "ProjectionDriver[Any]",
        projection: RowsProjection[Any],
        *,
        database: StateSettings | None = None,
        partitions: int = 3,
        decoder: Decoder | None = None,
        encoder: RecordEncoder | None = None,
        **settings: Any,
    ) -> None: ...
    def __init__(
        self,
        projection: Projection,
        *,
        database: StateSettings | None = None,
        partitions: int = 3,
        decoder: Decoder | None = None,
        encoder: RecordEncoder | None = None,
        **settings: Any,
    ) -> None:
        """database: an empty one; SQLite in a temporary folder by default. partitions: of each topic.

        decoder, encoder: of another schema version, or with a registry. settings: those of ConsumerSettings.
        """
        super().__init__(projection.events, partitions=partitions, decoder=decoder, encoder=encoder, settings=settings)
        self.projection = projection
        self._folder: Path | None = None
        if database is None:
            self._folder = Path(tempfile.mkdtemp(prefix="kinguin-streams-driver-"))
            (self._folder / "state.db").write_bytes(_new_sqlite_database(projection))
            database = StateSettings(url=f"sqlite:///{self._folder / 'state.db'}")
        self.database = database
        try:
            self._start()
            self._reading = open_for_reading(database)
            if self._folder is not None:
                _without_fsync(self._reading)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop all processes, and the temporary folder."""
        super().close()
        if "_relay" in vars(self):
            self._relay.stop()
        if hasattr(self, "_reading"):
            self._reading.dispose()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _new_effect(self) -> tuple[StateEffect, StateStore | None]:
        store = StateStore(self.database, self.projection)
        if self._folder is not None:
            _without_fsync(store.engine)
        return StateEffect(self.projection, store), store

    @contextmanager
    def _dying_at_commit(self, process: Process, *, commit: bool) -> Iterator[None]:
        def die(connection: Connection) -> None:
            if commit:
                connection.connection.commit()
            raise Died

        store = process.store
        if store is None:
            raise TypeError("a projection's process has a database")
        event.listen(store.engine, "commit", die)
        try:
            yield
        finally:
            event.remove(store.engine, "commit", die)

    # The derived topic

    def tell(self) -> int:
        """Have the derived topic told of every state that is to be told, as `consume` does beside its loop.

        Return the number of records. Of several changes of a key since the last time only the newest state is told.
        Raises ValueError for a projection without a derived topic.
        """
        before = self._relay.told
        while self._relay.turn():
            pass
        return self._relay.told - before

    def crash_while_telling(self) -> None:
        """Let the process die when Kafka has a first record, and the outbox does not know: it is told again.

        Raises ValueError if there is nothing to tell.
        """
        if not self.untold:
            raise ValueError("nothing waits to be told: a process would not be within it")
        self._relay.stop()  # the lock is one process's
        relay = self._new_relay(_DyingPublisher(self.kafka))
        try:
            relay.turn()
        except Died:
            self.restarts += 1
        finally:
            relay.stop()
            del self._relay

    def forget(self, key: StateKey | str) -> bool:
        """Delete a key's state, as `kinguin-streams state forget` does. Return whether there was one."""
        return forget_state(self.database, self._fold_projection(), _state_key(key))

    @property
    def untold(self) -> int:
        """Keys whose newest state, or whose end, the derived topic is still to be told."""
        with self._reading.connect() as connection:
            live = self._live_generation(connection)
            return len(outbox.peek(connection, self.projection.name, live, ALL_KEYS))

    def derived(self) -> dict[StateKey, Derived | None]:
        """Return what a reader of the derived topic makes of it, by key; None: the key was forgotten.

        Of each key the record with the greatest (generation, revision) counts.
        """
        told = newest(self.kafka.records(self._derived_topic), self._decoder)
        return {StateKey(*key.split(":", 1)): each.content for key, each in told.items()}

    def expected_derived(self) -> dict[StateKey, Derived]:
        """Return the derived record of every state in the database."""
        with self._reading.connect() as connection:
            return dict(every_state(connection, self.projection, self._live_generation(connection)))

    @property
    def _derived_topic(self) -> str:
        if self.projection.derived is None:
            raise ValueError(f"{self.projection.name} has no derived topic")
        return self.topics.name(self.projection.derived)

    @cached_property
    def _relay(self) -> Relay:
        return self._new_relay(self.kafka.publisher())

    def _new_relay(self, sender: MemoryPublisher) -> Relay:
        return Relay(
            self.projection,
            state=self.database,
            topics=self.topics,
            encoder=self._encoder,
            sender=sender,
            clock=self.clock,
        )

    # What has come of it

    def offsets(self) -> dict[TopicPart, int]:
        """Return the stored next offset of each partition of which anything has taken effect."""
        table = tables.projection_offset
        columns = select(table.c.topic, table.c.partition, table.c.next_offset)
        with self._reading.connect() as connection:
            rows = connection.execute(columns.where(*self._mine(connection, table))).all()
        return {TopicPart(topic, partition): next_offset for topic, partition, next_offset in rows}

    def state(self, key: StateKey | str) -> S | None:
        """Return the state of a key, or None if it has none. key: of the store "default" if it is a text."""
        return self.states().get(_state_key(key))

    def states(self) -> dict[StateKey, S]:
        """Return all states, by key. Raises TypeError for a RowsProjection, which has rows."""
        fold = self._fold_projection()
        table = tables.projection_state
        with self._reading.connect() as connection:
            mine = (*self._mine(connection, table), table.c.state != tables.NONE_YET)
            rows = connection.execute(select(table.c.store, table.c.id, table.c.state).where(*mine)).all()
        decode = msgspec.json.Decoder(fold.state_type).decode
        return {StateKey(store, id_): decode(text) for store, id_, text in rows}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of a RowsProjection without `generation`, ordered by the table's key. Raises TypeError for a FoldProjection."""
        table = tables.metadata.tables[self._rows_projection().table]
        columns = [column for column in table.columns if column.name != "generation"]
        with self._reading.connect() as connection:
            live = self._live_generation(connection)
            ordered = select(*columns).where(table.c.generation == live).order_by(*table.primary_key)
            return [dict(row) for row in connection.execute(ordered).mappings()]

    def distinct_events(self) -> list[Received[Any]]:
        """Return each readable event of the topics once, where it lies first, by (updatedAt, event id)."""
        first: dict[str, Received[Any]] = {}
        for topic in self._source_topics:
            for record in self.kafka.records(topic):
                try:
                    decoded = self._decoder.decode(record.value())
                except (UndecodableRecord, UnknownSchema):
                    continue
                if not isinstance(decoded, Event) or self.topics.name(decoded.record_name) != topic:
                    continue
                received = Received(decoded, topic, record.partition(), record.offset(), record.timestamp()[1])
                known = first.setdefault(decoded.event_id, received)
                if _position(received) < _position(known):
                    first[decoded.event_id] = received
        return sorted(first.values(), key=lambda received: (received.event.updated_at_ms, received.event.event_id))

    def expected_states(self) -> dict[StateKey, S]:
        """Return what the fold makes of `distinct_events`, in their order and without loop or database."""

        fold = self._fold_projection()
        states: dict[StateKey, S] = {}
        for received in self.distinct_events():
            key = fold.key(received.event)
            states[key] = fold.fold(states.get(key), received)
        as_stored = msgspec.json.Decoder(fold.state_type).decode
        return {key: as_stored(msgspec.json.encode(state)) for key, state in states.items()}

    def expected_rows(self) -> list[dict[str, Any]]:
        """Return the rows of `distinct_events`, in the order of `rows` and made without loop or database."""
        projection = self._rows_projection()
        table = tables.metadata.tables[projection.table]
        by_key: dict[tuple[Any, ...], dict[str, Any]] = {}
        for received in self.distinct_events():
            row = dict(projection.row(received))
            key = tuple(row[column.name] for column in table.primary_key if column.name != "generation")
            by_key.setdefault(key, row)
        return [by_key[key] for key in sorted(by_key)]

    def _fold_projection(self) -> FoldProjection[Any, S]:
        if not isinstance(self.projection, FoldProjection):
            raise TypeError(f"{self.projection.name} is a RowsProjection: see rows()")
        return self.projection

    def _rows_projection(self) -> RowsProjection[Any]:
        if not isinstance(self.projection, RowsProjection):
            raise TypeError(f"{self.projection.name} is a FoldProjection: see states()")
        return self.projection

    def _mine(self, connection: Connection, table: Any) -> Sequence[Any]:
        return table.c.projection == self.projection.name, table.c.generation == self._live_generation(connection)

    def _live_generation(self, connection: Connection) -> int:
        table = tables.projection
        live: int = connection.execute(
            select(table.c.live_generation).where(table.c.name == self.projection.name)
        ).scalar_one()
        return live


class _DyingPublisher(MemoryPublisher):
    """Of a process that is killed when Kafka has its first record, and it does not know yet."""

    def send(self, record: OutgoingRecord | OutgoingTombstone) -> Report:
        super().send(record)
        raise Died


def _state_key(key: StateKey | str) -> StateKey:
    return StateKey(DEFAULT_STORE, key) if isinstance(key, str) else key


def _position(received: Received[Any]) -> tuple[str, int, int]:
    return received.topic, received.partition, received.offset


_SQLITE_DATABASES: Final[dict[tuple[str, int], bytes]] = {}


def _new_sqlite_database(projection: Projection) -> bytes:
    """Return a database in which nothing has taken effect: making one takes longer than a whole example of a property."""
    made = _SQLITE_DATABASES.get((projection.name, projection.version))
    if made is None:
        with tempfile.TemporaryDirectory(prefix="kinguin-streams-driver-") as folder:
            path = Path(folder) / "state.db"
            StateStore(StateSettings(url=f"sqlite:///{path}"), projection).close()
            made = _SQLITE_DATABASES[projection.name, projection.version] = path.read_bytes()
    return made


def _without_fsync(engine: Engine) -> None:
    """Make it quicker: what dies here is processes, never the machine."""

    def relax(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(engine, "connect", relax)
    engine.dispose()
