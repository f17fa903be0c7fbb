"""Whoever logs in a process that serves never waits for whoever reads stderr; what is lost is counted, and said."""

import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kinguin_streams.telemetry.logs import Background

LINES = 50


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that is full."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def record(number: int) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, __file__, 0, f"line {number}", None, None)


def read_until(reading: int, end: bytes) -> str:
    read = b""
    until_s = time.monotonic() + 10
    while end not in read and time.monotonic() < until_s:
        read += os.read(reading, 65_536)
    return read.decode()


def test_lines_that_nobody_reads_hold_nobody_up_and_are_counted_and_told_of_once(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    handler = Background(writing, queue_lines=LINES)
    began_s = time.monotonic()
    for number in range(3 * LINES):
        handler.handle(record(number))
    assert not handler.wait_written(0.2)
    assert time.monotonic() - began_s < 2
    dropped = handler.dropped
    assert 2 * LINES - 1 <= dropped <= 2 * LINES  # one is in the thread's hand
    read = read_until(reading, b"log_lines_dropped")
    assert handler.wait_written(5)
    handler.handle(record(999))
    read += read_until(reading, b"line 999")
    lines = read.lstrip("x").splitlines()
    assert lines.count("log_lines_dropped") == 1
    numbers = [int(line.removeprefix("line ")) for line in lines if line.startswith("line ")]
    # Which line took the place of the one in the thread's hand depends on when the thread came to run.
    assert numbers[:LINES] == list(range(LINES))
    assert numbers == sorted(set(numbers))
    assert (len(numbers), numbers[-1]) == (3 * LINES - dropped + 1, 999)
    assert handler.dropped == dropped


def test_a_reader_that_is_gone_costs_lines_and_nothing_else() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = Background(writing)
    handler.handle(record(1))
    assert handler.wait_written(5)
    assert handler.dropped == 1
    os.close(writing)


SAYS_MUCH = textwrap.dedent("""
    import structlog
    from kinguin_streams.telemetry.logs import configure
    configure("INFO", "json", in_background=True)
    for number in range(2_000):
        structlog.get_logger().info("said", number=number)
""")


def test_all_lines_are_written_at_exit_in_order_and_each_is_whole() -> None:
    done = subprocess.run([sys.executable, "-c", SAYS_MUCH], stderr=subprocess.PIPE, timeout=20, check=True)
    assert [json.loads(line)["number"] for line in done.stderr.splitlines()] == list(range(2_000))


def test_a_process_whose_stderr_nobody_reads_ends_all_the_same() -> None:
    with subprocess.Popen([sys.executable, "-c", SAYS_MUCH], stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(15) == 0
        finally:
            process.kill()
