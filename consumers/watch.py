"""Looks at Kafka and at the database every few seconds, on a thread of its own: what the loop cannot tell while it waits or hangs."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Engine, func, select

from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.consumers import database, tables
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.lag import PartitionLag, measure
from kinguin_streams.consumers.live_rows import live_generation
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

LOOK_EVERY_S: Final = 10.0
STOP_S: Final = 5.0
_TICK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class StateSeen:
    """What the database says of a projection."""

    generation: int | None
    outbox_rows: int


@dataclass(frozen=True, slots=True)
class KafkaSeen:
    """What Kafka says of the assigned partitions, and when it did, on the monotonic clock."""

    lags: tuple[PartitionLag, ...]
    at_s: float


class StateLook:
    """A connection to a projection's database that only reads."""

    def __init__(self, settings: StateSettings, projection: str) -> None:
        """The tables must be there. Raises OperatorError as consumers/database.py does."""
        self._settings = settings
        self._projection = projection
        self._engine: Engine = database.open_for_reading(settings)

    def look(self) -> StateSeen:
        """Ask now. Raises OperatorError."""
        outbox = tables.projection_outbox
        with database.explained(self._settings), self._engine.connect() as connection:
            generation = live_generation(connection, self._projection)
            mine = (outbox.c.projection == self._projection, outbox.c.generation == generation)
            rows = connection.execute(select(func.count()).select_from(outbox).where(*mine)).scalar_one()
        return StateSeen(generation, rows)

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()


class Watch:
    """Remembers what Kafka and the database said when they were last asked."""

    def __init__(
        self,
        reader: TopicReader,
        topics: Sequence[str],
        next_offsets: Callable[[], Mapping[TopicPart, int | None]],
        state: StateLook | None,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """next_offsets: a copy of those of the partitions that are this process's now. state: None for handlers.

        topics: what they are partitions of. reader and state are the watch's from now on: it closes them.
        """
        self._reader = reader
        self._topics = topics
        self._next_offsets = next_offsets
        self._looked_at: set[TopicPart] = set()
        self._state = state
        self._every_s = look_every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="watch", daemon=True)
        self.kafka: KafkaSeen | None = None
        """The last answer; None: there was none yet."""
        self.kafka_trouble: str | None = "not asked yet"
        """Why Kafka has not answered when it was last asked; None: it has."""
        self.state: StateSeen | None = None
        """The last answer; None: there was none yet, or there is no database."""
        self.state_trouble: str | None = None if state is None else "not asked yet"
        """Why the database has not answered when it was last asked; None: it has, or there is none."""

    @property
    def has_database(self) -> bool:
        """Whether there is one to ask."""
        return self._state is not None

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A question that is under way is waited for, but not for long."""
        self._stopping.set()
        self._thread.join(STOP_S)

    def look(self) -> None:
        """Ask both now. Raises nothing that they may say."""
        if self._state is not None:
            try:
                self.state, self.state_trouble = self._state.look(), None
            except OperatorError as error:
                self.state_trouble = error.what
        try:
            offsets = self._next_offsets()
            self._looked_at = set(offsets)
            if not offsets:  # one member too many still wants to know whether Kafka is there
                self._reader.bounds(self._topics)
            lags = measure(self._reader, {(topic, n): at for (topic, n), at in offsets.items()})
        except OperatorError as error:
            self.kafka_trouble = error.what
        else:
            self.kafka, self.kafka_trouble = KafkaSeen(tuple(lags), time.monotonic()), None

    def _rest(self) -> None:
        """Return when it is time to look again: at once where partitions have come."""
        until_s = time.monotonic() + self._every_s
        while time.monotonic() < until_s and set(self._next_offsets()) == self._looked_at:
            if self._stopping.wait(_TICK_S):
                return

    def _keep_looking(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception as error:  # without this thread nobody would ever be seen again
                log.exception("watch_failed")
                self.kafka_trouble = f"could not be asked: {type(error).__name__}"
            self._rest()
        self._reader.close()
        if self._state is not None:
            self._state.close()
