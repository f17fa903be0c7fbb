"""A socket that listens, or a sentence that says why there can be none."""

import errno
import socket
from typing import Final

from kinguin_streams.telemetry.operator_error import OperatorError

BACKLOG: Final = 1024


def listen(host: str, port: int, setting: str, *, host_setting: str, shared: bool = False) -> socket.socket:
    """Return a socket that listens there. setting, host_setting: what the operator may set to have it elsewhere.

    shared: other processes listen there too, and the kernel deals connections out to them.

    Raises OperatorError("port_taken") or ("cannot_listen").
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # now: two that have only bound the same port would both believe that they have it
    except OSError as error:
        listener.close()
        code = "port_taken" if error.errno == errno.EADDRINUSE else "cannot_listen"
        raise OperatorError(
            code, f"Cannot listen on {host}:{port}: {error.strerror}.", _hint(error, port, setting, host_setting)
        ) from error
    return listener


def _hint(error: OSError, port: int, setting: str, host_setting: str) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"Set {host_setting} to an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them."
    if error.errno == errno.EACCES:
        return f"This user may not listen on so low a port: set {setting} to one above 1023."
    return f"Stop what listens there (`ss -ltnp 'sport = :{port}'` shows it), or set {setting} to another port."
