"""Options that several `replay` subcommands have: the window, the filters, the pace."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.replay.file_source import SourceFile
    from kinguin_streams.replay.plan import PaceLimit, Selection
    from kinguin_streams.replay.topic_plan import Planner
    from kinguin_streams.replay.windows import Bounds

_BOUND = "earliest, latest, offset:N, -7d, 2026-01-31T12:00:00Z; P=N for partition P alone, repeatable"

Since = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="BOUND",
        help=f"first record: {_BOUND}. Times are the records' own (when we received them)",
        show_default="earliest",
    ),
]
Until = Annotated[
    list[str] | None,
    typer.Option("--until", metavar="BOUND", help="first record that is left out, as --from", show_default="latest"),
]
EventTime = Annotated[
    bool, typer.Option("--event-time", help="compare times with updatedAt; reads every record between the offsets")
]
Exact = Annotated[
    bool, typer.Option("--exact", help="count what is selected by reading it, instead of giving an upper bound")
]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", metavar="NAME", help="only this event, e.g. order.status; repeatable", show_default=False),
]
Stores = Annotated[
    list[str] | None, typer.Option("--store", metavar="NAME", help="only this store; repeatable", show_default=False)
]
Keys = Annotated[
    list[str] | None, typer.Option("--key", metavar="KEY", help="only this record key; repeatable", show_default=False)
]
Headers = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        metavar="NAME=VALUE",
        help="only with this header; repeatable, all must be there",
        show_default=False,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        help="""only where a field says so: 'status == "completed"', 'qty < 5'; == != < <= > >=; repeatable, all must hold""",
        show_default=False,
    ),
]
Distinct = Annotated[
    bool,
    typer.Option(
        "--distinct",
        help="only the first record of each eventId, among the last KINGUIN_REPLAY__DISTINCT_RECORDS (130 bytes each)",
    ),
]
StateUrl = Annotated[
    str | None,
    typer.Option("--state-url", help="database of a projection's state", show_default="sqlite:///.data/state.db"),
]
MaxRecordsPerS = Annotated[
    float | None, typer.Option("--max-records-per-s", help="no faster than this", min=0.001, show_default=False)
]
MaxBytesPerS = Annotated[
    float | None, typer.Option("--max-bytes-per-s", help="no faster than this", min=1, show_default=False)
]
Source = Annotated[
    list[Path] | None,
    typer.Option(
        "--source",
        metavar="PATH",
        help="read files that `replay file` has written, or folders of them, instead of Kafka; TOPIC... says which; repeatable",
        show_default=False,
    ),
]
Execute = Annotated[bool, typer.Option("--execute", help="do it; without it only the plan is shown")]


def bounds(since: list[str] | None, until: list[str] | None, now_ms: int) -> "tuple[Bounds, Bounds]":
    """Return both ends of the window. Raises typer.BadParameter."""
    from kinguin_streams.replay.windows import EARLIEST, LATEST, parse_bounds

    found = []
    for texts, otherwise, option in ((since, EARLIEST, "--from"), (until, LATEST, "--until")):
        try:
            found.append(parse_bounds(texts or (), now_ms, otherwise))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from error
    return found[0], found[1]


@contextmanager
def planner(settings: "Settings") -> "Iterator[Planner]":
    """Yield what makes plans. Raises typer.BadParameter for a bound of a partition that there is not."""
    from kinguin_streams.cli import replay_parts
    from kinguin_streams.replay.windows import NoSuchPartition

    asking = replay_parts.survey(settings)
    try:
        yield replay_parts.planner(settings, asking)
    except NoSuchPartition as error:
        raise typer.BadParameter(str(error), param_hint="--from/--until") from error
    finally:
        asking.close()


def selection(
    settings: "Settings",
    *,
    events: list[str] | None = None,
    stores: list[str] | None = None,
    keys: list[str] | None = None,
    headers: list[str] | None = None,
    where: list[str] | None = None,
    distinct: bool = False,
    event_time: bool = False,
) -> "Selection":
    """Return the filters. Raises typer.BadParameter."""
    from kinguin_streams.replay.filters import condition
    from kinguin_streams.replay.plan import Selection
    from kinguin_streams.schemas.versions import RECORD_NAMES

    for event in events or ():
        if event not in RECORD_NAMES:
            raise typer.BadParameter(f"{event!r} is none of {', '.join(RECORD_NAMES)}", param_hint="--event")
    pairs = []
    for header in headers or ():
        name, sign, value = header.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"{header!r} is not NAME=VALUE", param_hint="--header")
        pairs.append((name, value))
    for text in where or ():
        try:
            condition(text)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--where") from error
    return Selection(
        events=tuple(events or ()),
        stores=tuple(stores or ()),
        keys=tuple(keys or ()),
        headers=tuple(pairs),
        where=tuple(where or ()),
        event_time=event_time,
        distinct=settings.replay.distinct_records if distinct else 0,
    )


def pace(max_records_per_s: float | None, max_bytes_per_s: float | None) -> "PaceLimit":
    """Return the limits."""
    from kinguin_streams.replay.plan import PaceLimit

    return PaceLimit(max_records_per_s=max_records_per_s, max_bytes_per_s=max_bytes_per_s)


def files(source: list[Path] | None, topics: list[str] | None) -> "tuple[SourceFile, ...]":
    """Return the files that are read instead of Kafka, if any: of the topics, or all of them where none is named.

    Raises typer.BadParameter for neither files nor topics; OperatorError as file_source.find and topic_plan.files_of do.
    """
    from kinguin_streams.replay.file_source import find
    from kinguin_streams.replay.topic_plan import files_of

    if not source and not topics:
        raise typer.BadParameter("name the topics that are read, or --source, or both", param_hint="TOPIC...")
    return files_of(find(source), topics or ()) if source else ()
