"""A plan makes the cluster agree with the declaration, loses nothing, and says what it leaves to a person."""

from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from kinguin_streams.cluster.connection import CLIENT_LOGGER, admin_config
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.cluster.topic_admin import ActualTopic, Cluster, Step, TopicAdmin, plan, wanted_config
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.operator_error import OperatorError

DECLARED = topics("kinguin", partitions=6)
PRODUCTS = DECLARED.specs[0]
DAY_MS = 86_400_000


def cluster_with(*, brokers: int = 3, partitions: int = 6, replication: int = 3, **config: str) -> Cluster:
    """A cluster that has all topics as declared, but for what is said of the product topic."""
    as_declared = {
        spec.name: ActualTopic(partitions=6, replication=3, config=wanted_config(spec, 3), topic_id="id")
        for spec in DECLARED.specs
    }
    changed = {key.replace("_", "."): value for key, value in config.items()}
    as_declared[PRODUCTS.name] = ActualTopic(
        partitions=partitions,
        replication=replication,
        config={**wanted_config(PRODUCTS, replication), **changed},
        topic_id="id",
    )
    return Cluster(cluster_id="c", brokers=brokers, topics=as_declared)


def planned(cluster: Cluster) -> list[tuple[str, str]]:
    return [(step.action, step.topic) for step in plan(DECLARED, cluster)]


def test_a_cluster_as_declared_needs_nothing() -> None:
    assert planned(cluster_with()) == []


@pytest.mark.parametrize(
    ("brokers", "replication", "min_in_sync"), [(1, 1, "1"), (2, 2, "1"), (3, 3, "2"), (12, 3, "2")]
)
def test_a_new_topic_has_as_many_replicas_as_there_are_brokers_up_to_three_and_one_may_be_away(
    brokers: int, replication: int, min_in_sync: str
) -> None:
    (first, *_) = plan(DECLARED, Cluster(cluster_id="c", brokers=brokers, topics={}))
    assert (first.action, first.replication) == ("create", replication)
    assert (first.config or {})["min.insync.replicas"] == min_in_sync
    assert (first.config or {})["unclean.leader.election.enable"] == "false"


@pytest.mark.parametrize(
    ("actual", "step"),
    [
        pytest.param({"retention_ms": str(DAY_MS)}, "set_config", id="kept for too short a time"),
        pytest.param({"retention_ms": "-1"}, "warn", id="kept for longer is the operator's choice"),
        pytest.param({"retention_bytes": "1000000"}, "warn", id="a limit in bytes deletes early"),
        pytest.param({"cleanup_policy": "compact"}, "set_config", id="compaction would drop events"),
        pytest.param({"unclean_leader_election_enable": "true"}, "set_config", id="an unclean leader loses events"),
        pytest.param({"max_message_bytes": "1000"}, "set_config", id="room for too small a record"),
        pytest.param({"max_message_bytes": "9000000"}, "warn", id="room for larger ones is the operator's choice"),
        pytest.param({"min_insync_replicas": "1"}, "set_config", id="too few replicas need to have it"),
        pytest.param({"min_insync_replicas": "3"}, "warn", id="more of them is the operator's choice"),
        pytest.param({"min_insync_replicas": "4"}, "set_config", id="more than there are takes no event at all"),
        pytest.param({"partitions": 2}, "add_partitions", id="too few partitions"),
        pytest.param({"partitions": 12}, "warn", id="partitions are never removed"),
        pytest.param({"replication": 1}, "warn", id="too few replicas"),
    ],
)
def test_each_difference_is_one_step(actual: dict[str, Any], step: str) -> None:
    assert planned(cluster_with(**actual)) == [(step, PRODUCTS.name)]


@pytest.mark.kafka
def test_applied_to_a_real_cluster_a_plan_leaves_nothing_to_do_and_records_stay(kafka: Any, topic_prefix: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    declared = topics(topic_prefix, partitions=3)
    drifted = declared.specs[1].name
    client = AdminClient(admin_config(settings), logger=CLIENT_LOGGER)
    client.create_topics([NewTopic(drifted, 1, 1, config={"retention.ms": "60000"})])[drifted].result(15)
    admin = TopicAdmin(admin_config(settings))

    steps = plan(declared, admin.describe(declared))
    admin.apply(steps)

    assert {(step.action, step.topic) for step in steps} == {
        *(("create", spec.name) for spec in declared.specs if spec.name != drifted),
        ("set_config", drifted),
        ("warn", drifted),  # Kafka's own max.message.bytes is larger than ours
        ("add_partitions", drifted),
    }
    after = admin.describe(declared)
    assert [step for step in plan(declared, after) if step.action != "warn"] == []
    assert (after.topics[drifted].partitions, after.topics[drifted].config["retention.ms"]) == (3, "-1")
    admin.apply(steps[:1])  # somebody else was quicker: a topic that is there already is no error


def test_a_cluster_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinguin_streams.cluster.topic_admin.REQUEST_TIMEOUT_S", 0.3)
    admin = TopicAdmin(admin_config(KafkaSettings(bootstrap_servers="127.0.0.1:1")))
    with pytest.raises(OperatorError, match="KINGUIN_KAFKA__BOOTSTRAP_SERVERS") as silent:
        admin.describe(DECLARED)
    assert silent.value.code == "kafka_unreachable"


@pytest.mark.kafka
def test_what_the_cluster_refuses_names_the_topic_and_the_step(kafka: Any, topic_prefix: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    impossible = Step(topic=topic_prefix, action="create", detail="", partitions=1, replication=99, config={})
    with pytest.raises(OperatorError, match=f"create {topic_prefix}") as refused:
        TopicAdmin(admin_config(settings)).apply((impossible,))
    assert refused.value.code == "topic_refused"


@pytest.mark.kafka
def test_a_setting_that_is_not_ours_is_left_alone_and_so_is_one_that_allows_more(kafka: Any, topic_prefix: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    declared = topics(topic_prefix, partitions=1)
    admin, topic = TopicAdmin(admin_config(settings)), declared.specs[0].name
    admin.apply(plan(declared, admin.describe(declared)))
    entries = [
        ConfigEntry("segment.ms", "3600000", incremental_operation=AlterConfigOpType.SET),
        ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET),
        ConfigEntry("max.message.bytes", "9000000", incremental_operation=AlterConfigOpType.SET),
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    client = AdminClient(admin_config(settings), logger=CLIENT_LOGGER)
    client.incremental_alter_configs([resource])[resource].result(15)

    admin.apply(plan(declared, admin.describe(declared)))

    config = admin.describe(declared).topics[topic].config
    assert (config["segment.ms"], config["retention.ms"]) == ("3600000", str(180 * DAY_MS))
    assert config["max.message.bytes"] == "9000000"
