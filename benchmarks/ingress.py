"""The ingress and its peers, side by side: requests a second and latency, each answer given after Kafka has the record.

uv run python benchmarks/ingress.py [--peers waitress,granian,benthos] [--connections 1,16,64,256] [--seconds 4]
    [--repetitions 3] [--rows rows.jsonl]

Every repetition starts every peer anew, in another order, and loads it by wrk (Debian package `wrk`) from the same machine.
Quote ratios of one run: noise hits all alike. A measurement during which others used the machine is repeated. After each, the
topic's end offsets must have grown by the number of 2xx answers: a server that answers before Kafka has the record would look
fast. The peers `…-spool` are measured while Kafka is stopped; there the ingress's own count must have grown, and every event
must be in Kafka once it runs again. A peer that cannot be had here is skipped, and said so.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from measuring import (
    broker,
    cpu_s_of_machine,
    cpu_s_of_sessions,
    free_port,
    median,
    process,
    say,
    wait_for,
    wait_for_port,
)
from prometheus_client.parser import text_string_to_metric_families

from kinguin_streams.cluster.connection import consumer_config
from kinguin_streams.cluster.local_broker import LocalBroker
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.cluster.topic_reader import TopicReader

HERE = Path(__file__).parent
PEERS_FOLDER = HERE / "peers"
SECRET = "benchmark-only"  # noqa: S105
TOPIC = "kinguin.order.status"
BENTHOS = "github.com/benthosdev/benthos/v4@v4.27.0"
"""The last under this name; newer ones may differ."""
FOREIGN_CORES_ALLOWED = 0.2
TRIES = 3


class Unavailable(Exception):
    """This peer cannot be had here, and why."""


@dataclass(frozen=True)
class Peer:
    """A server and what it is compared with. commands: port to the commands that share it, each with an environment."""

    commands: Callable[[int], list[list[str]]]
    writes: bool = True
    ours: bool = False
    spool: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    content_type: str = "aplication/json"


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _ours(server: str, processes: int = 1) -> Callable[[int], list[list[str]]]:
    command = _python("-m", "kinguin_streams", "ingress", "--server", server, "--reuse-port")
    return lambda port: [[*command, "--port", str(port)] for _ in range(processes)]


def _noop(processes: int) -> Callable[[int], list[list[str]]]:
    return lambda port: [_python(str(PEERS_FOLDER / "noop_waitress.py"), str(port))] * processes


def _granian_noop(port: int) -> list[list[str]]:
    options = ["--interface", "asgi", "--loop", "uvloop", "--log-level", "error", "--port", str(port)]
    return [_python("-m", "granian", *options, "--working-dir", str(PEERS_FOLDER), "noop_granian:app")]


def _fastapi(port: int) -> list[list[str]]:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise Unavailable("uv is not installed")
    packages = [option for name in ("fastapi", "uvicorn[standard]", "aiokafka") for option in ("--with", name)]
    uvicorn = ["uvicorn", "--log-level", "error", "--no-access-log", "--backlog", "1024", "--port", str(port)]
    return [
        [
            uv,
            "run",
            "--no-project",
            "--quiet",
            *packages,
            *uvicorn,
            "--app-dir",
            str(PEERS_FOLDER),
            "fastapi_aiokafka:app",
        ]
    ]


def _benthos(_port: int) -> list[list[str]]:
    source, built = PEERS_FOLDER / "benthos", HERE.parent / ".data" / "benchmarks" / "benthos"
    if not (built / "benthos").exists():
        if shutil.which("go") is None:
            raise Unavailable("go is not installed")
        built.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "main.go", built)
        for command in (
            ["mod", "init", "benthos"],
            ["get", BENTHOS],
            ["build", "-mod=mod", "-ldflags=-s -w", "-o", "benthos", "."],  # what `get` has not noted of its parts
        ):
            done = subprocess.run(["go", *command], cwd=built, capture_output=True, text=True, check=False)  # noqa: S607
            if done.returncode and command[1] != "init":
                raise Unavailable(f"go {' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return [[str(built / "benthos"), "-c", str(source / "config.yaml")]]


PEERS = {
    "noop-waitress": Peer(_noop(1), writes=False),
    "noop-waitress-x2": Peer(_noop(2), writes=False),
    "noop-granian": Peer(_granian_noop, writes=False),
    "waitress": Peer(_ours("waitress"), ours=True),
    "waitress-x2": Peer(_ours("waitress", 2), ours=True),
    "granian": Peer(_ours("granian"), ours=True),
    "granian-x2": Peer(_ours("granian", 2), ours=True),
    "flushing": Peer(lambda port: [_python(str(PEERS_FOLDER / "flushing.py"), str(port))]),
    "fastapi": Peer(_fastapi, content_type="application/json"),
    "benthos": Peer(_benthos),
    "waitress-spool": Peer(_ours("waitress"), ours=True, spool=True),
    "granian-spool": Peer(_ours("granian"), ours=True, spool=True),
}


@dataclass
class Running:
    """A peer under load."""

    peer: Peer
    port: int
    admin_ports: Sequence[int]
    sessions: Sequence[int]

    def counted(self, name: str, **labels: str) -> float:
        """Return a counter of the ingress, over its processes."""
        return sum(_sample(port, name, labels) for port in self.admin_ports)


def _sample(admin_port: int, name: str, labels: dict[str, str]) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def load(port: int, connections: int, seconds: int, content_type: str) -> dict[str, float]:
    """Return what wrk measured."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(HERE / "webhook.lua")]
    run = "".join(random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=6))
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "BENCH_RUN": run, "BENCH_SECRET": SECRET, "BENCH_CONTENT_TYPE": content_type},
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


def measure(running: Running, kafka: LocalBroker, connections: int, seconds: int) -> dict[str, float]:
    """Load a peer, and check that what it answered is true."""
    peer = running.peer
    best: dict[str, float] | None = None
    for _ in range(TRIES):
        _wait_until_idle(running)
        before = records(kafka.bootstrap_servers) if peer.writes and not peer.spool else 0
        spooled = running.counted("kinguin_ingress_requests_total", outcome="spooled") if peer.spool else 0.0
        cpu_s, machine_s, wrk_s = cpu_s_of_sessions(running.sessions), cpu_s_of_machine(), _children_s()
        kafka_s, began_s = cpu_s_of_sessions([os.getsid(kafka.pid)]), time.monotonic()
        found = load(running.port, connections, seconds, peer.content_type)
        took_s = time.monotonic() - began_s
        cpu_s = cpu_s_of_sessions(running.sessions) - cpu_s
        kafka_s = cpu_s_of_sessions([os.getsid(kafka.pid)]) - kafka_s
        foreign = (cpu_s_of_machine() - machine_s - cpu_s - kafka_s - (_children_s() - wrk_s)) / took_s
        good = found["requests"] - found["not_2xx"]
        if found["not_2xx"] or found["failed"]:
            raise SystemExit(f"{found['not_2xx']} answers were not 2xx, {found['failed']} failed")
        _wait_until_idle(running)
        if peer.spool:
            grown = running.counted("kinguin_ingress_requests_total", outcome="spooled") - spooled
        else:
            grown = records(kafka.bootstrap_servers) - before if peer.writes else good
        if not good <= grown <= good + connections:
            raise SystemExit(f"{good} were acknowledged, and there are {grown} records")
        row = {
            "requests_per_s": good / found["duration_us"] * 1e6,
            "p50_ms": found["p50_us"] / 1000,
            "p99_ms": found["p99_us"] / 1000,
            "cpu_s_per_1000": cpu_s * 1000 / max(good, 1),
            "foreign_cores": foreign,
        }
        if best is None or foreign < best["foreign_cores"]:
            best = row
        if foreign <= FOREIGN_CORES_ALLOWED:
            break
    assert best is not None
    return best


def _wait_until_idle(running: Running) -> None:
    """Return once nothing is served any more: wrk leaves as many requests unfinished as it has connections.

    Most end at once. One that waits for a stopped Kafka may end in the spool only after the whole ack_wait_s, three seconds:
    begun in the load before, it would be counted with this one, whose wrk never saw it.
    """
    time.sleep(0.3)
    deadline_s = time.monotonic() + 10
    while running.counted("kinguin_ingress_in_flight") > 0:
        if time.monotonic() > deadline_s:
            raise SystemExit("requests are being served that nobody sends")
        time.sleep(0.1)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(name: str, connections: Sequence[int], seconds: int, kafka: LocalBroker) -> list[dict[str, float | str]]:
    """Start one peer, load it at each number of connections, stop it."""
    peer = PEERS[name]
    port = free_port()
    with ExitStack() as stack:
        admin_ports, sessions = [], []
        for command in peer.commands(port):
            environment = {
                "BENCH_BOOTSTRAP": kafka.bootstrap_servers,
                "BENCH_SECRET": SECRET,
                "BENCH_TOPIC": TOPIC,
                "BENCH_PORT": str(port),
            }
            if peer.ours:
                admin_ports.append(free_port())
                environment |= {
                    "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                    "KINGUIN_INGRESS__SECRETS": json.dumps({"default": [SECRET]}),
                    "KINGUIN_INGRESS__ADMIN_PORT": str(admin_ports[-1]),
                    "KINGUIN_SPOOL__PATH": stack.enter_context(tempfile.TemporaryDirectory()),
                    "KINGUIN_LOG__LEVEL": "ERROR",
                }
            sessions.append(stack.enter_context(process(command, environment)).pid)
        for admin_port in admin_ports:
            wait_for(f"http://127.0.0.1:{admin_port}/readyz")
        wait_for_port(port)
        time.sleep(0.5)  # of two processes on one port, both
        running = Running(peer, port, admin_ports, sessions)
        load(port, 16, 1, peer.content_type)
        if peer.spool:
            os.kill(kafka.pid, signal.SIGSTOP)
        try:
            if peer.spool:
                load(port, 16, 2, peer.content_type)  # until the ingress knows
            rows: list[dict[str, float | str]] = []
            for number in connections:
                row = measure(running, kafka, number, seconds)
                say(f"{name} c{number}: {row['requests_per_s']:.0f}/s, p99 {row['p99_ms']:.1f} ms")
                rows.append({"peer": name, "connections": number, **row})
        finally:
            if peer.spool:
                os.kill(kafka.pid, signal.SIGCONT)
        if peer.spool:
            _wait_until_drained(running, kafka)
    return rows


def _wait_until_drained(running: Running, kafka: LocalBroker) -> None:
    spooled = running.counted("kinguin_ingress_requests_total", outcome="spooled")
    acked = running.counted("kinguin_ingress_requests_total", outcome="acked")
    began_s = time.monotonic()
    while running.counted("kinguin_ingress_spool_events"):
        if time.monotonic() - began_s > 300:
            raise SystemExit("the spool does not drain")
        time.sleep(0.2)
    say(f"drained {spooled:.0f} records in {time.monotonic() - began_s:.1f} s, beside {acked:.0f} that went direct")
    if records(kafka.bootstrap_servers) < spooled + acked:
        raise SystemExit(f"{spooled + acked} were acknowledged, and there are fewer records")


def table(rows: Sequence[dict[str, float | str]], names: Sequence[str], connections: Sequence[int]) -> None:
    """Print medians."""
    print("| | " + " | ".join(f"c{number} req/s" for number in connections), end=" | ")
    print(" | ".join(f"c{number} p50 / p99 ms" for number in connections) + " | CPU s/1,000 |")
    print("| --- |" + " --- |" * (2 * len(connections) + 1))
    for name in names:

        def of(number: int, key: str, name: str = name) -> float:
            return median([float(row[key]) for row in rows if (row["peer"], row["connections"]) == (name, number)])

        if not any(row["peer"] == name for row in rows):
            continue
        cells = [f"{of(number, 'requests_per_s'):.0f}" for number in connections]
        cells += [f"{of(number, 'p50_ms'):.1f} / {of(number, 'p99_ms'):.1f}" for number in connections]
        cells.append(f"{median([of(number, 'cpu_s_per_1000') for number in connections]):.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peers", default=",".join(PEERS))
    arguments.add_argument("--connections", default="1,16,64,256")
    arguments.add_argument("--seconds", type=int, default=4)
    arguments.add_argument("--repetitions", type=int, default=3)
    arguments.add_argument("--rows", type=Path, help="append every measurement here, a JSON object a line")
    options = arguments.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    connections = [int(number) for number in options.connections.split(",")]
    names = options.peers.split(",")
    rows: list[dict[str, float | str]] = []
    with broker() as kafka:
        for name in list(names):
            try:
                PEERS[name].commands(0)
            except Unavailable as why:
                say(f"skipped {name}: {why}")
                names.remove(name)
        for repetition in range(options.repetitions):
            for name in random.Random(repetition).sample(names, len(names)):
                more = run(name, connections, options.seconds, kafka)
                rows += more
                if options.rows:
                    with options.rows.open("a") as file:
                        file.writelines(json.dumps({**row, "repetition": repetition}) + "\n" for row in more)
    table(rows, names, connections)
    worst = max(float(row["foreign_cores"]) for row in rows)
    print(
        f"\nOthers used at most {worst:.2f} cores during a measurement; load average at the end: {os.getloadavg()[0]:.2f}."
    )


if __name__ == "__main__":
    main()
