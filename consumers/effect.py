"""What a consumer does with what it reads: the seam between the loop and the two kinds of consumers.

StateEffect folds events into a database, which also holds the offsets. HandlerEffect (handler_effect.py) calls a user's
functions, and the offsets are Kafka's.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from typing import Final, NamedTuple, Protocol

from kinguin_streams.consumers.batch import Batch, Message, TopicPart
from kinguin_streams.consumers.client import ConsumerClient
from kinguin_streams.consumers.projection import ByKey, Projection
from kinguin_streams.consumers.source_changed import STATE_HINTS, SourceHints
from kinguin_streams.consumers.store import Advance, PartitionSource, StateStore
from kinguin_streams.schemas.codec import Unused
from kinguin_streams.schemas.events import DeadLetter, EventName

NO_LIMIT: Final = 2**31
SWITCH_INTERVAL_S: Final = 0.0005
"""Of Python's threads, once there are two. By default one that comes back from a statement waits 5 ms for one that decodes:
measured on SQLite, 45,400 records/s with that, 51,300 with this."""
AHEAD_FROM_RECORDS: Final = 5_000
"""Smaller batches are stored before the next one is fetched: there is little to gain, and what was sent is seen at once."""


class Work(Protocol):
    """What the loop does for an effect while it works on a batch."""

    @property
    def sources(self) -> Mapping[TopicPart, PartitionSource]:
        """The assigned partitions."""
        ...

    @property
    def next_offsets(self) -> Mapping[TopicPart, int | None]:
        """Of each assigned partition, the offset that is to take effect next; None: none ever has."""
        ...

    def keep(self, letter: DeadLetter) -> None:
        """Return when the dead letter is in Kafka. Raises OperatorError("dead_letter_refused")."""
        ...

    def done(self, part: TopicPart, next_offset: int, applied: int) -> None:
        """Note that all below the offset has taken effect, `applied` records more than before."""
        ...

    def will_retry(self) -> None:
        """Note that what has failed is tried again."""
        ...

    def is_stopping(self) -> bool:
        """Return whether somebody wants the loop to end."""
        ...


class Effect(Protocol):
    """One kind of consumer."""

    @property
    def name(self) -> str:
        """The consumer's, in its group and in dead letters."""
        ...

    @property
    def events(self) -> Sequence[EventName]:
        """What it reads, each from its own topic."""
        ...

    @property
    def unused(self) -> Sequence[Unused]:
        """Fields of the events that it never looks at."""
        ...

    @property
    def offsets_are_kafkas(self) -> bool:
        """Whether the group's committed offsets say where to go on, and not just what lag there is."""
        ...

    @property
    def most_records(self) -> int:
        """The most records in a batch, whatever the settings say."""
        ...

    @property
    def wants_messages(self) -> bool:
        """Whether `take` is to be given what the batch was made of: a record as the client has it takes several KiB."""
        ...

    @property
    def breaker_is_open(self) -> bool:
        """Whether it ends with the next record that it would have to give up. Any thread may ask."""
        ...

    @property
    def skipped_hint(self) -> str:
        """What to do when retention has taken records away that have not taken effect."""
        ...

    @property
    def source_hints(self) -> SourceHints:
        """What to do when a topic, or the cluster, is not the one any more that was read."""
        ...

    def starts(
        self,
        client: ConsumerClient,
        identity: tuple[str, Mapping[str, str]],
        sources: Mapping[TopicPart, PartitionSource],
    ) -> dict[TopicPart, int]:
        """Return the next offset of each of these partitions that has one; the others start at their beginning.

        identity: the cluster's id, and the ids of all topics that are read.
        """
        ...

    def take(
        self, batch: Batch, messages: Sequence[Message], work: Work, until_done: ExitStack
    ) -> dict[TopicPart, float]:
        """Let a batch take effect, and say so by work.done.

        messages: what the batch was made of, if it wants that. Return the partitions that could not be finished, and when (on the clock's
        monotonic_s) to come again with the records that are not done; of a record that waits for its schema say nothing.
        A batch may still be in hand when it returns: the next call, or `settle`, says how it has ended.
        until_done: what the caller closes then. With a batch in hand it was taken over (pop_all), and is closed, with what
        went wrong if anything did, on whatever thread the batch ends.
        """
        ...

    def settle(self, work: Work) -> None:
        """Return when no batch is in hand any more. Raises what has gone wrong with it; nothing of it has happened then."""
        ...

    def forget(self, parts: Iterable[TopicPart]) -> None:
        """Drop what is remembered of partitions that are gone, or are read again."""
        ...


class _InHand(NamedTuple):
    """A batch whose transaction is under way."""

    transaction: Future[None]
    next_offsets: Mapping[TopicPart, int]
    applied: int


class StateEffect:
    """Events into states, with their offsets, in one transaction of the database.

    With `ahead`, a large batch is stored on a thread of its own while the loop fetches and decodes the next one: most of a
    transaction is the database's own work, during which Python may do something else. There is never more than one in
    hand, and nothing is said to be done before its transaction is.
    """

    offsets_are_kafkas: Final = False
    source_hints: Final = STATE_HINTS
    most_records: Final = NO_LIMIT
    wants_messages: Final = False
    breaker_is_open: Final = False
    skipped_hint: Final = (
        "Retention has deleted records that this state has not seen. Set KINGUIN_STATE__URL to a new database "
        "to make the state anew from what is left, and give the topic a longer retention."
    )

    def __init__(self, projection: Projection, store: StateStore, *, ahead_from: int | None = None) -> None:
        """store: of the same projection. ahead_from: size of a batch that is large; None: none is."""
        self.name = projection.name
        self.events = projection.events
        self.unused = projection.unused
        self._store = store
        self._ahead_from = ahead_from
        self._thread: ThreadPoolExecutor | None = None
        self._in_hand: _InHand | None = None

    def starts(
        self,
        _client: ConsumerClient,
        identity: tuple[str, Mapping[str, str]],
        sources: Mapping[TopicPart, PartitionSource],
    ) -> dict[TopicPart, int]:
        """Return what the database has. Raises as StateStore.offsets does."""
        stored = self._store.offsets(*identity)
        return {part: stored[source] for part, source in sources.items() if source in stored}

    def take(
        self, batch: Batch, _messages: Sequence[Message], work: Work, until_done: ExitStack
    ) -> dict[TopicPart, float]:
        """All of it or nothing. The order of these lines is the guarantee."""
        by_key = self._store.by_key(batch.received)  # while the batch in hand is stored
        self.settle(work)
        for letter in batch.dead_letters:
            work.keep(letter)
        advances = [
            Advance(work.sources[part], work.next_offsets[part], next_offset)
            for part, next_offset in batch.next_offsets.items()
        ]
        if not advances:
            return {}
        if self._ahead_from is None or len(batch.received) < self._ahead_from:
            self._store.apply_by_key(by_key, advances)
            _say_done(batch.next_offsets, len(batch.received), work)
            return {}
        if self._thread is None:
            sys.setswitchinterval(min(SWITCH_INTERVAL_S, sys.getswitchinterval()))
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{self.name}-store")
        # A fold divides by decimal's context, say: the same on both threads, or the size of its batch would decide.
        transaction = self._thread.submit(
            copy_context().run, self._apply_within, until_done.pop_all(), by_key, advances
        )
        self._in_hand = _InHand(transaction, batch.next_offsets, len(batch.received))
        return {}

    def _apply_within(self, until_done: ExitStack, by_key: ByKey, advances: Sequence[Advance]) -> None:
        # Closed before `settle` hears of it: the loop measures its next batch after that, and never two at a time.
        with until_done:
            self._store.apply_by_key(by_key, advances)

    def settle(self, work: Work) -> None:
        """Wait for the transaction in hand. Raises what StateStore.apply does."""
        in_hand, self._in_hand = self._in_hand, None
        if in_hand is not None:
            in_hand.transaction.result()
            _say_done(in_hand.next_offsets, in_hand.applied, work)

    def forget(self, _parts: Iterable[TopicPart]) -> None:
        """Nothing is remembered: the database knows."""


def _say_done(next_offsets: Mapping[TopicPart, int], applied: int, work: Work) -> None:
    for part, next_offset in next_offsets.items():
        work.done(part, next_offset, applied)
        applied = 0
