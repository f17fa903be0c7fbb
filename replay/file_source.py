"""Files as a replay's source: what is in them, and their records in the order in which they were written."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from kinguin_streams.replay import file_names, value_schemas
from kinguin_streams.replay.checksum import tally
from kinguin_streams.replay.container_files import read_header_of
from kinguin_streams.replay.file_damage import DamagedFile, not_ours
from kinguin_streams.replay.file_names import PART, FileName
from kinguin_streams.replay.json_lines import next_offset as next_offset_of_lines
from kinguin_streams.replay.plan import Window
from kinguin_streams.replay.receipt import Gap, Positions
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.record_files import read_batches
from kinguin_streams.replay.windows import PartitionFacts
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

_IDENTITY_BYTES = 65_536


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A complete file. next_offset: the first one after its last record. partitions: how many its topic had, 0 for unknown.

    identity: what changes when another file takes its name. follows: as in ContainerHeader.
    """

    path: Path
    name: FileName
    next_offset: int
    partitions: int
    identity: str
    follows: int | None = None


class Hole(NamedTuple):
    """Offsets from `start` up to `end` that lie between two files of a partition, and may have had records.

    is_sure: they had, since the file behind them says that its writer had filled another one up to `end`.
    """

    before: SourceFile
    behind: SourceFile
    start: int
    end: int
    is_sure: bool

    @property
    def why(self) -> str:
        """What makes it a hole."""
        if self.is_sure:
            return f"{self.behind.path.name} follows a file that ended at offset {self.end:,}, and it is not here"
        return (
            f"they are between {self.before.path.name} and {self.behind.path.name}, and nothing says whether there were "
            "records"
        )


def find(paths: Iterable[Path]) -> list[SourceFile]:
    """Return the files that are meant, sorted by topic, partition and offset; of a folder, all files of records in it.

    Raises OperatorError: "source_missing", "source_incomplete" for a folder whose export is not done, "source_empty",
    "source_overlaps" if two files hold the same offsets, "file_not_ours"; DamagedFile.
    """
    found: dict[Path, FileName] = {}
    for path in paths:
        if path.is_dir():
            for inside in sorted(path.iterdir()):
                if inside.name.endswith(PART) and file_names.parse(inside.name.removesuffix(PART)):
                    raise _incomplete(inside)
                name = file_names.parse(inside.name)
                if name is not None:
                    found[inside.resolve()] = name
        elif path.is_file():
            found[path.resolve()] = _name_of(path)
        else:
            raise OperatorError("source_missing", f"There is no file or folder {path}.", "Check the path of --source.")
    if not found:
        raise OperatorError(
            "source_empty",
            f"There is no file of records in {', '.join(map(str, paths)) or 'no path'}.",
            "`replay file` writes them, as TOPIC.PARTITION.OFFSET.avro or .jsonl.",
        )
    named = sorted(found.items(), key=lambda one: one[1])
    next_names = [*(name for _, name in named[1:]), None]
    files = [described(path, name, next_name) for (path, name), next_name in zip(named, next_names, strict=True)]
    for one, next_one in pairwise(files):
        if one.name[:2] == next_one.name[:2] and next_one.name.first_offset < one.next_offset:
            raise OperatorError(
                "source_overlaps",
                f"{one.path} and {next_one.path} both hold offset {next_one.name.first_offset:,} of their partition.",
                "They are from two exports: name the files of one of them.",
            )
    return files


def described(path: Path, name: FileName, next_name: FileName | None = None) -> SourceFile:
    """Return what a file says of itself, without reading all of it if it can be helped. next_name: of the file after it."""
    with path.open("rb") as file:
        begin = blake2b(file.read(_IDENTITY_BYTES), digest_size=8).hexdigest()
    partitions, next_offset, follows = 0, None, None
    if name.format == "avro":
        header = read_header_of(path)  # its marker is random: of two files the beginning is never the same
        partitions, next_offset, follows = header.partitions, header.next_offset, header.follows
    else:
        before = next_name.first_offset if next_name is not None and next_name[:2] == name[:2] else None
        next_offset = next_offset_of_lines(path, name.first_offset, before)
    if next_offset is None:  # written by a program of somebody else
        next_offset = name.first_offset
        for batch in read_batches(path):
            next_offset = batch[-1].offset + 1
    identity = f"{path.stat().st_size} bytes, {begin}"
    return SourceFile(
        path=path, name=name, next_offset=next_offset, partitions=partitions, identity=identity, follows=follows
    )


def identity(files: Iterable[SourceFile]) -> dict[str, str]:
    """Return what must stay the same for a replay to be resumed."""
    return {f"file {file.path}": file.identity for file in files}


def holes(files: Iterable[SourceFile]) -> list[Hole]:
    """Return what lies between files of one partition, unless the second says that nothing does. files: as `find` returns them.

    What compaction and filters have left out between two files of one export is no hole.
    """
    found = []
    for before, behind in pairwise(files):
        end = behind.name.first_offset if behind.follows is None else behind.follows
        if before.name[:2] == behind.name[:2] and before.next_offset < end:
            found.append(Hole(before, behind, before.next_offset, end, is_sure=behind.follows is not None))
    return found


def warnings(files: Iterable[SourceFile]) -> list[str]:
    """Return what the files may lack between them, in sentences."""
    return [
        f"{hole.behind.name.topic}/{hole.behind.name.partition}: no file has offsets {hole.start:,} to {hole.end - 1:,}: {hole.why}"
        for hole in holes(files)
    ]


def partition_facts(files: Sequence[SourceFile]) -> list[PartitionFacts]:
    """Return what windows are made of. No file says at which offset a time is reached: every time is at the first one."""
    missing: dict[tuple[str, int], tuple[tuple[int, int], ...]] = {}
    for hole in holes(files):
        place = hole.behind.name.topic, hole.behind.name.partition
        missing[place] = (*missing.get(place, ()), (hole.start, hole.end))
    bounds: dict[tuple[str, int], tuple[int, int]] = {}
    for file in files:
        place = file.name.topic, file.name.partition
        first, _ = bounds.get(place, (file.name.first_offset, 0))
        bounds[place] = first, file.next_offset
    return [
        PartitionFacts(
            topic=topic,
            partition=partition,
            earliest=first,
            latest=latest,
            offset_at=_Everywhere(first),
            holes=missing.get((topic, partition), ()),
        )
        for (topic, partition), (first, latest) in sorted(bounds.items())
    ]


class _Everywhere(dict[int, int]):
    def __init__(self, offset: int) -> None:
        super().__init__()
        self._offset = offset

    def __missing__(self, _instant_ms: int) -> int:
        return self._offset


def texts_of_ids(files: Iterable[SourceFile]) -> dict[int, str]:
    """Return which schema each id of a registry was where the values were written. JSON lines say nothing of it."""
    return value_schemas.texts_of_ids(read_header_of(file.path).schemas for file in files if file.name.format == "avro")


def partition_counts(files: Iterable[SourceFile]) -> dict[str, int]:
    """Return how many partitions each topic had; as many as the greatest number says where no file tells."""
    counts: dict[str, int] = {}
    for file in files:
        least = file.partitions or file.name.partition + 1
        counts[file.name.topic] = max(counts.get(file.name.topic, 0), least)
    return counts


def sampled(files: Iterable[SourceFile], windows: Sequence[Window]) -> tuple[tuple[Window, ...], int | None]:
    """Return the windows with their bytes estimated, and the time of the oldest record that was looked at."""
    sizes: dict[tuple[str, int], float] = {}
    oldest: list[int] = []
    for file in files:
        place = file.name.topic, file.name.partition
        if place not in sizes:
            try:
                first = next(read_batches(file.path), [])
            except DamagedFile:  # in its first block: that is a gap when it is read, and no reason to refuse the others
                first = []
            sizes[place] = tally(first).bytes / max(1, len(first))
            oldest += [record.timestamp_ms for record in first if record.timestamp_ms is not None]
    return tuple(
        msgspec.structs.replace(window, bytes=round(window.records * sizes.get((window.topic, window.partition), 0)))
        for window in windows
    ), min(oldest, default=None)


class FileSource:
    """A Source over files. A damaged file is read up to the damage; what it held behind it is a gap, and said so.

    So is a file that is surely missing between two others.
    """

    def __init__(self, files: Sequence[SourceFile], windows: Sequence[Window]) -> None:
        """files: as `find` returns them."""
        self._files = files
        self._windows: Mapping[tuple[str, int], Window] = {(one.topic, one.partition): one for one in windows}
        self._missing = {hole.behind.path: hole for hole in holes(files) if hole.is_sure}
        self._gaps: list[Gap] = []

    @property
    def gaps(self) -> Sequence[Gap]:
        """What damaged and missing files have lost of the windows, as found so far."""
        return self._gaps

    def read(self, start: Positions) -> Iterator[Sequence[Record]]:
        """Yield the windows' records, one partition after another. Raises OperatorError("file_not_ours")."""
        for file in self._files:
            place = file.name.topic, file.name.partition
            window = self._windows.get(place)
            if window is None:
                continue
            wanted = max(start.get(place, window.start), window.start)
            if hole := self._missing.get(file.path):
                self._lose(file.name, max(wanted, hole.start), min(window.end, hole.end), hole.why)
            begin, end = max(wanted, file.name.first_offset), min(window.end, file.next_offset)
            if begin < end:
                yield from self._read(file, begin, end)

    def _read(self, file: SourceFile, begin: int, end: int) -> Iterator[Sequence[Record]]:
        good = begin
        try:
            for batch in read_batches(file.path):
                if batch[0][:2] != file.name[:2]:
                    raise not_ours(file.path, f"its name is not that of {batch[0].topic}/{batch[0].partition}")
                records = batch
                if batch[0].offset < begin or batch[-1].offset >= end:
                    records = [record for record in batch if begin <= record.offset < end]
                if records:
                    yield records
                good = max(good, batch[-1].offset + 1)
                if good >= end:
                    return
        except DamagedFile as damage:
            log.error("file_damaged", file=str(file.path), block=damage.block_number, position=damage.position)
            self._lose(file.name, good, end, damage.what)

    def _lose(self, name: FileName, start: int, end: int, why: str) -> None:
        if start < end:
            self._gaps.append(Gap(topic=name.topic, partition=name.partition, start=start, end=end, why=why))

    def close(self) -> None:
        """Hold nothing."""


def _name_of(path: Path) -> FileName:
    if path.name.endswith(PART):
        raise _incomplete(path)
    name = file_names.parse(path.name)
    if name is None:
        raise not_ours(path, "it is not named TOPIC.PARTITION.OFFSET.avro or .jsonl, which says what it holds")
    return name


def _incomplete(path: Path) -> OperatorError:
    return OperatorError(
        "source_incomplete",
        f"{path} is still written, or its replay was stopped.",
        "Let it finish, or go on with it by `replay resume`, or name the complete files one by one.",
    )
