"""What the benchmarks share: a broker of their own, child processes, free ports, and medians."""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

from kinguin_streams.cluster import local_broker
from kinguin_streams.cluster.connection import admin_config
from kinguin_streams.cluster.local_broker import LocalBroker
from kinguin_streams.cluster.settings import KafkaSettings, LocalSettings
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.schemas.topics import topics


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def broker() -> Iterator[LocalBroker]:
    """Yield a real Kafka with our topics, made for this run and gone after it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = LocalSettings(data_dir=Path(folder), kafka_port=free_port(), controller_port=free_port(), heap="1g")
        started = local_broker.start(settings)
        try:
            admin = TopicAdmin(admin_config(KafkaSettings(bootstrap_servers=started.bootstrap_servers)))
            admin.apply(plan(topics(), admin.describe(topics())))
            yield started
        finally:
            started.stop()


@contextmanager
def process(command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command until the block ends, in a session of its own, whose CPU time can be told from others'."""
    child = subprocess.Popen(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield child
    finally:
        child.terminate()
        child.wait(timeout=30)


TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s_of_sessions(sessions: Iterable[int]) -> float:
    """Return the CPU time so far of all living processes of these sessions."""
    wanted, ticks = set(sessions), 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone in between
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) in wanted:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def cpu_s_of_machine() -> float:
    """Return the CPU time that anything has used so far."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S


def wait_for(url: str, timeout_s: float = 30) -> None:
    """Return once the URL answers 2xx."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - an address of our own
                return
        except (URLError, ConnectionError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def wait_for_port(port: int, timeout_s: float = 60) -> None:
    """Return once somebody listens."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def say(message: str) -> None:
    """Talk on stderr."""
    print(message, file=sys.stderr, flush=True)


def without_logical_types(schema: Any) -> Any:
    """Return the schema with which a library reads times as integers and money as bytes: the quickest it can be."""
    if isinstance(schema, dict):
        return {key: without_logical_types(part) for key, part in schema.items() if key != "logicalType"}
    return [without_logical_types(part) for part in schema] if isinstance(schema, list) else schema
