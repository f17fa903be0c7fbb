"""Python's search for cyclic garbage, kept out of the way of those who hold thousands of records at once."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_cycles_looked_for() -> Iterator[None]:
    """Let Python not search for cyclic garbage meanwhile; what has piled up is looked at soon afterwards.

    Measured: while thousands of records are held at once, that search takes half of the time of reading them, and an eighth
    of a projection's, for records and headers which are in no cycle.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
