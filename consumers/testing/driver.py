"""A projection under test: the real loop, codec and state database, over a Kafka in memory, turned step by step.

Nothing runs by itself: what is sent lies in its topic until `run` or one of the faults has it consumed. Processes die
here as they do under kill -9: what they had not committed is undone, and another one goes on at the stored offsets.
"""

import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, overload

import msgspec
from sqlalchemy import Connection, Engine, event, select

from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.consumers import tables
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.database import open_for_reading
from kinguin_streams.consumers.effect import StateEffect
from kinguin_streams.consumers.loop import ConsumeLoop
from kinguin_streams.consumers.projection import FoldProjection, Projection, Received, RowsProjection, StateKey
from kinguin_streams.consumers.settings import ConsumerSettings, StateSettings
from kinguin_streams.consumers.store import LostPartition, StateStore
from kinguin_streams.consumers.testing import events as built
from kinguin_streams.consumers.testing.memory_client import MemoryClient
from kinguin_streams.consumers.testing.memory_kafka import MemoryKafka
from kinguin_streams.schemas.codec import Decoder, Encoder, RecordEncoder, UndecodableRecord, UnknownSchema
from kinguin_streams.schemas.events import DeadLetter, Event, EventName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.traces import PassedOn

DEFAULT_STORE: Final = "default"
TURNS_AT_MOST: Final = 100_000

S = TypeVar("S", bound=msgspec.Struct)


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime) -> None:
        self._start = start
        self._passed = timedelta()

    def monotonic_s(self) -> float:
        """Return the seconds that have passed here."""
        return self._passed.total_seconds()

    def now_ms(self) -> int:
        """Return milliseconds since 1970, UTC."""
        return round((self._start + self._passed).timestamp() * 1_000)

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._passed += timedelta(seconds=seconds)


class _Died(BaseException):
    """The process is gone. Nothing in it may catch this, as nothing catches kill -9."""


class _Process:
    """One process of the consumer: what of it is in memory."""

    def __init__(self, store: StateStore, client: MemoryClient, loop: ConsumeLoop) -> None:
        self.store = store
        self.client = client
        self.loop = loop


class ProjectionDriver(Generic[S]):
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
        self.projection = projection
        self.clock = ManualClock(built.START)
        self.topics = topics(partitions=partitions)
        self.kafka = MemoryKafka({spec.name: spec.partitions for spec in self.topics.specs})
        self.restarts = 0
        """Processes that were started in place of one that had died or was refused."""
        self.refused = 0
        """Times that a process wanted to write for a partition that it had lost, and was stopped."""
        self._settings = ConsumerSettings(**settings)
        self._decoder = decoder or Decoder()
        self._encoder = encoder or Encoder()
        self._source_topics = [self.topics.name(name) for name in projection.events]
        self._sent: list[Event] = []
        self._processes: list[_Process] = []
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop all processes, and the temporary folder."""
        for process in self._processes:
            process.store.close()
        self._processes.clear()
        if hasattr(self, "_reading"):
            self._reading.dispose()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # What comes in

    def send(self, *events: Event) -> None:
        """Append events to their topics, as the ingress does."""
        for sent in events:
            self._append(sent)
            self._sent.append(sent)

    def duplicate(self, *events: Event) -> None:
        """Send these events again, as a retry of the sender does, or everything that was sent so far."""
        for sent in events or tuple(self._sent):
            self._append(built.retried(sent))

    def send_bytes(
        self, topic: EventName, value: bytes | None, *, key: bytes = b"bytes", partition: int | None = None
    ) -> TopicPart:
        """Append a value as it is to the topic of an event, and return the partition that took it."""
        part, _ = self.kafka.append(
            self.topics.name(topic), value, key=key, partition=partition, timestamp_ms=self.clock.now_ms()
        )
        return part

    def shuffle(self, seed: int) -> None:
        """Bring what no process has fetched yet into another order, within partitions and between them."""
        self.kafka.shuffle(self._source_topics, seed)

    def _append(self, sent: Event) -> None:
        self.kafka.publisher().publish(outgoing(sent, self.topics, self._encoder))

    # What the processes do

    def run(self, at_most: int | None = None) -> None:
        """Let the processes consume until there is nothing left for them, or each at most so many records.

        What waits by design, for a newer schema for example, is left: see `waiting` and `advance`. A process that has
        lost its partition is refused and started anew. Raises what would stop the consumer, as ConsumeLoop.run does.
        """
        if at_most is not None:
            for process in tuple(self._processes):
                self._turn(process, at_most)
            return
        for _ in range(TURNS_AT_MOST):
            before = list(self._processes)
            for process in before:
                self._turn(process, None)
            if self._processes == before and all(process.client.is_idle for process in before):
                return
        raise RuntimeError(f"the consumer is not done after {TURNS_AT_MOST} turns")

    def advance(self, seconds: float) -> None:
        """Let time pass, and have each process look what is due."""
        self.clock.advance(seconds)
        self.run(at_most=0)

    def crash_before_commit(self, at_most: int | None = None) -> None:
        """Let the process fold a batch, die before it is committed, and be started anew.

        at_most: size of the batch. Raises ValueError if nothing waits: then there is nothing to lose either.
        """
        self._crash(at_most, commit=False)

    def crash_after_commit(self, at_most: int | None = None) -> None:
        """Let the process fold and commit a batch, die before it knows, and be started anew. As crash_before_commit."""
        self._crash(at_most, commit=True)

    def join(self) -> None:
        """Let another process join the group, and take its share of the partitions."""
        self._start()
        self._settle()

    def lose_partition(self, *, loser_writes_first: bool = False) -> None:
        """Let another process get all partitions of this one, which does not notice: it goes on with what it has.

        Both then want to write the same records in the next `run`. Who comes second is refused, and started anew:
        the loser, unless loser_writes_first.
        """
        self._settle()
        loser = self._processes[0]
        loser.client.cut_off()
        self._start()
        self._settle()
        if not loser_writes_first:
            self._processes.remove(loser)
            self._processes.append(loser)

    def regain(self) -> None:
        """Let all processes but one leave, so that it has all partitions."""
        while len(self._processes) > 1:
            process = self._processes.pop()
            process.client.reconnect()
            self._stop(process)
        self._processes[0].client.reconnect()
        self._settle()

    def _settle(self) -> None:
        """Let the group share its partitions out, without a record being read."""
        for _ in range(3):  # notice, give up, take
            self.run(at_most=0)

    def _start(self) -> None:
        store = StateStore(self.database, self.projection)
        if self._folder is not None:
            _without_fsync(store.engine)
        clients: list[MemoryClient] = []

        def new_client(config: dict[str, Any]) -> MemoryClient:
            clients.append(self.kafka.client(config))
            return clients[-1]

        loop = ConsumeLoop(
            StateEffect(self.projection, store),
            kafka=KafkaSettings(bootstrap_servers="memory:9092"),
            topics=self.topics,
            settings=self._settings,
            decoder=self._decoder,
            encoder=self._encoder,
            publisher=self.kafka.publisher(),
            traces=PassedOn(),
            new_client=new_client,
            identity=self.kafka.identity(self._source_topics),
            clock=self.clock,
        )
        loop.open()
        self._processes.append(_Process(store, clients[0], loop))

    def _stop(self, process: _Process) -> None:
        process.loop.close()
        process.store.close()

    def _turn(self, process: _Process, at_most: int | None) -> None:
        process.client.at_most = at_most
        try:
            process.loop.turn()
        except LostPartition:
            self.refused += 1
            self._replace(process)
        except _Died:
            self._replace(process)

    def _replace(self, process: _Process) -> None:
        """Start a process where another one was; the group has noticed by then that it is gone."""
        place = self._processes.index(process)
        del self._processes[place]
        process.client.cut_off()
        process.store.close()
        self.restarts += 1
        self._start()
        self._processes.insert(place, self._processes.pop())

    def _crash(self, at_most: int | None, *, commit: bool) -> None:
        self._settle()
        for process in tuple(self._processes):
            engine, restarts = process.store.engine, self.restarts

            def die(connection: Connection) -> None:
                if commit:
                    connection.connection.commit()
                raise _Died

            event.listen(engine, "commit", die)
            try:
                self._turn(process, at_most)
            finally:
                event.remove(engine, "commit", die)
            if self.restarts > restarts:
                return
        raise ValueError("nothing waits to be consumed: a process would not be within a commit")

    # What has come of it

    @property
    def waiting(self) -> int:
        """Records that have not taken effect."""
        offsets = self.offsets()
        count = 0
        for topic in self._source_topics:
            for part in self.kafka.partitions(topic):
                log = self.kafka.log(part)
                if log is not None:
                    count += log.end - max(offsets.get(part, 0), log.low)
        return count

    def offsets(self) -> dict[TopicPart, int]:
        """Return the stored next offset of each partition of which anything has taken effect."""
        table = tables.projection_offset
        columns = select(table.c.topic, table.c.partition, table.c.next_offset)
        with self._reading.connect() as connection:
            rows = connection.execute(columns.where(*self._mine(connection, table))).all()
        return {TopicPart(topic, partition): next_offset for topic, partition, next_offset in rows}

    def state(self, key: StateKey | str) -> S | None:
        """Return the state of a key, or None if it has none. key: of the store "default" if it is a text."""
        return self.states().get(StateKey(DEFAULT_STORE, key) if isinstance(key, str) else key)

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

    def dead_letters(self) -> list[DeadLetter]:
        """Return what is in the dead-letter topic, in the order in which it came."""
        letters = [
            self._decoder.decode(record.value()) for record in self.kafka.records(self.topics.name("dead-letter"))
        ]
        return [letter for letter in letters if isinstance(letter, DeadLetter)]

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
