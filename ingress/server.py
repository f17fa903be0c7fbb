"""waitress, and the life of the process: start, serve, and stop without cutting a request off."""

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from types import FrameType
from typing import Any, Final, cast

import structlog
from waitress import wasyncore
from waitress.server import BaseWSGIServer, create_server

from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.ingress.admin import make_admin_app
from kinguin_streams.ingress.app import StrippedHeaders, Webhooks, make_app
from kinguin_streams.ingress.channel import Channel, cut_off_slow
from kinguin_streams.ingress.drain import Drain
from kinguin_streams.ingress.keeper import Keeper
from kinguin_streams.ingress.ledger import Ledger
from kinguin_streams.ingress.listening import BACKLOG, BACKSTOP_BODY_BYTES, MAX_HEADER_BYTES, listen
from kinguin_streams.ingress.openapi import document
from kinguin_streams.ingress.readiness import Readiness
from kinguin_streams.ingress.reload import ReadSecrets, SecretsReload
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.settings import IngressSettings
from kinguin_streams.ingress.spool import Spool
from kinguin_streams.ingress.spool_metrics import SpoolMetrics
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.topics import Topics

log = structlog.get_logger()

LOOP_TURN_S: Final = 0.25
LOOK_EVERY_S: Final = 1.0
# Measured with more open connections than threads: an answer waited a whole switch interval, of 5 ms by default, while
# waitress's loop looked through all connections; 400 requests a second instead of 1,700.
SWITCH_INTERVAL_S: Final = 0.0005
# A client that has just connected, or was just answered on a connection that stays open, may be sending its request now.
LINGER_S: Final = 0.5


@dataclass
class Server:
    """One ingress process: webhooks on the main thread's loop, the admin port on a thread of its own."""

    settings: IngressSettings
    publisher: KafkaPublisher
    topics: Topics
    encoder: Encoder
    spool: Spool | None
    read_secrets: ReadSecrets

    def __post_init__(self) -> None:
        """Bind both ports. Raises OperatorError("port_taken") before anything is served."""
        self.ledger = Ledger()
        self._keeper = Keeper(
            self.publisher,
            self.spool,
            ack_wait_s=self.settings.ack_wait_s,
            spool_timeout_s=self.spool.timeout_s if self.spool is not None else 0.0,
            max_patient=max(1, self.settings.threads // 2),
        )
        self._drain: Drain | None = None
        if self.spool is not None:
            breaker = self._keeper.breaker
            self._drain = Drain(self.spool, self.publisher, breaker, self.settings.queue_records)
            SpoolMetrics(self.spool, self._drain, breaker, self.ledger.registry)
        secrets = Secrets(self.read_secrets())
        vigil = Vigil(
            secrets,
            self.ledger.registry,
            silence_s=self.settings.silence_s,
            failure_budget=self.settings.failure_budget,
        )
        self._readiness = Readiness(self.publisher, self.topics, self._keeper, vigil)
        self._reload = SecretsReload(secrets, self.read_secrets, vigil)
        app = make_app(
            Webhooks(
                secrets=secrets,
                vigil=vigil,
                topics=self.topics,
                encoder=self.encoder,
                keeper=self._keeper,
                ledger=self.ledger,
                on_invalid=self.settings.on_invalid,
                stripped_headers=StrippedHeaders(),
                deadline_s=self.settings.deadline_s,
            )
        )
        self._sockets: dict[int, Any] = {}
        self._listener = listen(
            self.settings.host, self.settings.port, "KINGUIN_INGRESS__PORT", shared=self.settings.reuse_port
        )
        server = create_server(
            app,
            map=self._sockets,
            sockets=[self._listener],
            threads=self.settings.threads,
            connection_limit=self.settings.connection_limit,
            max_request_body_size=BACKSTOP_BODY_BYTES,
            max_request_header_size=MAX_HEADER_BYTES,
            channel_timeout=30,
            asyncore_use_poll=True,
            backlog=BACKLOG,
            ident=None,
            clear_untrusted_proxy_headers=True,
        )
        cast(
            "BaseWSGIServer", server
        ).channel_class = Channel  # of one socket, so that it is not the other kind of server
        described = document(
            version=version("kinguin-streams"), port=self.settings.port, admin_port=self.settings.admin_port
        )
        self._admin = create_server(
            make_admin_app(self._readiness, self.ledger.registry, described),
            sockets=[listen(self.settings.host, self.settings.admin_port, "KINGUIN_INGRESS__ADMIN_PORT")],
            threads=2,
            asyncore_use_poll=True,
            ident=None,
        )
        self._stop_at_s: float | None = None
        self._look_at_s = 0.0

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit code: 0 if all that was answered 2xx is in Kafka or on disk.

        On the signal: unready at once, serving goes on for `pre_stop_s`, then no new connections, requests in flight and
        those of clients that are connected already are finished and their answers written, the spool is drained as far as
        the time allows, the producer is flushed. A second signal exits at once. A producer in a fatal state ends the
        process in the same way, with 1: another one will make a new producer, and finds the spool.
        """
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._on_signal)
        signal.signal(signal.SIGHUP, lambda _number, _frame: self._reload.now())
        self._reload.start()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        threading.Thread(target=self._admin.run, name="admin", daemon=True).start()
        if self._drain is not None:
            self._drain.start()
        log.info(
            "ingress_serves",
            webhooks=f"http://{self.settings.host}:{self.settings.port}/webhooks",
            admin=f"http://{self.settings.host}:{self.settings.admin_port}",
            stores=sorted(self.settings.secrets),
        )
        # waitress's own run() would end at SIGTERM by cutting requests off, or within five seconds at most; turning its
        # loop ourselves, the answers in flight are still written while no new connection is taken.
        while self._stop_at_s is None or time.monotonic() < self._stop_at_s:
            self._turn()
            if self.publisher.fatal is not None and self._stop_at_s is None:
                log.error("ingress_stops", reason=self.publisher.fatal, hint="what comes in until then is spooled")
                self._readiness.stopping()
                break
        self._stop_accepting()
        started_s = time.monotonic()
        deadline_s = started_s + self.settings.stop_timeout_s
        while time.monotonic() < deadline_s and self._busy(time.monotonic() < started_s + LINGER_S):
            self._turn()
        if self._drain is not None:
            self._drain.stop(deadline_s - time.monotonic())
        left = self.publisher.close(max(0.0, deadline_s - time.monotonic()) + 1.0)
        waiting = 0
        if self.spool is not None:
            waiting = self.spool.waiting
            self.spool.close()
        balance = self.ledger.balance()
        log.info(
            "ingress_stopped",
            received=balance.received,
            in_flight=balance.in_flight,
            without_report=left,
            spooled=waiting,
        )
        # Without a spool, a record that got no report was answered 503; with one it is on disk.
        return 1 if self.publisher.fatal is not None or (left and self.spool is None) else 0

    def _turn(self) -> None:
        wasyncore.loop(timeout=LOOP_TURN_S, use_poll=True, map=self._sockets, count=1)
        if time.monotonic() >= self._look_at_s:
            self._look_at_s = time.monotonic() + LOOK_EVERY_S
            if cut := cut_off_slow(self._sockets.values(), self.settings.request_timeout_s):
                log.warning("slow_requests_cut_off", requests=cut, timeout_s=self.settings.request_timeout_s)

    def _stop_accepting(self) -> None:
        """Close the listening socket, but take whoever waits in its queue: closing alone would reset their connections."""
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

    def _busy(self, lingering: bool) -> bool:
        since_s = time.time() - LINGER_S  # waitress notes times of activity on this clock
        return any(
            channel.requests
            or channel.request
            or channel.total_outbufs_len
            or (lingering and channel.last_activity > since_s)
            for channel in self._sockets.values()
            if isinstance(channel, Channel)
        )

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop_at_s is not None:
            os._exit(128 + number)
        self._readiness.stopping()
        self._stop_at_s = time.monotonic() + self.settings.pre_stop_s
