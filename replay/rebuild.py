"""A projection's state made anew beside the live one, and swapped in: see consumers/generations.py for the swap.

How far it is stands in the state database, with the state itself, so that a rebuild that was killed goes on where it was, and
needs no receipt. Files come first, then topics up to where the live state is; the live consumer goes on meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import structlog

from kinguin_streams.consumers import generations
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.generations import Behind, Build, Swapped
from kinguin_streams.consumers.live_rows import LANE
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import Advance, PartitionSource, StateStore
from kinguin_streams.replay.as_message import sorted_out
from kinguin_streams.replay.checksum import tally
from kinguin_streams.replay.pace import Pace
from kinguin_streams.replay.plan import PaceLimit, Window
from kinguin_streams.replay.receipt import Gap, Positions
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Source, Watch
from kinguin_streams.replay.windows import PartitionFacts
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.schemas.events import RecordName
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

FILES: Final = f"{LANE}files"
NAP_S: Final = 0.5
PACE_NAP_S: Final = 0.1
PATIENCE_ROUNDS: Final = 60
"""So often in a row the live state may be ahead although there is nothing to read: 30 s."""
BUSY_ROUNDS: Final = 10
"""So often the swap may find the database held by others, each time for the whole of `busy_timeout_s`. It waits for a moment
without a writer: six busy consumers in PostgreSQL have let it wait for 4.6 s."""

Batches = Iterable[Sequence[Record]]
Identity = tuple[str, Mapping[str, str]]
"""The cluster's id, and the ids of the topics by name."""


class Files(NamedTuple):
    """What is read before the topics. id: the same only for the same files. parts: the partitions that they are of.

    facts: what they cover, so that it is not missed where the topics have lost it.
    """

    id: str
    parts: tuple[TopicPart, ...]
    source: Source
    facts: tuple[PartitionFacts, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild has come to. applied: records of this process; unreadable: of them, ones that no consumer could read.

    gaps: offsets that were lost before they could be read, at most. differing: keys whose facts are not those of the live
    state, if they were compared; the first ones by name.
    swapped: None if it stopped before.
    """

    build: Build
    resumed: bool
    applied: int
    unreadable: int
    gaps: int
    interrupted: bool = False
    differing: int | None = None
    examples: tuple[generations.Differing, ...] = ()
    swapped: Swapped | None = None
    deleted: int = 0


class Rebuild:
    """One run of it, in this process."""

    def __init__(
        self,
        projection: Projection,
        *,
        state: StateSettings,
        decoder: Decoder,
        expected: Mapping[str, RecordName],
        identity: Callable[[], Identity],
        windows: Callable[[], Sequence[Window]],
        source: Callable[[Sequence[Window]], Source],
        files: Files | None = None,
        allow_gaps: bool = False,
        batch_records: int = 10_000,
        pace: PaceLimit | None = None,
        watch: Watch | None = None,
    ) -> None:
        """expected: topic to what it holds. windows: all of each topic, up to where it ends now.

        allow_gaps: go on without what files, or retention until it is read, have lost. pace: leaves the database to others for
        a while after each batch, which is then small.
        """
        self._projection = projection
        self._state = state
        self._decoder = decoder.without(projection.unused)
        self._expected = expected
        self._identity = identity
        self._windows = windows
        self._source = source
        self._files = files
        self._allow_gaps = allow_gaps
        self._batch_records = batch_records
        self._watch = watch or Watch()
        self._pace = Pace(pace or PaceLimit(), self._watch.clock())
        self._applied = self._unreadable = 0
        self._covered = {(each.topic, each.partition): each for each in (files.facts if files is not None else ())}
        self._gaps: dict[tuple[str, int, int], int] = {}  # (topic, partition, first offset) to the end

    def run(self, *, compare: int | None = None, anew: bool = False) -> Outcome:
        """Build, and swap; with `compare` say what differs instead, with so many examples, and keep what was built.

        anew: begin anew where an earlier run stopped. Raises OperatorError: "lost_partition" or "generation_replaced" if
        another process builds too, "schema_unknown", "rebuild_behind", "files_damaged", "history_gone", those of Kafka and of
        consumers/database.py.
        """
        build, resumed = generations.begin(self._state, self._projection, anew=anew)
        log.info("rebuild_begins", consumer=self._projection.name, generation=build.generation, resumed=resumed)
        # What an earlier rebuild has left, if it was killed while deleting.
        generations.drop_others(self._state, self._projection)
        store = StateStore(self._state, self._projection, build)
        try:
            swapped = None
            if not self._watch.stop():
                self._from_files(store)
            caught_up = not self._watch.stop() and self._from_topics(store)
            if caught_up and compare is None:
                swapped = self._swap(store, build)
        finally:
            store.close()
        said = Outcome(
            build=build,
            resumed=resumed,
            applied=self._applied,
            unreadable=self._unreadable,
            gaps=sum(end - start for (_, _, start), end in self._gaps.items()),
            interrupted=swapped is None and (compare is None or not caught_up),
            swapped=swapped,
        )
        if compare is not None and caught_up:
            return self._compared(said, build, compare)
        if swapped is not None:
            deleted = generations.drop_others(self._state, self._projection)
            return msgspec.structs.replace(said, deleted=deleted)
        return said

    def _compared(self, said: Outcome, build: Build, most: int) -> Outcome:
        found = generations.differences(self._state, self._projection, build)
        examples = tuple(islice(found, most))
        return msgspec.structs.replace(said, differing=len(examples) + sum(1 for _ in found), examples=examples)

    def _swap(self, store: StateStore, build: Build) -> Swapped | None:
        """Swap as soon as the new state has come as far as the live one, which goes on meanwhile; None if stopped."""
        in_vain = busy = 0
        while not self._watch.stop():
            try:
                outcome = generations.swap(self._state, self._projection, build, *self._identity())
            except OperatorError as error:
                busy += 1
                if error.code != "state_busy" or busy > BUSY_ROUNDS:
                    raise
                log.warning("rebuild_waits", consumer=self._projection.name, reason=str(error))
                continue
            if isinstance(outcome, Swapped):
                log.info("rebuild_is_live", consumer=self._projection.name, **outcome._asdict())
                return outcome
            before = self._applied
            self._from_topics(store)
            in_vain = 0 if self._applied > before else in_vain + 1
            if in_vain > PATIENCE_ROUNDS:
                raise _behind(outcome)
            if in_vain:
                self._watch.sleep(NAP_S)
        return None

    def _from_topics(self, store: StateStore) -> bool:
        """Take in what the topics hold now; return whether all of it was. What they have lost is refused before what follows."""
        cluster_id, topic_ids = self._identity()
        stored = store.offsets(cluster_id, topic_ids)
        windows = self._windows()
        sources = {
            part: PartitionSource(cluster_id, topic_ids[part.topic], *part)
            for part in (TopicPart(window.topic, window.partition) for window in windows)
        }
        left: list[Window] = []
        gone: list[Gap] = []
        for window in windows:
            start = stored.get(sources[TopicPart(window.topic, window.partition)], 0)
            if start < window.earliest:
                gone.append(Gap(topic=window.topic, partition=window.partition, start=start, end=window.earliest))
            left.append(msgspec.structs.replace(window, start=max(start, window.earliest)))
        self._accept(self._missed(gone))
        left = [window for window in left if window.start < window.end]
        total = sum(window.records for window in left)
        reading = self._source(left)
        batches: Batches = reading.read({})
        if not self._allow_gaps:
            batches = _before(lambda: bool(self._missed(reading.gaps)), batches)
        try:
            done = self._take(store, batches, sources, stored, total)
        finally:
            reading.close()
        self._accept(self._missed(reading.gaps))
        if done:
            self._pass_over_rest(store, windows, sources, stored)
        return done

    def _missed(self, gaps: Iterable[Gap]) -> list[Gap]:
        """Return what the topics have lost, and the files that were read before them do not cover either."""
        return [
            gap
            for gap in gaps
            if (facts := self._covered.get((gap.topic, gap.partition))) is None or not facts.covers(gap.start, gap.end)
        ]

    def _accept(self, gaps: Sequence[Gap]) -> None:
        """Count what is lost, or raise OperatorError("history_gone") if that was not allowed."""
        if gaps and not self._allow_gaps:
            raise OperatorError(
                "history_gone",
                f"Retention has deleted offsets {gaps[0].start:,} to {gaps[0].end - 1:,} of {gaps[0].topic}/"
                f"{gaps[0].partition} before this rebuild came to read them. Nothing is swapped in; what it has built is kept.",
                "Read them from files with --source, or go on without them with --allow-gaps.",
            )
        self._count(gaps)

    def _count(self, gaps: Iterable[Gap]) -> None:
        for gap in gaps:
            where = gap.topic, gap.partition, gap.start
            self._gaps[where] = max(gap.end, self._gaps.get(where, 0))

    def _pass_over_rest(
        self,
        store: StateStore,
        windows: Sequence[Window],
        sources: Mapping[TopicPart, PartitionSource],
        stored: Mapping[PartitionSource, int],
    ) -> None:
        """Count offsets without a record at the end, which transactions, compaction and retention leave, as what has taken effect."""
        ends = {sources[TopicPart(window.topic, window.partition)]: window.end for window in windows}
        rest = [Advance(source, stored.get(source), end) for source, end in ends.items() if stored.get(source, 0) < end]
        if rest:
            store.apply([], rest)

    def _from_files(self, store: StateStore) -> None:
        if self._files is None:
            return
        files = self._files
        try:
            stored = store.offsets(FILES, {part.topic: files.id for part in files.parts})
        except OperatorError as error:
            raise OperatorError(
                "files_changed",
                f"The rebuild of {self._projection.name} that was begun has read other files.",
                "Name the same files, or begin anew with --anew.",
            ) from error
        sources = {part: PartitionSource(FILES, files.id, *part) for part in files.parts}
        start = {(source.topic, source.partition): offset for source, offset in stored.items()}
        batches: Batches = files.source.read(start)
        if not self._allow_gaps:
            batches = _before(lambda: bool(files.source.gaps), batches)
        try:
            self._take(store, batches, sources, stored, _left(files.facts, start))
        finally:
            files.source.close()
        if (gaps := files.source.gaps) and not self._allow_gaps:
            raise OperatorError(
                "files_damaged",
                f"The files have lost offsets {gaps[0].start:,} to {gaps[0].end - 1:,} of "
                f"{gaps[0].topic}/{gaps[0].partition} ({gaps[0].why}). What comes before them has been read.",
                "Restore the file and run it again, with --anew if it asks for that, or go on without them with --allow-gaps.",
            )
        self._count(gaps)

    def _take(
        self,
        store: StateStore,
        batches: Batches,
        sources: Mapping[TopicPart, PartitionSource],
        stored: dict[PartitionSource, int],
        total: int,
    ) -> bool:
        """Apply batches; `stored` moves along. Return whether all of them were, and nobody has said to stop."""
        begun = self._applied
        for records in _sized(batches, self._pace.chunk_records(self._batch_records)):
            if self._watch.stop():
                return False
            self._apply(store, records, sources, stored)
            done = self._applied - begun
            self._watch.progress(done, max(total, done), "built")
            if self._pace.limited:
                self._wait(self._pace.wait_s(len(records), tally(records).bytes, self._watch.clock()))
        return not self._watch.stop()

    def _wait(self, wait_s: float) -> None:
        """Wait in naps, so that whoever stops the rebuild need not wait along."""
        until_s = self._watch.clock() + wait_s
        while (left_s := until_s - self._watch.clock()) > 0 and not self._watch.stop():
            self._watch.sleep(min(left_s, PACE_NAP_S))

    def _apply(
        self,
        store: StateStore,
        records: Sequence[Record],
        sources: Mapping[TopicPart, PartitionSource],
        stored: dict[PartitionSource, int],
    ) -> None:
        batch, _ = sorted_out(records, self._decoder, self._expected, self._projection.name)
        advances = [
            Advance(sources[part], stored.get(sources[part]), next_offset)
            for part, next_offset in batch.next_offsets.items()
        ]
        store.apply(batch.received, advances)
        for advance in advances:
            stored[advance.source] = advance.next_offset
        self._applied += len(records)
        # The live consumer has dead-lettered these when they came.
        self._unreadable += len(batch.dead_letters)


def _left(facts: Iterable[PartitionFacts], start: Positions) -> int:
    """Return how many records of the files are still to be read, at most."""
    return sum(
        max(0, each.latest - max(each.earliest, start.get((each.topic, each.partition), each.earliest)))
        for each in facts
    )


def _before(lost: Callable[[], bool], batches: Batches) -> Iterator[Sequence[Record]]:
    """Yield the batches that come before a loss. A source says that something is lost before it yields what lies behind.

    So the stored offset stays at the loss, and a rebuild that goes on meets it again.
    """
    for batch in batches:
        if lost():
            return
        yield batch


def _sized(batches: Batches, size: int) -> Iterator[Sequence[Record]]:
    """Yield the same records in batches of this size; the last one may be smaller."""
    records = (record for batch in batches for record in batch)
    while some := list(islice(records, size)):
        yield some


def _behind(where: Sequence[Behind]) -> OperatorError:
    first = where[0]
    return OperatorError(
        "rebuild_behind",
        f"The live state has come to offset {first.live} of {first.topic}/{first.partition}, and there is nothing to read "
        f"from {first.new or 0} on.",
        "Check with `kinguin-streams consumers lag` and `topics plan` that the consumer and this command see one cluster.",
    )
