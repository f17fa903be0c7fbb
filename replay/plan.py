"""What a replay is going to do, as a frozen value: shown before anything is done, and the first line of its receipt."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from kinguin_streams.schemas.instants import to_rfc3339

# What one process of two cores does with records of half a kilobyte; see docs/performance.md. An estimate, no promise.
RECORDS_PER_S = 60_000
BYTES_PER_S = 50_000_000
# Into a state: PostgreSQL's, which is the slower one.
FOLDED_RECORDS_PER_S = 25_000


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of one partition: the records from `start` up to, not including, `end`, which is fixed when planned.

    earliest, latest: what is there: the first offset that retention has left, and the one after the last committed record.
    gone: records that the window asks for and retention has already deleted, at most so many.
    from_ms, until_ms: only records of this time or later, and before this one (milliseconds since 1970).
    bytes: of the window's records, estimated from a sample; None where nothing was looked at.
    exact_records: how many records of the window are selected, counted one by one (`--exact`).
    """

    topic: str
    partition: int
    start: int
    end: int
    earliest: int
    latest: int
    gone: int = 0
    from_ms: int | None = None
    until_ms: int | None = None
    bytes: int | None = None
    exact_records: int | None = None

    @property
    def records(self) -> int:
        """How many records there are in the window at most: compaction and transactions leave gaps in the offsets."""
        return max(0, self.end - self.start)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the window's records are replayed: those that every filter that is set lets through. See filters.py.

    events, stores, keys: any one of them. headers: (name, value), all of them. where: conditions on fields, all of them.
    event_time: the window's times are compared with updatedAt, not with the record's time.
    distinct: of records with one eventId, the first only; of so many last ids, 0 for off.
    """

    events: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    where: tuple[str, ...] = ()
    event_time: bool = False
    distinct: int = 0


class PaceLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How fast at most; None for as fast as it goes."""

    max_records_per_s: float | None = None
    max_bytes_per_s: float | None = None


INTO_CONSUMER: Final = "consumer"
OF_GROUP: Final = "group"
"""The kinds of destinations that are code, and a group's offsets: here, so that whoever only asks for it need not load that, and a database's with it."""


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """Where the records go. kind: "topic", "file", "group", "consumer"…; name: the topic's, the folder's…

    options: what else the target has to know, as JSON. identity: what must not have changed when the replay is resumed,
    such as the topic's id; compared, never interpreted.
    """

    kind: str
    name: str
    options: dict[str, Any] = {}
    identity: dict[str, str] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A replay. made_at_ms: when the ends were fixed. source_identity: as Destination.identity, of topics read.

    source_files: files that are read instead of topics, in this order.
    warnings: what a person should know before it is executed.
    """

    replay_id: str
    made_at_ms: int
    windows: tuple[Window, ...]
    destination: Destination
    source_files: tuple[str, ...] = ()
    source_identity: dict[str, str] = {}
    selection: Selection = Selection()
    pace: PaceLimit = PaceLimit()
    warnings: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """How many records are read at most."""
        return sum(window.records for window in self.windows)

    @property
    def bytes(self) -> int | None:
        """How many bytes are read, estimated, or None where nobody knows."""
        known = [window.bytes for window in self.windows if window.bytes is not None]
        return sum(known) if known else None

    @property
    def exact_records(self) -> int | None:
        """How many records are selected, if they were counted."""
        counted = [window.exact_records for window in self.windows if window.exact_records is not None]
        return sum(counted) if counted else None

    @property
    def duration_s(self) -> float:
        """How long it takes, estimated."""
        return estimated_duration_s(self.records, self.bytes or 0, self.pace)


def estimated_duration_s(records: int, size_bytes: int, pace: PaceLimit) -> float:
    """Return the estimated time of moving so much: what this program does, or the limits if they are lower."""
    by_records = records / min(RECORDS_PER_S, pace.max_records_per_s or RECORDS_PER_S)
    by_bytes = size_bytes / min(BYTES_PER_S, pace.max_bytes_per_s or BYTES_PER_S)
    return max(by_records, by_bytes)


def as_json(plan: Plan, *, executed: bool) -> dict[str, Any]:
    """Return what `--json` prints of a plan."""
    return {
        "replay_id": plan.replay_id,
        "executed": executed,
        "target": {"kind": plan.destination.kind, "name": plan.destination.name, **plan.destination.options},
        "records_at_most": plan.records,
        "records": plan.exact_records,
        "bytes_estimated": plan.bytes,
        "seconds_estimated": round(plan.duration_s, 1),
        "gone": sum(window.gone for window in plan.windows),
        "windows": windows_as_json(plan.windows),
        "source_files": list(plan.source_files),
        "selection": msgspec.to_builtins(plan.selection),
        "pace": msgspec.to_builtins(plan.pace),
        "warnings": list(plan.warnings),
    }


def windows_as_json(windows: Sequence[Window]) -> list[dict[str, Any]]:
    """Return what `--json` prints of windows."""
    return [
        {
            "topic": window.topic,
            "partition": window.partition,
            "start": window.start,
            "end": window.end,
            "earliest": window.earliest,
            "latest": window.latest,
            "gone": window.gone,
            "records_at_most": window.records,
            "records": window.exact_records,
            "bytes_estimated": window.bytes,
            "from": _instant(window.from_ms),
            "until": _instant(window.until_ms),
        }
        for window in windows
    ]


WINDOW_COLUMNS = ("topic", "partition", "start", "end", "at most", "exact", "bytes", "gone")


def window_rows(windows: Sequence[Window]) -> list[Mapping[str, object]]:
    """Return the windows for a table of WINDOW_COLUMNS."""
    return [
        {
            "topic": window.topic,
            "partition": window.partition,
            "start": window.start,
            "end": window.end,
            "at most": window.records,
            "exact": window.exact_records,
            "bytes": None if window.bytes is None else f"~{amount(window.bytes)}",
            "gone": window.gone or None,
        }
        for window in windows
    ]


def sentences(plan: Plan) -> list[str]:
    """Return what is said of a plan above and below its table."""
    exact = plan.exact_records
    count = f"at most {plan.records:,} records" if exact is None else f"{exact:,} of at most {plan.records:,} records"
    size = "" if plan.bytes is None else f", about {amount(plan.bytes)}"
    said = [
        (
            f"{plan.destination.kind} {plan.destination.name}: {count}{size}, "
            f"about {duration(plan.duration_s)}, ends fixed at {to_rfc3339(plan.made_at_ms)}"
        )
    ]
    times = {(window.from_ms, window.until_ms) for window in plan.windows} - {(None, None)}
    of = "updatedAt" if plan.selection.event_time else "record time"
    said.extend(
        f"only {of} from {_instant(begin) or 'the beginning'} until {_instant(until) or 'the end'}"
        for begin, until in sorted(times, key=str)
    )
    if filters := described(plan.selection):
        said.append(f"only {filters}")
    return said


def described(selection: Selection) -> str:
    """Return the filters in words, "" if there are none."""
    parts = []
    for name, values in (("event", selection.events), ("store", selection.stores), ("key", selection.keys)):
        if values:
            parts.append(f"{name} {' or '.join(values)}")
    parts += [f"header {name}={value}" for name, value in selection.headers]
    parts += list(selection.where)
    if selection.distinct:
        parts.append(f"the first of each eventId among the last {selection.distinct:,}")
    return ", ".join(parts)


def amount(size_bytes: int) -> str:
    """Return e.g. "1.2 GB"."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration(seconds: float) -> str:
    """Return e.g. "3 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _instant(instant_ms: int | None) -> str | None:
    return None if instant_ms is None else to_rfc3339(instant_ms)


State = Literal["interrupted", "failed", "written", "done", "differs"]
"""Where a replay stands: to be resumed; written and not yet proven; proven; read back as something else."""
