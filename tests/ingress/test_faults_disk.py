"""The disk: what was answered 204 has been synced, a disk that fails is not believed, a folder that cannot be used is refused.

strace tells what the process asks of the kernel, and makes the kernel say no.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinguin_streams.schemas.topics import topics
from tests.conftest import OwnKafka, free_port
from tests.ingress.faults import Witness, assert_invariants, bodies, end, kill, stalled, wait_until_drained
from tests.ingress.running_ingress import (
    Log,
    RunningIngress,
    apply_topics,
    assert_balanced,
    command,
    is_ready,
    start,
    wait_until,
)

pytestmark = pytest.mark.kafka

STRACE = shutil.which("strace")


def why_no_strace() -> str | None:
    """Return why the tests of row 7 cannot run here."""
    if STRACE is None:
        return "strace is not installed"
    tried = subprocess.run([STRACE, "-e", "trace=fsync", "/bin/true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


@contextmanager
def traced_ingress(
    own_kafka: OwnKafka, prefix: str, folder: Path, options: Sequence[str]
) -> Iterator[tuple[RunningIngress, Path]]:
    """Run an ingress under strace; yield it and the file that strace writes."""
    if why_not := why_no_strace():
        pytest.skip(why_not)
    declared = topics(prefix, partitions=2)
    apply_topics(own_kafka.bootstrap_servers, declared)
    port, admin_port = free_port(), free_port()
    arguments, environment = command(own_kafka.bootstrap_servers, prefix, port=port, admin_port=admin_port)
    trace, log_file = folder / "trace", folder / "traced.log"
    with log_file.open("wb") as log:
        # Threads of one process: killed with strace itself, for it was started by it.
        process = subprocess.Popen(
            [str(STRACE), "-f", "--seccomp-bpf", "-y", "-s", "64", "-o", str(trace), *options, *arguments],
            cwd=folder,
            env=environment,
            stderr=log,
            start_new_session=True,
        )
    running = RunningIngress(process, port, admin_port, Log(own_kafka.bootstrap_servers, declared), log_file)
    try:
        wait_until(lambda: is_ready(running), 60, "readiness")
        yield running, trace
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        end(running)


WAL_WRITE = re.compile(r"pwrite64\(\d+<[^>]*\.spool-wal>")
WAL_SYNC = re.compile(r"f(?:data)?sync\(\d+<[^>]*\.spool-wal>")
SYNCED = re.compile(r"f(?:data)?sync\b.*= 0$")


def test_row_7_each_204_follows_a_sync_after_its_row(own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path) -> None:
    options = ["-e", "trace=fsync,fdatasync,pwrite64,sendto"]
    with traced_ingress(own_kafka, topic_prefix, tmp_path, options) as (running, trace):
        witness = Witness(tmp_path / "witness.jsonl")
        with stalled(own_kafka.broker):
            # One after the other, so that each row has a sync of its own.
            answers = witness.post(running, bodies(20), clients=1)
            assert {answer.status for answer in answers} == {204}
            lines = trace.read_text("utf-8", errors="replace").splitlines()
        wait_until_drained(running)
        assert assert_invariants(witness, running).acked == 20
    written = synced = answered = 0
    syncing: set[str] = set()
    for line in lines:
        thread = line.split(" ", 1)[0]
        if WAL_WRITE.search(line):
            written, synced = written + 1, 0
        elif WAL_SYNC.search(line) and line.endswith("<unfinished ...>"):
            syncing.add(thread)
        elif (WAL_SYNC.search(line) or thread in syncing) and SYNCED.search(line):
            syncing.discard(thread)
            synced += 1
        elif "sendto(" in line and "HTTP/1.1 204" in line:
            answered += 1
            assert written, f"an answer without a row: {line}"
            assert synced, f"an answer before the sync of its row: {line}"
            written = synced = 0
    assert answered == 20


def test_row_7_after_a_sync_that_failed_nothing_more_is_answered_204_by_the_spool(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    fails_from = 15  # strace counts for each thread: the main one syncs less often at the start, and one thread writes
    options = ["-e", "trace=fsync,fdatasync", "-e", f"inject=fsync,fdatasync:error=EIO:when={fails_from}+"]
    with traced_ingress(own_kafka, topic_prefix, tmp_path, options) as (running, trace):
        witness = Witness(tmp_path / "witness.jsonl")
        with stalled(own_kafka.broker):
            statuses = [answer.status for answer in witness.post(running, bodies(30), clients=1)]
            assert "EIO" in trace.read_text("utf-8", errors="replace")
            kept = statuses.count(204)
            assert 0 < kept < fails_from
            assert statuses == [204] * kept + [503] * (30 - kept)
            wait_until(lambda: not is_ready(running), 5, "unreadiness")
            assert "[-] spool: " in running.admin("/readyz").body.decode()
            metrics = running.metrics()
            assert metrics["kinguin_ingress_spool_usable", ()] == 0
            assert_balanced(metrics)
            os.killpg(running.process.pid, 9)
            kill(running)
    running = start(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
    try:
        wait_until_drained(running)
        outcome = assert_invariants(witness, running, room=False)
        assert kept <= outcome.landed <= kept + 2  # and the first, in doubt in Kafka, and the one whose sync failed
        assert running.terminate() == 0
    finally:
        end(running)


@pytest.mark.parametrize(
    ("folder", "settings"),
    [
        pytest.param("{tmp}/a-file/spool", {}, id="below a file"),
        pytest.param("/proc/no/spool", {}, id="where nobody can write"),
        pytest.param("/dev/shm/{name}", {"spool__require_durable": True}, id="on a filesystem that a restart empties"),
    ],
)
def test_row_65_a_spool_that_cannot_be_used_is_exit_2_and_names_its_setting(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path, folder: str, settings: dict[str, object]
) -> None:
    if folder.startswith("/dev/shm") and not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    (tmp_path / "a-file").touch()
    path = Path(folder.format(tmp=tmp_path, name=topic_prefix))
    arguments, environment = command(
        own_kafka.bootstrap_servers,
        topic_prefix,
        port=free_port(),
        admin_port=free_port(),
        spool__path=path,
        **settings,
    )
    done = subprocess.run(
        arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    if path.is_dir():
        path.rmdir()
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert "KINGUIN_SPOOL__PATH" in said
