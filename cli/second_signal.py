"""A second SIGTERM or SIGINT ends the process at once, as in the ingress and in `up`, whatever its main thread waits for."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exits_at_once() -> Iterator[None]:
    """Meanwhile the second of them exits with 128 and its number. The first is left to its handler, which must be Python's.

    For the main thread. Not from a handler: those run on the main thread alone, once it is back from C, and the kernel may
    give the signal to another thread. Not by SIG_DFL after the first: process 1 of a container would ignore the second.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True)
    watching.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        watching.join()
        os.close(reading)


def _watch(reading: int) -> None:
    seen = 0
    while numbers := os.read(reading, 64):
        for number in numbers:
            seen += number in (signal.SIGTERM, signal.SIGINT)
            if seen == 2:
                os._exit(128 + number)
