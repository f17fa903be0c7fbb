"""A Kafka in memory, as far as the consume loop can tell: topics, partitions, offsets, retention; a publisher, an identity.

Groups and their members are in memory_client.py. For one thread: nothing here waits, and nothing happens by itself.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinguin_streams.cluster.publisher import Report, TopicMissing
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.source_changed import STATE_HINTS, SourceHints, cluster_changed, topic_replaced
from kinguin_streams.consumers.testing.memory_client import Group, MemoryClient
from kinguin_streams.consumers.testing.memory_log import Headers, Log, MemoryMessage
from kinguin_streams.consumers.testing.murmur2 import partition_of
from kinguin_streams.schemas.outgoing import OutgoingRecord, OutgoingTombstone
from kinguin_streams.telemetry.operator_error import OperatorError


@dataclass
class _Topic:
    id: str
    logs: list[Log]


class MemoryKafka:
    """A cluster of one broker that never fails."""

    def __init__(self, topics: Mapping[str, int], *, cluster_id: str = "memory") -> None:
        """topics: name to number of partitions."""
        self.cluster_id = cluster_id
        self._made = 0
        self._arrivals = 0
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, Group] = {}
        for name, partitions in topics.items():
            self.make_topic(name, partitions)

    # Topics

    def make_topic(self, name: str, partitions: int) -> None:
        """Make an empty topic, with an id that no other has, not even one of this name that was deleted."""
        self._made += 1
        self._topics[name] = _Topic(f"{self.cluster_id}-topic-{self._made}", [Log() for _ in range(partitions)])

    def delete_topic(self, name: str) -> None:
        """Delete it with all its records."""
        del self._topics[name]

    def partitions(self, topic: str) -> tuple[TopicPart, ...]:
        """Return the partitions of a topic; none if there is no such topic."""
        found = self._topics.get(topic)
        return () if found is None else tuple(TopicPart(topic, number) for number in range(len(found.logs)))

    def log(self, part: TopicPart) -> Log | None:
        """Return a partition, or None if its topic is gone."""
        found = self._topics.get(part.topic)
        return None if found is None or part.partition >= len(found.logs) else found.logs[part.partition]

    def topic_id(self, name: str) -> str:
        """Return its id. Raises OperatorError("topic_missing")."""
        if name not in self._topics:
            raise OperatorError("topic_missing", f"There is no topic {name}.", "Make it in the Kafka in memory.")
        return self._topics[name].id

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp_ms: int = 0,
        partition: int | None = None,
    ) -> tuple[TopicPart, int]:
        """Append a record and return where it lies.

        partition: by the key if None; a record without a key goes to partition 0. Raises KeyError without the topic.
        """
        logs = self._topics[topic].logs
        if partition is None:
            partition = 0 if key is None else partition_of(key, len(logs))
        part = TopicPart(topic, partition)
        log = logs[partition]
        record = MemoryMessage(part, log.end, value=value, key=key, headers=headers, timestamp_ms=timestamp_ms)
        self._arrivals += 1
        record.arrival = self._arrivals
        log.records.append(record)
        return part, record.offset()

    def records(self, topic: str) -> list[MemoryMessage]:
        """Return what the topic still has, in the order in which it arrived."""
        logs = self._topics[topic].logs
        return sorted((record for log in logs for record in log.records[log.low :]), key=lambda record: record.arrival)

    def delete_records(self, part: TopicPart, before_offset: int) -> None:
        """Do what retention does: take the records below an offset away."""
        log = self._topics[part.topic].logs[part.partition]
        log.low = max(log.low, min(before_offset, log.end))

    def shuffle(self, topics: Iterable[str], seed: int) -> None:
        """Bring the records that nobody has been handed yet into another order, each in its partition."""
        logs = [log for topic in topics for log in self._topics[topic].logs]
        waiting = [(log, record) for log in logs for record in log.records[max(log.low, log.read_to) :]]
        arrivals = [record.arrival for _, record in waiting]
        random.Random(seed).shuffle(waiting)  # noqa: S311 - an order to test with, not a secret
        for log in logs:
            del log.records[max(log.low, log.read_to) :]
        for arrival, (log, record) in zip(sorted(arrivals), waiting, strict=True):
            log.records.append(record.moved_to(log.end, arrival))

    # Clients

    def group(self, group_id: str) -> Group:
        """Return a consumer group."""
        return self._groups.setdefault(group_id, Group(self.partitions))

    def client(self, config: Mapping[str, Any]) -> MemoryClient:
        """Return a member of the configured group. config: as for confluent_kafka.Consumer."""
        return MemoryClient(self.log, self.group(config["group.id"]), config)

    def identity(self, topics: Sequence[str], hints: SourceHints = STATE_HINTS) -> "MemoryIdentity":
        """Return who this cluster and these topics are. hints: as of consumers.source_identity."""
        return MemoryIdentity(self, topics, hints)

    def publisher(self) -> "MemoryPublisher":
        """Return a Publisher into these topics."""
        return MemoryPublisher(self)


class MemoryPublisher:
    """Appends; a record is durable at once, for as long as there is this process."""

    def __init__(self, kafka: MemoryKafka) -> None:
        self._kafka = kafka

    def partitions(self, topic: str, timeout_s: float) -> int:  # noqa: ARG002 - nothing to wait for
        """Return the topic's number of partitions. Raises TopicMissing."""
        found = self._kafka.partitions(topic)
        if not found:
            raise TopicMissing("not_delivered", f"topic {topic}: there is none", landed="no")
        return len(found)

    def send(self, record: OutgoingRecord | OutgoingTombstone) -> Report:
        """Append the record and return its report, which is there. Raises TopicMissing."""
        self.publish(record)
        report = Report()
        report.settle(None)
        return report

    def publish(self, record: OutgoingRecord | OutgoingTombstone) -> None:
        """Append the record. Raises TopicMissing."""
        self.partitions(record.topic, timeout_s=0)
        self._kafka.append(
            record.topic, record.value, key=record.key, headers=record.headers, timestamp_ms=record.timestamp_ms
        )


class MemoryIdentity:
    """Answers as consumers.source_identity does, at once."""

    def __init__(self, kafka: MemoryKafka, topics: Sequence[str], hints: SourceHints) -> None:
        self._kafka = kafka
        self._topics = topics
        self._hints = hints
        self._known: tuple[str, dict[str, str]] | None = None

    def ask(self) -> tuple[str, dict[str, str]]:
        """Return the cluster's id and the topics' ids by name. Raises OperatorError("topic_missing")."""
        self._known = self._kafka.cluster_id, {topic: self._kafka.topic_id(topic) for topic in self._topics}
        return self._known

    def ask_again(self) -> None:
        """Raise OperatorError("topic_replaced"), ("cluster_changed") or ("topic_missing") if the answer has changed."""
        known = self._known
        if known is None:
            return
        cluster_id, topic_ids = self.ask()
        if known[0] != cluster_id:
            raise cluster_changed(known[0], cluster_id, self._hints)
        for topic, topic_id in topic_ids.items():
            if known[1][topic] != topic_id:
                raise topic_replaced(topic, known[1][topic], topic_id, self._hints)

    def is_as_before(self) -> bool:
        """Do as ask_again does, and return True: the answer is there."""
        self.ask_again()
        return True

    def watch(self) -> None:
        """Do as ask_again does, each time: there is nothing to wait for."""
        self.ask_again()
