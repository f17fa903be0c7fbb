"""One partition's records into files, a new one whenever one is full."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from kinguin_streams.replay.file_names import FileName, Format
from kinguin_streams.replay.part_file import PartFile
from kinguin_streams.replay.record import Record

DEFAULT_MAX_BYTES = 256 * 1024 * 1024
_CHUNK_RECORDS = 100  # how far a file may go over its size: so many records, of 256 KB at most each in topics of ours


class FileMark(NamedTuple):
    """Where one partition's files are durable: what a resumed replay goes back to.

    file: the name that the open file gets when it is complete, "" if no file is open.
    size_bytes, records: of that file. next_offset: the first offset that is in none of the files.
    """

    file: str
    size_bytes: int
    next_offset: int
    records: int


class RolledWriter(ABC):
    """Writes the records of one topic and partition, in order. Raises OperatorError as PartFile does."""

    format: ClassVar[Format]

    def __init__(
        self,
        folder: Path,
        topic: str,
        partition: int,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        mark: FileMark | None = None,
    ) -> None:
        """mark: where an earlier writer of this partition was durable; what lies behind it is cut when it is gone on with.

        max_bytes: a file is complete as soon as it has this size, so it may be larger by a block.
        """
        self._folder, self._topic, self._partition = folder, topic, partition
        self._max_bytes = max_bytes
        self._mark = mark or FileMark("", 0, 0, 0)
        self._part: PartFile | None = None
        self._next_offset = self._mark.next_offset
        self._records = 0
        self._finished: list[Path] = []

    def write(self, records: Sequence[Record]) -> None:
        """Take records; they are durable after the next `sync` or `close`."""
        for begin in range(0, len(records), _CHUNK_RECORDS):
            chunk = records[begin : begin + _CHUNK_RECORDS]
            part = self._open(chunk)
            self._records += len(chunk)
            self._next_offset = chunk[-1].offset + 1
            self._add(part, chunk)
            if part.size_bytes >= self._max_bytes:
                self._finish(part)

    def sync(self) -> FileMark:
        """Return once everything written is durable, with where that is."""
        if self._part is not None:
            self._flush(self._part)
            self._part.sync()
            self._mark = FileMark(self._part.path.name, self._part.size_bytes, self._next_offset, self._records)
        elif not self._mark.file:
            self._mark = FileMark("", 0, self._next_offset, 0)
        return self._mark

    def go_back(self) -> None:
        """Cut what lies behind the mark, unless the file was completed there: that one is opened only to be written to."""
        if self._part is not None or not self._mark.file:
            return
        complete = self._folder / self._mark.file
        if not complete.exists() or complete.stat().st_size != self._mark.size_bytes:
            self._go_on()

    def close(self) -> tuple[Path, ...]:
        """Complete the open file; return all that this writer has completed. A second call changes nothing."""
        self.go_back()
        if self._part is not None:
            self._finish(self._part)
        return tuple(self._finished)

    def abandon(self) -> None:
        """Let go of the open file as it is: a part, which a writer goes on with that is given the last mark."""
        if self._part is not None:
            self._part.close()
            self._part = None

    def _open(self, chunk: Sequence[Record]) -> PartFile:
        if self._part is None and self._mark.file:
            self._go_on()
        needs_another = self._needs_another(chunk)
        if self._part is not None and needs_another:
            self._finish(self._part)
        if self._part is None:
            name = FileName(self._topic, self._partition, chunk[0].offset, self.format)
            self._part = PartFile.create(self._folder / name.text)
            self._records = 0
            self._begin(self._part)
        return self._part

    def _go_on(self) -> None:
        self._part = PartFile.go_on(self._folder / self._mark.file, self._mark.size_bytes)
        self._records = self._mark.records
        self._begin_again(self._part)

    def _finish(self, part: PartFile) -> None:
        self._flush(part)
        self._seal(part, self._records, self._next_offset)
        self._finished.append(part.finish())
        self._part = None
        self._mark = FileMark("", 0, self._next_offset, 0)

    def _needs_another(self, chunk: Sequence[Record]) -> bool:  # noqa: ARG002
        """Return whether these records cannot go into the open file. Called before each one is begun, too."""
        return False

    @abstractmethod
    def _begin(self, part: PartFile) -> None:
        """Write what stands before the first record. `_next_offset` is where the last file ended, 0 if there was none."""

    @abstractmethod
    def _begin_again(self, part: PartFile) -> None:
        """Learn what is needed to go on with a file that another writer began."""

    @abstractmethod
    def _add(self, part: PartFile, records: Sequence[Record]) -> None:
        """Append records, or keep them until there are enough."""

    @abstractmethod
    def _flush(self, part: PartFile) -> None:
        """Append the records that were kept."""

    @abstractmethod
    def _seal(self, part: PartFile, records: int, next_offset: int) -> None:
        """Note in the file that it is complete."""
