"""Files of records, in either format, told apart by their names."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from kinguin_streams.replay.container_files import read_container
from kinguin_streams.replay.file_damage import not_ours
from kinguin_streams.replay.file_names import PART
from kinguin_streams.replay.json_lines import read_json_lines
from kinguin_streams.replay.record import Record


def read_batches(path: Path) -> Iterator[list[Record]]:
    """Yield the records of a complete file, in batches.

    Raises DamagedFile, after everything before the damage was yielded; OperatorError("file_not_ours").
    """
    match path.suffix:
        case ".avro":
            return read_container(path)
        case ".jsonl":
            return read_json_lines(path)
    why = (
        "the replay that writes it is not done" if path.suffix == PART else "its name ends in neither .avro nor .jsonl"
    )
    raise not_ours(path, why)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a complete file, one by one. Raises as `read_batches` does."""
    return chain.from_iterable(read_batches(path))
