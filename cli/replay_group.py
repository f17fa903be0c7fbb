"""`kinguin-streams replay group` and `replay undo`: let a group's own consumers read again, and take that back."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinguin_streams.cli.options import Json
from kinguin_streams.cli.replay_options import Execute, Since
from kinguin_streams.cli.replay_show import Name

if TYPE_CHECKING:
    from pathlib import Path

    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.replay.plan import Plan
    from kinguin_streams.replay.receipt import Contents


def group(
    name: Annotated[
        str, typer.Argument(metavar="GROUP|FILE.py:NAME", help="a consumer group, or an App", show_default=False)
    ],
    topics: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOPIC]...", help="topics in which it is moved", show_default="those of the App"),
    ] = None,
    *,
    since: Since = None,
    execute: Execute = False,
    as_json: Json = False,
) -> None:
    """Move a consumer group's offsets, so that its own consumers read from there when they start again.

    For handlers and for consumers of others; a projection is rebuilt instead. Where --from P=N alone is given, the other
    partitions stay where they are. Refused while the group has members. Without --execute it shows each partition's offset before and after; with it, the receipt keeps them for `replay undo`.

    Example: kinguin-streams replay group kinguin-streams.notifier kinguin.order.complete --from -7d --execute
    """
    import time

    from uuid_utils.compat import uuid7

    from kinguin_streams.cli import output, replay_options, replay_parts
    from kinguin_streams.cli.settings import load
    from kinguin_streams.cluster.groups import committed
    from kinguin_streams.replay import group_target
    from kinguin_streams.replay.receipt import Receipt
    from kinguin_streams.replay.topic_plan import Wanted
    from kinguin_streams.telemetry.logs import configure

    settings = load()
    configure(settings.log.level, settings.log.format)
    group_name, its_topics = _asked(settings, name)
    wanted_topics = tuple(dict.fromkeys(topics or its_topics))
    if not wanted_topics:
        raise typer.BadParameter("name the topics in which the group is moved", param_hint="TOPIC")
    now_ms = round(time.time() * 1000)
    first, last = replay_options.bounds(since, None, now_ms)
    wanted = Wanted(topics=wanted_topics, since=first, until=last, now_ms=now_ms)
    with replay_options.planner(settings) as planner:
        reading = planner.reading(wanted)
    found = _described(settings, group_name)
    group_target.refuse_live(group_name, found)
    config = replay_parts.group_config(settings, group_name)
    plan = group_target.plan_move(
        str(uuid7()),
        wanted,
        reading,
        name=group_name,
        group=found,
        committed=committed(config, [(window.topic, window.partition) for window in reading.windows]),
        is_ours=group_name.startswith(f"{settings.consumer.group_prefix}."),
    )
    if not execute:
        _show(plan, as_json=as_json, executed=False)
        output.talk("nothing was changed; --execute does it")
        return
    receipt = Receipt.create(settings.replay.receipts, plan)
    proof = group_target.execute(plan, receipt, config)
    receipt.close()
    _show(plan, as_json=as_json, executed=True, receipt=receipt.path, holds=proof.holds)
    output.talk(f"receipt: {receipt.path}; `kinguin-streams replay undo {plan.replay_id}` moves it back")
    if not proof.holds:
        output.talk("the group is not where it was moved to: somebody else has committed meanwhile")
        raise typer.Exit(1)


def undo(name: Name, execute: Execute = False, as_json: Json = False) -> None:
    """Move a group back to where it was before `replay group`, by its receipt.

    Refused while the group has members. A partition in which it has come past its old offset again stays where it is.
    Other replays have nothing to undo: a copy carries its replay-id, and an old state is built by the old fold.
    """
    from kinguin_streams.cli import output, replay_parts
    from kinguin_streams.cli.settings import load
    from kinguin_streams.cluster.groups import committed
    from kinguin_streams.replay import group_target, receipt
    from kinguin_streams.telemetry.logs import configure
    from kinguin_streams.telemetry.operator_error import OperatorError

    settings = load()
    configure(settings.log.level, settings.log.format)
    contents = receipt.read(receipt.find(settings.replay.receipts, name))
    plan = contents.plan
    if plan.destination.kind != group_target.KIND:
        raise OperatorError(
            "nothing_to_undo",
            f"The replay {plan.replay_id} went into {plan.destination.kind} {plan.destination.name}; only moves of a group can be undone.",
            "Records of a copy carry the header replay-id; leave them, or delete the topic that was copied into.",
        )
    group_target.refuse_live(plan.destination.name, _described(settings, plan.destination.name))
    config = replay_parts.group_config(settings, plan.destination.name)
    now = committed(config, group_target.parts_of(plan))
    back, said = group_target.plan_undo(plan, now)
    if execute:
        _refuse_other_topics(settings, contents)
        group_target.move(config, back, plan.destination.options["metadata"])
    rows = [
        {"topic": topic, "partition": partition, "now": now.get((topic, partition)), "back to": offset}
        for (topic, partition), offset in sorted(back.items())
    ]
    if as_json:
        output.result_json({"group": plan.destination.name, "executed": execute, "partitions": rows, "left": said})
    else:
        output.result_table(("topic", "partition", "now", "back to"), rows)
    for sentence in said:
        output.talk(sentence)
    if not execute:
        output.talk("nothing was changed; --execute does it")


def _refuse_other_topics(settings: "Settings", contents: "Contents") -> None:
    from kinguin_streams.cli import replay_parts
    from kinguin_streams.replay.run import unchanged

    asking = replay_parts.survey(settings)
    try:
        topics = list(dict.fromkeys(window.topic for window in contents.plan.windows))
        unchanged(contents.plan.source_identity, asking.identity(asking.topics(topics)), "topic")
    finally:
        asking.close()


def _asked(settings: "Settings", name: str) -> tuple[str, tuple[str, ...]]:
    """Return the group's name, and the topics if it is an App's."""
    from kinguin_streams.cli import wiring
    from kinguin_streams.consumers import loading
    from kinguin_streams.consumers.app import App
    from kinguin_streams.consumers.samples import SAMPLES

    projections: dict[str, str] = {}
    for sample in SAMPLES:
        projections |= dict.fromkeys((sample.name, settings.consumer.group_id(sample.name)), sample.name)
    if name in projections:
        raise _is_projection(projections[name])
    if ":" not in name and not name.endswith(".py"):
        return name, ()
    consumer = loading.load(name)
    if not isinstance(consumer, App):
        raise _is_projection(name)
    return settings.consumer.group_id(consumer.name), tuple(map(wiring.topics(settings).name, consumer.handlers))


def _is_projection(name: str) -> Any:
    from kinguin_streams.telemetry.operator_error import OperatorError

    return OperatorError(
        "group_of_projection",
        f"{name} keeps its offsets with its state: moving its group would change nothing.",
        f"Make its state anew with `kinguin-streams replay rebuild {name}`.",
    )


def _described(settings: "Settings", name: str) -> Any:
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import admin_config
    from kinguin_streams.cluster.groups import describe

    return describe(admin_config(wiring.kafka(settings)), name)


def _show(
    plan: "Plan", *, as_json: bool, executed: bool, receipt: "Path | None" = None, holds: bool | None = None
) -> None:
    from kinguin_streams.cli import output
    from kinguin_streams.replay import group_target

    rows = group_target.moves(plan)
    if as_json:
        output.result_json(
            {
                "replay_id": plan.replay_id,
                "group": plan.destination.name,
                "executed": executed,
                "partitions": rows,
                "warnings": list(plan.warnings),
                "receipt": None if receipt is None else str(receipt),
                "holds": holds,
            }
        )
    else:
        output.result_table(group_target.MOVE_COLUMNS, rows)
    for warning in plan.warnings:
        output.talk(f"warning: {warning}")
