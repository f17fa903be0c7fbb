"""The life of an ingress process: start, serve, and stop without cutting a request off. The same with both servers."""

import gc
import os
import signal
import socket
import time
from dataclasses import dataclass
from importlib.metadata import version
from types import FrameType
from typing import Final, Protocol

import structlog
from prometheus_client import Gauge

from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.ingress.admin import make_admin_app
from kinguin_streams.ingress.answering import StrippedHeaders, Webhooks
from kinguin_streams.ingress.drain import Drain
from kinguin_streams.ingress.keeper import Keeper
from kinguin_streams.ingress.last_seen import LastSeenFile
from kinguin_streams.ingress.ledger import Ledger
from kinguin_streams.ingress.listening import listen
from kinguin_streams.ingress.openapi import document
from kinguin_streams.ingress.process_metrics import ProcessMetrics
from kinguin_streams.ingress.proven import ProofFile
from kinguin_streams.ingress.readiness import Readiness
from kinguin_streams.ingress.refusals import Refusals
from kinguin_streams.ingress.reload import ReadSecrets, SecretsReload
from kinguin_streams.ingress.request_log import RequestLog
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.settings import IngressSettings
from kinguin_streams.ingress.spool import Spool
from kinguin_streams.ingress.spool_metrics import SpoolMetrics
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.admin_server import AdminServer
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.traces import Traces

log = structlog.get_logger()

LOOP_TURN_S: Final = 0.25
LOOK_EVERY_S: Final = 1.0
FATAL_STOP_S: Final = 3.0
"""How long those who wait are given when the producer is dead: as long as they wait for Kafka at most. Nothing else is waited for."""


class Front(Protocol):
    """The HTTP server: it owns the webhook port, and serves only while its turn is called."""

    def turn(self, at_most_s: float) -> None:
        """Serve for a while."""
        ...

    def cut_off_slow(self) -> int:
        """End requests that take too long to come in; return how many."""
        ...

    def stop_accepting(self) -> None:
        """Take no new connection from now on; those that are there are served on."""
        ...

    def is_busy(self) -> bool:
        """Return whether somebody is still to be answered."""
        ...


@dataclass
class Server:
    """One ingress process: webhooks on the main thread's loop, the admin port on a thread of its own."""

    settings: IngressSettings
    publisher: KafkaPublisher
    topics: Topics
    encoder: Encoder
    decoder: Decoder
    spool: Spool | None
    read_secrets: ReadSecrets
    traces: Traces
    log_every: int
    proof_file: ProofFile | None
    last_seen_file: LastSeenFile | None

    def __post_init__(self) -> None:
        """Bind both ports. Raises OperatorError("port_taken") before anything is served."""
        self.ledger = Ledger()
        self._keeper = Keeper(
            self.publisher,
            self.spool,
            ack_wait_s=self.settings.ack_wait_s,
            spool_timeout_s=self.spool.timeout_s if self.spool is not None else 0.0,
        )
        ProcessMetrics(self.publisher, self.ledger.registry)
        self._drain: Drain | None = None
        if self.spool is not None:
            breaker = self._keeper.breaker
            refusals = Refusals(topics=self.topics, decoder=self.decoder, encoder=self.encoder)
            self._drain = Drain(self.spool, self.publisher, breaker, self.settings.queue_records, refusals)
            SpoolMetrics(self.spool, self._drain, breaker, self.ledger.registry)
        secrets = Secrets(self.read_secrets())
        self._vigil = vigil = Vigil(
            secrets,
            self.ledger.registry,
            silence_s=self.settings.silence_s,
            failure_budget=self.settings.failure_budget,
            earlier=None if self.last_seen_file is None else self.last_seen_file.read(),
        )
        self._readiness = Readiness(self.publisher, self.topics, self._keeper, vigil, self.proof_file)
        Gauge(
            "kinguin_ingress_ready_by_earlier_proof",
            "Whether only an earlier process has seen the topics: this one started while Kafka was away.",
            registry=self.ledger.registry,
        ).set_function(lambda: self._readiness.by_earlier_proof)
        Gauge(
            "kinguin_ingress_topics_missing",
            "Declared topics that Kafka says it does not have; what is meant for them waits in the spool.",
            registry=self.ledger.registry,
        ).set_function(lambda: self._readiness.missing)
        self._reload = SecretsReload(secrets, self.read_secrets, vigil)
        webhooks = Webhooks(
            secrets=secrets,
            vigil=vigil,
            topics=self.topics,
            encoder=self.encoder,
            keeper=self._keeper,
            ledger=self.ledger,
            on_invalid=self.settings.on_invalid,
            stripped_headers=StrippedHeaders(),
            deadline_s=self.settings.deadline_s,
            max_in_flight=self.settings.max_in_flight,
            request_log=RequestLog(self.log_every),
            traces=self.traces,
        )
        host, port = self.settings.host, self.settings.port
        listener = listen(host, port, "KINGUIN_INGRESS__PORT", shared=self.settings.reuse_port)
        self._front = self._make_front(listener, webhooks)
        described = document(
            version=version("kinguin-streams"), port=self.settings.port, admin_port=self.settings.admin_port
        )
        self._admin = AdminServer(
            listen(self.settings.host, self.settings.admin_port, "KINGUIN_INGRESS__ADMIN_PORT"),
            make_admin_app(self._readiness, self.ledger.registry, described, self._stalled_s),
        )
        self._stop_at_s: float | None = None
        self._look_at_s = 0.0
        self._turned_at_s: float | None = None

    def _make_front(self, listener: socket.socket, webhooks: Webhooks) -> Front:
        if self.settings.server == "waitress":
            from kinguin_streams.ingress.waitress_front import WaitressFront

            return WaitressFront(listener, webhooks, self.settings)
        try:
            from kinguin_streams.ingress.granian_front import GranianFront
        except ImportError as missing:
            raise OperatorError(
                "granian_missing",
                f"KINGUIN_INGRESS__SERVER is granian, which is not installed: {missing}.",
                "Install kinguin-streams[granian], or use waitress.",
            ) from missing
        return GranianFront(listener, webhooks, self.settings)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit code: 0 if all that was answered 2xx is in Kafka or on disk.

        On the signal: unready at once, serving goes on for `pre_stop_s`, then no new connections, requests in flight and
        those of clients that are connected already are finished and their answers written, the spool is drained as far as
        the time allows, the producer is flushed. A second signal exits at once. A producer in a fatal state ends the
        process in the same way, with 1 and within five seconds whatever `stop_timeout_s` is: there is nothing to drain into
        and nothing to flush. Another process will make a new producer, and finds the spool.
        """
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._on_signal)
        signal.signal(signal.SIGHUP, lambda _number, _frame: self._reload.now())
        # What is there by now stays. Looking through it again with each collection took a twentieth of the time.
        gc.collect()
        gc.freeze()
        self._reload.start()
        self._admin.start()
        if self._drain is not None:
            self._drain.start()
        if self.last_seen_file is not None:
            self.last_seen_file.start(self._vigil.silent_since)
        log.info(
            "ingress_serves",
            server=self.settings.server,
            webhooks=f"http://{self.settings.host}:{self.settings.port}/webhooks",
            admin=f"http://{self.settings.host}:{self.settings.admin_port}",
            stores=sorted(self.settings.secrets),
        )
        while self._stop_at_s is None or time.monotonic() < self._stop_at_s:
            self._turn()
            if self.publisher.fatal is not None and self._stop_at_s is None:
                log.error("ingress_stops", reason=self.publisher.fatal, hint="what comes in until then is spooled")
                self._readiness.stopping()
                break
        self._front.stop_accepting()
        stops_at_s = time.monotonic()
        while self._stop_time_left_s(stops_at_s) > 0 and self._front.is_busy():
            self._turn()
        self._turned_at_s = None
        if self._drain is not None:
            self._drain.stop(0.0 if self.publisher.fatal else self._stop_time_left_s(stops_at_s))
        left = self.publisher.close(0.0 if self.publisher.fatal else self._stop_time_left_s(stops_at_s) + 1.0)
        if self.last_seen_file is not None:
            self.last_seen_file.stop()
        waiting = 0
        if self.spool is not None:
            waiting = self.spool.unsettled
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

    def _stop_time_left_s(self, since_s: float) -> float:
        whole_s = self.settings.stop_timeout_s
        if self.publisher.fatal is not None:
            whole_s = min(FATAL_STOP_S, whole_s)
        return max(0.0, since_s + whole_s - time.monotonic())

    def _stalled_s(self) -> float:
        """For how long the loop has not turned; 0 where it need not: before it begins, and after it has ended."""
        turned_at_s = self._turned_at_s
        return 0.0 if turned_at_s is None else time.monotonic() - turned_at_s

    def _turn(self) -> None:
        self._turned_at_s = time.monotonic()
        self._front.turn(LOOP_TURN_S)
        if time.monotonic() >= self._look_at_s:
            self._look_at_s = time.monotonic() + LOOK_EVERY_S
            if cut := self._front.cut_off_slow():
                log.warning("slow_requests_cut_off", requests=cut, timeout_s=self.settings.request_timeout_s)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop_at_s is not None:
            os._exit(128 + number)
        self._readiness.stopping()
        self._stop_at_s = time.monotonic() + self.settings.pre_stop_s
