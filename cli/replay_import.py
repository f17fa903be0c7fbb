"""`kinguin-streams replay import`: old webhooks, from logs or another system, into the topics."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinguin_streams.cli import replay_options as options
from kinguin_streams.cli.options import Json

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.replay.import_history import Contents, LineNote
    from kinguin_streams.replay.import_target import ImportTarget
    from kinguin_streams.replay.plan import Plan
    from kinguin_streams.replay.receipt import Receipt

MOST_LINES_TOLD = 20


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="lines of webhooks", show_default=False)],
    *,
    skip_faults: Annotated[
        bool, typer.Option("--skip-faults", help="leave out lines that cannot be read, instead of refusing the file")
    ] = False,
    max_records_per_s: options.MaxRecordsPerS = None,
    max_bytes_per_s: options.MaxBytesPerS = None,
    execute: options.Execute = False,
    as_json: Json = False,
) -> None:
    """Read old webhooks through today's validator, and publish what comes of them.

    A line is {"store": "default", "event": "order.status", "body": "…"} with the request's body, to the byte, as text or as
    "body_base64", and perhaps "received_at". Events get the id that they would have if they had just arrived; received now,
    marked with the headers origin=import and origin-time. What is no valid webhook becomes a dead letter, as at the ingress.

    Newer state is never overtaken: what counts is the sender's updatedAt.

    Example: kinguin-streams replay import webhooks.jsonl --execute
    """
    import time

    from uuid_utils.compat import uuid7

    from kinguin_streams.cli import output
    from kinguin_streams.cli.settings import load
    from kinguin_streams.replay import import_history
    from kinguin_streams.replay.receipt import Receipt
    from kinguin_streams.replay.run import Watch
    from kinguin_streams.telemetry.logs import configure

    settings = load()
    configure(settings.log.level, settings.log.format)
    now_ms = round(time.time() * 1000)
    path = file.absolute()
    with output.progress("reading") as update:
        found = import_history.survey(path, now_ms, Watch(progress=update))
    plan = import_history.plan(
        str(uuid7()), path, found, options.pace(max_records_per_s, max_bytes_per_s), now_ms, skip_faults=skip_faults
    )
    for warning in plan.warnings:
        output.talk(f"warning: {warning}")
    _tell(found.letters, found.letter_count, "becomes a dead letter")
    _tell(found.faults, found.fault_count, "cannot be read")
    if not execute:
        _show_plan(plan, found, as_json=as_json)
        return
    if not skip_faults:
        import_history.refuse_faults(found)
    carry_on(settings, Receipt.create(settings.replay.receipts, plan), as_json=as_json)


def carry_on(settings: "Settings", receipt: "Receipt", *, as_json: bool) -> None:
    """Import what a receipt of ours still says, prove it, and print what came of it. Exit codes: as replay_running.carry_on."""
    import msgspec

    from kinguin_streams.cli import output, replay_parts, replay_running
    from kinguin_streams.replay import import_history
    from kinguin_streams.replay.run import prove

    output.talk(f"receipt: {receipt.path}")
    contents = receipt.contents()
    if contents.state not in ("done", "differs"):
        written = replay_parts.import_target(settings, contents.plan, at_rest=contents.at_rest)
        with replay_running.asked_to_stop() as stop:
            if contents.state != "written":
                _send(settings, receipt, written, stop)
            elif contents.checkpoint is not None:
                written.open(contents.checkpoint.mark[import_history.TOPICS])
            if receipt.contents().state == "written":
                with output.progress("reading back") as update:
                    prove(
                        written, receipt, contents.plan.destination.name, replay_running.watch(settings, update, stop)
                    )
    contents = receipt.contents()
    sent = import_history.sent(contents)
    if as_json:
        output.result_json({**replay_running.summary(contents), **msgspec.to_builtins(sent)})
    else:
        output.result(f"{sent.lines:,} lines: {sent.events:,} events, {sent.dead_letters:,} dead letters")
        replay_running.show(contents, as_json=False)
    receipt.close()
    replay_running.end(contents)


def _send(settings: "Settings", receipt: "Receipt", written: "ImportTarget", stop: Callable[[], bool]) -> None:
    from kinguin_streams.cli import output, replay_parts, replay_running, wiring
    from kinguin_streams.replay import import_history

    publisher = replay_parts.publisher(settings)
    try:
        with output.progress("import") as update:
            import_history.run(
                receipt.contents().plan,
                receipt,
                sender=publisher,
                written=written,
                topics=wiring.topics(settings),
                encoder=wiring.encoder(settings),
                watch=replay_running.watch(settings, update, stop),
            )
    finally:
        publisher.close(timeout_s=10.0)


def _tell(notes: "Sequence[LineNote]", count: int, what: str) -> None:
    from kinguin_streams.cli import output

    for note in notes[:MOST_LINES_TOLD]:
        output.talk(f"line {note.line} {what}: {note.what}")
    if count > MOST_LINES_TOLD:
        output.talk(f"… and {count - MOST_LINES_TOLD:,} more; the plan's --json names the first {len(notes):,} of all")


def _show_plan(plan: "Plan", found: "Contents", *, as_json: bool) -> None:
    import msgspec

    from kinguin_streams.cli import output
    from kinguin_streams.replay.import_history import estimated_duration_s
    from kinguin_streams.replay.plan import amount, duration

    seconds = estimated_duration_s(found, plan.pace)
    if as_json:
        output.result_json(
            {
                **msgspec.to_builtins(found),
                "seconds_estimated": round(seconds, 1),
                "warnings": plan.warnings,
                "executed": False,
            }
        )
        return
    output.result(
        f"{found.lines:,} lines, {amount(found.bytes)}, about {duration(seconds)}; "
        f"{found.fault_count:,} of them cannot be read"
    )
    rows = [{"becomes": event, "lines": count} for event, count in found.by_event.items()]
    rows += [{"becomes": f"dead letter: {reason}", "lines": count} for reason, count in found.by_reason.items()]
    output.result_table(("becomes", "lines"), rows)
    output.talk("nothing was changed; --execute does it")
