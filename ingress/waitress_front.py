"""waitress in front of the WSGI application: its loop, turned by us, in which requests wait, and a stop that cuts nobody off.

waitress would hand each request to a thread, which would wait for Kafka there. Measured at 64 connections: eleven switches
between threads for each request, most of them for Python's lock, and more than half of the time. So its loop does what an event
loop does: it runs each request up to where it waits, and on from there once Kafka's report has come.
"""

import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, cast

import structlog
from waitress import wasyncore
from waitress.server import BaseWSGIServer, create_server

from kinguin_streams.ingress.answering import Webhooks
from kinguin_streams.ingress.app import make_app, read
from kinguin_streams.ingress.channel import Channel, cut_off_slow
from kinguin_streams.ingress.listening import BACKLOG, BACKSTOP_BODY_BYTES, IDLE_S, MAX_HEADER_BYTES
from kinguin_streams.ingress.settings import IngressSettings
from kinguin_streams.ingress.waiting import TICK_S, InLoop

log = structlog.get_logger()

# Kafka's reports come on another thread. While this one is busy they wait for a switch interval, of 5 ms by default.
SWITCH_INTERVAL_S: Final = 0.0005
# A client that has just connected, or was just answered on a connection that stays open, may be sending its request now.
LINGER_S: Final = 0.5


class _Unserved:
    """Takes the place of waitress's threads: keeps the connections that have a request, for the loop to begin with it."""

    def __init__(self) -> None:
        self._channels: deque[Channel] = deque()

    def add_task(self, channel: Channel) -> None:
        """Called by waitress for each request, on the loop's thread."""
        self._channels.append(channel)

    def take(self) -> Iterator[Channel]:
        """Yield them, those too that come while this is being done."""
        while self._channels:
            yield self._channels.popleft()


class WaitressFront:
    """Everything is read, decided and answered in the loop, on the main thread."""

    def __init__(self, listener: socket.socket, webhooks: Webhooks, settings: IngressSettings) -> None:
        """listener: a socket that listens; it is closed by `stop_accepting`."""
        self._listener = listener
        self._webhooks = webhooks
        self._unserved = _Unserved()
        self._tick_at_s = 0.0
        self._request_timeout_s = settings.request_timeout_s
        self._sockets: dict[int, Any] = {}
        self._lingers_until_s = 0.0
        server = create_server(
            make_app(webhooks),
            map=self._sockets,
            _dispatcher=cast("Any", self._unserved),
            sockets=[listener],
            connection_limit=settings.connection_limit,
            max_request_body_size=BACKSTOP_BODY_BYTES,
            max_request_header_size=MAX_HEADER_BYTES,
            channel_timeout=IDLE_S,
            asyncore_use_poll=True,
            backlog=BACKLOG,
            ident=None,
            clear_untrusted_proxy_headers=True,
        )
        self._server = cast("BaseWSGIServer", server)  # of one socket, so that it is not the other kind of server
        self._server.channel_class = Channel
        # waitress takes one connection a turn, and we serve requests in between: of 256 new connections at once the last
        # ones waited for 0.8 s before anybody read their request.
        self._server.handle_accept = self._accept_waiting  # type: ignore[method-assign]
        self._waiting = InLoop(self._server.pull_trigger)
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    def turn(self, at_most_s: float) -> None:
        """Serve for a while."""
        # waitress's own run() would end at SIGTERM by cutting requests off, or within five seconds at most; turning its
        # loop ourselves, the answers in flight are still written while no new connection is taken.
        at_most_s = at_most_s if self._waiting.is_idle else min(at_most_s, TICK_S)
        wasyncore.loop(timeout=at_most_s, use_poll=True, map=self._sockets, count=1)
        for channel in self._unserved.take():
            self._begin(channel)
        self._waiting.resume()
        if time.monotonic() >= self._tick_at_s:
            self._tick_at_s = time.monotonic() + TICK_S
            self._waiting.time_out()

    def _begin(self, channel: Channel) -> None:
        environ = channel.asked()
        if environ is None:
            channel.service()
        else:
            self._waiting.start(self._webhooks.answer(read(environ)), channel.answered)

    def cut_off_slow(self) -> int:
        """Close the connections whose request takes too long to come in; return how many."""
        return cut_off_slow(self._sockets.values(), self._request_timeout_s)

    def stop_accepting(self) -> None:
        """Close the listening socket, but take whoever waits in its queue: closing alone would reset their connections."""
        self._lingers_until_s = time.monotonic() + LINGER_S
        # Not its close(): that takes the trigger away by which other threads wake the loop.
        self._server.accepting = False
        self._server.del_channel()
        with self._listener:
            self._accept_waiting()

    def _accept_waiting(self) -> None:
        """Take whoever waits in the listening socket's queue, up to the limit of connections."""
        while len(self._sockets) < self._server.adj.connection_limit:
            try:
                connection, address = self._listener.accept()
                self._server.set_socket_options(connection)
            except BlockingIOError:
                return
            except OSError as error:
                # The client has gone already, or there are no descriptors left: who is connected is served on.
                log.warning("connection not accepted", reason=str(error))
                return
            Channel(self._server, connection, address, self._server.adj, map=self._sockets)

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
