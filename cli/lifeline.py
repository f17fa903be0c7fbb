"""Child processes that end with their parent, even if that one is killed: they watch a pipe that only it holds open."""

import os
import signal
import threading

VARIABLE = "KINGUIN_STREAMS_LIFELINE"


def tie_to_parent() -> None:
    """If a parent left a lifeline, stop as on SIGTERM when it closes. Takes the variable out of the environment."""
    descriptor = os.environ.pop(VARIABLE, None)
    if descriptor is not None:
        threading.Thread(target=_stop_when_closed, args=(int(descriptor),), name="lifeline", daemon=True).start()


def _stop_when_closed(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
