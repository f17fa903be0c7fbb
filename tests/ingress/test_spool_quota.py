"""A quota that is spent is a full disk; a disk that fails is not, though SQLite says the same of both. strace makes the kernel say so."""

import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinguin_streams.ingress.spool_file import look

STRACE = shutil.which("strace")
WRITES = "pwrite64,fallocate"

CHILD = """
    import sys
    from pathlib import Path
    import structlog
    from kinguin_streams.ingress.spool_file import SpoolFailed, SpoolFile
    from kinguin_streams.schemas.outgoing import OutgoingRecord

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    file = SpoolFile(Path(sys.argv[1]))
    ids = [file.append(OutgoingRecord("t", b"k", b"v" * 3000, (), 1), 10).result(10) for _ in range(3)]
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            if line == "append\\n":
                file.append(OutgoingRecord("t", b"k", b"v" * 3000, (), 1), 10).result(10)
            else:
                file.remove(ids[:1])
            code = "ok"
        except SpoolFailed as failed:
            code = failed.code
        print(code, "trusted" if file.failure is None else "distrusted", file.has_reserve, flush=True)
"""


@contextmanager
def injected(process_id: int, injections: list[str], trace: Path) -> Iterator[None]:
    """Have the kernel refuse calls of a running process, until the end of the block."""
    options = [option for each in injections for option in ("-e", f"inject={each}")]
    command = [str(STRACE), "-f", "-p", str(process_id), "-e", f"trace={WRITES}", *options, "-o", str(trace)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        try:
            assert strace.stderr is not None
            said = strace.stderr.readline()
            if "attached" not in said:
                pytest.skip(f"strace may not trace here: {said.strip()}")
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait(20)


@pytest.fixture
def child(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    if STRACE is None:
        pytest.skip("strace is not installed")
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "one.spool")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def ask(child: "subprocess.Popen[str]", what: str) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{what}\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def test_a_spent_quota_is_a_full_disk_and_is_over_when_there_is_room_again(
    child: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with injected(child.pid, [f"{WRITES}:error=EDQUOT"], tmp_path / "trace"):
        assert ask(child, "append") == "full trusted True"
        # Here it is as if the reserve were no help; by itself it gives a DELETE its room, as on any full disk.
        assert ask(child, "remove") == "full trusted False"
        assert ask(child, "append") == "full trusted False"
    assert "EDQUOT" in (tmp_path / "trace").read_text()
    until_s = time.monotonic() + 20
    while ask(child, "append") != "ok trusted True":
        assert time.monotonic() < until_s
        time.sleep(0.2)
    assert ask(child, "remove") == "ok trusted True"
    assert look(tmp_path / "one.spool").records >= 3


def test_a_removal_gets_the_reserve_where_a_quota_is_spent(child: "subprocess.Popen[str]", tmp_path: Path) -> None:
    with injected(child.pid, ["pwrite64:error=EDQUOT:when=1", "fallocate:error=EDQUOT:when=1"], tmp_path / "trace"):
        assert ask(child, "remove") == "ok trusted True"
    assert len(re.findall("EDQUOT", (tmp_path / "trace").read_text())) == 2
    assert look(tmp_path / "one.spool").records == 2


def test_a_write_that_fails_while_there_is_room_is_a_disk_that_is_not_believed(
    child: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with injected(child.pid, ["pwrite64:error=EIO"], tmp_path / "trace"):
        assert ask(child, "append") == "failed distrusted True"
    assert ask(child, "append") == "failed distrusted True"
    assert look(tmp_path / "one.spool").records == 3
