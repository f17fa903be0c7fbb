"""One consumer as a replay's target: its own code is run here, on these records, and no other consumer sees them.

A handler is called at least once for each record, with `context.replay` true. A projection's state takes each record in
once: how far the replay has come stands in the state's own database, in the transaction of the state, in a lane beside the
consumer's offsets, which are not touched. The running consumer goes on; the facts of a record that it has taken in already
are known already.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.effect import Effect
from kinguin_streams.consumers.live_rows import LANE
from kinguin_streams.consumers.store import PartitionSource, StateStore
from kinguin_streams.replay.as_message import sorted_out
from kinguin_streams.replay.receipt import DEAD_LETTERED, Mark
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Landed, NothingLanded, StoppedWriting, Watch
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.schemas.events import DeadLetter, RecordName
from kinguin_streams.telemetry.operator_error import OperatorError

GENERATION = "generation"
_NAP_S = 0.1


class ConsumerTarget:
    """A Target whose records take effect as soon as they are written; there is nothing to read back."""

    def __init__(
        self,
        effect: Effect,
        *,
        decoder: Decoder,
        expected: Mapping[str, RecordName],
        keep: Callable[[DeadLetter], None],
        watch: Watch,
        replay_id: str,
        topic_ids: Mapping[str, str],
        store: StateStore | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """keep: returns once a dead letter is in Kafka. store: a projection's. close: called at the end."""
        self._effect = effect
        self._decoder = decoder.without(effect.unused)
        self._expected = expected
        self._keep = keep
        self._watch = watch
        self._store = store
        self._close = close
        self._topic_ids = topic_ids
        self._lane = f"{LANE}{replay_id}"
        self._sources: dict[TopicPart, PartitionSource] = {}
        self._next: dict[TopicPart, int | None] = {}
        self._taken: dict[TopicPart, int] = {}
        self.dead_lettered = 0

    # What the effect asks of whoever runs it: consumers.effect.Work

    @property
    def sources(self) -> Mapping[TopicPart, PartitionSource]:
        """The partitions that were met, in the replay's lane."""
        return self._sources

    @property
    def next_offsets(self) -> Mapping[TopicPart, int | None]:
        """Of each of them, the offset that is to take effect next; None: none has."""
        return self._next

    def keep(self, letter: DeadLetter) -> None:
        """Return when the dead letter is in Kafka."""
        self._keep(letter)
        self.dead_lettered += 1

    def done(self, part: TopicPart, next_offset: int, _applied: int) -> None:
        """Note that all below the offset has taken effect."""
        self._next[part] = next_offset

    def will_retry(self) -> None:
        """Note that what has failed is tried again."""

    def is_stopping(self) -> bool:
        """Return whether somebody wants it to end."""
        return self._watch.stop()

    # What a replay asks of a target: run.Target

    def open(self, mark: Mark | None) -> Landed:
        """Ask the database how far the replay has come; of handlers, the last checkpoint is all there is.

        It says so by offsets, below which records were selected or not: so nothing is returned as landed, which would count
        as selected, and `write` leaves out what has taken effect. Raises OperatorError("generation_replaced") if the state
        has been rebuilt since: what had taken effect before the checkpoint did so in the old one.
        """
        self.dead_lettered = (mark or {}).get(DEAD_LETTERED, 0)
        if self._store is not None:
            before = (mark or {}).get(GENERATION, self._store.generation)  # receipts of earlier versions do not say it
            if before != self._store.generation:
                raise OperatorError(
                    "generation_replaced",
                    f"The state of {self._effect.name} has been rebuilt since: this replay has gone into its generation "
                    f"{before}, and {self._store.generation} is live.",
                    "Make the replay anew, for all of it to be in the new state.",
                )
            for source, offset in self._store.offsets(self._lane, self._topic_ids).items():
                part = TopicPart(source.topic, source.partition)
                self._meet(part, offset)
                self._taken[part] = offset
        return NothingLanded()

    def carried(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return them as they are."""
        return records

    def write(self, records: Sequence[Record]) -> None:
        """Let them take effect, one partition's in their order; returns when all have.

        Raises OperatorError: those of the effect, StoppedWriting if somebody wants it to end while a record waits for its
        next attempt, and those of as_message.sorted_out.
        """
        left = [each for each in records if each.offset >= self._taken.get(TopicPart(each.topic, each.partition), 0)]
        for record in left:
            self._meet(TopicPart(record.topic, record.partition), None)
        while left:
            batch, messages = sorted_out(left, self._decoder, self._expected, self._effect.name)
            unfinished = self._effect.take(batch, messages, self, ExitStack())
            left = [record for record in left if self._is_left(record, unfinished)]
            if left and not self._waited(min(unfinished.values(), default=0.0)):
                raise StoppedWriting({record[:2]: record.offset for record in reversed(left)})

    def _is_left(self, record: Record, unfinished: Mapping[TopicPart, float]) -> bool:
        part = TopicPart(record.topic, record.partition)
        return part in unfinished and record.offset >= (self._next[part] or 0)

    def _waited(self, until_s: float) -> bool:
        """Return True at that time, False as soon as somebody wants it to end."""
        while not self._watch.stop():
            left_s = until_s - self._watch.clock()
            if left_s <= 0:
                return True
            self._watch.sleep(min(left_s, _NAP_S))
        return False

    def sync(self) -> Mark:
        """Nothing to wait for: what was written has taken effect, of a projection in this generation of its state."""
        mark: Mark = {DEAD_LETTERED: self.dead_lettered}
        return mark if self._store is None else {**mark, GENERATION: self._store.generation}

    def read_back(self) -> Iterator[Sequence[Record]]:
        """Yield nothing: an effect cannot be read back."""
        yield from ()

    def finish(self) -> None:
        """Forget how far it has come: the replay is at its end."""
        if self._store is not None:
            self._store.close_lane(self._lane)

    def close(self) -> None:
        """Let go of the consumer."""
        self._close()

    def _meet(self, part: TopicPart, next_offset: int | None) -> None:
        if part not in self._sources:
            self._sources[part] = PartitionSource(self._lane, self._topic_ids.get(part.topic, ""), *part)
            self._next[part] = next_offset
