"""A replay on the command line: carried out under a progress bar, stopped by Ctrl-C, and what is said of it."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from kinguin_streams.cli.output import ProgressUpdate
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.replay.filters import Filters
    from kinguin_streams.replay.plan import Plan
    from kinguin_streams.replay.receipt import Contents, Receipt
    from kinguin_streams.replay.run import Source, Target, Watch

EXIT_INTERRUPTED = 130
_RATE_OVER_S = 2.0


def show_plan(plan: "Plan", *, as_json: bool) -> None:
    """Print a plan that is not carried out."""
    from kinguin_streams.cli import output
    from kinguin_streams.replay import plan as plans

    if as_json:
        output.result_json(plans.as_json(plan, executed=False))
    else:
        first, *more = plans.sentences(plan)
        output.result(first)
        for sentence in more:
            output.result(sentence)
        output.result_table(plans.WINDOW_COLUMNS, plans.window_rows(plan.windows))
    for warning in plan.warnings:
        output.talk(f"warning: {warning}")
    if not as_json:
        output.talk("nothing was changed; --execute does it")


def execute(settings: "Settings", plan: "Plan", *, as_json: bool) -> None:
    """Carry a plan out, from its first record; ends as `carry_on` does."""
    from kinguin_streams.cli import output
    from kinguin_streams.replay import plan as plans
    from kinguin_streams.replay.receipt import Receipt

    for sentence in (*plans.sentences(plan), *(f"warning: {warning}" for warning in plan.warnings)):
        output.talk(sentence)
    carry_on(settings, Receipt.create(settings.replay.receipts, plan), as_json=as_json)


def carry_on(settings: "Settings", receipt: "Receipt", *, as_json: bool) -> None:
    """Carry out what a receipt of ours still says, prove it, and print what came of it.

    Exit code 0 if the proof holds and nothing was missing, 1 if not, 130 if it was stopped: then `replay resume` goes on.
    """
    from kinguin_streams.cli import output, replay_parts
    from kinguin_streams.replay.plan import INTO_CONSUMER
    from kinguin_streams.replay.run import prove, run

    output.talk(f"receipt: {receipt.path}")
    contents = receipt.contents()
    plan = contents.plan
    with asked_to_stop() as stop:
        target: Target | None = None
        source: Source | None = None
        try:
            if contents.state not in ("done", "differs"):
                target = replay_parts.target_of(settings, plan, stop, at_rest=contents.at_rest)
            if target is not None and contents.state != "written":
                source = replay_parts.source_of(settings, plan)
                filters = replay_parts.filters(settings, plan.selection, plan.windows)
                # Of an effect nothing can be read back: what was selected before is read from the source again.
                if plan.destination.kind != INTO_CONSUMER or _recalled(settings, contents, filters, stop):
                    with output.progress("replay") as update:
                        run(source, target, filters, receipt, watch(settings, update, stop))
            elif target is not None and contents.checkpoint is not None:
                target.open(contents.checkpoint.mark)
            if target is not None and plan.destination.kind == INTO_CONSUMER:
                if receipt.contents().state == "written":
                    target.finish()
                    receipt.ended()
            elif target is not None and receipt.contents().state == "written":
                with output.progress("reading back") as update:
                    prove(target, receipt, plan.destination.name, watch(settings, update, stop))
        finally:
            for part in (source, target):
                if part is not None:
                    part.close()
    contents = receipt.contents()
    _tell_gaps(contents)
    show(contents, as_json=as_json)
    receipt.close()
    end(contents)


def end(contents: "Contents") -> None:
    """Exit with the code of a replay that has come so far; return if it is done and proven, and nothing was missing."""
    from kinguin_streams.cli import output

    if contents.state in ("interrupted", "written"):
        output.talk(f"stopped; `kinguin-streams replay resume {contents.plan.replay_id}` goes on")
        raise typer.Exit(EXIT_INTERRUPTED)
    if contents.state != "done" or contents.gaps:
        raise typer.Exit(1)


def _tell_gaps(contents: "Contents") -> None:
    from kinguin_streams.cli import output
    from kinguin_streams.replay.receipt import partition_name
    from kinguin_streams.replay.windows import of_span

    for gap in contents.gaps:
        output.talk(
            f"warning: {partition_name(gap.topic, gap.partition)} has lost offsets {gap.start:,} to {gap.end - 1:,}: "
            f"{gap.why}; to read these again, where they are left: {gap.topic} {of_span(gap.partition, gap.start, gap.end)}"
        )


def _recalled(settings: "Settings", contents: "Contents", filters: "Filters", stop: Callable[[], bool]) -> bool:
    """Return True once the filters know what they have to know, False if it was stopped before."""
    from kinguin_streams.cli import replay_parts
    from kinguin_streams.replay.run import recall
    from kinguin_streams.replay.windows import up_to

    if not filters.distinct or contents.checkpoint is None:
        return True
    source = replay_parts.topic_source(settings, up_to(contents.plan.windows, contents.checkpoint.offsets()))
    try:
        return recall(source, filters, stop)
    finally:
        source.close()


def show(contents: "Contents", *, as_json: bool) -> None:
    """Print what a receipt says."""
    from kinguin_streams.cli import output

    said = summary(contents)
    if as_json:
        output.result_json(said)
        return
    for line in _sentences(contents):
        output.result(line)


def summary(contents: "Contents") -> dict[str, Any]:
    """Return what `--json` prints of a receipt."""
    import msgspec

    from kinguin_streams.replay.receipt import DEAD_LETTERED, Checkpoint

    checkpoint = contents.checkpoint or Checkpoint(positions={})
    proof = contents.proof
    return {
        "replay_id": contents.plan.replay_id,
        "state": contents.state,
        "target": {"kind": contents.plan.destination.kind, "name": contents.plan.destination.name},
        "read": msgspec.to_builtins(checkpoint.written + checkpoint.filtered),
        "written": msgspec.to_builtins(checkpoint.written),
        "filtered": msgspec.to_builtins(checkpoint.filtered),
        "vanished": checkpoint.vanished.records,
        "dead_lettered": checkpoint.mark.get(DEAD_LETTERED),
        "undecodable": contents.undecodable,
        "positions": checkpoint.positions,
        "gaps": msgspec.to_builtins(contents.gaps),
        "runs": contents.runs,
        "failure": contents.failure if contents.state == "failed" else None,
        "proof": None if proof is None else {"holds": proof.holds, "found": msgspec.to_builtins(proof.found)},
        "receipt": str(contents.path),
    }


def _sentences(contents: "Contents") -> Iterator[str]:
    from kinguin_streams.replay.plan import OF_GROUP, amount
    from kinguin_streams.replay.receipt import DEAD_LETTERED, Checkpoint

    checkpoint = contents.checkpoint or Checkpoint(positions={})
    read = checkpoint.written + checkpoint.filtered
    destination = contents.plan.destination
    yield f"replay {contents.plan.replay_id} into {destination.kind} {destination.name}: {contents.state}"
    if destination.kind == OF_GROUP:
        yield f"  partitions: {len(contents.plan.windows):,}"
        if contents.proof is not None:
            yield "  proof: the group is there" if contents.proof.holds else "  proof: THE GROUP IS SOMEWHERE ELSE"
        if contents.state == "failed":
            yield f"  stopped by {contents.failure}"
        return
    for name, tally in (("read", read), ("written", checkpoint.written), ("filtered", checkpoint.filtered)):
        yield f"  {name:8} {tally.records:>12,} records  {amount(tally.bytes):>9}  checksum {tally.checksum}"
    if checkpoint.vanished.records:
        yield f"  {checkpoint.vanished.records:,} of the written are not in the source any more"
    if lettered := checkpoint.mark.get(DEAD_LETTERED):
        yield f"  {lettered:,} of the written have become dead letters: `kinguin-streams dead-letters list`"
    if contents.undecodable:
        yield f"  {contents.undecodable:,} records could not be read by a filter, and were left out"
    if contents.proof is not None:
        found = contents.proof.found
        yield f"  found    {found.records:>12,} records  {amount(found.bytes):>9}  checksum {found.checksum}"
        yield "  proof: it holds, each record once" if contents.proof.holds else "  proof: IT DOES NOT HOLD"
    if contents.state == "failed":
        yield f"  stopped by {contents.failure}"


def watch(settings: "Settings", update: "ProgressUpdate", stop: Callable[[], bool]) -> "Watch":
    from kinguin_streams.replay.run import Watch

    return Watch(
        progress=_with_rate(update),
        stop=stop,
        checkpoint_s=settings.replay.checkpoint_s,
        checkpoint_records=settings.replay.checkpoint_records,
    )


def _with_rate(update: "ProgressUpdate") -> "ProgressUpdate":
    """Return the update with records a second, over the last seconds, in its note."""
    looked_at_s, had, rate = time.monotonic(), -1, ""

    def with_rate(done: int, total: int, note: str) -> None:
        nonlocal looked_at_s, had, rate
        now_s = time.monotonic()
        if had < 0:
            had, looked_at_s = done, now_s
        elif now_s - looked_at_s >= _RATE_OVER_S:
            rate = f", {(done - had) / (now_s - looked_at_s):,.0f}/s"
            had, looked_at_s = done, now_s
        update(done, max(total, done), note + rate)

    return with_rate


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield what says whether somebody wants it to stop. The first Ctrl-C lets it come to a checkpoint, the second does not."""
    from kinguin_streams.cli.output import talk

    asked = threading.Event()

    def ask(number: int, _frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if number == signal.SIGINT:
            talk("stopping at a checkpoint; Ctrl-C again does not wait for it")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
