"""Records a second of a replay, beside a bare loop that consumes and produces, and beside kcat.

uv run python benchmarks/replay.py [--records 500000] [--repetitions 3] [--json]

A topic of six partitions is filled once with records of about 550 bytes: seven headers as the ingress writes them, and a value
of 300 bytes. Then each program moves all of it, in a process of its own, in alternating order:
  bare   confluent_kafka's consume(500) and produce() with key, headers, time and partition, acks=all and idempotent, and
         nothing else: no receipt, no checksum, and nobody looks whether a record was refused. The reference
  kcat   kcat -C | kcat -P: key and value only, since it has no way to hand on headers, times and partitions
  topic  `kinguin-streams replay topic --execute`, until everything is written
  proof  its reading back, beside reading alone ("read": consume(500), nothing else)
  file   `kinguin-streams replay file --execute`, until everything is written
The clock of each runs from its first question to Kafka to its last acknowledgement; a replay's is read from its receipt, so
that starting Python counts for none. Also said: the most memory a replay has had, with all records and with a tenth of them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from measuring import broker, median, say

SOURCE, TARGET = "source", "target"
PARTITIONS = 6
BATCH_RECORDS = 500
PEERS = ("bare", "kcat", "topic", "file", "read")
_NO_LIMIT = {"retention.ms": "-1", "segment.bytes": "134217728"}


def make(bootstrap_servers: str, *topics: str) -> None:
    """Make topics of six partitions."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    new = [NewTopic(name, PARTITIONS, replication_factor=1, config=_NO_LIMIT) for name in topics]
    for future in admin.create_topics(new, operation_timeout=30).values():
        future.result(30)
    time.sleep(0.5)


def drop(bootstrap_servers: str, topic: str) -> None:
    """Delete a topic, so that no program pays for what another one has written."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.delete_topics([topic], operation_timeout=30).values():
        future.result(30)
    time.sleep(0.5)


def fill(bootstrap_servers: str, records: int) -> int:
    """Write the records, and return how many bytes of keys, values and headers they have."""
    producer = Producer(
        {"bootstrap.servers": bootstrap_servers, "linger.ms": 20, "queue.buffering.max.messages": 500_000}
    )
    value, size = os.urandom(150).hex().encode(), 0  # without line ends, for kcat
    for number in range(records):
        key = b"PHS%08d" % (number % 50_000)
        headers: Any = [
            ("ce_specversion", b"1.0"),
            ("ce_id", b"%032x" % number),
            ("ce_source", b"urn:kinguin:store:default"),
            ("ce_type", b"net.kinguin.order.status"),
            ("ce_time", b"2026-09-21T13:46:40.000Z"),
            ("ce_subject", key),
            ("content-type", b"application/avro"),
        ]
        size += len(key) + len(value) + sum(len(name) + len(text) for name, text in headers)
        while True:
            try:
                producer.produce(SOURCE, value, key, headers=headers, timestamp=1_790_000_000_000 + number)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(120) == 0
    return size


def bare(bootstrap_servers: str, records: int, *, produce: bool) -> float:
    """Move the records, or only read them, and return the seconds."""
    began_s = time.monotonic()
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "bare", "enable.auto.commit": False})
    # As long a linger as the replay has: with librdkafka's 5 ms the bare loop was the slower one of the two.
    config = {"bootstrap.servers": bootstrap_servers, "acks": "all", "enable.idempotence": True, "linger.ms": 20}
    producer = Producer(config)
    consumer.assign([TopicPartition(SOURCE, number, 0) for number in range(PARTITIONS)])
    moved = 0
    while moved < records:
        for message in consumer.consume(BATCH_RECORDS, 0.1):
            assert message.error() is None
            moved += 1
            if not produce:
                continue
            while True:
                try:
                    producer.produce(
                        TARGET,
                        message.value(),
                        message.key(),
                        message.partition() or 0,
                        timestamp=message.timestamp()[1],
                        headers=message.headers(),
                    )
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    producer.flush()
    took_s = time.monotonic() - began_s
    consumer.close()
    return took_s


def kcat(bootstrap_servers: str) -> float:
    """Pipe one kcat into another, and return the seconds."""
    began_s = time.monotonic()
    both = ["kcat", "-q", "-b", bootstrap_servers, "-K", "|"]
    with subprocess.Popen([*both, "-C", "-t", SOURCE, "-o", "beginning", "-e"], stdout=subprocess.PIPE) as reading:
        subprocess.run([*both, "-P", "-t", TARGET, "-X", "acks=all"], stdin=reading.stdout, check=True)
    return time.monotonic() - began_s


def replay(bootstrap_servers: str, folder: Path, *arguments: str) -> dict[str, float] | None:
    """Run a replay; return its seconds, those of its proof, and its most memory in MB. None if there is no such command."""
    environment = {
        **os.environ,
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
        "KINGUIN_REPLAY__RECEIPTS": str(folder),
    }
    command = [sys.executable, "-m", "kinguin_streams", "replay", *arguments, "--execute", "--json"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    said, talk = child.stdout.read(), child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode == 2:
        return None
    assert child.returncode == 0, talk
    lines = [msgspec.json.decode(line) for line in Path(json.loads(said)["receipt"]).read_bytes().splitlines()]
    at = {line["kind"]: datetime.fromisoformat(line["at"]) for line in lines}
    return {
        "seconds": (at["written"] - at["begun"]).total_seconds(),
        "proof_s": (at["proof"] - at["written"]).total_seconds(),
        "memory_mb": usage.ru_maxrss / 1024,
    }


def measure(bootstrap_servers: str, peer: str, records: int) -> dict[str, float] | None:
    """Run a peer once, into a target of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if peer == "file":
            return replay(bootstrap_servers, folder / "receipts", "file", str(folder / "files"), SOURCE)
        make(bootstrap_servers, TARGET)
        try:
            match peer:
                case "topic":
                    return replay(bootstrap_servers, folder, "topic", TARGET, SOURCE)
                case "kcat":
                    return {"seconds": kcat(bootstrap_servers)} if shutil.which("kcat") else None
                case _:
                    command = [
                        sys.executable,
                        __file__,
                        "--peer",
                        peer,
                        "--at",
                        bootstrap_servers,
                        "--records",
                        str(records),
                    ]
                    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                    return {"seconds": float(done.stdout)}
        finally:
            drop(bootstrap_servers, TARGET)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        print(bare(given.at, given.records, produce=given.peer == "bare"))
        return
    with broker() as local, tempfile.TemporaryDirectory() as name:
        bootstrap_servers = local.bootstrap_servers
        make(bootstrap_servers, SOURCE)
        size = fill(bootstrap_servers, given.records)
        found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
        for turn in range(given.repetitions):
            for peer in PEERS if turn % 2 == 0 else PEERS[::-1]:
                result = measure(bootstrap_servers, peer, given.records)
                say(f"{peer}: {result}")
                if result is not None:
                    found[peer].append(result)
        make(bootstrap_servers, TARGET)
        until = f"offset:{given.records // PARTITIONS // 10}"
        tenth = replay(bootstrap_servers, Path(name), "topic", TARGET, SOURCE, "--until", until)
    seconds = {peer: median([one["seconds"] for one in results]) for peer, results in found.items() if results}
    seconds["proof"] = median([one["proof_s"] for one in found["topic"]])
    report = {
        "records": given.records,
        "bytes": size,
        "records_per_s": {peer: round(given.records / taken) for peer, taken in seconds.items()},
        "mb_per_s": {peer: round(size / taken / 1e6, 1) for peer, taken in seconds.items()},
        "of_bare": {
            peer: round(seconds["bare"] / seconds[peer], 2) for peer in ("kcat", "topic", "file") if peer in seconds
        },
        "proof_of_read": round(seconds["read"] / seconds["proof"], 2),
        "memory_mb": {
            "all": round(max(one["memory_mb"] for one in found["topic"])),
            "a tenth": round((tenth or {}).get("memory_mb", 0)),
        },
    }
    if given.json:
        print(json.dumps(report))
        return
    for peer, rate in report["records_per_s"].items():
        print(f"{peer:6} {rate:>9,} records/s {report['mb_per_s'][peer]:>7} MB/s")
    for key in ("of_bare", "proof_of_read", "memory_mb"):
        print(f"{key}: {report[key]}")


if __name__ == "__main__":
    main()
