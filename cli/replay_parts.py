"""A plan to the parts that carry it out: its source, its filters, its target."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.cluster.publisher import KafkaPublisher
    from kinguin_streams.consumers.projection import Projection
    from kinguin_streams.consumers.store import StateStore
    from kinguin_streams.replay.filters import Filters
    from kinguin_streams.replay.frames import FrameGuard, TextOfId
    from kinguin_streams.replay.import_target import ImportTarget
    from kinguin_streams.replay.plan import Plan, Selection, Window
    from kinguin_streams.replay.run import Source, Target
    from kinguin_streams.replay.survey import Survey
    from kinguin_streams.replay.topic_plan import Planner

_CLIENT_ID = "kinguin-streams-replay"


def consumer_config(settings: "Settings") -> dict[str, Any]:
    """Return the configuration of whatever reads; no group of this name is ever joined."""
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import consumer_config as config

    return config(wiring.kafka(settings), group_id=f"{settings.consumer.group_prefix}.replay", client_id=_CLIENT_ID)


def group_config(settings: "Settings", group: str) -> dict[str, Any]:
    """Return the configuration of a consumer that stands for a group, and never joins it."""
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import consumer_config as config

    return config(wiring.kafka(settings), group_id=group, client_id=_CLIENT_ID)


def publisher(settings: "Settings") -> "KafkaPublisher":
    """Return a connected publisher that waits for Kafka as a replay does; the caller closes it."""
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import producer_config
    from kinguin_streams.cluster.publisher import KafkaPublisher

    return KafkaPublisher(
        producer_config(
            wiring.kafka(settings), client_id=_CLIENT_ID, delivery_timeout_s=settings.replay.delivery_timeout_s
        )
    )


def refuse_without_state(settings: "Settings", projection: "Projection") -> None:
    """Raise OperatorError("state_missing") unless the projection's consumer has made a state in this database. Makes nothing.

    In the wrong folder, or with a wrong URL, a database would be made, and records take effect where nobody looks.
    """
    from sqlalchemy import make_url

    from kinguin_streams.consumers import database
    from kinguin_streams.consumers.live_rows import live_generation
    from kinguin_streams.telemetry.operator_error import OperatorError

    engine = database.open_for_reading(settings.state)
    try:
        with database.explained(settings.state), engine.connect() as connection:
            is_there = live_generation(connection, projection.name) is not None
    finally:
        engine.dispose()
    if not is_there:
        url = make_url(settings.state.url).render_as_string()
        raise OperatorError(
            "state_missing",
            f"There is no state of {projection.name} in {url}.",
            f"Start `kinguin-streams consume {projection.name}` with this database, or check KINGUIN_STATE__URL.",
        )


def state_store(settings: "Settings", projection: "Projection") -> "StateStore":
    """Return the store of a state that is there; the caller closes it. Raises as refuse_without_state and StateStore do."""
    from kinguin_streams.consumers.store import StateStore

    refuse_without_state(settings, projection)
    return StateStore(settings.state, projection)


def survey(settings: "Settings") -> "Survey":
    """Return what asks the cluster; the caller closes it."""
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import admin_config
    from kinguin_streams.replay.survey import Survey

    return Survey(admin_config(wiring.kafka(settings), _CLIENT_ID), consumer_config(settings))


def planner(settings: "Settings", asking: "Survey") -> "Planner":
    """Return what makes plans."""
    from kinguin_streams.replay.topic_plan import Planner

    return Planner(
        asking,
        lambda windows: topic_source(settings, windows),
        lambda selection, windows: filters(settings, selection, windows),
    )


def topic_source(settings: "Settings", windows: "Sequence[Window]") -> "Source":
    """Return a source over topics."""
    from kinguin_streams.replay.topic_source import TopicSource, source_config

    return TopicSource(source_config(consumer_config(settings)), windows, settings.replay.batch_records)


def filters(settings: "Settings", selection: "Selection", windows: "Sequence[Window]") -> "Filters":
    """Return the filters; a registry is asked only when a record in its format has to be looked into."""
    from kinguin_streams.cli import wiring
    from kinguin_streams.replay.filters import Filters
    from kinguin_streams.replay.run import limits_of

    return Filters(selection, limits_of(windows), wiring.decoder(settings).decode)


def source_of(settings: "Settings", plan: "Plan") -> "Source":
    """Return the source of a plan, once it is sure that it is still the one that was planned."""
    from kinguin_streams.replay.run import unchanged

    if plan.source_files:
        return _file_source(plan)
    topics = list(dict.fromkeys(window.topic for window in plan.windows))
    asking = survey(settings)
    try:
        unchanged(plan.source_identity, asking.identity(asking.topics(topics)), "source")
    finally:
        asking.close()
    return topic_source(settings, plan.windows)


def _file_source(plan: "Plan") -> "Source":
    from pathlib import Path

    from kinguin_streams.replay import file_source
    from kinguin_streams.replay.run import unchanged

    files = file_source.find(map(Path, plan.source_files))
    unchanged(plan.source_identity, file_source.identity(files), "source")
    return file_source.FileSource(files, plan.windows)


def target_of(settings: "Settings", plan: "Plan", stop: "Callable[[], bool]", *, at_rest: bool = False) -> "Target":
    """Return the target of a plan, once it is sure that it is still the one that was planned.

    at_rest: as in receipt.Contents.
    """
    from kinguin_streams.replay.plan import INTO_CONSUMER
    from kinguin_streams.replay.run import unchanged
    from kinguin_streams.telemetry.operator_error import OperatorError

    if plan.destination.kind == INTO_CONSUMER:
        return _consumer_target(settings, plan, stop)
    if plan.destination.kind == "file":
        return _file_target(settings, plan)
    if plan.destination.kind != "topic":
        raise OperatorError(
            "unknown_target",
            f"This version knows no replay into a {plan.destination.kind}.",
            "Resume it with the version that made its receipt, or a later one.",
        )
    asking = survey(settings)
    try:
        now = asking.identity(asking.topics((plan.destination.name,)))
    finally:
        asking.close()
    unchanged(plan.destination.identity, now, "target")
    return _topic_target(settings, plan, at_rest=at_rest)


def _topic_target(settings: "Settings", plan: "Plan", *, at_rest: bool) -> "Target":
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import admin_config, producer_config
    from kinguin_streams.replay.topic_source import source_config
    from kinguin_streams.replay.topic_target import TopicTarget, copy_preferences

    kafka = wiring.kafka(settings)
    options = plan.destination.options
    config = producer_config(kafka, client_id=_CLIENT_ID, delivery_timeout_s=settings.replay.delivery_timeout_s)
    return TopicTarget(
        plan.destination.name,
        options["partitions"],
        plan.replay_id,
        # What the user has set goes before what we prefer; what we promise was checked above.
        producer={**config, **copy_preferences(options["max_record_bytes"]), **kafka.config},
        admin=admin_config(kafka, _CLIENT_ID),
        reader=source_config(consumer_config(settings), committed=False),
        same_partition=frozenset(options["same_partition"]),
        timestamp=options["timestamp"],
        check=_frame_guard(settings, plan) if plan.source_files else None,
        needs_keys=options.get("compacted", False),  # receipts of earlier versions do not say it
        batch_records=settings.replay.batch_records,
        at_rest=at_rest,
    )


def import_target(settings: "Settings", plan: "Plan", *, at_rest: bool) -> "ImportTarget":
    """Return what reads an import back. Raises OperatorError("topic_missing") where one of the ingress's topics is not there."""
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import admin_config
    from kinguin_streams.replay.import_target import ImportTarget
    from kinguin_streams.replay.topic_source import source_config

    asking = survey(settings)
    try:
        found = asking.topics(spec.name for spec in wiring.topics(settings).of_ingress.specs)
    finally:
        asking.close()
    return ImportTarget(
        {name: facts.partitions for name, facts in found.items()},
        plan.replay_id,
        admin=admin_config(wiring.kafka(settings), _CLIENT_ID),
        reader=source_config(consumer_config(settings), committed=False),
        batch_records=settings.replay.batch_records,
        at_rest=at_rest,
    )


def _consumer_target(settings: "Settings", plan: "Plan", stop: "Callable[[], bool]") -> "Target":
    from kinguin_streams.cli import consumer_named, wiring
    from kinguin_streams.consumers import dead_letter_sink
    from kinguin_streams.consumers.app import App
    from kinguin_streams.consumers.effect import Effect, StateEffect
    from kinguin_streams.consumers.handler_effect import HandlerEffect
    from kinguin_streams.replay.consumer_target import ConsumerTarget
    from kinguin_streams.replay.run import Watch

    consumer = consumer_named.consumer(plan.destination.options["consumer"])
    topics = wiring.topics(settings)
    store: StateStore | None = None
    effect: Effect
    if isinstance(consumer, App):
        effect = HandlerEffect(consumer, settings.consumer, replay=True)
    else:
        _refuse_other_state(settings, plan)
        store = state_store(settings, consumer)
        effect = StateEffect(consumer, store)
    publisher = wiring.publisher(settings, client_id=_CLIENT_ID)
    encoder = wiring.dead_letter_encoder(settings)

    def close() -> None:
        publisher.close(timeout_s=10.0)
        if store is not None:
            store.close()

    return ConsumerTarget(
        effect,
        decoder=wiring.decoder(settings),
        expected={topics.name(event): event for event in effect.events},
        keep=lambda letter: dead_letter_sink.keep(letter, publisher, topics, encoder),
        watch=Watch(stop=stop),
        replay_id=plan.replay_id,
        topic_ids={name.removeprefix("topic "): id_ for name, id_ in plan.source_identity.items() if name != "cluster"},
        store=store,
        close=close,
    )


def state_shown(settings: "Settings") -> str:
    """Return the state's URL without what may be secret in it: the password, and the query."""
    from sqlalchemy import make_url

    return make_url(settings.state.url).set(query={}).render_as_string()


def _refuse_other_state(settings: "Settings", plan: "Plan") -> None:
    """Raise OperatorError("state_elsewhere") for another database than the plan's: how far it has come stands in that one."""
    from kinguin_streams.telemetry.operator_error import OperatorError

    now = state_shown(settings)
    planned = plan.destination.options.get("state", now)  # receipts of earlier versions do not say it
    if planned != now:
        raise OperatorError(
            "state_elsewhere",
            f"The replay was begun into the state in {planned}, and this is {now}.",
            "Name the same database, with --state-url or KINGUIN_STATE__URL; or make the replay anew.",
        )


def _frame_guard(settings: "Settings", plan: "Plan") -> "FrameGuard":
    from pathlib import Path

    from kinguin_streams.cli import wiring
    from kinguin_streams.replay import file_source
    from kinguin_streams.replay.frames import FrameGuard

    files = file_source.find(map(Path, plan.source_files))
    ours = {spec.name for spec in wiring.topics(settings).specs}
    return FrameGuard(
        file_source.texts_of_ids(files), _text_of_id(settings), takes_unknown=plan.destination.name not in ours
    )


def _file_target(settings: "Settings", plan: "Plan") -> "Target":
    from functools import partial
    from pathlib import Path

    from kinguin_streams.cli import wiring
    from kinguin_streams.replay import value_schemas
    from kinguin_streams.replay.file_target import FileTarget

    options = plan.destination.options
    return FileTarget(
        Path(plan.destination.name),
        options["partitions"],
        plan.replay_id,
        file_format=options["format"],
        max_bytes=options["max_bytes"],
        schemas_of=partial(value_schemas.of_topic, ours=wiring.topics(settings), text_of_id=_text_of_id(settings)),
    )


def _text_of_id(settings: "Settings") -> "TextOfId | None":
    if settings.registry.url is None:
        return None
    from kinguin_streams.cluster.registry_client import NotInRegistry, RegistryAway, RegistryClient, away_error

    client = RegistryClient(settings.registry)

    def text_of_id(schema_id: int) -> str | None:
        try:
            return client.schema_text(schema_id) or None
        except NotInRegistry:
            return None
        except RegistryAway as away:
            raise away_error(away, what="The file is to hold the schema of each value") from away

    return text_of_id
