"""A topic as a replay's target: key, headers and time as they were, the same partition where there is one, each record once.

Two headers are added: `replay-id`, and `replay-source` with topic/partition/offset. They are what a resumed replay finds its
own records by, and what the proof is read from.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Literal

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.replay.checksum import REPLAY_PREFIX
from kinguin_streams.replay.landed_offsets import LandedOffsets
from kinguin_streams.replay.patience import patiently
from kinguin_streams.replay.plan import Window
from kinguin_streams.replay.receipt import Mark
from kinguin_streams.replay.record import REPLAY_ID, REPLAY_SOURCE, Record
from kinguin_streams.replay.run import Landed
from kinguin_streams.replay.settling import REPLICA_LAG_S, read_until_settled, settle_s
from kinguin_streams.replay.survey import REQUEST_TIMEOUT_S, TopicFacts, list_ends
from kinguin_streams.replay.topic_source import TopicSource
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

REPLAY_TIMESTAMP = "replay-timestamp"
Timestamp = Literal["keep", "now"]

# Whoever reads the copy must not take it for a part of the trace in which the original was made, nor for an earlier copy.
_TRACE_AND_HOPS = frozenset(
    {
        *("traceparent", "tracestate", "baggage", "b3", "uber-trace-id", "x-amzn-trace-id", "x-cloud-trace-context"),
        *("x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "x-request-id"),
    }
)
_ANY_PARTITION = -1  # the producer's own choice: murmur2 of the key, as every publisher of ours
_new: Any = tuple.__new__  # what Record's own __new__ does, without the call
_FIRST, _HEADERS = itemgetter(0), itemgetter(6)
_MOST_NAMES = 10_000
_NO_LIMIT_MS = 1 << 62  # message.timestamp.before.max.ms is 2^63 - 1 unless it is set


def copy_preferences(max_record_bytes: int) -> dict[str, Any]:
    """Return what a copy wants of a producer beside cluster.connection.producer_config: full batches, bounded memory.

    max_record_bytes: the target's max.message.bytes, which is a limit on whole batches.
    """
    return {
        "linger.ms": 20,
        "batch.size": min(1_000_000, max_record_bytes // 2),
        "queue.buffering.max.messages": 50_000,
        "queue.buffering.max.kbytes": 65_536,
    }


class TopicTarget:
    """A Target over a topic that exists."""

    def __init__(
        self,
        topic: str,
        partitions: int,
        replay_id: str,
        *,
        producer: Mapping[str, Any],
        admin: Mapping[str, Any],
        reader: dict[str, Any],
        same_partition: frozenset[str] = frozenset(),
        timestamp: Timestamp = "keep",
        check: Callable[[Sequence[Record]], None] | None = None,
        needs_keys: bool = False,
        batch_records: int = 500,
        at_rest: bool = False,
    ) -> None:
        """partitions: of the target. same_partition: source topics with as many.

        producer, admin: from cluster.connection; reader: from topic_source.source_config(…, committed=False), since open
        transactions of others must not hide our records. timestamp: "now" writes the time of writing, and keeps the old
        one in `replay-timestamp`. check: raises OperatorError for records that must not be written: a frames.FrameGuard
        where the values come from elsewhere. needs_keys: it is compacted. at_rest: nothing was written after the last `sync`: see receipt.Contents.
        """
        self._check_records = check
        self._needs_keys = needs_keys
        self._topic, self._partitions = topic, partitions
        self._id = replay_id.encode()
        self._same_partition = same_partition
        self._timestamp: Timestamp = timestamp
        self._reader, self._batch_records, self._at_rest = reader, batch_records, at_rest
        self._carried: set[str] = set()  # names of headers that a copy has, as met
        self._failure: str | None = None
        self._start: dict[int, int] = {}
        self._landed = LandedOffsets()
        self._scan_from: dict[int, int] = {}
        self._admin = new_client(AdminClient, admin)
        self._producer = new_client(
            Producer,
            {
                **producer,
                # Only failures are told: a call for each record that went well would cost a quarter of the speed.
                "delivery.report.only.error": True,
                "on_delivery": self._not_delivered,
                # So nobody sees which of those has no offset and may not be there (cluster.publisher). With one request at a
                # time no batch is behind another that was refused, and none is taken for delivered because of one behind it.
                "max.in.flight.requests.per.connection": 1,
            },
        )

    def open(self, mark: Mark | None) -> Landed:
        """Return what this replay has written after its last `sync`. Raises OperatorError("kafka_unreachable"), …

        A process that was killed may have left requests on their way, and records that not all replicas have: it waits for
        as long as those may stay unseen.
        """
        if mark is None:
            self._start = self._ends()
            return self._landed
        self._start = {int(number): offset for number, offset in mark["start"].items()}
        self._scan_from = {int(number): offset for number, offset in mark["ends"].items()}
        wait_s = 0.0 if self._at_rest else patiently(lambda: topic_settles_s(self._admin, self._topic))
        log.info("target_settles", topic=self._topic, wait_s=wait_s)
        read_until_settled(self._scan_from, self._ends, self._find_landed, wait_s)
        return self._landed

    def _ends(self) -> dict[int, int]:
        return list_ends(self._admin, self._topic, self._partitions)

    def _find_landed(self, start: Mapping[int, int], ends: Mapping[int, int]) -> bool:
        found = False
        for mine in self._ours(start, ends):
            for record, copied in zip(mine, self._without_added(mine), strict=True):
                self._landed.add(_header(record, REPLAY_SOURCE), copied)
                found = True
        return found

    def carried(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return the records without the headers of traces, hops and earlier replays."""
        # As good as always all names are known, and then nothing is made anew; this loop runs in C.
        if self._carried.issuperset(map(_FIRST, chain.from_iterable(map(_HEADERS, records)))):
            return records
        if len(self._carried) > _MOST_NAMES:
            self._carried.clear()
        return [self._stripped(record) for record in records]

    def _stripped(self, record: Record) -> Record:
        kept = tuple(header for header in record.headers if _is_carried(header[0]))
        self._carried.update(header[0] for header in kept)
        return record if len(kept) == len(record.headers) else Record(*record[:6], kept)

    def write(self, records: Sequence[Record]) -> None:
        """Hand records to the producer; it waits while its queue is full.

        Raises OperatorError: "not_delivered", "no_timestamp" for a record whose time cannot be kept: it has none, or one
        that Kafka's client takes for "now", "no_key" for one that a compacted topic does not take.
        """
        if self._check_records is not None:
            self._check_records(records)
        produce, target, replay_id = self._producer.produce, self._topic, (REPLAY_ID, self._id)
        keep, same_partition, needs_keys = self._timestamp == "keep", self._same_partition, self._needs_keys
        for topic, partition, offset, timestamp_ms, key, value, headers in records:
            added: Any = [*headers, replay_id, (REPLAY_SOURCE, f"{topic}/{partition}/{offset}")]
            if keep:
                if timestamp_ms is None or timestamp_ms <= 0:
                    raise _no_timestamp(topic, partition, offset)
                written_ms = timestamp_ms
            else:
                added.append((REPLAY_TIMESTAMP, b"" if timestamp_ms is None else b"%d" % timestamp_ms))
                written_ms = time.time_ns() // 1_000_000
            if needs_keys and key is None:
                # The broker would refuse its whole batch (INVALID_RECORD), and say of none of them which one it was.
                raise _no_key(target, topic, partition, offset)
            to = partition if topic in same_partition else _ANY_PARTITION
            while True:
                try:
                    produce(target, value, key, to, timestamp=written_ms, headers=added)
                    break
                except BufferError:
                    self._producer.poll(0.05)
                    self._check()
                except KafkaException as error:
                    raise _refused(target, topic, partition, offset, error.args[0]) from error
        self._producer.poll(0)
        self._check()

    def sync(self) -> Mark:
        """Return once every record has been acknowledged by all in-sync replicas. Raises OperatorError("not_delivered")."""
        try:
            # That nothing is left says only that all were reported; that none was reported as failed says the rest.
            while self._producer.flush(1.0):
                self._check()
        except KafkaException as error:
            self._failure = self._failure or error.args[0].str()
        self._check()
        # What landed before a kill lies before the end of now, perhaps far behind the checkpoint: until the run has come to
        # all of it, the next process must look where this one has looked.
        if not len(self._landed):
            self._scan_from = self._ends()
        return {"start": _by_name(self._start), "ends": _by_name(self._scan_from)}

    def finish(self) -> None:
        """Do nothing: a record in a topic is final when it is acknowledged."""

    def read_back(self) -> Iterator[Sequence[Record]]:
        """Yield what lies in the topic of this replay: after the end that it had when the replay began."""
        for mine in self._ours(self._start, self._ends()):
            yield self._without_added(mine)

    def _ours(self, start: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Sequence[Record]]:
        added, ours = self._headers_added, ((REPLAY_ID, self._id),)
        for batch in self._read(start, ends):
            yield [record for record in batch if record[6][-added:][:1] == ours]

    @property
    def _headers_added(self) -> int:
        return 2 if self._timestamp == "keep" else 3

    def _without_added(self, mine: Sequence[Record]) -> Sequence[Record]:
        added = self._headers_added
        if self._timestamp == "keep":
            return [_new(Record, (*record[:6], record[6][:-added])) for record in mine]
        return [_as_before(record, added) for record in mine]

    def _read(self, start: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Sequence[Record]]:
        windows = [
            Window(topic=self._topic, partition=number, start=start.get(number, 0), end=end, earliest=0, latest=end)
            for number, end in ends.items()
        ]
        yield from TopicSource(self._reader, windows, self._batch_records).read({})

    def _not_delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = f"{error.name()}: {error.str()}"
            log.error("record_not_delivered", topic=self._topic, partition=message.partition(), error=self._failure)

    def _check(self) -> None:
        if self._failure is not None:
            raise OperatorError(
                "not_delivered",
                f"Kafka has not confirmed every record for {self._topic}: {self._failure}.",
                "Mend the cause and run `replay resume`: it finds out what is there, and writes the rest.",
            )

    def close(self) -> None:
        """Let go of the producer; what it still holds is found by a resumed replay, or was never confirmed."""
        try:
            if self._failure is None:
                self._producer.flush(5.0)
        except KafkaException as error:
            log.warning("producer_closed", error=str(error))


def topic_settles_s(admin: AdminClient, topic: str) -> float:
    """Return settling.settle_s of a topic; Kafka's default where the brokers do not tell their configuration."""
    metadata = admin.list_topics(topic, timeout=REQUEST_TIMEOUT_S)
    replicas = max(len(partition.replicas) for partition in metadata.topics[topic].partitions.values())
    if replicas < 2:
        return settle_s(replicas)
    asked = [ConfigResource(ResourceType.BROKER, str(number)) for number in metadata.brokers]
    lags_s = []
    for told in admin.describe_configs(asked, request_timeout=REQUEST_TIMEOUT_S).values():
        try:
            lags_s.append(int(told.result()["replica.lag.time.max.ms"].value) / 1_000)
        except KafkaException as error:  # not allowed, or the broker is away
            log.warning("broker_configuration_unknown", error=str(error))
            lags_s.append(REPLICA_LAG_S)
    return settle_s(replicas, max(lags_s))


def time_limit_ms(facts: TopicFacts) -> int | None:
    """Return the age at which the target deletes or refuses records, None if at none."""
    limits = []
    if "delete" in facts.config.get("cleanup.policy", "delete"):
        limits.append(int(facts.config.get("retention.ms", "-1")))
    limits.append(int(facts.config.get("message.timestamp.before.max.ms", "-1")))
    set_ones = [limit for limit in limits if 0 <= limit < _NO_LIMIT_MS]
    return min(set_ones, default=None)


def is_compacted(facts: TopicFacts) -> bool:
    """Return whether the topic keeps the newest record of each key, and takes none without one."""
    return "compact" in facts.config.get("cleanup.policy", "")


def is_too_old(facts: TopicFacts, instant_ms: int, now_ms: int) -> bool:
    """Return whether the target would not keep a record of this time."""
    limit_ms = time_limit_ms(facts)
    return limit_ms is not None and now_ms - instant_ms >= limit_ms


def refuse_too_old(facts: TopicFacts, oldest_ms: int | None, now_ms: int) -> None:
    """Raise OperatorError("retention_too_short") if the target would delete the oldest record that is selected.

    Measured: a copy of records older than the target's retention is there, proves well, and is gone minutes later.
    """
    if oldest_ms is None or not is_too_old(facts, oldest_ms, now_ms):
        return
    raise OperatorError(
        "retention_too_short",
        f"{facts.name} keeps records for {_span(time_limit_ms(facts) or 0)}, and the oldest one selected is {_span(now_ms - oldest_ms)} old: "
        "the copy would delete itself.",
        f"Raise retention.ms of {facts.name}, narrow the window with --from, or write the time of now: --timestamp now.",
    )


def refuse(facts: TopicFacts, sources: Mapping[str, str], timestamp: Timestamp, *, force: bool) -> None:
    """Raise OperatorError for a target that can be told from its name and configuration to be wrong.

    sources: the topics read from the same cluster, to their ids. Codes: "same_topic", "target_sets_times".
    """
    if facts.topic_id in sources.values() and not force:
        raise OperatorError(
            "same_topic",
            f"{facts.name} is both the source and the target: every consumer of it would see its records again.",
            "Name another target; with --force it is done all the same.",
        )
    if facts.config.get("message.timestamp.type") == "LogAppendTime" and timestamp == "keep":
        raise OperatorError(
            "target_sets_times",
            f"{facts.name} gives every record the time of writing (message.timestamp.type=LogAppendTime).",
            "Set it to CreateTime, or say --timestamp now: the old time is then kept in the header replay-timestamp.",
        )


def warnings(facts: TopicFacts, sources: Sequence[TopicFacts]) -> list[str]:
    """Return what a person should know of the target."""
    said = []
    if is_compacted(facts):
        said.append(
            f"{facts.name} is compacted: of one key only the newest record stays, and the proof may come after that"
        )
    if facts.config.get("retention.bytes", "-1") != "-1":
        said.append(f"{facts.name} deletes by size: retention.bytes={facts.config['retention.bytes']} a partition")
    largest = int(facts.config.get("max.message.bytes", "0"))
    for source in sources:
        if 0 < largest < int(source.config.get("max.message.bytes", "0")):
            said.append(
                f"{facts.name} takes records of at most {largest:,} bytes, {source.name} holds larger ones perhaps"
            )
        if source.partitions != facts.partitions:
            said.append(
                f"{source.name} has {source.partitions} partitions and {facts.name} has {facts.partitions}: "
                "the key decides (murmur2), and records without one go anywhere"
            )
    return said


def _is_carried(name: str) -> bool:
    lower = name.lower()
    return lower not in _TRACE_AND_HOPS and not lower.startswith(REPLAY_PREFIX)


def _as_before(record: Record, added: int) -> Record:
    """Return a record that was written with the time of then, with its own time."""
    stamp = record.headers[-1][1]
    return record._replace(timestamp_ms=int(stamp) if stamp else None, headers=record.headers[:-added])


def _header(record: Record, wanted: str) -> bytes:
    return next(value or b"" for name, value in reversed(record.headers) if name == wanted)


def _by_name(offsets: Mapping[int, int]) -> dict[str, int]:
    return {str(number): offset for number, offset in sorted(offsets.items())}


def _span(span_ms: int) -> str:
    days = span_ms / 86_400_000
    return f"{days:.1f} days" if days >= 1 else f"{span_ms / 60_000:.1f} minutes"


def _no_timestamp(topic: str, partition: int, offset: int) -> OperatorError:
    return OperatorError(
        "no_timestamp",
        f"The record {topic}/{partition}/{offset} has no time that could be kept.",
        "Say --timestamp now.",
    )


def _no_key(target: str, topic: str, partition: int, offset: int) -> OperatorError:
    return OperatorError(
        "no_key",
        f"The record {topic}/{partition}/{offset} has no key, and {target} is compacted: Kafka does not take it.",
        f"Name a target that is not compacted, or copy what lies before it, --until {partition}={offset}, and behind it, "
        f"--from latest --from {partition}={offset + 1}.",
    )


def _refused(target: str, topic: str, partition: int, offset: int, error: KafkaError) -> OperatorError:
    return OperatorError(
        "not_delivered",
        f"The record {topic}/{partition}/{offset} cannot be written to {target}: {error.str()}.",
        f"Check max.message.bytes of {target} and message.max.bytes in KINGUIN_KAFKA__CONFIG, then `replay resume`.",
    )
