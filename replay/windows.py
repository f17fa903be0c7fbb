"""From what a person writes (`-7d`, `2026-01-01`, `offset:100`, `3=2500`) to the offsets that are read. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from kinguin_streams.replay.filters import instant_ms
from kinguin_streams.replay.plan import Window
from kinguin_streams.telemetry.operator_error import OperatorError

_AGO = re.compile(r"-([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_ONE_PARTITION = re.compile(r"([0-9]+)=(.+)")
_OFFSET = re.compile(r"offset:([0-9]+)")
_LONGEST_AGO_MS = 36_500 * 86_400_000


class Bound(msgspec.Struct, frozen=True):
    """One end of a window. value: milliseconds since 1970 of a time, the offset of an offset, else 0."""

    kind: Literal["earliest", "latest", "time", "offset"]
    value: int = 0


EARLIEST = Bound("earliest")
LATEST = Bound("latest")


class Bounds(msgspec.Struct, frozen=True):
    """One end of the windows of all partitions. only_some: nothing was said of the others, which have the default."""

    of_all: Bound
    of_one: Mapping[int, Bound] = {}
    only_some: bool = False

    def of(self, partition: int) -> Bound:
        """Return the bound for a partition."""
        return self.of_one.get(partition, self.of_all)

    @property
    def times_ms(self) -> frozenset[int]:
        """All times in it."""
        return frozenset(bound.value for bound in (self.of_all, *self.of_one.values()) if bound.kind == "time")


class NoSuchPartition(ValueError):
    """A partition was named that no topic has."""


class PartitionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster says of a partition. earliest, latest: as in plan.Window.

    offset_at: for each time that was asked for, the first offset with a record of that time or later, `latest` if none.
    holes: of files, offsets between two of them (start, and end left out) that may have had records.
    """

    topic: str
    partition: int
    earliest: int
    latest: int
    offset_at: Mapping[int, int] = {}
    holes: tuple[tuple[int, int], ...] = ()

    def covers(self, start: int, end: int) -> bool:
        """Return whether all records from `start` up to, not including, `end` are there, as far as anybody can tell."""
        in_a_hole = any(begin < end and start < behind for begin, behind in self.holes)
        return self.earliest <= start and end <= self.latest and not in_a_hole


def parse_bound(text: str, now_ms: int) -> Bound:
    """Return the bound in earliest | latest | offset:N | -7d | 2026-01-31T12:00:00Z. Raises ValueError.

    now_ms: what `-7d` counts back from; once for a plan, so that both ends mean the same now.
    """
    text = text.strip()
    if text in ("earliest", "latest"):
        return EARLIEST if text == "earliest" else LATEST
    if match := _OFFSET.fullmatch(text):
        return Bound("offset", int(match[1]))
    if match := _AGO.fullmatch(text):
        ago_ms = float(match[1]) * _UNIT_MS[match[2]]
        if ago_ms > _LONGEST_AGO_MS:
            raise ValueError(f"{text!r} is more than 100 years ago")
        return Bound("time", now_ms - round(ago_ms))
    try:
        return Bound("time", instant_ms(text))
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{text!r} is none of earliest, latest, offset:N, -7d, 2026-01-31T12:00:00Z, or P=N for one partition"
        ) from error


def parse_bounds(texts: Iterable[str], now_ms: int, otherwise: Bound) -> Bounds:
    """Return what the texts say: at most one for all partitions, and `P=N` for partition P. Raises ValueError.

    N: an offset, or any bound. otherwise: for partitions of which nothing is said. Once single partitions are named, the
    others still have that: a window is narrowed, never dropped by naming another. Who moves something instead of reading it
    asks for `only_some`.
    """
    of_all: Bound | None = None
    of_one: dict[int, Bound] = {}
    for text in texts:
        if match := _ONE_PARTITION.fullmatch(text.strip()):
            number, bound = int(match[1]), match[2]
            if number in of_one:
                raise ValueError(f"partition {number} has two bounds")
            of_one[number] = Bound("offset", int(bound)) if bound.isdecimal() else parse_bound(bound, now_ms)
        elif of_all is not None:
            raise ValueError(f"{text!r} comes after another bound for all partitions; for one of them write P={text}")
        else:
            of_all = parse_bound(text, now_ms)
    return Bounds(of_all or otherwise, of_one, only_some=of_all is None and bool(of_one))


def of_span(partition: int, start: int, end: int) -> str:
    """Return the options that read these offsets of one partition, `end` left out, and nothing of the others."""
    return f"--from latest --from {partition}={start} --until {partition}={end}"


def refuse_unknown(bounds: Iterable[Bounds], partitions: Iterable[int]) -> None:
    """Raise NoSuchPartition for a bound of a partition that none of the topics has. partitions: how many each has."""
    most = max(partitions, default=0)
    for named in sorted({number for each in bounds for number in each.of_one}):
        if named >= most:
            raise NoSuchPartition(f"there is no partition {named} in what is read; the last one is {most - 1}")


def windows(
    facts: Sequence[PartitionFacts], since: Bounds, until: Bounds, *, event_time: bool = False
) -> tuple[Window, ...]:
    """Return the window of every partition.

    A time at the beginning is the first offset with a record of that time or later. A time at the end is only a filter:
    records are not in the order of their times, and one that belongs to the window may lie behind others that do not
    (measured: stopping at the first later record loses records). With event_time both are only filters, since updatedAt
    says nothing of where a record lies.
    """
    return tuple(_window(one, since.of(one.partition), until.of(one.partition), event_time) for one in facts)


def up_to(made: Sequence[Window], positions: Mapping[tuple[str, int], int]) -> tuple[Window, ...]:
    """Return what of the windows lies before these positions; nothing of a partition without one."""
    return tuple(
        msgspec.structs.replace(
            window,
            end=max(window.start, min(window.end, positions.get((window.topic, window.partition), window.start))),
        )
        for window in made
    )


def _window(facts: PartitionFacts, since: Bound, until: Bound, event_time: bool) -> Window:
    wanted, gone_to = _start(facts, since, event_time)
    end = {"earliest": facts.earliest, "offset": min(until.value, facts.latest)}.get(until.kind, facts.latest)
    end = max(end, facts.earliest)
    start = min(max(wanted, facts.earliest), end)
    asked_end = until.value if until.kind == "offset" else facts.earliest
    return Window(
        topic=facts.topic,
        partition=facts.partition,
        start=start,
        end=end,
        earliest=facts.earliest,
        latest=facts.latest,
        gone=0 if until.kind == "earliest" else max(0, min(facts.earliest, gone_to, asked_end) - wanted),
        from_ms=since.value if since.kind == "time" else None,
        until_ms=until.value if until.kind == "time" else None,
    )


def _start(facts: PartitionFacts, since: Bound, event_time: bool) -> tuple[int, int]:
    """Return the first offset that is wanted, and up to where what retention has taken may have been wanted too."""
    match since.kind:
        case "latest":
            return facts.latest, 0
        case "offset":
            return since.value, facts.earliest
        case "time" if not event_time:
            found = facts.offset_at[since.value]
            # If not even the first record that is left is older than the window, those before it may belong to it as well.
            return (0, facts.earliest) if found <= facts.earliest else (found, 0)
    return 0, facts.earliest


def warnings(made: Sequence[Window]) -> list[str]:
    """Return what retention has already taken of the windows, in sentences."""
    said = []
    for window in made:
        if window.gone:
            first = window.earliest - window.gone
            said.append(
                f"{window.topic}/{window.partition}: retention has deleted what was before offset {window.earliest:,}; "
                f"the window misses up to {window.gone:,} records, offsets {first:,} to {window.earliest - 1:,}"
            )
    return said


def lost(made: Sequence[Window], elsewhere: Sequence[PartitionFacts]) -> list[Window]:
    """Return the windows of which retention has taken something that is not elsewhere either, such as in files."""
    there = {(facts.topic, facts.partition): facts for facts in elsewhere}

    def is_elsewhere(window: Window) -> bool:
        facts = there.get((window.topic, window.partition))
        return facts is not None and facts.covers(window.earliest - window.gone, window.earliest)

    return [window for window in made if window.gone and not is_elsewhere(window)]


def refuse_gaps(made: Sequence[Window], elsewhere: Sequence[PartitionFacts] = ()) -> None:
    """Raise OperatorError("history_gone") if retention has taken something of the windows that is not elsewhere either."""
    if said := warnings(lost(made, elsewhere)):
        raise OperatorError(
            "history_gone",
            f"What would be made anew would lack records: {said[0]}"
            + (f" ({len(said)} partitions)" if said[1:] else ""),
            "Read them from files with --source, or go on without them with --allow-gaps.",
        )
