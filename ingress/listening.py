"""Where the ingress listens, and what it never lets in."""

import socket
from typing import Final

from kinguin_streams.telemetry import listening

BACKLOG: Final = listening.BACKLOG
# waitress answers text/plain at its own limit, before our code; ours, at 65,536 bytes, comes first and says more.
BACKSTOP_BODY_BYTES: Final = 131_072
MAX_HEADER_BYTES: Final = 16_384
IDLE_S: Final = 30
"""After which waitress closes a connection on which nothing happens."""


def listen(host: str, port: int, setting: str, *, shared: bool = False) -> socket.socket:
    """Return a socket of the ingress, as telemetry.listening.listen does."""
    return listening.listen(host, port, setting, host_setting="KINGUIN_INGRESS__HOST or --host", shared=shared)
