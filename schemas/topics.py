"""Topics as data: which record goes where, how long it stays. `topics apply` makes a cluster agree with this file."""

from dataclasses import dataclass

from kinguin_streams.schemas.events import DERIVED_NAMES, EVENT_NAMES, RecordName

DAY_MS = 86_400_000
UNLIMITED_MS = -1

# A body of 64 KiB is in the record twice at worst, as `raw` and as the fields read from it; headers come on top.
MAX_RECORD_BYTES = 262_144
# An order's 64 facts, transitions and contradictions, each status and the id of 1 KiB: 350 KB at worst.
MAX_STATE_BYTES = 524_288


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """What a topic must be. Replication follows the cluster's size, so it is not data: see cluster/topic_admin.py."""

    record: RecordName
    name: str
    key: str
    partitions: int
    retention_ms: int
    compacted: bool = False
    """Kafka keeps the newest record of each key, and a tombstone for a day."""

    @property
    def config(self) -> dict[str, str]:
        """The topic's configuration, in Kafka's own keys and values."""
        return {
            "cleanup.policy": "compact" if self.compacted else "delete",
            "retention.ms": str(self.retention_ms),
            "max.message.bytes": str(MAX_STATE_BYTES if self.compacted else MAX_RECORD_BYTES),
            "message.timestamp.type": "CreateTime",  # the record's time is when we received the webhook
            "unclean.leader.election.enable": "false",
        }


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics under one prefix."""

    specs: tuple[TopicSpec, ...]

    @property
    def of_ingress(self) -> "Topics":
        """The topics that the ingress writes: of events and dead letters. The others are the consumers' and the operator's."""
        return Topics(tuple(spec for spec in self.specs if spec.record in (*EVENT_NAMES, "dead-letter")))

    def name(self, record: RecordName) -> str:
        """Return the topic that takes records of this name."""
        for spec in self.specs:
            if spec.record == record:
                return spec.name
        raise KeyError(record)

    def record(self, topic: str) -> RecordName:
        """Return what the topic of this name holds; raises KeyError for a topic that is not ours."""
        for spec in self.specs:
            if spec.name == topic:
                return spec.record
        raise KeyError(topic)


def topics(prefix: str = "kinguin", partitions: int = 6) -> Topics:
    """Return all topics. Order events and dead letters are kept for ever: a pre-order may wait for months for its keys."""

    def spec(record: RecordName, key: str, retention_ms: int) -> TopicSpec:
        return TopicSpec(
            record=record,
            name=f"{prefix}.{record}",
            key=key,
            partitions=partitions,
            retention_ms=retention_ms,
            compacted=record in (*DERIVED_NAMES, "dead-letter.trail"),
        )

    return Topics(
        (
            spec("product.update", "kinguinId in decimal", 180 * DAY_MS),
            spec("order.status", "orderId", UNLIMITED_MS),
            spec("order.complete", "orderId", UNLIMITED_MS),
            spec("dead-letter", "deadLetterId", UNLIMITED_MS),
            spec("dead-letter.trail", "deadLetterId", UNLIMITED_MS),
            spec("order.state", "<store>:<orderId>", UNLIMITED_MS),
            spec("product.state", "<store>:<kinguinId>", UNLIMITED_MS),
        )
    )
