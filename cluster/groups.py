"""Consumer groups as the cluster has them: who is in one, how far it says that it has come, and moving that. Joins none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.cluster.topic_admin import unreachable
from kinguin_streams.telemetry.operator_error import OperatorError

REQUEST_TIMEOUT_S: Final = 15.0
_NO_SUCH_GROUP: Final = frozenset({KafkaError.GROUP_ID_NOT_FOUND, KafkaError.INVALID_GROUP_ID})
_HAS_MEMBERS: Final = frozenset(
    {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS}
)


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a group, and the partitions that are its."""

    client_id: str
    host: str
    instance_id: str | None
    partitions: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A group. state: Kafka's word in small letters, as "stable", "empty", "preparing_rebalancing"."""

    state: str
    members: tuple[Member, ...]


def describe(config: dict[str, Any], group: str) -> Group | None:
    """Return who is in the group, or None if Kafka knows of no such group. config: cluster.connection.admin_config.

    Raises OperatorError("kafka_unreachable").
    """
    admin = new_client(AdminClient, config)
    try:
        found: ConsumerGroupDescription = admin.describe_consumer_groups([group], request_timeout=REQUEST_TIMEOUT_S)[
            group
        ].result()
    except KafkaException as error:
        if error.args[0].code() in _NO_SUCH_GROUP:
            return None
        raise unreachable(error) from error
    state = found.state.name.lower()
    if state == "dead":  # what an older broker says of a group that it has never seen
        return None
    return Group(state, tuple(map(_member, found.members)))


def committed(config: dict[str, Any], partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Return the next offset of each partition for which the group of the configuration has committed one.

    config: cluster.connection.consumer_config. By a consumer that never subscribes: the admin client's
    list_consumer_group_offsets ends the process with a segmentation fault in confluent-kafka 2.16.1.
    Raises OperatorError("kafka_unreachable").
    """
    asked = [TopicPartition(topic, partition) for topic, partition in partitions]
    consumer = new_client(Consumer, config)
    try:
        answers = consumer.committed(asked, timeout=REQUEST_TIMEOUT_S) if asked else []
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
    except KafkaException as error:
        raise unreachable(error) from error
    finally:
        consumer.close()
    return {(answer.topic, answer.partition): answer.offset for answer in answers if answer.offset >= 0}


def move(config: dict[str, Any], offsets: Mapping[tuple[str, int], int], metadata: Mapping[str, str]) -> None:
    """Commit these offsets for the group of the configuration. metadata: topic to what is kept beside its offsets.

    The broker takes them only from a group without members, whatever was seen a moment before. Raises
    OperatorError("group_live") then, or ("kafka_unreachable").
    """
    moved = [
        TopicPartition(topic, partition, offset, metadata.get(topic, ""))
        for (topic, partition), offset in sorted(offsets.items())
    ]
    consumer = new_client(Consumer, config)
    try:
        answers = consumer.commit(offsets=moved, asynchronous=False) if moved else []
        for answer in answers or []:
            if answer.error is not None:
                raise KafkaException(answer.error)
    except KafkaException as error:
        if error.args[0].code() in _HAS_MEMBERS:
            raise OperatorError(
                "group_live",
                f"The group {config['group.id']} has got a member: the broker moves no offsets under it.",
                "Stop its consumers, and do it again.",
            ) from error
        raise unreachable(error) from error
    finally:
        consumer.close()


def _member(found: Any) -> Member:
    partitions = sorted((each.topic, each.partition) for each in found.assignment.topic_partitions)
    return Member(found.client_id, found.host, found.group_instance_id or None, tuple(partitions))
