"""granian in front of the RSGI application: its embedded server in an event loop that we turn, in this very process.

Its process manager is not used: it forks, and a producer made before a fork never sends; and the life of the process, from
SIGTERM to the last delivery report, would be its own.
"""

import asyncio
import socket
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.net import SocketHolder
from granian.server import embed

from kinguin_streams.ingress.answering import Webhooks
from kinguin_streams.ingress.listening import BACKLOG, MAX_HEADER_BYTES
from kinguin_streams.ingress.rsgi import RsgiApp
from kinguin_streams.ingress.settings import IngressSettings

# Its own handlers print on stdout; what it has to say goes where our log goes.
_LOGGING: dict[str, Any] = {"formatters": {}, "handlers": {}, "loggers": {"_granian": {"propagate": True}}}


class _Embedded(embed.Server):  # type: ignore[misc] # granian's types are not followed
    """The embedded server, on a socket that listens already.

    Its own would share the port with whoever asks, so that a port that is taken would not be noticed.
    """

    def __init__(self, listener: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listener = listener

    def _init_shared_socket(self) -> None:
        self._ssp = None
        self._shd = SocketHolder(self._listener.detach(), False, BACKLOG)


class GranianFront:
    """Requests are read and answered by granian's own threads; the application runs in the loop, on the main thread."""

    def __init__(self, listener: socket.socket, webhooks: Webhooks, settings: IngressSettings) -> None:
        """listener: a socket that listens; granian closes it."""
        self._loop = _new_loop()
        self._request_timeout_s = settings.request_timeout_s
        self._app = RsgiApp(webhooks, self._loop)
        self._serving = self._loop.create_task(self._serve(listener, settings))
        self._server: _Embedded | None = None

    async def _serve(self, listener: socket.socket, settings: IngressSettings) -> None:
        self._server = _Embedded(
            listener,
            self._app,
            address=settings.host,
            port=settings.port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=settings.connection_limit,
            http1_settings=HTTP1Settings(
                header_read_timeout=int(settings.request_timeout_s * 1000), max_buffer_size=MAX_HEADER_BYTES
            ),
            log_level=LogLevels.error,
            log_dictconfig=_LOGGING,
        )
        await self._server.serve()

    def turn(self, at_most_s: float) -> None:
        """Serve for a while. Raises what ends granian."""
        self._loop.run_until_complete(asyncio.wait([self._serving], timeout=at_most_s))
        if self._serving.done():
            self._serving.result()

    def cut_off_slow(self) -> int:
        """Give up requests whose body takes too long to come in; return how many. Slow headers are granian's business."""
        return self._app.cut_off_slow(self._request_timeout_s)

    def stop_accepting(self) -> None:
        """Tell granian to stop: it closes the listening socket and idle connections, and finishes the others."""
        if self._server is not None:
            self._server.stop()

    def is_busy(self) -> bool:
        """Return whether granian has still a connection to finish."""
        return not self._serving.done()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
