"""waitress in front of the WSGI application: its loop, turned by us, and a stop that cuts nobody off."""

import contextlib
import socket
import sys
import time
from typing import Any, Final, cast

from waitress import wasyncore
from waitress.server import BaseWSGIServer, create_server

from kinguin_streams.ingress.answering import Webhooks
from kinguin_streams.ingress.app import make_app
from kinguin_streams.ingress.channel import Channel, cut_off_slow
from kinguin_streams.ingress.listening import BACKLOG, BACKSTOP_BODY_BYTES, IDLE_S, MAX_HEADER_BYTES
from kinguin_streams.ingress.settings import IngressSettings

# Measured with more open connections than threads: an answer waited a whole switch interval, of 5 ms by default, while
# waitress's loop looked through all connections; 400 requests a second instead of 1,700.
SWITCH_INTERVAL_S: Final = 0.0005
# A client that has just connected, or was just answered on a connection that stays open, may be sending its request now.
LINGER_S: Final = 0.5


class WaitressFront:
    """A request is read by the loop, on the main thread, and served by one of `threads`."""

    def __init__(self, listener: socket.socket, webhooks: Webhooks, settings: IngressSettings) -> None:
        """listener: a socket that listens; it is closed by `stop_accepting`."""
        self._listener = listener
        self._request_timeout_s = settings.request_timeout_s
        self._sockets: dict[int, Any] = {}
        self._lingers_until_s = 0.0
        server = create_server(
            make_app(webhooks),
            map=self._sockets,
            sockets=[listener],
            threads=settings.threads,
            connection_limit=settings.connection_limit,
            max_request_body_size=BACKSTOP_BODY_BYTES,
            max_request_header_size=MAX_HEADER_BYTES,
            channel_timeout=IDLE_S,
            asyncore_use_poll=True,
            backlog=BACKLOG,
            ident=None,
            clear_untrusted_proxy_headers=True,
        )
        # of one socket, so that it is not the other kind of server
        cast("BaseWSGIServer", server).channel_class = Channel
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    def turn(self, at_most_s: float) -> None:
        """Serve for a while."""
        # waitress's own run() would end at SIGTERM by cutting requests off, or within five seconds at most; turning its
        # loop ourselves, the answers in flight are still written while no new connection is taken.
        wasyncore.loop(timeout=at_most_s, use_poll=True, map=self._sockets, count=1)

    def cut_off_slow(self) -> int:
        """Close the connections whose request takes too long to come in; return how many."""
        return cut_off_slow(self._sockets.values(), self._request_timeout_s)

    def stop_accepting(self) -> None:
        """Close the listening socket, but take whoever waits in its queue: closing alone would reset their connections."""
        self._lingers_until_s = time.monotonic() + LINGER_S
        (server,) = (part for part in self._sockets.values() if isinstance(part, BaseWSGIServer))
        # Not its close(): that takes the trigger away by which worker threads wake the loop.
        server.accepting = False
        server.del_channel()
        waiting = []
        with self._listener, contextlib.suppress(BlockingIOError):
            while True:
                waiting.append(self._listener.accept())
        for connection, address in waiting:
            server.set_socket_options(connection)
            Channel(server, connection, address, server.adj, map=self._sockets)

    def is_busy(self) -> bool:
        """Return whether a request is coming in, being served or being answered, or might be just now."""
        since_s = time.time() - LINGER_S  # waitress notes times of activity on this clock
        lingering = time.monotonic() < self._lingers_until_s
        return any(
            channel.requests
            or channel.request
            or channel.total_outbufs_len
            or (lingering and channel.last_activity > since_s)
            for channel in self._sockets.values()
            if isinstance(channel, Channel)
        )
