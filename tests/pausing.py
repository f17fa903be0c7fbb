"""Stopping a process as a machine that hangs does: its connections stay, and nobody answers."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WITHIN_S = 10


@contextmanager
def paused(process_id: int) -> Iterator[None]:
    """Have every thread of the process stand still.

    The kernel stops the others once one of the threads has had its turn; on a busy machine some still answer meanwhile, so
    this waits for all of them.
    """
    os.kill(process_id, signal.SIGSTOP)
    try:
        deadline_s = time.monotonic() + WITHIN_S
        while not _stands_still(process_id):
            assert time.monotonic() < deadline_s, f"process {process_id} still runs"
            time.sleep(0.01)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGCONT)


def _stands_still(process_id: int) -> bool:
    threads = Path(f"/proc/{process_id}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)
