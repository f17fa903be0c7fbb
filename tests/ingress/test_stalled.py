"""What stops the loop in which all webhooks are served: whoever reads stderr does not; and what does is seen by the probe."""

import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kinguin_streams.schemas.topics import topics
from tests.conftest import KafkaCluster, free_port
from tests.ingress.running_ingress import (
    SERVERS,
    Connection,
    Log,
    RunningIngress,
    apply_topics,
    command,
    is_ready,
    new_id,
    order_status,
    request_bytes,
    wait_until,
)

pytestmark = pytest.mark.kafka


@contextmanager
def started(
    kafka: KafkaCluster, prefix: str, folder: Path, server: str, *, program: str | None = None
) -> Iterator[RunningIngress]:
    """An ingress whose stderr nobody reads. program: Python that takes the place of the command."""
    declared = topics(prefix, partitions=2)
    apply_topics(kafka.bootstrap_servers, declared)
    port, admin_port = free_port(), free_port()
    arguments, environment = command(kafka.bootstrap_servers, prefix, port=port, admin_port=admin_port, server=server)
    if program is not None:
        arguments[1:3] = ["-c", program]
    log = Log(kafka.bootstrap_servers, declared)
    with subprocess.Popen(arguments, cwd=folder, env=environment, stderr=subprocess.PIPE) as process:
        running = RunningIngress(process, port, admin_port, log, folder, server)
        try:
            wait_until(lambda: _answers(running) and is_ready(running), 30, "an ingress that is ready")
            yield running
        finally:
            process.kill()
            log.close()


def _answers(running: RunningIngress) -> bool:
    with suppress(OSError):
        return running.admin("/livez").status == 200
    return False


@pytest.mark.parametrize("server", SERVERS)
def test_a_stderr_that_nobody_reads_stops_nobody(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    with started(kafka, topic_prefix, tmp_path, server) as running:
        connection = Connection(running.port, timeout_s=8)
        bad = running.webhook(b"{")
        assert {connection.exchange(bad).status for _ in range(800)} == {
            202
        }  # a line each: three times what a pipe holds
        connection.close()
        assert running.post(order_status(new_id())).status == 204
        assert running.metrics()["kinguin_log_lines_dropped_total", ()] == 0  # they wait
        assert running.terminate() == 0


STUCK = textwrap.dedent("""
    import sys, time
    from kinguin_streams.cli.main import main
    from kinguin_streams.ingress import admin, answering
    admin.STALLED_S, store_of = 1.0, answering.store_of
    answering.store_of = lambda path: time.sleep(60 if path == "/stuck" else 0) or store_of(path)
    main()
""")


@pytest.mark.parametrize("server", SERVERS)
def test_a_loop_that_does_not_turn_is_not_alive(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    with started(kafka, topic_prefix, tmp_path, server, program=STUCK) as running:
        assert running.post(order_status(new_id())).status == 204
        connection = Connection(running.port, timeout_s=0.2, documented=False)
        with pytest.raises(TimeoutError):
            connection.exchange(request_bytes("GET", "/stuck", []), "GET")
        assert running.admin("/livez").status == 200
        wait_until(lambda: running.admin("/livez").status == 503, 10, "a probe that fails")
