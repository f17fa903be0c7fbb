"""A consumer group as a replay's target: its committed offsets are moved, and its own consumers do the rest.

For handlers and for consumers of others. A projection's offsets are in its database, so that moving its group would change
nothing: it is rebuilt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kinguin_streams.cluster import groups
from kinguin_streams.cluster.groups import Group
from kinguin_streams.replay import windows
from kinguin_streams.replay.checksum import Tally, tally
from kinguin_streams.replay.plan import OF_GROUP, Destination, Plan, Window
from kinguin_streams.replay.receipt import Checkpoint, Proof, Receipt, partition_name, split_partition
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.topic_plan import Reading, Wanted
from kinguin_streams.telemetry.operator_error import OperatorError

KIND: Final = OF_GROUP
Offsets = Mapping[tuple[str, int], int]
_NO_MEMBERS: Final = "empty"


def refuse_live(name: str, group: Group | None) -> None:
    """Raise OperatorError("group_live") if somebody is in the group."""
    if group is None or group.state == _NO_MEMBERS:
        return
    members = ", ".join(sorted({f"{member.client_id} on {member.host}" for member in group.members}))
    raise OperatorError(
        "group_live",
        f"The group {name} is {group.state}: {members or 'its members are just coming or going'}.",
        "Stop its consumers first: they would go on from where they are, and commit over what is moved here.",
    )


def plan_move(
    replay_id: str,
    wanted: Wanted,
    reading: Reading,
    *,
    name: str,
    group: Group | None,
    committed: Offsets,
    is_ours: bool,
) -> Plan:
    """Return the plan of moving a group to where the windows begin. Where only some partitions are named, the others stay.

    committed: what the group has committed. is_ours: whether our handlers keep the topic's id beside their offsets.
    """
    ids = {facts.name: facts.topic_id for facts in reading.topics}
    some = wanted.since.of_one if wanted.since.only_some else None
    moved = tuple(window for window in reading.windows if some is None or window.partition in some)
    warnings = windows.warnings(moved)
    if group is None:
        warnings.append(f"Kafka knows of no group {name}: it is made by this")
    return Plan(
        replay_id=replay_id,
        made_at_ms=wanted.now_ms,
        windows=moved,
        source_identity=reading.identity,
        warnings=tuple(warnings),
        destination=Destination(
            kind=KIND,
            name=name,
            options={
                "before": {partition_name(*part): committed.get(part) for part in _parts(moved)},
                "metadata": ids if is_ours else {},
            },
        ),
    )


def plan_undo(plan: Plan, now: Offsets) -> tuple[dict[tuple[str, int], int], list[str]]:
    """Return where a group is to be moved back to, and what cannot be undone, in sentences. now: what is committed."""
    back: dict[tuple[str, int], int] = {}
    said: list[str] = []
    for window in plan.windows:
        part = window.topic, window.partition
        name = partition_name(*part)
        before = plan.destination.options["before"].get(name)
        at = now.get(part)
        if before is None:
            said.append(f"{name}: it had committed nothing before; it stays at {at}")
        elif at is not None and window.start <= before < at:
            said.append(f"{name}: it has come past {before:,} again, to {at:,}, and stays there")
        else:
            back[part] = before
    return back, said


def execute(plan: Plan, receipt: Receipt, config: dict[str, Any]) -> Proof:
    """Move the group, and read back where it is. config: cluster.connection.consumer_config with the group's name.

    Raises OperatorError as groups.move does; the receipt says so, and nothing or all of it has been moved by partition.
    """
    wanted = {(window.topic, window.partition): window.start for window in plan.windows}
    receipt.begun()
    try:
        move(config, wanted, plan.destination.options["metadata"])
    except OperatorError as error:
        receipt.failed(f"{error.code}: {error.what}")
        raise
    receipt.checkpoint(
        Checkpoint(positions={partition_name(*part): offset for part, offset in wanted.items()}, written=_tally(wanted))
    )
    receipt.written()
    proof = Proof(written=_tally(wanted), found=_tally(groups.committed(config, wanted)), target=plan.destination.name)
    receipt.proven(proof)
    return proof


def move(config: dict[str, Any], offsets: Offsets, metadata: Mapping[str, str]) -> None:
    """Move a group. Raises OperatorError as groups.move does."""
    groups.move(config, offsets, metadata)


def moves(plan: Plan) -> list[dict[str, Any]]:
    """Return what is moved, a row a partition: topic, partition, before, after, records that are read again (or skipped)."""
    rows = []
    for window in plan.windows:
        before = plan.destination.options["before"][partition_name(window.topic, window.partition)]
        rows.append(
            {
                "topic": window.topic,
                "partition": window.partition,
                "before": before,
                "after": window.start,
                "again": None if before is None else max(0, before - window.start),
                "skipped": None if before is None else max(0, window.start - before),
                "gone": window.gone or None,
            }
        )
    return rows


MOVE_COLUMNS: Final = ("topic", "partition", "before", "after", "again", "skipped", "gone")


def parts_of(plan: Plan) -> list[tuple[str, int]]:
    """Return the partitions of a plan."""
    return [split_partition(name) for name in plan.destination.options["before"]]


def _parts(made: Sequence[Window]) -> list[tuple[str, int]]:
    return [(window.topic, window.partition) for window in made]


def _tally(offsets: Offsets) -> Tally:
    """Return what stands for a set of offsets in a proof."""
    return tally(
        [
            Record(topic, partition, offset, None, None, f"{topic}/{partition}/{offset}".encode(), ())
            for (topic, partition), offset in offsets.items()
        ]
    )
