"""What is there, before anything is planned: offsets, times, sizes, what retention has taken. Reads, and changes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.cluster.topic_admin import topic_ids, unreachable
from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.consumers.garbage import without_cycles_looked_for
from kinguin_streams.replay.checksum import tally
from kinguin_streams.replay.filters import Filters
from kinguin_streams.replay.patience import patiently
from kinguin_streams.replay.plan import Window
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Source
from kinguin_streams.replay.topic_record import record_of
from kinguin_streams.replay.windows import PartitionFacts
from kinguin_streams.telemetry.operator_error import OperatorError

REQUEST_TIMEOUT_S = 15.0
SAMPLE_RECORDS = 100
"""Of each partition, at the beginning of its window and in the middle."""


class TopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster says of a topic. config: in Kafka's own keys and values."""

    name: str
    topic_id: str
    partitions: int
    config: Mapping[str, str]


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """What is selected of a partition: records, their bytes, the time of the oldest."""

    records: int = 0
    bytes: int = 0
    oldest_ms: int | None = None


class Survey:
    """Asks one cluster. Never makes a topic: it asks for those that there are, and looks for the names itself."""

    def __init__(self, admin_config: dict[str, Any], consumer_config: dict[str, Any]) -> None:
        """admin_config, consumer_config: from cluster.connection. Raises OperatorError as new_client does."""
        self._admin = new_client(AdminClient, admin_config)
        self._reader = TopicReader({**consumer_config, "isolation.level": "read_committed"})
        self._known: dict[str, TopicFacts] = {}
        self._cluster_id = ""

    def topics(self, names: Iterable[str]) -> dict[str, TopicFacts]:
        """Return the facts of topics. Raises OperatorError: "kafka_unreachable", "topic_missing"."""
        wanted = list(dict.fromkeys(names))
        try:
            metadata = self._admin.list_topics(timeout=REQUEST_TIMEOUT_S)
            self._cluster_id = str(metadata.cluster_id)
            for name in wanted:
                if name not in metadata.topics:
                    raise missing(name)
            if not wanted:
                return {}
            configs = self._admin.describe_configs(
                [ConfigResource(ResourceType.TOPIC, name) for name in wanted], request_timeout=REQUEST_TIMEOUT_S
            )
            ids = topic_ids(self._admin, wanted)
            return {
                resource.name: TopicFacts(
                    name=resource.name,
                    topic_id=ids[resource.name],
                    partitions=len(metadata.topics[resource.name].partitions),
                    config={key: str(entry.value) for key, entry in future.result().items()},
                )
                for resource, future in configs.items()
            }
        except KafkaException as error:
            raise unreachable(error) from error

    @property
    def cluster_id(self) -> str:
        """Of the cluster that `topics` asked."""
        return self._cluster_id

    def identity(self, topics: Mapping[str, TopicFacts]) -> dict[str, str]:
        """Return what must stay the same for a replay to be resumed: the cluster, and the topics' ids."""
        return {"cluster": self._cluster_id, **{f"topic {name}": facts.topic_id for name, facts in topics.items()}}

    def partitions(self, names: Sequence[str], times_ms: Iterable[int]) -> list[PartitionFacts]:
        """Return the facts of all partitions of topics that exist, with the offset of each of these times."""
        bounds = self._reader.bounds(names)
        ends = {key: latest for key, (_, latest) in bounds.items()}
        at = {instant: self._reader.offsets_at(instant, ends) for instant in sorted(set(times_ms))}
        return [
            PartitionFacts(
                topic=topic,
                partition=partition,
                earliest=earliest,
                latest=latest,
                offset_at={instant: offsets[topic, partition] for instant, offsets in at.items()},
            )
            for (topic, partition), (earliest, latest) in sorted(bounds.items())
        ]

    def sampled(self, windows: Sequence[Window]) -> tuple[tuple[Window, ...], int | None]:
        """Return the windows with their bytes estimated, and the time of the oldest record that was looked at."""
        sampled: dict[tuple[str, int], list[int]] = {}
        oldest: list[int] = []
        for share in (0, 2):  # the beginning, and the middle
            start, end = {}, {}
            for window in windows:
                if window.records and (not share or window.records > 2 * SAMPLE_RECORDS):
                    key = window.topic, window.partition
                    start[key] = window.start + (window.records // share if share else 0)
                    end[key] = min(window.end, start[key] + SAMPLE_RECORDS)
            for message in self._reader.read(start, end):
                record = record_of(message)
                sampled.setdefault((record.topic, record.partition), []).append(tally((record,)).bytes)
                if record.timestamp_ms is not None:
                    oldest.append(record.timestamp_ms)
        return tuple(_with_bytes(window, sampled) for window in windows), min(oldest, default=None)

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()


def list_ends(admin: AdminClient, topic: str, partitions: int) -> dict[int, int]:
    """Return the offset that the next record of each partition will have, open transactions included.

    Waits for a cluster that is restarting. Raises OperatorError("kafka_unreachable").
    """
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, number): latest for number in range(partitions)}

    def ask() -> dict[int, int]:
        # Of a broker that has come back, librdkafka goes on to name the leader's old epoch until it has asked for metadata:
        # measured, a minute of answers that it is fenced.
        admin.list_topics(timeout=REQUEST_TIMEOUT_S)
        answers = admin.list_offsets(
            asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=REQUEST_TIMEOUT_S
        )
        return {part.partition: int(future.result().offset) for part, future in answers.items()}

    return patiently(ask)


def count(source: Source, filters: Filters) -> dict[tuple[str, int], Count]:
    """Return what is selected of each partition, by reading all of it. Raises as Filters.split and the source do."""
    found: dict[tuple[str, int], Count] = {}
    with without_cycles_looked_for():
        for batch in source.read({}):
            by_partition: dict[tuple[str, int], list[Record]] = {}
            for record in filters.split(batch)[0]:
                by_partition.setdefault(record[:2], []).append(record)
            for key, records in by_partition.items():
                before, more = found.get(key) or Count(), tally(records)
                times = [record.timestamp_ms for record in records if record.timestamp_ms is not None]
                if before.oldest_ms is not None:
                    times.append(before.oldest_ms)
                found[key] = Count(
                    records=before.records + more.records,
                    bytes=before.bytes + more.bytes,
                    oldest_ms=min(times, default=None),
                )
    return found


def _with_bytes(window: Window, sampled: Mapping[tuple[str, int], Sequence[int]]) -> Window:
    sizes = sampled.get((window.topic, window.partition), ())
    estimate = round(window.records * sum(sizes) / len(sizes)) if sizes else 0
    return msgspec.structs.replace(window, bytes=estimate)


def missing(topic: str) -> OperatorError:
    """Return the error for a topic that is not there."""
    return OperatorError(
        "topic_missing",
        f"There is no topic {topic}.",
        "Check its name; `kinguin-streams topics apply` makes those that are declared. A replay never makes one.",
    )
