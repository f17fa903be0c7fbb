"""Files as a replay's target: one partition in each, in a folder that held none of its topics before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from kinguin_streams.replay import file_names
from kinguin_streams.replay.container_files import ContainerWriter, read_container, read_header_of
from kinguin_streams.replay.file_damage import DamagedFile
from kinguin_streams.replay.file_names import PART, FileName, Format
from kinguin_streams.replay.folder_claim import FolderClaim, refuse_claimed
from kinguin_streams.replay.json_lines import JsonLinesWriter, read_json_lines
from kinguin_streams.replay.part_file import sync_folder, writing
from kinguin_streams.replay.receipt import Mark, partition_name
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.rolled_writer import DEFAULT_MAX_BYTES, FileMark, RolledWriter
from kinguin_streams.replay.run import Landed, NothingLanded
from kinguin_streams.replay.value_schemas import ValueSchemas
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

SchemasOf = Callable[[str], ValueSchemas]
"""A topic's name to the schemas of its values."""

Partition = tuple[str, int]


class FileTarget:
    """A Target over a folder. A file has its name, without `.part`, once it is full or the replay is done."""

    def __init__(
        self,
        folder: Path,
        partitions: Mapping[str, int],
        replay_id: str,
        *,
        file_format: Format = "avro",
        max_bytes: int = DEFAULT_MAX_BYTES,
        schemas_of: SchemasOf = lambda _topic: ValueSchemas({}),
    ) -> None:
        """partitions: how many each topic has that is read. max_bytes: of a file, see RolledWriter."""
        self._folder, self._partitions, self._replay_id = folder, dict(partitions), replay_id
        self._format, self._max_bytes = file_format, max_bytes
        self._schemas = {topic: schemas_of(topic) for topic in partitions}
        self._claim = FolderClaim(folder, partitions, replay_id)
        self._writers: dict[Partition, RolledWriter] = {}

    def open(self, mark: Mark | None) -> Landed:
        """Get ready; what was written after the last `sync` is undone, so that nothing has landed that is not known.

        Raises OperatorError: "folder_occupied", "folder_changed", "file_changed", "file_not_writable".
        """
        if mark is None:
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            self._begin()
            return NothingLanded()
        known = {name: FileMark(*said) for name, said in mark.items()}
        self._undo(known, self._claim.held())
        self._claim.take()
        for topic, count in self._partitions.items():
            for number in range(count):
                found = known.get(partition_name(topic, number))
                if found is not None:
                    writer = self._writers[topic, number] = self._writer(topic, number, found)
                    writer.go_back()
        return NothingLanded()

    def _begin(self) -> None:
        self._claim.take()
        try:
            _refuse_files(self._folder, self._partitions)  # only now: before, another replay could have begun meanwhile
        except OperatorError:
            self._claim.release()
            raise

    def _undo(self, known: Mapping[str, FileMark], claimed: frozenset[str]) -> None:
        """Remove the files that were begun after the marks. Only files of this replay: the folder had none of its topics."""
        removed = 0
        for path, name in _listed(self._folder, self._partitions):
            mark = known.get(partition_name(name.topic, name.partition))
            if mark is None or name.first_offset >= mark.next_offset:
                self._refuse_of_another(path, name, is_claimed=name.topic in claimed)
                with writing(path):
                    path.unlink()
                removed += 1
        if removed:
            with writing(self._folder):
                sync_folder(self._folder)
            log.info("files_undone", folder=str(self._folder), files=removed)

    def _refuse_of_another(self, path: Path, name: FileName, *, is_claimed: bool) -> None:
        ours = is_claimed and name.format == self._format
        if name.format == self._format == "avro":
            try:
                ours = read_header_of(path).replay_id == self._replay_id
            except DamagedFile:
                ours = is_claimed and path.suffix == PART  # its header was on its way when the process died
        if not ours:
            raise OperatorError(
                "folder_changed",
                f"{path} is not of this replay, and was not there when it began.",
                "Move it elsewhere, then `replay resume`.",
            )

    def carried(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return the records: a file takes them as they are."""
        return records

    def write(self, records: Sequence[Record]) -> None:
        """Take records. Raises OperatorError("file_not_writable"), or what the schemas' registry raises."""
        of_partition: dict[Partition, list[Record]] = {}
        for record in records:
            place = record[0], record[1]
            if place in of_partition:
                of_partition[place].append(record)
            else:
                of_partition[place] = [record]
        for place, some in of_partition.items():
            if place not in self._writers:
                self._writers[place] = self._writer(*place, None)
            self._writers[place].write(some)

    def _writer(self, topic: str, partition: int, mark: FileMark | None) -> RolledWriter:
        if self._format == "jsonl":
            return JsonLinesWriter(self._folder, topic, partition, max_bytes=self._max_bytes, mark=mark)
        return ContainerWriter(
            self._folder,
            topic,
            partition,
            max_bytes=self._max_bytes,
            mark=mark,
            schemas=self._schemas[topic],
            replay_id=self._replay_id,
            partitions=self._partitions[topic],
        )

    def sync(self) -> Mark:
        """Return once everything written is durable, with a FileMark of each partition that has records."""
        return {partition_name(*place): list(writer.sync()) for place, writer in sorted(self._writers.items())}

    def finish(self) -> None:
        """Complete the open files."""
        for writer in self._writers.values():
            writer.close()
        self._claim.release()

    def read_back(self) -> Iterator[Sequence[Record]]:
        """Yield what lies in the folder's files of these topics. Raises DamagedFile."""
        for path, name in _listed(self._folder, self._partitions):
            yield from read_container(path) if name.format == "avro" else read_json_lines(path)

    def close(self) -> None:
        """Let go of the open files as they are: a resumed replay goes on with them."""
        for writer in self._writers.values():
            writer.abandon()


def refuse_occupied(folder: Path, topics: Mapping[str, int]) -> None:
    """Raise OperatorError("folder_occupied") if the folder holds files of one of the topics, or a replay is about to write some."""
    refuse_claimed(folder, topics)
    _refuse_files(folder, topics)


def _refuse_files(folder: Path, topics: Mapping[str, int]) -> None:
    for path, name in _listed(folder, topics):
        raise OperatorError(
            "folder_occupied",
            f"{folder} holds files of {name.topic} already: {path.name}.",
            "Name another folder: two exports of one topic in one folder could not be told apart.",
        )


def _listed(folder: Path, topics: Mapping[str, int]) -> list[tuple[Path, FileName]]:
    """Return the folder's files of these topics, parts too, in the order in which they are read."""
    found = []
    with writing(folder):
        for path in folder.iterdir() if folder.exists() else ():
            name = file_names.parse(path.name.removesuffix(PART))
            if name is not None and name.topic in topics:
                found.append((path, name))
    return sorted(found, key=lambda one: one[1])
