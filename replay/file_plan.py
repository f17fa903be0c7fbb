"""Plans of exports: what is read from topics, and whether the folder may take it. Changes nothing."""

import shutil
from pathlib import Path

import msgspec

from kinguin_streams.replay.file_names import Format
from kinguin_streams.replay.file_target import refuse_occupied
from kinguin_streams.replay.plan import Destination, Plan, amount
from kinguin_streams.replay.topic_plan import Planner, Wanted

# Of what a record has in Kafka: base64 takes four bytes for three, and each line has its names.
_JSON_LINES_GROWTH = 1.8


def export(
    planner: Planner, replay_id: str, wanted: Wanted, folder: Path, *, file_format: Format, max_bytes: int
) -> Plan:
    """Return the plan of an export. max_bytes: of a file.

    Raises OperatorError as Planner.reading does, and "folder_occupied".
    """
    reading = planner.reading(wanted)
    partitions = {facts.name: facts.partitions for facts in reading.topics}
    refuse_occupied(folder, partitions)
    made = Plan(
        replay_id=replay_id,
        made_at_ms=wanted.now_ms,
        windows=reading.windows,
        source_files=tuple(str(file.path) for file in wanted.files),
        source_identity=reading.identity,
        selection=wanted.selection,
        pace=wanted.pace,
        destination=Destination(
            kind="file",
            name=str(folder.absolute()),
            options={"format": file_format, "max_bytes": max_bytes, "partitions": partitions},
        ),
    )
    return _with_warnings(made, reading.warnings, folder, file_format)


def _with_warnings(made: Plan, warnings: tuple[str, ...], folder: Path, file_format: Format) -> Plan:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    most = round((made.bytes or 0) * (_JSON_LINES_GROWTH if file_format == "jsonl" else 1))
    if most > free:
        warnings = (*warnings, f"{folder} has {amount(free)} free, and the files may take up to {amount(most)}")
    return msgspec.structs.replace(made, warnings=warnings)
