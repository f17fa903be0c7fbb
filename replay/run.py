"""The run of a replay: from a source through the filters, at a pace, into a target; resumable, and proven at the end.

The order of its steps is the guarantee. A checkpoint goes into the receipt only after the target has said that everything
before it is durable; what is in the target and after the checkpoint is found again by the target itself. So each selected
record gets into the target once, whenever the process dies.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from kinguin_streams.consumers.garbage import without_cycles_looked_for
from kinguin_streams.replay.checksum import Tally, tally
from kinguin_streams.replay.filters import Filters
from kinguin_streams.replay.pace import Pace
from kinguin_streams.replay.plan import Plan, Window
from kinguin_streams.replay.receipt import Checkpoint, Gap, Mark, Positions, Proof, Receipt, partition_name
from kinguin_streams.replay.record import Record
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

_NAP_S = 0.1


class Source(Protocol):
    """Where records come from: see topic_source.py."""

    @property
    def gaps(self) -> Sequence[Gap]:
        """What was to be read and is not there any more, as found so far: noted before anything behind it is yielded."""
        ...

    def read(self, start: Positions) -> Iterator[Sequence[Record]]:
        """Yield the records of the plan's windows, each partition in order, from `start`, or the window's own where it says nothing.

        Ends by itself: the ends of the windows are fixed.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Landed(Protocol):
    """Source records that the target holds already, although the last checkpoint does not know of them."""

    def take(self, position: tuple[str, int, int], /) -> Tally | None:
        """Return what it is if it does, and forget it: nobody asks twice. position: (topic, partition, offset) of the source."""
        ...

    def leave(self, below: Positions | None = None, /) -> Tally:
        """Return those that were never taken and lie before these positions, or all that are left, and forget them."""
        ...

    def __len__(self) -> int: ...


class NothingLanded:
    """What a target returns that holds nothing which its last mark does not know of."""

    def take(self, _position: tuple[str, int, int], /) -> Tally | None:
        """Return None."""
        return None

    def leave(self, _below: Positions | None = None, /) -> Tally:
        """Return nothing."""
        return Tally()

    def __len__(self) -> int:
        return 0


class StoppedWriting(OperatorError):
    """Somebody wanted it to end while a target was waiting. left: of each partition, the first record that it has not taken."""

    def __init__(self, left: Positions) -> None:
        super().__init__(
            "replay_stopped",
            "It was stopped while a record waited for its next attempt.",
            "`kinguin-streams replay resume` goes on with that record.",
        )
        self.left = left


class ReadBack(Protocol):
    """What can be proven: whatever has been written lies somewhere, and is read there."""

    def finish(self) -> None:
        """Make final what was written: nothing more comes. Called again by a replay that was killed while it was proven."""
        ...

    def read_back(self) -> Iterator[Sequence[Record]]:
        """Yield what this replay has written, as it lies there now, without the `replay-` headers."""
        ...


class Target(ReadBack, Protocol):
    """Where records go: see topic_target.py."""

    def open(self, mark: Mark | None) -> Landed:
        """Get ready to write, after the last `sync` of this replay, or for the first time (None).

        What was written after that `sync` by a process that died is either undone now, or returned, so that it is not
        written again.
        """
        ...

    def carried(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return the records as they will be found in the target, without its `replay-` headers: what is proven."""
        ...

    def write(self, records: Sequence[Record]) -> None:
        """Take records, as `carried` returned them. They need not be durable yet.

        Raises OperatorError if one never will be; StoppedWriting if it was stopped, and what it has not taken is to be left.
        """
        ...

    def sync(self) -> Mark:
        """Return once everything written is durable, with what `open` needs to go on from here. Raises OperatorError.

        As long as something that `open` returned has not been taken, that has to be found again by the next `open`.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


Progress = Callable[[int, int, str], None]
"""done, total (at most), a note."""


def _never() -> bool:
    return False


def _silent(_done: int, _total: int, _note: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a run is watched and stopped. stop: asked often; True ends the run at a checkpoint."""

    progress: Progress = _silent
    stop: Callable[[], bool] = _never
    checkpoint_s: float = 5.0
    checkpoint_records: int = 250_000
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(kw_only=True)
class Moved:
    """What a run has done so far, all processes of the replay together."""

    written: Tally = field(default_factory=Tally)
    filtered: Tally = field(default_factory=Tally)
    vanished: Tally = field(default_factory=Tally)
    """Of the written: what the source has lost since."""
    interrupted: bool = False

    @property
    def read(self) -> Tally:
        """What was read: the written and the filtered ones."""
        return self.written + self.filtered


def run(source: Source, target: Target, filters: Filters, receipt: Receipt, watch: Watch | None = None) -> Moved:
    """Move what the receipt's plan says, from its last checkpoint on. Returns at the end, or at a checkpoint when stopped.

    Raises OperatorError for what stops it otherwise; the receipt says so, and the replay can be resumed from it.
    """
    run_ = _Run(source, target, filters, receipt, watch or Watch())
    try:
        with without_cycles_looked_for():
            return run_.go()
    except OperatorError as error:
        receipt.failed(f"{error.code}: {error.what}")
        raise


def recall(source: Source, filters: Filters, stop: Callable[[], bool]) -> bool:
    """Let the filters see again what was selected before a process died; False if it was stopped, and they have not.

    For `distinct` and targets that cannot be read back. source: what lies before the last checkpoint.
    """
    counted = filters.undecodable
    with without_cycles_looked_for():
        for batch in source.read({}):
            filters.split(batch)
            if stop():
                return False
    filters.undecodable = counted
    return True


class _Run:
    def __init__(self, source: Source, target: Target, filters: Filters, receipt: Receipt, watch: Watch) -> None:
        self._source, self._target, self._filters, self._receipt, self._watch = source, target, filters, receipt, watch
        contents = receipt.contents()
        self._plan: Plan = contents.plan
        last = contents.checkpoint
        self._landed: Landed = NothingLanded()
        self._stopped = False
        self._mark: Mark | None = None if last is None else last.mark
        self._positions: dict[tuple[str, int], int] = {} if last is None else last.offsets()
        self._moved = Moved()
        if last is not None:
            self._moved = Moved(written=last.written, filtered=last.filtered, vanished=last.vanished)
        self._undecodable_before = contents.undecodable
        self._gaps_noted = 0
        self._pace = Pace(self._plan.pace, watch.clock())
        self._total = self._plan.records
        self._since_checkpoint = 0
        self._checkpoint_at_s = 0.0

    def go(self) -> Moved:
        self._receipt.begun()
        landed = self._landed = self._target.open(self._mark)
        landed.leave(self._positions)  # the last checkpoint has counted it
        if self._mark is None:
            self._checkpoint()  # where the target begins, before the first record is in it
        elif self._filters.distinct:
            self._remember()
        log.debug("replay_begins", replay_id=self._plan.replay_id, landed=len(landed))
        for batch in self._source.read(dict(self._positions)):
            for chunk in self._chunks(batch):
                self._move(chunk, landed)
                if self._stopped or self._watch.stop():
                    self._checkpoint()
                    self._receipt.interrupted()
                    self._moved.interrupted = True
                    return self._moved
        self._note_gaps()
        self._count_vanished()
        self._checkpoint()
        self._receipt.written()
        return self._moved

    def _count_vanished(self, below: Positions | None = None) -> None:
        """Count what a process that died has written and the source has lost since: the run has passed its place."""
        if len(self._landed):
            vanished = self._landed.leave(below)
            self._moved.written += vanished
            self._moved.vanished += vanished

    def _remember(self) -> None:
        """Event ids do not outlive their process: those that were replayed are in the target, or `recall` has seen to it."""
        for batch in self._target.read_back():
            for record in batch:
                self._filters.remember(record)

    def _chunks(self, batch: Sequence[Record]) -> Iterator[Sequence[Record]]:
        if not self._pace.limited:
            yield batch
            return
        size = self._pace.chunk_records(len(batch))
        for begin in range(0, len(batch), size):
            yield batch[begin : begin + size]

    def _move(self, batch: Sequence[Record], landed: Landed) -> None:
        """Filter, write, count. A record that is in the target already was selected when it was written."""
        there: list[Record] = []
        fresh = batch
        if len(landed):
            fresh = []
            for record in batch:
                (fresh if landed.take(record[:3]) is None else there).append(record)
        kept, dropped = self._filters.split(fresh)
        kept = self._target.carried(kept)
        try:
            self._target.write(kept)
        except StoppedWriting as stopped:
            self._stopped = True
            batch, kept, dropped, there = (
                [record for record in each if record[2] < stopped.left.get(record[:2], record[2] + 1)]
                for each in (batch, kept, dropped, there)
            )
        moved = tally(kept)
        self._moved.written += moved
        if there:
            self._moved.written += tally(self._target.carried(there))
        if dropped:
            self._moved.filtered += tally(self._target.carried(dropped))
        # The last of each partition wins; `for topic, partition, offset, *_ in batch` would make a list for each record.
        last = {(record[0], record[1]): record[2] for record in batch}
        self._positions |= {key: offset + 1 for key, offset in last.items()}
        self._since_checkpoint += len(batch)
        self._note_gaps()
        if self._is_due():
            self._checkpoint()
        self._show()
        if self._pace.limited:
            self._wait(self._pace.wait_s(moved.records, moved.bytes, self._watch.clock()))

    def _is_due(self) -> bool:
        return (
            self._since_checkpoint >= self._watch.checkpoint_records
            or self._watch.clock() - self._checkpoint_at_s >= self._watch.checkpoint_s
        )

    def _checkpoint(self) -> None:
        self._count_vanished(self._positions)
        self._mark = self._target.sync()  # first durable, then noted
        self._receipt.checkpoint(
            Checkpoint(
                positions={partition_name(*key): offset for key, offset in sorted(self._positions.items())},
                written=self._moved.written,
                filtered=self._moved.filtered,
                vanished=self._moved.vanished,
                mark=self._mark,
            ),
            self._undecodable_before + self._filters.undecodable,
        )
        gc.collect(1)  # all that is new; what was there before the run is left alone
        self._since_checkpoint = 0
        self._checkpoint_at_s = self._watch.clock()

    def _note_gaps(self) -> None:
        gaps = self._source.gaps
        for gap in gaps[self._gaps_noted :]:
            log.warning(
                "records_missing", topic=gap.topic, partition=gap.partition, start=gap.start, end=gap.end, why=gap.why
            )
            self._receipt.gap(gap)
        self._gaps_noted = len(gaps)

    def _show(self) -> None:
        written, filtered = self._moved.written.records, self._moved.filtered.records
        note = f"{written:,} written" + (f", {filtered:,} filtered" if filtered else "")
        self._watch.progress(written + filtered, self._total, note)

    def _wait(self, wait_s: float) -> None:
        """Wait in naps, so that whoever stops the replay need not wait along; a checkpoint is due in between too."""
        until_s = self._watch.clock() + wait_s
        while (left_s := until_s - self._watch.clock()) > 0 and not self._watch.stop():
            self._watch.sleep(min(left_s, _NAP_S))


def prove(target: ReadBack, receipt: Receipt, name: str, watch: Watch | None = None) -> Proof | None:
    """Read the target back, compare it with what was written, and note it. None if it was stopped; it can be resumed."""
    watch = watch or Watch()
    contents = receipt.contents()
    written = contents.checkpoint.written if contents.checkpoint is not None else Tally()
    found = Tally()
    target.finish()
    with without_cycles_looked_for():
        for batch in target.read_back():
            found += tally(batch)
            watch.progress(found.records, written.records, "read back")
            if watch.stop():
                return None
    proof = Proof(written=written, found=found, target=name)
    receipt.proven(proof)
    return proof


def unchanged(before: Mapping[str, str], now: Mapping[str, str], what: str) -> None:
    """Raise OperatorError("identity_changed") unless topics, cluster and files are the ones that the plan was made for."""
    for name, value in before.items():
        if now.get(name) != value:
            raise OperatorError(
                "identity_changed",
                f"The {what} is not what it was when the replay was planned: {name} was {value} and is {now.get(name)}.",
                "It was deleted and made anew, or this is another cluster. Make the replay anew.",
            )


def limits_of(windows: Sequence[Window]) -> dict[tuple[str, int], tuple[int | None, int | None]]:
    """Return the times of windows, for Filters."""
    return {(window.topic, window.partition): (window.from_ms, window.until_ms) for window in windows}
