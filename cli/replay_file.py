"""`kinguin-streams replay file`: write records into files."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kinguin_streams.cli import replay_options as options
from kinguin_streams.cli.options import Json


class FileFormat(StrEnum):
    """What files of records are."""

    AVRO = "avro"
    JSONL = "jsonl"


def file(
    folder: Annotated[Path, typer.Argument(help="folder of the files; it is made if need be", show_default=False)],
    topics: Annotated[
        list[str] | None, typer.Argument(metavar="TOPIC...", help="topics that are read", show_default=False)
    ] = None,
    *,
    source: options.Source = None,
    since: options.Since = None,
    until: options.Until = None,
    event_time: options.EventTime = False,
    exact: options.Exact = False,
    events: options.Events = None,
    stores: options.Stores = None,
    keys: options.Keys = None,
    headers: options.Headers = None,
    where: options.Where = None,
    distinct: options.Distinct = False,
    max_records_per_s: options.MaxRecordsPerS = None,
    max_bytes_per_s: options.MaxBytesPerS = None,
    file_format: Annotated[
        FileFormat,
        typer.Option(
            "--format", help="Avro containers with zstd, or JSON lines with base64: larger, no checksum of the whole"
        ),
    ] = FileFormat.AVRO,
    max_file_bytes: Annotated[
        int, typer.Option(min=1_000, help="a file that has this size is complete, and another is begun")
    ] = 256 * 1024 * 1024,
    execute: options.Execute = False,
    as_json: Json = False,
) -> None:
    """Write records into files, one partition in each: topic, offset, time, key, value and headers as they are, to the byte.

    A file is named TOPIC.PARTITION.FIRSTOFFSET.avro (or .jsonl), with .part at the end until it is complete. Any reader of
    Avro with zstandard reads them; the metadata kinguin.schemas says how the values are decoded. `replay topic NAME NAME
    --source FOLDER` is the way back, for each topic.

    Without --execute it shows the plan. With it, the files are written and proven by reading them back, record by record.

    Example: kinguin-streams replay file archive/2026-11 kinguin.order.status kinguin.order.complete --execute
    """
    import time

    from uuid_utils.compat import uuid7

    from kinguin_streams.cli import replay_running
    from kinguin_streams.cli.settings import load
    from kinguin_streams.replay.file_plan import export
    from kinguin_streams.replay.topic_plan import Wanted
    from kinguin_streams.telemetry.logs import configure

    settings = load()
    configure(settings.log.level, settings.log.format)
    now_ms = round(time.time() * 1000)
    first, last = options.bounds(since, until, now_ms)
    wanted = Wanted(
        topics=tuple(dict.fromkeys(topics or ())),
        files=options.files(source, topics),
        since=first,
        until=last,
        now_ms=now_ms,
        exact=exact,
        pace=options.pace(max_records_per_s, max_bytes_per_s),
        selection=options.selection(
            settings,
            events=events,
            stores=stores,
            keys=keys,
            headers=headers,
            where=where,
            distinct=distinct,
            event_time=event_time,
        ),
    )
    with options.planner(settings) as planner:
        plan = export(planner, str(uuid7()), wanted, folder, file_format=file_format.value, max_bytes=max_file_bytes)
    if execute:
        replay_running.execute(settings, plan, as_json=as_json)
    else:
        replay_running.show_plan(plan, as_json=as_json)
