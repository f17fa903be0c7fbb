"""What the loop wants of Kafka: a member of a consumer group, and who the cluster and its topics are.

confluent_kafka.Consumer and SourceIdentity are these; so is the Kafka in memory that consumers are tested with. One suite
runs over both.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

from confluent_kafka import Consumer, TopicPartition

from kinguin_streams.cluster.connection import new_client

OnPartitions = Callable[[Any, list[TopicPartition]], None]


class ConsumerClient(Protocol):
    """A group's member, with the methods and the meaning of confluent_kafka.Consumer."""

    def subscribe(
        self, topics: list[str], *, on_assign: OnPartitions, on_revoke: OnPartitions, on_lost: OnPartitions
    ) -> None: ...
    def consume(self, num_messages: int, timeout: float) -> list[Any]: ...
    def assign(self, partitions: list[TopicPartition]) -> None: ...
    def incremental_assign(self, partitions: list[TopicPartition]) -> None: ...
    def incremental_unassign(self, partitions: list[TopicPartition]) -> None: ...
    def pause(self, partitions: list[TopicPartition]) -> None: ...
    def resume(self, partitions: list[TopicPartition]) -> None: ...
    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> Any: ...
    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...
    def close(self) -> None: ...


class Identity(Protocol):
    """Which cluster and which topics these are, by id. See consumers/source_identity.py."""

    def ask(self) -> tuple[str, dict[str, str]]: ...
    def ask_again(self) -> None: ...
    def is_as_before(self) -> bool: ...
    def watch(self) -> None: ...


NewClient = Callable[[dict[str, Any]], ConsumerClient]
"""Makes a client of a configuration for librdkafka."""


def kafka_client(config: dict[str, Any]) -> ConsumerClient:
    """Return a client of a real Kafka. Raises OperatorError("kafka_config_refused")."""
    return cast("ConsumerClient", new_client(Consumer, config))
