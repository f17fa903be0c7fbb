"""`kinguin-streams consumers`: how consumers are doing, asked from outside."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinguin_streams.cli import output
from kinguin_streams.cli.options import Json

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.cluster.groups import Group
    from kinguin_streams.cluster.topic_reader import TopicReader
    from kinguin_streams.consumers.lag import PartitionLag

app = typer.Typer(no_args_is_help=True, help="Look at consumers from outside, whether they run or not.")


@app.callback()
def _consumers() -> None:
    """Keep `lag` a subcommand, alone as it is."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A consumer that somebody asks about. topics: None, if only the group itself can tell."""

    name: str
    group: str
    topics: tuple[str, ...] | None
    is_projection: bool


@dataclass(frozen=True, slots=True)
class _Found:
    asked: _Asked
    group: "Group | None"
    lags: "tuple[PartitionLag, ...]"


@app.command()
def lag(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[order-state|product-changes|FILE.py:NAME|MODULE:NAME|GROUP]...",
            help="samples, consumers of your own, or groups of anybody's",
            show_default="both samples",
        ),
    ] = None,
    topic: Annotated[
        list[str] | None, typer.Option("--topic", help="of a group: another topic than ours that it reads")
    ] = None,
    max_records: Annotated[
        int | None, typer.Option("--max-records", min=0, help="exit 1 if a consumer has more left to do")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", min=0, help="exit 1 if the next record of a partition is older")
    ] = None,
    state_url: Annotated[
        str | None,
        typer.Option("--state-url", help="database of a projection's offsets", show_default="sqlite:///.data/state.db"),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Print how far consumers are behind: by partition, in records, and in the age of the next record.

    Of a projection the offsets in its database count, as they do for itself; what Kafka has of it is for other tools. Of handlers and
    of any other group, what is committed to Kafka. `gone`: records that retention has deleted before they took effect.

    With --max-records or --max-seconds the exit code is 1 beyond them, or if an age cannot be told: for a probe or a deployment.
    """
    from kinguin_streams.cli import wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.cluster.connection import consumer_config
    from kinguin_streams.cluster.topic_reader import TopicReader
    from kinguin_streams.consumers.samples import SAMPLES
    from kinguin_streams.telemetry.logs import configure

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format)
    client = "kinguin-streams-lag"
    asked = [_asked(each, settings) for each in what or [sample.name for sample in SAMPLES]]
    reader = TopicReader(consumer_config(wiring.kafka(settings), group_id=client, client_id=client))
    try:
        found = [_look(each, settings, reader, topic or []) for each in asked]
    finally:
        reader.close()
    now_ms = time.time_ns() // 1_000_000
    within = all(_is_within(each, now_ms, max_records, max_seconds) for each in found)
    if as_json:
        output.result_json({"ok": within, "consumers": [_as_json(each, now_ms) for each in found]})
    else:
        for each in found:
            _print(each, now_ms)
    if not within:
        raise typer.Exit(1)


def _asked(what: str, settings: "Settings") -> _Asked:
    from kinguin_streams.cli import wiring
    from kinguin_streams.consumers import loading
    from kinguin_streams.consumers.app import App
    from kinguin_streams.consumers.samples import SAMPLES

    samples = {sample.name: sample for sample in SAMPLES}
    samples |= {settings.consumer.group_id(name): sample for name, sample in samples.items()}
    if what not in samples and ":" not in what and not what.endswith(".py"):
        return _Asked(what, what, None, is_projection=False)
    consumer: loading.Loadable = samples[what] if what in samples else loading.load(what)
    events = consumer.handlers if isinstance(consumer, App) else consumer.events
    topics = tuple(map(wiring.topics(settings).name, events))
    group = settings.consumer.group_id(consumer.name)
    return _Asked(consumer.name, group, topics, is_projection=not isinstance(consumer, App))


def _look(asked: _Asked, settings: "Settings", reader: "TopicReader", more_topics: list[str]) -> _Found:
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import admin_config, consumer_config
    from kinguin_streams.cluster.groups import committed, describe
    from kinguin_streams.consumers.lag import measure
    from kinguin_streams.consumers.reader import stored_offsets
    from kinguin_streams.telemetry.operator_error import OperatorError

    kafka = wiring.kafka(settings)
    group = describe(admin_config(kafka), asked.group)
    topics = asked.topics
    if topics is None:
        if group is None:
            raise OperatorError(
                "group_missing",
                f"There is no consumer group {asked.group}.",
                "Name order-state, product-changes, FILE.py:NAME, or a group that has been in this cluster.",
            )
        ours = {spec.name for spec in wiring.topics(settings).specs}
        theirs = {topic for member in group.members for topic, _ in member.partitions}
        topics = tuple(sorted(ours | theirs | set(more_topics)))
    bounds = reader.bounds(topics)
    missing = set(asked.topics or more_topics) - {name for name, _ in bounds}
    if missing:
        raise OperatorError(
            "topic_missing",
            f"There is no topic {', '.join(sorted(missing))}.",
            "Make the topics with `kinguin-streams topics apply`, or check KINGUIN_TOPICS__PREFIX.",
        )
    offsets: Mapping[tuple[str, int], int]
    if asked.is_projection:
        offsets = stored_offsets(settings.state.url, asked.name)
    else:
        offsets = committed(consumer_config(kafka, group_id=asked.group, client_id="kinguin-streams-lag"), bounds)
    held = {part for member in group.members for part in member.partitions} if group is not None else set()
    # Of another's group: the partitions that it has anything to do with.
    wanted = [part for part in bounds if asked.topics is not None or part in offsets or part in held]
    if not wanted:
        raise OperatorError(
            "group_reads_nothing",
            f"The group {asked.group} has committed no offset in {', '.join(topics)}.",
            "Name the topics that it reads with --topic.",
        )
    return _Found(asked, group, tuple(measure(reader, {part: offsets.get(part) for part in wanted})))


def _is_within(found: _Found, now_ms: int, max_records: int | None, max_seconds: float | None) -> bool:
    if max_records is not None and sum(each.records for each in found.lags) > max_records:
        return False
    ages = [each.seconds(now_ms) for each in found.lags]
    return max_seconds is None or all(age is not None and age <= max_seconds for age in ages)


def _print(found: _Found, now_ms: int) -> None:
    members = {part: member for member in found.group.members for part in member.partitions} if found.group else {}
    state = "not running" if found.group is None else f"{found.group.state}, {len(found.group.members)} members"
    source = "database" if found.asked.is_projection else "Kafka"
    output.result(f"{found.asked.name}: group {found.asked.group} is {state}; offsets are those of the {source}")
    rows: list[dict[str, Any]] = []
    for each in found.lags:
        member, age_s = members.get((each.topic, each.partition)), each.seconds(now_ms)
        rows.append(
            {
                "topic": each.topic,
                "partition": each.partition,
                "next": each.next_offset,
                "end": each.end,
                "lag": each.records,
                "seconds": None if age_s is None else f"{age_s:.1f}",
                "gone": each.taken_away,
                "member": None if member is None else f"{member.client_id}@{member.host.lstrip('/')}",
            }
        )
    output.result_table(["topic", "partition", "next", "end", "lag", "seconds", "gone", "member"], rows)


def _as_json(found: _Found, now_ms: int) -> dict[str, Any]:
    ages = [each.seconds(now_ms) for each in found.lags]
    return {
        "consumer": found.asked.name,
        "group": found.asked.group,
        "state": None if found.group is None else found.group.state,
        "offsetsFrom": "database" if found.asked.is_projection else "kafka",
        "lagRecords": sum(each.records for each in found.lags),
        "lagSeconds": None if None in ages else max((age for age in ages if age is not None), default=0.0),
        "members": [
            {
                "clientId": member.client_id,
                "host": member.host.lstrip("/"),
                "instanceId": member.instance_id,
                "partitions": [{"topic": topic, "partition": number} for topic, number in member.partitions],
            }
            for member in (found.group.members if found.group is not None else ())
        ],
        "partitions": [
            {
                "topic": each.topic,
                "partition": each.partition,
                "nextOffset": each.next_offset,
                "firstOffset": each.first,
                "endOffset": each.end,
                "lagRecords": each.records,
                "lagSeconds": age_s,
                "gone": each.taken_away,
            }
            for each, age_s in zip(found.lags, ages, strict=True)
        ],
    }
