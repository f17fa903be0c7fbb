"""Topics for the tests of replays: made, filled, read raw, and the command run over them."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from tests.commands import COMMAND, clean_environment, run

ORIGIN_MS = 1_700_000_000_000
Raw = tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]
"""(partition, timestamp, key, value, headers)"""


@dataclass(frozen=True)
class Bench:
    """A cluster, and a folder for receipts."""

    bootstrap_servers: str
    prefix: str
    folder: Path

    @property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers}, logger=CLIENT_LOGGER)

    def topic(self, name: str, partitions: int = 3, **config: str) -> str:
        """Make a topic that keeps everything, unless `config` says otherwise (_ for .), and return its name."""
        full = f"{self.prefix}.{name}"
        settings = {"retention.ms": "-1", **{key.replace("_", "."): value for key, value in config.items()}}
        admin = self.admin
        for future in admin.create_topics(
            [NewTopic(full, partitions, replication_factor=1, config=settings)], operation_timeout=15
        ).values():
            future.result(15)
        deadline_s = time.monotonic() + 10
        while full not in admin.list_topics(timeout=10).topics and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return full

    def produce(self, topic: str, records: Iterable[Mapping[str, Any]], **config: Any) -> None:
        """Write records, given as the arguments of Producer.produce, as any publisher of ours."""
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "partitioner": "murmur2_random",
                # One request after the other keeps the order as well, and an idempotent producer's first one takes 0.5 s.
                "acks": "all",
                "max.in.flight.requests.per.connection": 1,
                **config,
            },
            logger=CLIENT_LOGGER,
        )
        for record in records:
            while True:
                try:
                    producer.produce(topic, **record)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        assert producer.flush(60) == 0

    def delete_before(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Delete as retention does."""
        asked = [TopicPartition(topic, number, offset) for number, offset in offsets.items()]
        admin = self.admin  # held on to: without it, the futures would never come
        for future in admin.delete_records(asked).values():
            future.result(15)

    def clean_often(self) -> None:
        """Let the cleaner of compacted topics look for work ten times a second, instead of every 15 s. It may stay so."""
        often = ConfigEntry("log.cleaner.backoff.ms", "100", incremental_operation=AlterConfigOpType.SET)
        admin = self.admin
        brokers = map(str, admin.list_topics(timeout=10).brokers)
        asked = [ConfigResource(ResourceType.BROKER, name, incremental_configs=[often]) for name in brokers]
        for future in admin.incremental_alter_configs(asked).values():
            future.result(15)

    def raw(self, topic: str) -> list[Raw]:
        """Return all records, each partition in its order."""
        return sorted(self.each(topic), key=lambda record: record[0])  # stable: each partition stays in its order

    def each(self, topic: str) -> Iterator[Raw]:
        """Yield all records, read by a plain client; each partition in its order."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": "raw",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 50,
            },
            logger=CLIENT_LOGGER,
        )
        parts = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in parts])
        open_parts = set(parts)
        deadline_s = time.monotonic() + 600
        while open_parts and time.monotonic() < deadline_s:
            for message in consumer.consume(1_000, 0.2):
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    open_parts.discard(message.partition())
                    continue
                headers: Any = message.headers() or ()
                yield message.partition() or 0, message.timestamp()[1], message.key(), message.value(), tuple(headers)
        consumer.close()
        assert not open_parts

    @property
    def settings(self) -> dict[str, str]:
        return {
            "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "KINGUIN_REPLAY__RECEIPTS": str(self.folder / "receipts"),
            "KINGUIN_TOPICS__PREFIX": self.prefix,
        }

    @property
    def receipts(self) -> list[Path]:
        return sorted((self.folder / "receipts").glob("*.jsonl"))

    def replay(self, *arguments: str, settings: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Run `kinguin-streams replay` to its end."""
        return run({**self.settings, **(settings or {})}, "replay", *arguments)

    def done(self, *arguments: str, exit_code: int = 0) -> dict[str, Any]:
        """Run it with --json, and return what it prints."""
        ended = self.replay(*arguments, "--json")
        assert ended.returncode == exit_code, ended.stderr
        said: dict[str, Any] = json.loads(ended.stdout)
        return said

    def start(self, *arguments: str, settings: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start it, in a session of its own."""
        return subprocess.Popen(
            [*COMMAND, "replay", *arguments],
            env=clean_environment({**self.settings, **(settings or {})}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def receipt_of(bench: Bench, process: "subprocess.Popen[str]", within_s: float = 60) -> Path:
    """Return the receipt of the only replay there is, once its process has made it."""
    deadline_s = time.monotonic() + within_s
    while not bench.receipts and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    (path,) = bench.receipts
    return path


def wait_for_checkpoints(
    receipt: Path, checkpoints: int, process: "subprocess.Popen[str]", within_s: float = 60
) -> None:
    """Return once the receipt has so many, or its process has ended."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s and process.poll() is None:
        if receipt.exists() and receipt.read_bytes().count(b'"kind":"checkpoint"') >= checkpoints:
            return
        time.sleep(0.02)


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill it as the kernel does when memory runs out, and take its exit."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)


def without_replay(records: Sequence[Raw]) -> list[Raw]:
    """Return what was copied, without the headers that the copy has added."""
    return [
        (partition, at_ms, key, value, tuple(h for h in headers if not h[0].startswith("replay-")))
        for partition, at_ms, key, value, headers in records
    ]


def digests(records: Iterable[Raw]) -> dict[int, str]:
    """Return a digest of each partition's records in their order, without the headers that a copy has added."""
    found: dict[int, Any] = {}
    for record in records:
        digest = found.setdefault(record[0], sha256())
        digest.update(repr(without_replay((record,))).encode())
    return {partition: digest.hexdigest() for partition, digest in found.items()}


def sources(records: Iterable[Raw]) -> Counter[bytes | None]:
    """Return how often each source record is there."""
    return Counter(value for record in records for name, value in record[4] if name == "replay-source")


def numbered(count: int, *, begin: int = 0, size: int = 60) -> list[dict[str, Any]]:
    """Return records that differ in everything: some without key, value or headers, times out of order."""
    filler = b"x" * size
    return [
        {
            "key": None if number % 11 == 3 else b"key-%d" % (number % 997),
            "value": None if number % 13 == 5 else b"\x00\xff%d" % number + filler,
            "timestamp": ORIGIN_MS + number * 10 - (number % 7) * 1_000,
            "headers": []
            if number % 5 == 2
            else [("n", b"%d" % number), ("n", b"again"), ("none", None), ("leer", b""), ("ünï", b"\xff\x00")],
        }
        for number in range(begin, begin + count)
    ]
