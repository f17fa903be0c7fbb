"""`kinguin-streams replay rebuild`: a projection's state made anew beside the live one, and swapped in."""

from typing import TYPE_CHECKING, Annotated

import typer

from kinguin_streams.cli.options import Json
from kinguin_streams.cli.replay_options import Execute, MaxBytesPerS, MaxRecordsPerS, Source

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.consumers.projection import Projection
    from kinguin_streams.replay.file_source import SourceFile
    from kinguin_streams.replay.plan import PaceLimit, Window
    from kinguin_streams.replay.rebuild import Files, Outcome, Rebuild
    from kinguin_streams.replay.run import Watch
    from kinguin_streams.replay.survey import Survey

MOST_KEYS_SHOWN = 20
MOST_KEYS_IN_JSON = 10_000


def rebuild(
    what: Annotated[
        str,
        typer.Argument(
            metavar="order-state|product-changes|FILE.py:NAME", help="a projection, as in `consume`", show_default=False
        ),
    ],
    *,
    source: Source = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="build, show which keys differ from the live state, and do not swap yet")
    ] = False,
    allow_gaps: Annotated[
        bool,
        typer.Option("--allow-gaps", help="rebuild although retention has deleted records that the state was made of"),
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="drop what an earlier rebuild has built, instead of going on with it")
    ] = False,
    state_url: Annotated[
        str | None,
        typer.Option("--state-url", help="database of the state", show_default="sqlite:///.data/state.db"),
    ] = None,
    max_records_per_s: MaxRecordsPerS = None,
    max_bytes_per_s: MaxBytesPerS = None,
    execute: Execute = False,
    as_json: Json = False,
) -> None:
    """Make a projection's state anew from its topics, beside the live one, and let it take the live one's place.

    For a fold that had a bug, a topic that was made anew, another cluster. The live consumer goes on, and readers have the
    old state, until the new one has come as far; then it is swapped in, in one transaction. From then on the old consumer is
    refused and stops: start it with the version of the fold that made the new state. The derived topic is told what differs.

    With --source, files that `replay file` has written are read before the topics: what retention has deleted since.

    Without --execute it shows what would be read. Ctrl-C, a crash or kill -9 lose nothing: run it again and it goes on.

    Example: kinguin-streams replay rebuild order-state --compare --execute
    """
    from pathlib import Path

    from kinguin_streams.cli import consumer_named, output, replay_options, replay_parts, replay_running
    from kinguin_streams.cli.settings import load
    from kinguin_streams.replay import file_source
    from kinguin_streams.replay.windows import refuse_gaps
    from kinguin_streams.telemetry.logs import configure

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format)
    projection = consumer_named.projection(what)
    pace = replay_options.pace(max_records_per_s, max_bytes_per_s)
    asking = replay_parts.survey(settings)
    try:
        windows = _windows(settings, asking, projection)
        files = _own(file_source.find(map(Path, source)), _topics(settings, projection)) if source else []
        if not execute:
            _show_plan(projection, asking.sampled(windows)[0], files, pace, as_json=as_json)
            return
        for warning in file_source.warnings(files):
            output.talk(f"warning: {warning}")
        if not allow_gaps:
            refuse_gaps(windows, file_source.partition_facts(files))
        with replay_running.asked_to_stop() as stop, output.progress("rebuild") as update:
            run = _rebuild(
                settings,
                asking,
                projection,
                _files(files) if files else None,
                allow_gaps=allow_gaps,
                pace=pace,
                watch=replay_running.watch(settings, update, stop),
            )
            most_keys = MOST_KEYS_IN_JSON if as_json else MOST_KEYS_SHOWN
            outcome = run.run(compare=most_keys if compare else None, anew=anew)
    finally:
        asking.close()
    _show(projection, outcome, as_json=as_json)
    if outcome.interrupted:
        output.talk("stopped; the same command goes on")
        raise typer.Exit(replay_running.EXIT_INTERRUPTED)


def _topics(settings: "Settings", projection: "Projection") -> tuple[str, ...]:
    from kinguin_streams.cli import wiring

    return tuple(wiring.topics(settings).name(event) for event in projection.events)


def _windows(settings: "Settings", asking: "Survey", projection: "Projection") -> "tuple[Window, ...]":
    from kinguin_streams.replay.windows import EARLIEST, LATEST, parse_bounds, windows

    names = _topics(settings, projection)
    asking.topics(names)  # says which one is missing
    return windows(asking.partitions(names, ()), parse_bounds((), 0, EARLIEST), parse_bounds((), 0, LATEST))


def _own(files: "list[SourceFile]", topics: tuple[str, ...]) -> "list[SourceFile]":
    """Return the files of the projection's topics: an export's folder holds others too. Raises OperatorError("source_empty")."""
    from kinguin_streams.cli import output
    from kinguin_streams.replay.topic_plan import files_of

    there = {file.name.topic for file in files}
    # Without one of its own, all are asked for: what is said then names those that there are.
    found = files_of(files, [topic for topic in topics if topic in there] or topics)
    if others := sorted(there - set(topics)):
        output.talk(f"left out: the files of {', '.join(others)}")
    return list(found)


def _files(files: "list[SourceFile]") -> "Files":
    import hashlib

    import msgspec

    from kinguin_streams.consumers.batch import TopicPart
    from kinguin_streams.replay import file_source
    from kinguin_streams.replay.rebuild import Files
    from kinguin_streams.replay.windows import EARLIEST, LATEST, parse_bounds, windows

    facts = file_source.partition_facts(files)
    whole = windows(facts, parse_bounds((), 0, EARLIEST), parse_bounds((), 0, LATEST))
    return Files(
        hashlib.sha256(msgspec.json.encode(file_source.identity(files), order="sorted")).hexdigest()[:32],
        tuple(TopicPart(each.topic, each.partition) for each in facts),
        file_source.FileSource(files, whole),
        tuple(facts),
    )


def _rebuild(
    settings: "Settings",
    asking: "Survey",
    projection: "Projection",
    files: "Files | None",
    *,
    allow_gaps: bool,
    pace: "PaceLimit",
    watch: "Watch",
) -> "Rebuild":
    from kinguin_streams.cli import replay_parts, wiring
    from kinguin_streams.cluster.connection import admin_config
    from kinguin_streams.consumers.source_identity import SourceIdentity
    from kinguin_streams.replay.rebuild import Rebuild

    topics = wiring.topics(settings)
    identity = SourceIdentity(
        admin_config(wiring.kafka(settings), client_id="kinguin-streams-rebuild"),
        list(_topics(settings, projection)),
        settings.consumer.kafka_wait_s,
    )
    return Rebuild(
        projection,
        state=settings.state,
        decoder=wiring.decoder(settings),
        expected={topics.name(event): event for event in projection.events},
        identity=identity.ask,
        windows=lambda: _windows(settings, asking, projection),
        source=lambda windows: replay_parts.topic_source(settings, windows),
        files=files,
        allow_gaps=allow_gaps,
        batch_records=settings.consumer.batch_records,
        pace=pace,
        watch=watch,
    )


def _show_plan(
    projection: "Projection",
    windows: "tuple[Window, ...]",
    files: "list[SourceFile]",
    pace: "PaceLimit",
    *,
    as_json: bool,
) -> None:
    from kinguin_streams.cli import output
    from kinguin_streams.replay import file_source
    from kinguin_streams.replay import plan as plans
    from kinguin_streams.replay.windows import lost, warnings

    records = sum(window.records for window in windows)
    in_files = sum(file.next_offset - file.name.first_offset for file in files)
    size = sum(window.bytes or 0 for window in windows)
    by_fold = (records + in_files) / plans.FOLDED_RECORDS_PER_S
    seconds = max(by_fold, plans.estimated_duration_s(records + in_files, size, pace))
    said = [*file_source.warnings(files), *warnings(lost(windows, file_source.partition_facts(files)))]
    if as_json:
        output.result_json(
            {
                "projection": projection.name,
                "version": projection.version,
                "executed": False,
                "records_at_most": records,
                "bytes_estimated": size,
                "seconds_estimated": round(seconds, 1),
                "gone": sum(window.gone for window in windows),
                "source_files": [str(file.path) for file in files],
                "records_in_files": in_files,
                "windows": plans.windows_as_json(windows),
                "warnings": said,
            }
        )
    else:
        output.result(
            f"rebuild {projection.name} by version {projection.version} of its fold: at most {records:,} records, "
            f"about {plans.amount(size)}, about {plans.duration(seconds)}"
        )
        if files:
            output.result(f"first at most {in_files:,} records of {len(files)} files")
        output.result_table(plans.WINDOW_COLUMNS, plans.window_rows(windows))
    for warning in said:
        output.talk(f"warning: {warning}")
    if not as_json:
        output.talk("nothing was changed; --execute does it")


def _show(projection: "Projection", outcome: "Outcome", *, as_json: bool) -> None:
    import msgspec

    from kinguin_streams.cli import output

    swapped = outcome.swapped
    if as_json:
        output.result_json(
            {
                "projection": projection.name,
                "generation": outcome.build.generation,
                "version": outcome.build.version,
                "resumed": outcome.resumed,
                "applied": outcome.applied,
                "unreadable": outcome.unreadable,
                "gaps": outcome.gaps,
                "interrupted": outcome.interrupted,
                "differing": outcome.differing,
                "examples": [
                    {"key": each.key.in_topic, "live": _said(each.live), "new": _said(each.new)}
                    for each in outcome.examples
                ],
                "swapped": None if swapped is None else msgspec.to_builtins(swapped._asdict()),
            }
        )
        return
    output.result(
        f"{projection.name} generation {outcome.build.generation}: {outcome.applied:,} records applied"
        + (f", {outcome.unreadable:,} of them unreadable" if outcome.unreadable else "")
        + (f", {outcome.gaps:,} offsets were deleted before they were read" if outcome.gaps else "")
    )
    if outcome.differing is not None:
        output.result(
            f"{outcome.differing:,} keys differ from the live state" + (", among them:" if outcome.differing else "")
        )
        for each in outcome.examples:
            output.result(f"  {each.key.in_topic}")
            output.result(f"    live {_said(each.live)}")
            output.result(f"    new  {_said(each.new)}")
        if more := outcome.differing - len(outcome.examples):
            output.result(f"  … and {more:,} more; --json has the first {MOST_KEYS_IN_JSON:,} of all")
        output.talk("not swapped; without --compare the same command goes on and swaps")
    if swapped is not None:
        output.result(
            f"live: generation {swapped.generation} instead of {swapped.before}; {swapped.told:,} keys are told to the derived "
            f"topic, {swapped.vanished:,} of them as gone"
        )
        output.talk("the consumer of the old state stops now; start it with the version that made this one")


def _said(facts: object) -> str | None:
    return None if facts is None else repr(facts)
