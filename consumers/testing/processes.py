"""What every driver does: processes of one consumer over a Kafka in memory, turned step by step.

Nothing runs by itself: what is sent lies in its topic until `run` or one of the faults has it consumed. Processes die
here as they do under kill -9: what was not committed is undone or done again, and another one goes on from there.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.effect import Effect
from kinguin_streams.consumers.loop import ConsumeLoop
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.consumers.store import LostPartition, StateStore
from kinguin_streams.consumers.testing import events as built
from kinguin_streams.consumers.testing.memory_client import MemoryClient
from kinguin_streams.consumers.testing.memory_kafka import MemoryKafka
from kinguin_streams.schemas.codec import Decoder, Encoder, RecordEncoder
from kinguin_streams.schemas.events import DeadLetter, Event, EventName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.traces import PassedOn

TURNS_AT_MOST: Final = 100_000


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


class Died(BaseException):
    """The process is gone. Nothing in it may catch this, as nothing catches kill -9."""


class Process:
    """One process of the consumer: what of it is in memory. store: a projection's."""

    def __init__(self, loop: ConsumeLoop, client: MemoryClient, store: StateStore | None) -> None:
        self.loop = loop
        self.client = client
        self.store = store
        self.has_failed = False
        """An error has ended it: another one is started in its place before the next turn."""

    def close(self) -> None:
        """Drop it, without a word to the group."""
        if self.store is not None:
            self.store.close()


class Driver(ABC):
    """Runs one consumer. A context manager."""

    def __init__(
        self,
        events: Sequence[EventName],
        *,
        partitions: int,
        decoder: Decoder | None,
        encoder: RecordEncoder | None,
        settings: dict[str, Any],
    ) -> None:
        """events: which it reads. settings: those of ConsumerSettings."""
        self.clock = ManualClock(built.START)
        self.topics = topics(partitions=partitions)
        self.kafka = MemoryKafka({spec.name: spec.partitions for spec in self.topics.specs})
        self.restarts = 0
        """Processes that were started in place of one that had died, was refused or had failed."""
        self.refused = 0
        """Times that a process wanted to write for a partition that it had lost, and was stopped."""
        self._settings = ConsumerSettings(**settings)
        self._decoder = decoder or Decoder()
        self._encoder = encoder or Encoder()
        self._source_topics = [self.topics.name(name) for name in events]
        self._sent: list[Event] = []
        self._processes: list[Process] = []

    @abstractmethod
    def _new_effect(self) -> tuple[Effect, StateStore | None]:
        """Return what a new process does, and the database that it has open for that."""

    @abstractmethod
    def _dying_at_commit(self, process: Process, *, commit: bool) -> AbstractContextManager[None]:
        """Let the process die at its next commit: before it, or after it but before it knows."""

    @abstractmethod
    def offsets(self) -> dict[TopicPart, int]:
        """Return the next offset of each partition of which anything has taken effect, as a new process would find it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop all processes."""
        for process in self._processes:
            process.close()
        self._processes.clear()

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

        What waits by design, for a newer schema or for its next attempt, is left: see `waiting` and `advance`. A process
        that has lost its partition is refused and started anew. Raises what would stop the consumer, as ConsumeLoop.run
        does; the next `run` then begins with a new process in its place.
        """
        if at_most is not None:
            for process in tuple(self._processes):
                self._turn(process, at_most)
            return
        for _ in range(TURNS_AT_MOST):
            before = list(self._processes)
            for process in before:
                self._turn(process, None)
            due_s = self._next_due_s()
            is_due = due_s is not None and due_s <= self.clock.monotonic_s()
            if self._processes == before and not is_due and all(process.client.is_idle for process in before):
                return
        raise RuntimeError(f"the consumer is not done after {TURNS_AT_MOST} turns")

    def advance(self, seconds: float) -> None:
        """Let time pass, with every wait that ends on the way: what is due is done when it is due."""
        if seconds < 0:
            raise ValueError("time does not go back")
        ends_s = self.clock.monotonic_s() + seconds
        while (due_s := self._next_due_s()) is not None and due_s < ends_s:
            self.clock.advance(max(0.0, due_s - self.clock.monotonic_s()))
            self.run(at_most=0)
        self.clock.advance(max(0.0, ends_s - self.clock.monotonic_s()))  # a handler may have moved it itself
        self.run(at_most=0)

    def crash_before_commit(self, at_most: int | None = None) -> None:
        """Let the process take a batch, die before it is committed, and be started anew.

        at_most: size of the batch. Raises ValueError if nothing waits: then there is nothing to lose either.
        """
        self._crash(at_most, commit=False)

    def crash_after_commit(self, at_most: int | None = None) -> None:
        """Let the process take and commit a batch, die before it knows, and be started anew. As crash_before_commit."""
        self._crash(at_most, commit=True)

    def join(self) -> None:
        """Let another process join the group, and take its share of the partitions."""
        self._start()
        self._settle()

    def lose_partition(self, *, loser_writes_first: bool = False) -> None:
        """Let another process get all partitions of this one, which does not notice: it goes on with what it has.

        Both then want the same records in the next `run`. A projection's database refuses who comes second, and it is
        started anew: the loser, unless loser_writes_first. Handlers are called by both.
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
            process.loop.close()
            process.close()
        self._processes[0].client.reconnect()
        self._settle()

    def _settle(self) -> None:
        """Let the group share its partitions out, without a record being read."""
        for _ in range(3):  # notice, give up, take
            self.run(at_most=0)

    def _next_due_s(self) -> float | None:
        loops = [process.loop for process in self._processes if not process.has_failed]
        dues_s = (loop.next_due_s for loop in loops if loop.waits_for is None)
        return min((due_s for due_s in dues_s if due_s is not None), default=None)

    def _start(self) -> None:
        effect, store = self._new_effect()
        clients: list[MemoryClient] = []

        def new_client(config: dict[str, Any]) -> MemoryClient:
            clients.append(self.kafka.client(config))
            return clients[-1]

        loop = ConsumeLoop(
            effect,
            kafka=KafkaSettings(bootstrap_servers="memory:9092"),
            topics=self.topics,
            settings=self._settings,
            decoder=self._decoder,
            encoder=self._encoder,
            publisher=self.kafka.publisher(),
            traces=PassedOn(),
            new_client=new_client,
            identity=self.kafka.identity(self._source_topics, effect.source_hints),
            clock=self.clock,
        )
        try:
            loop.open()
        except BaseException:
            if store is not None:
                store.close()
            raise
        self._processes.append(Process(loop, clients[0], store))

    def _turn(self, process: Process, at_most: int | None) -> None:
        if process.has_failed:
            process = self._replace(process)
        process.client.at_most = at_most
        try:
            process.loop.turn()
        except LostPartition:
            self.refused += 1
            self._replace(process)
        except Died:
            self._replace(process)
        except OperatorError:
            process.has_failed = True
            process.loop.close()  # as ConsumeLoop.run does
            raise

    def _replace(self, process: Process) -> Process:
        """Start a process where another one was, and return it; the group has noticed by then that that one is gone."""
        process.client.cut_off()
        process.close()
        self._start()
        place, new = self._processes.index(process), self._processes.pop()
        self._processes[place] = new
        self.restarts += 1
        return new

    def _crash(self, at_most: int | None, *, commit: bool) -> None:
        self._settle()
        for process in tuple(self._processes):
            restarts = self.restarts
            with self._dying_at_commit(process, commit=commit):
                self._turn(process, at_most)
            if self.restarts > restarts:
                return
        raise ValueError("nothing waits to be consumed, or all of it waits for its time: there would be no commit")

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

    def dead_letters(self) -> list[DeadLetter]:
        """Return what is in the dead-letter topic, in the order in which it came."""
        letters = [
            self._decoder.decode(record.value()) for record in self.kafka.records(self.topics.name("dead-letter"))
        ]
        return [letter for letter in letters if isinstance(letter, DeadLetter)]
