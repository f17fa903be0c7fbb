"""`kinguin-streams replay topic`: copy records into a topic."""

from enum import StrEnum
from typing import Annotated

import typer

from kinguin_streams.cli import replay_options as options
from kinguin_streams.cli.options import Json


class Timestamp(StrEnum):
    """Which time a copy has."""

    KEEP = "keep"
    NOW = "now"


def topic(
    target: Annotated[str, typer.Argument(help="topic that gets the records; it must exist", show_default=False)],
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
    timestamp: Annotated[
        Timestamp,
        typer.Option(help="keep the records' time, or write now and keep theirs in the header replay-timestamp"),
    ] = Timestamp.KEEP,
    force: Annotated[bool, typer.Option("--force", help="also into a topic that is read")] = False,
    execute: options.Execute = False,
    as_json: Json = False,
) -> None:
    """Copy records into a topic: key, value, headers and time as they are, in the same partition where there are as many.

    Without --execute it shows the plan: the window of each partition, whose end is fixed now, and what retention has
    already deleted of it. With it, the copy is made and proven by reading it back, record by record.

    Added headers: replay-id, and replay-source with topic/partition/offset. Left out: those of traces (traceparent, …).

    Example: kinguin-streams replay topic backfill kinguin.order.status --from -7d --where 'status == "completed"' --execute
    """
    import time

    from uuid_utils.compat import uuid7

    from kinguin_streams.cli import replay_running
    from kinguin_streams.cli.settings import load
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
        plan = planner.copy(str(uuid7()), wanted, target, timestamp=timestamp.value, force=force)
    if execute:
        replay_running.execute(settings, plan, as_json=as_json)
    else:
        replay_running.show_plan(plan, as_json=as_json)
