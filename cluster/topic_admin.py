"""Topics as declared against topics as they are: a plan, and its execution. Never deletes, never shrinks."""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.schemas.topics import Topics, TopicSpec
from kinguin_streams.telemetry.operator_error import OperatorError

REQUEST_TIMEOUT_S = 15.0
LOOK_AGAIN_FOR_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActualTopic:
    """A topic as the cluster has it."""

    partitions: int
    replication: int
    config: Mapping[str, str]
    topic_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a plan is made against."""

    cluster_id: str
    brokers: int
    topics: Mapping[str, ActualTopic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change that `apply` would make, or a difference that it leaves alone and warns of."""

    topic: str
    action: Literal["create", "set_config", "add_partitions", "warn"]
    detail: str
    partitions: int = 0
    replication: int = 0
    config: Mapping[str, str] | None = None


def wanted_replication(brokers: int) -> int:
    """Return min(3, brokers)."""
    return min(3, brokers)


def wanted_config(spec: TopicSpec, replication: int) -> dict[str, str]:
    """Return the topic's configuration. One replica may be away before writes stop; with a single one, none can."""
    return {**spec.config, "min.insync.replicas": str(max(1, replication - 1))}


def plan(topics: Topics, cluster: Cluster) -> tuple[Step, ...]:
    """Return what must change for the cluster to agree with the declaration; an empty plan means that it does.

    Partitions are only ever added, which moves keys to other partitions: the step says so. A warning is what `apply`
    leaves alone, as the operator's decision: fewer replicas than possible, more partitions than declared, a limit on bytes,
    a retention longer than the declared one, since setting it would delete events, more replicas in sync than declared, and
    records larger than declared.
    """
    steps: list[Step] = []
    for spec in topics.specs:
        actual = cluster.topics.get(spec.name)
        if actual is None:
            replication = wanted_replication(cluster.brokers)
            steps.append(
                Step(
                    topic=spec.name,
                    action="create",
                    detail=f"{spec.partitions} partitions, replication {replication}, {_retention(spec.retention_ms)}",
                    partitions=spec.partitions,
                    replication=replication,
                    config=wanted_config(spec, replication),
                )
            )
            continue
        steps.extend(_differences(spec, actual, cluster.brokers))
    return tuple(steps)


def _differences(spec: TopicSpec, actual: ActualTopic, brokers: int) -> list[Step]:
    steps: list[Step] = []
    wanted = wanted_config(spec, actual.replication)
    differing = {key: value for key, value in wanted.items() if actual.config.get(key) != value}
    if "retention.ms" in differing and _longer(actual.config.get("retention.ms"), spec.retention_ms):
        del differing["retention.ms"]
        kept = _retention(int(actual.config["retention.ms"]))
        detail = (
            f"events are {kept}, longer than declared ({_retention(spec.retention_ms)}); left so, or events would go"
        )
        steps.append(Step(topic=spec.name, action="warn", detail=detail))
    for key, most in (("min.insync.replicas", actual.replication), ("max.message.bytes", None)):
        if key in differing and _stricter(actual.config.get(key), wanted[key], most):
            del differing[key]
            detail = f"{key}: {actual.config[key]}, more than declared ({wanted[key]}); left so"
            steps.append(Step(topic=spec.name, action="warn", detail=detail))
    if differing:
        detail = ", ".join(f"{key}: {actual.config.get(key)} → {value}" for key, value in sorted(differing.items()))
        steps.append(Step(topic=spec.name, action="set_config", detail=detail, config=differing))
    if actual.config.get("retention.bytes", "-1") != "-1":
        limit = actual.config["retention.bytes"]
        steps.append(
            Step(topic=spec.name, action="warn", detail=f"retention.bytes={limit} deletes events before their time")
        )
    if actual.partitions < spec.partitions:
        detail = f"{actual.partitions} → {spec.partitions}; keys move to other partitions"
        steps.append(Step(topic=spec.name, action="add_partitions", detail=detail, partitions=spec.partitions))
    elif actual.partitions > spec.partitions:
        detail = f"has {actual.partitions} partitions, {spec.partitions} are declared; partitions are never removed"
        steps.append(Step(topic=spec.name, action="warn", detail=detail))
    if actual.replication < wanted_replication(brokers):
        detail = f"replication {actual.replication}, {wanted_replication(brokers)} is possible: reassign it with Kafka's tools"
        steps.append(Step(topic=spec.name, action="warn", detail=detail))
    return steps


def _stricter(actual: str | None, wanted: str, most: int | None) -> bool:
    """Return whether an operator has chosen more than we ask for. Above `most`, nothing could be written at all."""
    return actual is not None and int(actual) > int(wanted) and (most is None or int(actual) <= most)


def _longer(actual_ms: str | None, declared_ms: int) -> bool:
    return actual_ms is not None and declared_ms >= 0 and not 0 <= int(actual_ms) <= declared_ms


def _retention(retention_ms: int) -> str:
    return "kept for ever" if retention_ms < 0 else f"kept {retention_ms // 86_400_000} days"


class TopicAdmin:
    """Reads the cluster's topics and executes plans."""

    def __init__(self, config: dict[str, Any]) -> None:
        """config: from cluster.connection.admin_config. Raises OperatorError as new_client does."""
        self._client = new_client(AdminClient, config)

    def describe(self, topics: Topics) -> Cluster:
        """Return the cluster, with those of the topics that exist. Raises OperatorError("kafka_unreachable")."""
        try:
            metadata = self._client.list_topics(timeout=REQUEST_TIMEOUT_S)
            present = [spec.name for spec in topics.specs if spec.name in metadata.topics]
            return Cluster(
                cluster_id=str(metadata.cluster_id),
                brokers=len(metadata.brokers),
                topics=self._actual(present, {name: metadata.topics[name] for name in present}),
            )
        except KafkaException as error:
            raise unreachable(error) from error

    def _actual(self, names: list[str], metadata: Mapping[str, Any]) -> dict[str, ActualTopic]:
        if not names:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        configs = self._client.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S)
        ids = topic_ids(self._client, names)
        return {
            resource.name: ActualTopic(
                partitions=len(metadata[resource.name].partitions),
                replication=min(len(part.replicas) for part in metadata[resource.name].partitions.values()),
                config={key: entry.value for key, entry in future.result().items()},
                topic_id=ids[resource.name],
            )
            for resource, future in configs.items()
        }

    def apply(self, steps: tuple[Step, ...]) -> None:
        """Execute a plan; a topic that someone else made in the meantime is no error. Raises OperatorError("topic_refused").

        Returns once the brokers tell of the new topics: one that is busy does so a moment after it has made them.
        """
        for step in steps:
            try:
                self._run(step)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise OperatorError(
                        "topic_refused",
                        f"The cluster refused to {step.action} {step.topic}: {error.args[0].str()}",
                        "Check the rights of this user, and the broker's limits on topics and configuration.",
                    ) from error

        self._look_for({step.topic for step in steps if step.action == "create"})

    def _look_for(self, names: set[str]) -> None:
        """Return once these topics are known, or after a while: whoever uses them then says what is missing."""
        deadline_s = time.monotonic() + LOOK_AGAIN_FOR_S
        while names and time.monotonic() < deadline_s:
            try:
                names -= self._client.list_topics(timeout=REQUEST_TIMEOUT_S).topics.keys()
            except KafkaException as error:
                raise unreachable(error) from error
            if names:
                time.sleep(0.05)

    def _run(self, step: Step) -> None:
        futures: Mapping[Any, Future[Any]] = {}
        match step.action:
            case "create":
                topic = NewTopic(
                    step.topic, step.partitions, replication_factor=step.replication, config=dict(step.config or {})
                )
                futures = self._client.create_topics([topic], operation_timeout=REQUEST_TIMEOUT_S)
            case "set_config":
                entries = [
                    ConfigEntry(
                        key,
                        value,
                        source=ConfigSource.DYNAMIC_TOPIC_CONFIG,
                        incremental_operation=AlterConfigOpType.SET,
                    )
                    for key, value in (step.config or {}).items()
                ]
                resource = ConfigResource(ResourceType.TOPIC, step.topic, incremental_configs=entries)
                futures = self._client.incremental_alter_configs([resource])
            case "add_partitions":
                futures = self._client.create_partitions([NewPartitions(step.topic, step.partitions)])
            case "warn":
                pass
        for future in futures.values():
            future.result(timeout=REQUEST_TIMEOUT_S)


def topic_ids(client: AdminClient, names: list[str]) -> dict[str, str]:
    """Return the ids of topics: a topic that was deleted and made anew has its old name and another id."""
    futures = client.describe_topics(TopicCollection(names), request_timeout=REQUEST_TIMEOUT_S)
    return {name: str(future.result(timeout=REQUEST_TIMEOUT_S).topic_id) for name, future in futures.items()}


def unreachable(error: KafkaException) -> OperatorError:
    """Return the error for a cluster that does not answer."""
    return OperatorError(
        "kafka_unreachable",
        f"Kafka does not answer: {error.args[0].str()}",
        "Check KINGUIN_KAFKA__BOOTSTRAP_SERVERS and KINGUIN_KAFKA__CONFIG, or `kinguin-streams kafka status` for a local one.",
    )
