"""`kinguin-streams dead-letters`: what could not become an event or could not be processed, and what is done about it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from kinguin_streams.cli.options import Json
from kinguin_streams.cli.replay_options import Execute, MaxRecordsPerS

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.cluster.topic_reader import TopicReader
    from kinguin_streams.consumers.loading import Loadable
    from kinguin_streams.replay.dead_letters import Asked, Found
    from kinguin_streams.replay.redrive import Redriver

app = typer.Typer(
    no_args_is_help=True,
    help="Dead letters: list, show, export, redrive, discard. They are never changed; what has become of each is noted beside "
    "them, in the topic dead-letter.trail.",
)

Ids = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ID]...", help="ids, or their first characters", show_default="those that the options mean"
    ),
]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason-code", metavar="CODE", help="only of this reason; repeatable")
]
Consumers = Annotated[
    list[str] | None, typer.Option("--of", metavar="CONSUMER", help="only of this consumer; repeatable")
]
Events = Annotated[list[str] | None, typer.Option("--event", metavar="NAME", help="only of this event; repeatable")]
Stores = Annotated[list[str] | None, typer.Option("--store", metavar="NAME", help="only of this store; repeatable")]
States = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help="new, refused, redriven, parked or discarded; repeatable"),
]
Since = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="failed at this time or later: -7d, 2026-01-31")
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="failed before this time")]
All = Annotated[bool, typer.Option("--all", help="all that are open (new or refused)")]


@app.command("list")
def list_(
    *,
    reasons: Reasons = None,
    consumers: Consumers = None,
    events: Events = None,
    stores: Stores = None,
    states: States = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """Show dead letters in groups: by origin, consumer, reason, event, state and age, with an example of each."""
    import msgspec

    from kinguin_streams.cli import output
    from kinguin_streams.replay.dead_letters import grouped
    from kinguin_streams.schemas.instants import to_rfc3339

    with _opened() as all_of:
        asked = _asked(
            (),
            all_of.now_ms,
            reasons=reasons,
            consumers=consumers,
            events=events,
            stores=stores,
            states=states,
            since=since,
            until=until,
        )
        groups = grouped(all_of.found(asked)[1], all_of.now_ms)
    rows = [
        {
            **msgspec.to_builtins(group),
            "oldest": to_rfc3339(group.oldest_ms),
            "newest": to_rfc3339(group.newest_ms),
        }
        for group in groups
    ]
    if as_json:
        output.result_json({"count": sum(group.count for group in groups), "groups": rows})
        return
    output.result_table(("count", "origin", "consumer", "reason", "event", "state", "age", "newest", "example"), rows)


@app.command("show", no_args_is_help=True)
def show(
    dead_letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="an id, or its first characters", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Show one dead letter: why, where it came from, its headers, its body, and its trail.

    The body of a consumer's is shown as the record that it is; what is none, as text, or in hexadecimal.
    """
    from kinguin_streams.cli import output, wiring
    from kinguin_streams.replay.dead_letters import Asked, the_one
    from kinguin_streams.replay.letter_view import in_lines, view

    with _opened() as all_of:
        found = the_one(list(all_of.found(Asked(ids=(dead_letter_id,)))[1]), dead_letter_id)
        decode = wiring.decoder(all_of.settings).decode
    if as_json:
        output.result_json(view(found, decode))
        return
    for line in in_lines(found, decode):
        output.result(line)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="a file that is not there yet; - for stdout")],
    ids: Ids = None,
    *,
    reasons: Reasons = None,
    consumers: Consumers = None,
    events: Events = None,
    stores: Stores = None,
    states: States = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Write dead letters as JSON lines: everything there is about each, the body as base64, the record that it is, its trail."""
    import msgspec

    from kinguin_streams.cli import output, wiring
    from kinguin_streams.replay.letter_view import view
    from kinguin_streams.telemetry.operator_error import OperatorError

    count = 0
    with _opened() as all_of:
        asked = _asked(
            ids or (),
            all_of.now_ms,
            reasons=reasons,
            consumers=consumers,
            events=events,
            stores=stores,
            states=states,
            since=since,
            until=until,
        )
        decode = wiring.decoder(all_of.settings).decode
        lines = (msgspec.json.encode(view(each, decode)).decode() for each in all_of.found(asked)[1])
        if str(file) == "-":
            for line in lines:
                output.result(line)
            return
        try:
            with file.open("x", encoding="utf-8") as writing:
                for line in lines:
                    writing.write(line + "\n")
                    count += 1
        except OSError as error:
            raise OperatorError(
                "export_not_written",
                f"{file} cannot be written ({error.strerror}).",
                "Name a file that is not there yet.",
            ) from error
    output.result(f"{count:,} dead letters in {file}")


@app.command("redrive")
def redrive(
    ids: Ids = None,
    *,
    everything: All = False,
    reasons: Reasons = None,
    consumers: Consumers = None,
    events: Events = None,
    stores: Stores = None,
    states: States = None,
    since: Since = None,
    until: Until = None,
    consumer: Annotated[
        list[str] | None,
        typer.Option(
            "--consumer",
            metavar="FILE.py:NAME",
            help="a consumer of your own whose dead letters are meant; repeatable. order-state and product-changes are known",
        ),
    ] = None,
    state_url: Annotated[
        str | None,
        typer.Option("--state-url", help="database of a projection's state", show_default="sqlite:///.data/state.db"),
    ] = None,
    max_records_per_s: MaxRecordsPerS = None,
    execute: Execute = False,
    as_json: Json = False,
) -> None:
    """Try dead letters again: the ingress's through today's validator, a consumer's by that consumer's own code, here.

    Of those that are open (new or refused), unless --state says otherwise. Without --execute it shows what today's validator
    says of them. What is refused again is parked after KINGUIN_REPLAY__REDRIVE_ATTEMPTS. The dead letter stays as it is.

    Killed in between, the same command goes on: an event has the same id, a projection takes a record in once, a handler may
    be called again for the last ones. Exit code 1 if something was refused, or an id is none.

    Example: kinguin-streams dead-letters redrive --reason-code invalid_field --from -7d --execute
    """
    from uuid_utils.compat import uuid7

    from kinguin_streams.cli import output, replay_options, replay_parts, replay_running, wiring
    from kinguin_streams.replay.dead_letters import OPEN_STATES
    from kinguin_streams.replay.redrive import Redrive

    _refuse_unless_meant(ids, everything, reasons, consumers, events, stores, states, since, until)
    known = _known(consumer or [])
    with _opened(state_url) as all_of, _redrivers(all_of.settings, known) as redriver_of:
        asked = _asked(
            ids or (),
            all_of.now_ms,
            reasons=reasons,
            consumers=consumers,
            events=events,
            stores=stores,
            states=states or list(OPEN_STATES),
            since=since,
            until=until,
        )
        if not execute:
            _show_plan(all_of, list(all_of.found(asked)[1]), known, as_json=as_json)
            return
        all_of.refuse_without_trail()
        total, found = all_of.found(asked)
        publisher = replay_parts.publisher(all_of.settings)
        try:
            with replay_running.asked_to_stop() as stop, output.progress("redrive") as update:
                result = Redrive(
                    str(uuid7()),
                    sender=publisher,
                    topics=wiring.topics(all_of.settings),
                    encoder=wiring.encoder(all_of.settings),
                    redriver_of=redriver_of,
                    most_attempts=all_of.settings.replay.redrive_attempts,
                    by=_by(),
                    pace=replay_options.pace(max_records_per_s, None),
                    watch=replay_running.watch(all_of.settings, update, stop),
                ).run(found, total)
        finally:
            publisher.close(timeout_s=10.0)
    if ids and not total and not states:
        output.talk("none of them is open (new or refused): --state redriven, parked or discarded takes one up again")
    _show_redriven(result, as_json=as_json)


@app.command("discard")
def discard(
    ids: Ids = None,
    *,
    reason: Annotated[
        str, typer.Option("--reason", help="why nobody will do anything about them; kept in their trail")
    ],
    everything: All = False,
    reasons: Reasons = None,
    consumers: Consumers = None,
    events: Events = None,
    stores: Stores = None,
    states: States = None,
    since: Since = None,
    until: Until = None,
    execute: Execute = False,
    as_json: Json = False,
) -> None:
    """Note that nobody will do anything about dead letters, and why. They stay in their topic, and can be redriven by --state."""
    from kinguin_streams.cli import output, replay_parts, wiring
    from kinguin_streams.replay import redrive as redriving
    from kinguin_streams.replay.dead_letters import OPEN_STATES

    _refuse_unless_meant(ids, everything, reasons, consumers, events, stores, states, since, until)
    with _opened() as all_of:
        open_states = states or [*OPEN_STATES, "parked"]
        asked = _asked(
            ids or (),
            all_of.now_ms,
            reasons=reasons,
            consumers=consumers,
            events=events,
            stores=stores,
            states=open_states,
            since=since,
            until=until,
        )
        count, found = all_of.found(asked)
        if execute:
            all_of.refuse_without_trail()
            publisher = replay_parts.publisher(all_of.settings)
            try:
                count = redriving.discard(
                    found,
                    reason,
                    sender=publisher,
                    topics=wiring.topics(all_of.settings),
                    encoder=wiring.encoder(all_of.settings),
                    by=_by(),
                )
            finally:
                publisher.close(timeout_s=10.0)
    if as_json:
        output.result_json({"discarded": count if execute else 0, "meant": count, "executed": execute})
    else:
        output.result(f"{count:,} dead letters " + ("discarded" if execute else "would be discarded"))
    if not execute:
        output.talk("nothing was changed; --execute does it")


class _AllOf(NamedTuple):
    """The dead letters of a cluster, to be asked for."""

    settings: "Settings"
    reader: "TopicReader"
    now_ms: int

    def refuse_without_trail(self) -> None:
        """Raise OperatorError("topic_missing") if there is nowhere to note what is done."""
        from kinguin_streams.cli import wiring
        from kinguin_streams.telemetry.operator_error import OperatorError

        topic = wiring.topics(self.settings).name("dead-letter.trail")
        if not self.reader.end_offsets([topic]):
            raise OperatorError(
                "topic_missing",
                f"There is no topic {topic}, in which it is noted what has become of dead letters.",
                "Make it with `kinguin-streams topics apply`.",
            )

    def found(self, asked: "Asked") -> "tuple[int, Iterator[Found]]":
        """Return how many are meant, and those, as they are now."""
        from kinguin_streams.cli import wiring
        from kinguin_streams.replay import dead_letters

        topics, decoder = wiring.topics(self.settings), wiring.decoder(self.settings)
        trails = dead_letters.read_trails(self.reader, topics.name("dead-letter.trail"), decoder)
        return dead_letters.once_each(
            lambda: dead_letters.read_letters(self.reader, topics.name("dead-letter"), decoder, trails), asked
        )


@contextmanager
def _opened(state_url: str | None = None) -> Iterator[_AllOf]:
    import time

    from kinguin_streams.cli import replay_parts
    from kinguin_streams.cli.settings import load
    from kinguin_streams.cluster.topic_reader import TopicReader
    from kinguin_streams.telemetry.logs import configure

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format)
    reader = TopicReader(replay_parts.consumer_config(settings))
    try:
        yield _AllOf(settings, reader, round(time.time() * 1000))
    finally:
        reader.close()


def _known(named: list[str]) -> "dict[str, Loadable]":
    """Return the consumers whose dead letters can be redriven, by their names."""
    from kinguin_streams.cli import consumer_named
    from kinguin_streams.consumers.samples import SAMPLES

    return {sample.name: sample for sample in SAMPLES} | {
        found.name: found for found in map(consumer_named.consumer, named)
    }


@contextmanager
def _redrivers(settings: "Settings", known: "dict[str, Loadable]") -> "Iterator[Callable[[str], Redriver | None]]":
    """Yield what finds the redriver of a consumer by its name, made when it is first asked for."""
    from kinguin_streams.cli import replay_parts, wiring
    from kinguin_streams.consumers.app import App
    from kinguin_streams.replay.redrive import HandlerRedriver, ProjectionRedriver
    from kinguin_streams.replay.run import Watch

    made: dict[str, Redriver] = {}
    topics, decoder = wiring.topics(settings), wiring.decoder(settings)

    def redriver_of(name: str) -> "Redriver | None":
        consumer = known.get(name)
        if consumer is None or name in made:
            return made.get(name)
        if isinstance(consumer, App):
            expected = {topics.name(event): event for event in consumer.handlers}
            made[name] = HandlerRedriver(consumer, settings.consumer, decoder=decoder, expected=expected, watch=Watch())
        else:
            expected = {topics.name(event): event for event in consumer.events}
            store = replay_parts.state_store(settings, consumer)
            made[name] = ProjectionRedriver(consumer, store, decoder=decoder, expected=expected)
        return made[name]

    try:
        yield redriver_of
    finally:
        for redriver in made.values():
            redriver.close()


def _refuse_unless_meant(ids: list[str] | None, everything: bool, *filters: object) -> None:
    if not ids and not everything and not any(filters):
        raise typer.BadParameter("say which ones are meant: ids, filters, or --all")


def _asked(
    ids: "list[str] | tuple[str, ...]",
    now_ms: int,
    *,
    reasons: list[str] | None,
    consumers: list[str] | None,
    events: list[str] | None,
    stores: list[str] | None,
    states: list[str] | None,
    since: str | None,
    until: str | None,
) -> "Asked":
    from kinguin_streams.replay.dead_letters import STATES, Asked

    for state in states or ():
        if state not in STATES:
            raise typer.BadParameter(f"{state!r} is none of {', '.join(STATES)}", param_hint="--state")
    return Asked(
        ids=tuple(ids),
        reasons=tuple(reasons or ()),
        consumers=tuple(consumers or ()),
        events=tuple(events or ()),
        stores=tuple(stores or ()),
        states=tuple(states or ()),
        since_ms=_instant(since, now_ms, "--from"),
        until_ms=_instant(until, now_ms, "--until"),
    )


def _instant(text: str | None, now_ms: int, option: str) -> int | None:
    from kinguin_streams.replay.windows import parse_bound

    if text is None:
        return None
    try:
        bound = parse_bound(text, now_ms)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    if bound.kind != "time":
        raise typer.BadParameter(f"{text!r} is not a time", param_hint=option)
    return bound.value


def _by() -> str:
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _show_plan(all_of: _AllOf, found: "list[Found]", known: "dict[str, Loadable]", *, as_json: bool) -> None:
    from collections import Counter

    from kinguin_streams.cli import output, replay_parts
    from kinguin_streams.consumers.app import App
    from kinguin_streams.replay.redrive import judged

    for name in sorted({each.letter.consumer or "" for each in found} & known.keys()):
        if not isinstance(consumer := known[name], App):
            replay_parts.refuse_without_state(all_of.settings, consumer)

    counts: Counter[tuple[str, str]] = Counter()
    for each in found:
        letter = each.letter
        if letter.origin == "ingress":
            event = judged(letter, all_of.now_ms)
            outcome = (
                f"refused: {event.partition(':')[0]}" if isinstance(event, str) else f"an event {event.record_name}"
            )
        elif letter.consumer not in known:
            outcome = "left out: name it with --consumer"
        else:
            outcome = f"given to {letter.consumer}"
        counts[letter.reason, outcome] += 1
    rows = [{"reason": reason, "now": outcome, "count": count} for (reason, outcome), count in counts.most_common()]
    if as_json:
        output.result_json({"executed": False, "count": len(found), "outcomes": rows})
        return
    output.result_table(("count", "reason", "now"), rows)
    output.talk("nothing was changed; --execute does it")


def _show_redriven(result: Any, *, as_json: bool) -> None:
    import msgspec

    from kinguin_streams.cli import output, replay_running

    if as_json:
        output.result_json({**msgspec.to_builtins(result), "executed": True})
    else:
        output.result(
            f"{result.redriven:,} redriven, {result.refused:,} refused again, {result.parked:,} parked, "
            f"{result.skipped:,} left out"
        )
    if result.skipped:
        output.talk("those left out are of consumers that are not known here: name them with --consumer FILE.py:NAME")
    if result.interrupted:
        output.talk("stopped; the same command goes on")
        raise typer.Exit(replay_running.EXIT_INTERRUPTED)
    if result.refused or result.parked:
        raise typer.Exit(1)
