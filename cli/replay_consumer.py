"""`kinguin-streams replay consumer`: feed records to one consumer, while the others never see them."""

from typing import Annotated

import typer

from kinguin_streams.cli import replay_options as options
from kinguin_streams.cli.options import Json


def consumer(
    what: Annotated[
        str,
        typer.Argument(
            metavar="order-state|product-changes|FILE.py:NAME", help="the consumer, as in `consume`", show_default=False
        ),
    ],
    topics: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOPIC]...", help="topics that are read", show_default="the consumer's own"),
    ] = None,
    *,
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
    state_url: options.StateUrl = None,
    max_records_per_s: options.MaxRecordsPerS = None,
    max_bytes_per_s: options.MaxBytesPerS = None,
    execute: options.Execute = False,
    as_json: Json = False,
) -> None:
    """Run one consumer's code here, on a window of records. Its group, its offsets and other consumers are left alone.

    Handlers are called with context.replay true, at least once for each record; what fails for good is dead-lettered, as
    always. A projection's state takes each record in once, also one that it has already, while its consumer goes on.

    Example: kinguin-streams replay consumer notifier.py:app --from -2d --where 'status == "completed"' --execute
    """
    import time

    from uuid_utils.compat import uuid7

    from kinguin_streams.cli import consumer_named, replay_parts, replay_running, wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.consumers.app import App
    from kinguin_streams.replay.as_message import refuse_unread
    from kinguin_streams.replay.plan import INTO_CONSUMER, Destination, Plan
    from kinguin_streams.replay.topic_plan import Wanted
    from kinguin_streams.telemetry.logs import configure

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format)
    found = consumer_named.consumer(what)
    its_events = found.handlers if isinstance(found, App) else found.events
    its_own = tuple(map(wiring.topics(settings).name, its_events))
    refuse_unread(topics or (), its_own, found.name)
    now_ms = round(time.time() * 1000)
    first, last = options.bounds(since, until, now_ms)
    wanted = Wanted(
        topics=tuple(dict.fromkeys(topics or its_own)),
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
        reading = planner.reading(wanted)
    target = {"consumer": _absolute(what)}
    if not isinstance(found, App):
        target["state"] = replay_parts.state_shown(settings)
    plan = Plan(
        replay_id=str(uuid7()),
        made_at_ms=now_ms,
        windows=reading.windows,
        source_identity=reading.identity,
        selection=wanted.selection,
        pace=wanted.pace,
        warnings=reading.warnings,
        destination=Destination(kind=INTO_CONSUMER, name=found.name, options=target),
    )
    if execute:
        replay_running.execute(settings, plan, as_json=as_json)
    else:
        replay_running.show_plan(plan, as_json=as_json)


def _absolute(what: str) -> str:
    """Return the same where a file is named, so that it is found from another folder when the replay is resumed."""
    from pathlib import Path

    file, colon, name = what.rpartition(":")
    return f"{Path(file).absolute()}{colon}{name}" if file.endswith(".py") else what
