"""Old webhooks into the topics: read through today's validator, each confirmed by Kafka, resumable.

The state cannot be put back by it: what was last said of an order is what has the greatest `updatedAt`, whenever it arrives, and
the same body has the same event id as if it had just been sent.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from kinguin_streams.cluster.publisher import PublishFailed, Report
from kinguin_streams.replay.checksum import Tally, tally, without_replay
from kinguin_streams.replay.import_lines import Imported, LineFault, marked, read_line
from kinguin_streams.replay.pace import Pace
from kinguin_streams.replay.plan import Destination, PaceLimit, Plan
from kinguin_streams.replay.receipt import Checkpoint, Mark, Receipt, partition_name
from kinguin_streams.replay.receipt import Contents as ReceiptContents
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Landed, NothingLanded, Watch, unchanged
from kinguin_streams.schemas.codec import RecordEncoder
from kinguin_streams.schemas.events import DeadLetter
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

KIND: Final = "import"
MOST_NOTES: Final = 10_000
"""Of so many lines it is said what is wrong with them; of the rest, how many there are."""
LINES_PER_S: Final = 10_000
"""What one process does, roughly. An estimate, no promise."""
MAX_LINE_BYTES: Final = 1_000_000
"""A body has 64 KiB at most, and base64 and escapes at worst six times that."""
IN_FLIGHT: Final = 5_000
CHUNK_LINES: Final = 500
TOPICS: Final = "topics"
"""In a checkpoint's mark: what Written.open needs."""
_COUNTS: Final = "counts"


class LineNote(msgspec.Struct, frozen=True):
    """A line, counted from 1, and what there is to say of it."""

    line: int
    what: str


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a file. by_event, by_reason: how many lines are events, and dead letters.

    letters, faults: the first MOST_NOTES lines that become dead letters, and that cannot be read; fault_count: all of those.
    """

    lines: int
    bytes: int
    by_event: dict[str, int]
    by_reason: dict[str, int]
    letters: tuple[LineNote, ...]
    faults: tuple[LineNote, ...]
    fault_count: int
    reserialised: int
    identity: str

    @property
    def letter_count(self) -> int:
        """How many lines become dead letters."""
        return sum(self.by_reason.values())


class Sender(Protocol):
    """What an import needs of cluster.publisher.KafkaPublisher."""

    def send(self, record: OutgoingRecord) -> Report:
        """Return what will be the record's delivery report; raises PublishFailed if it is not taken."""
        ...


class Written(Protocol):
    """What an import needs of import_target.ImportTarget."""

    def open(self, mark: Mark | None) -> Landed:
        """Return the lines that have landed after the last `sync` of this import; None: it begins."""
        ...

    def sync(self) -> Mark:
        """Return what `open` needs to go on from here; all that was sent is durable."""
        ...


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What an import has done, all processes together."""

    lines: int = 0
    events: int = 0
    dead_letters: int = 0
    interrupted: bool = False


def sent(contents: ReceiptContents) -> Sent:
    """Return what a receipt says of it."""
    counts = {} if contents.checkpoint is None else contents.checkpoint.mark[_COUNTS]
    return Sent(**counts, interrupted=contents.state in ("interrupted", "written"))


def survey(path: Path, now_ms: int, watch: Watch) -> Contents:
    """Read the whole file through the validator. Raises OperatorError("import_missing")."""
    by_event: Counter[str] = Counter()
    by_reason: Counter[str] = Counter()
    letters: list[LineNote] = []
    faults: list[LineNote] = []
    reserialised = fault_count = lines = done = 0
    digest = blake2b(digest_size=16)
    total = _size(path)
    for number, line in _lines(path, 0):
        lines, done = number, done + len(line)
        digest.update(line)
        try:
            imported = _read(line, now_ms)
        except LineFault as fault:
            fault_count += 1
            if len(faults) < MOST_NOTES:
                faults.append(LineNote(number, str(fault)))
            continue
        if imported is None:
            continue
        if isinstance(imported.record, DeadLetter):
            by_reason[imported.record.reason] += 1
            if len(letters) < MOST_NOTES:
                letters.append(LineNote(number, f"{imported.record.reason}: {imported.record.detail}"))
        else:
            by_event[imported.record.record_name] += 1
            reserialised += imported.is_reserialised
        watch.progress(done, total, f"bytes, {lines:,} lines")
    return Contents(
        lines=lines,
        bytes=done,
        by_event=dict(sorted(by_event.items())),
        by_reason=dict(sorted(by_reason.items())),
        letters=tuple(letters),
        faults=tuple(faults),
        fault_count=fault_count,
        reserialised=reserialised,
        identity=digest.hexdigest(),
    )


def plan(replay_id: str, path: Path, found: Contents, pace: PaceLimit, now_ms: int, *, skip_faults: bool) -> Plan:
    """Return the plan of an import."""
    warnings = []
    if found.reserialised:
        warnings.append(
            f"{found.reserialised:,} of {sum(found.by_event.values()):,} bodies have white space between their tokens, which the "
            "sender does not write: they were probably parsed and written again, and have other event ids than the webhooks had. "
            "Order state does not mind; product changes that are in the topics already would count twice"
        )
    if found.fault_count and skip_faults:
        warnings.append(f"{found.fault_count:,} lines are left out")
    return Plan(
        replay_id=replay_id,
        made_at_ms=now_ms,
        windows=(),
        pace=pace,
        source_files=(str(path),),
        source_identity={str(path): found.identity},
        warnings=tuple(warnings),
        destination=Destination(
            kind=KIND,
            name=str(path),
            options={"lines": found.lines, "bytes": found.bytes, "skip_faults": skip_faults},
        ),
    )


def estimated_duration_s(found: Contents, pace: PaceLimit) -> float:
    """Return how long the import takes, estimated: the file is read twice more, and each record waits for Kafka."""
    records = sum(found.by_event.values()) + found.letter_count
    by_lines = records / min(LINES_PER_S, pace.max_records_per_s or LINES_PER_S)
    return max(by_lines, 0 if pace.max_bytes_per_s is None else found.bytes / pace.max_bytes_per_s)


def refuse_faults(found: Contents) -> None:
    """Raise OperatorError("lines_refused") if there is a line that says nothing that could be kept."""
    if found.fault_count:
        first = found.faults[0]
        raise OperatorError(
            "lines_refused",
            f"{found.fault_count:,} lines cannot be read; the first one is line {first.line}: {first.what}.",
            "Nothing was imported. Mend the file, or leave those lines out with --skip-faults.",
        )


def run(
    plan_: Plan,
    receipt: Receipt,
    *,
    sender: Sender,
    written: Written,
    topics: Topics,
    encoder: RecordEncoder,
    watch: Watch,
) -> None:
    """Import what the receipt's plan says, from its last checkpoint on. Ends at the end, or at a checkpoint when stopped.

    After kill -9, lines behind the last checkpoint that are in the topics are not sent again. What is left at the end is the
    proof: run.prove. Raises OperatorError: "identity_changed" if the file is another one, "import_refused" if Kafka does not
    take a record, and as `written` does.
    """
    path = Path(plan_.destination.name)
    unchanged(plan_.source_identity, {str(path): _identity(path)}, "file")
    part = path.name, 0
    last = receipt.contents().checkpoint
    run_ = _Run(plan_, receipt, part, sender=sender, written=written, topics=topics, encoder=encoder, watch=watch)
    receipt.begun()
    try:
        run_.go(path, last)
    except OperatorError as error:
        receipt.failed(f"{error.code}: {error.what}")
        raise


class _Run:
    def __init__(
        self,
        plan_: Plan,
        receipt: Receipt,
        part: tuple[str, int],
        *,
        sender: Sender,
        written: Written,
        topics: Topics,
        encoder: RecordEncoder,
        watch: Watch,
    ) -> None:
        self._plan, self._receipt, self._watch, self._part = plan_, receipt, watch, part
        self._sender, self._target, self._topics, self._encoder = sender, written, topics, encoder
        self._pace = Pace(plan_.pace, watch.clock())
        self._counts = {"lines": 0, "events": 0, "dead_letters": 0}
        self._written = Tally()
        self._landed: Landed = NothingLanded()
        self._waiting: deque[tuple[int, Report]] = deque()
        self._checkpoint_at_s = watch.clock()

    def go(self, path: Path, last: Checkpoint | None) -> None:
        position = 0
        if last is None:
            self._target.open(None)
            self._note(0)  # where the topics end, before the first record is in them
        else:
            position, self._written = last.offsets()[self._part], last.written
            self._counts = dict(last.mark[_COUNTS])
            self._landed = self._target.open(last.mark[TOPICS])
            self._landed.leave({self._part: self._counts["lines"] + 1})  # the checkpoint has counted them
        total = self._plan.destination.options["bytes"]
        since, before = 0, self._written
        for number, line in _lines(path, position, self._counts["lines"]):
            position += len(line)
            self._counts["lines"] = number
            self._send(number, line)
            since += 1
            if since >= (self._pace.chunk_records(CHUNK_LINES) if self._pace.limited else CHUNK_LINES):
                self._settle(IN_FLIGHT)
                self._watch.progress(position, total, f"bytes, {self._counts['events']:,} events")
                if self._pace.limited:
                    records, size_bytes = self._written.records - before.records, self._written.bytes - before.bytes
                    self._sleep(self._pace.wait_s(records, size_bytes, self._watch.clock()))
                since, before = 0, self._written
                if self._watch.clock() - self._checkpoint_at_s >= self._watch.checkpoint_s:
                    self._note(position)
                if self._watch.stop():
                    self._note(position)
                    self._receipt.interrupted()
                    return
        self._note(position)
        self._watch.progress(total, total, f"bytes, {self._counts['events']:,} events")
        self._receipt.written()

    def _send(self, number: int, line: bytes) -> None:
        try:
            imported = _read(line, round(time.time() * 1000))
        except LineFault as fault:
            if not self._plan.destination.options["skip_faults"]:
                raise OperatorError("lines_refused", f"Line {number}: {fault}.", "Mend the file.") from fault
            return
        if imported is None:
            return
        self._counts["dead_letters" if isinstance(imported.record, DeadLetter) else "events"] += 1
        if (landed := self._landed.take((*self._part, number))) is not None:
            self._written += landed  # received when the process that died has sent it
            return
        record = marked(
            outgoing(imported.record, self._topics, self._encoder),
            imported.origin_time_ms,
            self._plan.replay_id,
            f"{partition_name(*self._part)}/{number}",
        )
        as_read = Record(record.topic, 0, number, record.timestamp_ms, record.key, record.value, record.headers)
        self._written += tally([without_replay(as_read)])
        while True:
            try:
                self._waiting.append((number, self._sender.send(record)))
                return
            except PublishFailed as failed:
                if failed.code != "queue_full" or not self._waiting:
                    raise _refused(number, failed) from failed
                self._settle(len(self._waiting) // 2)

    def _settle(self, at_most: int) -> None:
        """Wait until no more than so many records are on their way. Raises OperatorError for one that Kafka refuses."""
        while len(self._waiting) > at_most:
            number, report = self._waiting.popleft()
            if (failed := report.result()) is not None:
                raise _refused(number, failed)

    def _note(self, position: int) -> None:
        self._settle(0)  # first durable, then noted
        mark = {_COUNTS: dict(self._counts), TOPICS: self._target.sync()}
        positions = {partition_name(*self._part): position}
        self._receipt.checkpoint(Checkpoint(positions=positions, written=self._written, mark=mark))
        self._checkpoint_at_s = self._watch.clock()

    def _sleep(self, wait_s: float) -> None:
        until_s = self._watch.clock() + wait_s
        while (left_s := until_s - self._watch.clock()) > 0 and not self._watch.stop():
            self._watch.sleep(min(left_s, 0.1))


def _read(line: bytes, now_ms: int) -> Imported | None:
    """Return what a line is; None for an empty one."""
    if len(line) > MAX_LINE_BYTES:
        raise LineFault(f"it is longer than {MAX_LINE_BYTES:,} bytes")
    text = line.strip()
    return read_line(text, now_ms) if text else None


def _lines(path: Path, position: int, number: int = 0) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            file.seek(position)
            for line in file:
                number += 1
                yield number, line
    except OSError as error:
        raise _missing(path, error) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _missing(path, error) from error


def _identity(path: Path) -> str:
    digest = blake2b(digest_size=16)
    for _, line in _lines(path, 0):
        digest.update(line)
    return digest.hexdigest()


def _missing(path: Path, error: OSError) -> OperatorError:
    return OperatorError(
        "import_missing",
        f"The file {path} cannot be read ({error.strerror}).",
        "Name a file of lines {store, event, body or body_base64, received_at}.",
    )


def _refused(number: int, failed: PublishFailed) -> OperatorError:
    return OperatorError(
        "import_refused",
        f"Kafka has not taken line {number} ({failed}).",
        "See to the cluster and `kinguin-streams topics plan`; then `kinguin-streams replay resume` goes on.",
    )
