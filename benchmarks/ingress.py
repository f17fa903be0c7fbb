"""Requests a second and latency of the ingress, Kafka's acknowledgement included, beside a no-op on the same server.

uv run python benchmarks/ingress.py [--connections 1,16,64] [--seconds 5] [--repetitions 3] [--json]

Both are started anew in each repetition, in alternating order, and loaded by wrk (Debian package `wrk`) from the same
machine. Quote the ratios, not the figures: they hold for machines of other speed, and noise hits both alike. After each
measurement the topic's end offsets must have grown by at least the number of 2xx answers, else the run fails: a server that
answers before Kafka has the record would look fast.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from measuring import free_port, kafka, median, process, say, wait_for

from kinguin_streams.cluster.connection import consumer_config
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.cluster.topic_reader import TopicReader

HERE = Path(__file__).parent
SECRET = "benchmark-only"  # noqa: S105
TOPIC = "kinguin.order.status"
PEERS = ("noop", "ingress")


def load(port: int, connections: int, seconds: int, run: str) -> dict[str, float]:
    """Return what wrk measured."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(HERE / "webhook.lua")]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "BENCH_RUN": run, "BENCH_SECRET": SECRET},
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    measured: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    return measured


def records(bootstrap_servers: str) -> int:
    """Return how many records the topic has had."""
    reader = TopicReader(
        consumer_config(KafkaSettings(bootstrap_servers=bootstrap_servers), group_id="bench", client_id="bench")
    )
    try:
        return sum(reader.end_offsets([TOPIC]).values())
    finally:
        reader.close()


def measure(
    peer: str, connections: list[int], seconds: int, bootstrap_servers: str, repetition: int
) -> list[dict[str, float | str]]:
    """Start one peer, load it at each number of connections, stop it."""
    port, admin_port = free_port(), free_port()
    environment = {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
        "KINGUIN_INGRESS__SECRETS": json.dumps({"default": [SECRET]}),
        "KINGUIN_INGRESS__PORT": str(port),
        "KINGUIN_INGRESS__ADMIN_PORT": str(admin_port),
        "KINGUIN_LOG__LEVEL": "WARNING",
    }
    rows: list[dict[str, float | str]] = []
    with ExitStack() as stack:
        if peer == "noop":
            stack.enter_context(process([sys.executable, str(HERE / "noop_ingress.py"), str(port)]))
            wait_for(f"http://127.0.0.1:{port}/webhooks")
        else:
            stack.enter_context(process([sys.executable, "-m", "kinguin_streams", "ingress"], environment))
            wait_for(f"http://127.0.0.1:{admin_port}/readyz")
        load(port, 16, 1, f"W{repetition}{peer[0].upper()}")
        for number in connections:
            before = records(bootstrap_servers)
            measured = load(port, number, seconds, f"R{repetition}{peer[0].upper()}{number}X")
            good = measured["requests"] - measured["not_2xx"]
            if measured["not_2xx"] or measured["failed"]:
                raise SystemExit(f"{peer}: {measured['not_2xx']} answers were not 2xx, {measured['failed']} failed")
            if peer == "ingress" and records(bootstrap_servers) - before < good:
                raise SystemExit(f"{good} were acknowledged, {records(bootstrap_servers) - before} are in Kafka")
            row: dict[str, float | str] = {
                "peer": peer,
                "connections": number,
                "requests_per_s": good / measured["duration_us"] * 1e6,
                "p50_ms": measured["p50_us"] / 1000,
                "p99_ms": measured["p99_us"] / 1000,
            }
            say(f"{repetition} {peer} c{number}: {row['requests_per_s']:.0f}/s p99 {row['p99_ms']:.1f} ms")
            rows.append(row)
    return rows


def main() -> None:
    """Run and print a table, or JSON."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--connections", default="1,16,64")
    arguments.add_argument("--seconds", type=int, default=5)
    arguments.add_argument("--repetitions", type=int, default=3)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    connections = [int(number) for number in options.connections.split(",")]
    rows: list[dict[str, float | str]] = []
    with kafka() as bootstrap_servers:
        for repetition in range(options.repetitions):
            for peer in PEERS if repetition % 2 == 0 else PEERS[::-1]:
                rows += measure(peer, connections, options.seconds, bootstrap_servers, repetition)
    summary = []
    for number in connections:
        figures = {
            (peer, key): median(
                [float(row[key]) for row in rows if (row["peer"], row["connections"]) == (peer, number)]
            )
            for peer in PEERS
            for key in ("requests_per_s", "p50_ms", "p99_ms")
        }
        line = {f"{peer}_{key}": round(value, 2) for (peer, key), value in figures.items()}
        ratio = figures["ingress", "requests_per_s"] / figures["noop", "requests_per_s"]
        summary.append({"connections": number, **line, "ratio": round(ratio, 2)})
    if options.json:
        print(json.dumps(summary))
        return
    print("| connections | no-op/s | ingress/s | ratio | no-op p50/p99 ms | ingress p50/p99 ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in summary:
        print(
            f"| {row['connections']} | {row['noop_requests_per_s']:.0f} | {row['ingress_requests_per_s']:.0f} |"
            f" {row['ratio']:.2f} | {row['noop_p50_ms']:.1f} / {row['noop_p99_ms']:.1f} |"
            f" {row['ingress_p50_ms']:.1f} / {row['ingress_p99_ms']:.1f} |"
        )


if __name__ == "__main__":
    main()
