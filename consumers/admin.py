"""The admin port of a consumer: whether it is alive, whether it is ready, and why it has stopped."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.consumers.effect import Effect
from kinguin_streams.consumers.loop import ConsumeLoop
from kinguin_streams.consumers.metrics import ConsumerMetrics
from kinguin_streams.consumers.relay import Relay
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.consumers.watch import LOOK_EVERY_S, StateLook, Watch
from kinguin_streams.telemetry.admin_server import AdminServer, Check, admin_app
from kinguin_streams.telemetry.listening import listen
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

MENDED_BY_A_RESTART: Final = frozenset(
    {"lost_partition", "generation_replaced", "kafka_client_failed", "kafka_unreachable"}
)
"""Errors after which a consumer is to be back at once, rather than to be looked at."""
SEEN_WITHIN_S: Final = 4 * LOOK_EVERY_S
_TICK_S: Final = 0.1


class ConsumerReadiness:
    """The checks of /readyz. A consumer that is not ready goes on by itself once what it waits for is there."""

    def __init__(self, loop: ConsumeLoop, effect: Effect, watch: Watch, metrics: ConsumerMetrics) -> None:
        self._loop = loop
        self._effect = effect
        self._watch = watch
        self._metrics = metrics

    def checks(self) -> Mapping[str, Check]:
        """Return every check by name."""
        found = {"running": self._running(), "member": self._member(), "kafka": self._kafka()}
        if self._watch.has_database:
            found["database"] = self._database()
        is_open = self._effect.breaker_is_open
        detail = "the handler gives up most records: one more, and the consumer ends" if is_open else "closed"
        return {**found, "breaker": Check(ok=not is_open, detail=detail)}

    def warnings(self) -> list[str]:
        """Return which partitions wait, and for what."""
        said = {
            "schema": "wait for a schema that is not known here",
            "retry": "wait for the next attempt of a handler",
        }
        paused = self._loop.paused
        return [f"{paused[reason]} partitions {what}" for reason, what in said.items() if paused[reason]]  # type: ignore[index]

    def _running(self) -> Check:
        if self._metrics.stopped is not None:
            return Check(ok=False, detail=f"stopped: {self._metrics.stopped}")
        is_stopping = self._loop.is_stopping()
        return Check(ok=not is_stopping, detail="stopping" if is_stopping else "consuming")

    def _member(self) -> Check:
        if not self._loop.is_member:
            return Check(ok=False, detail=f"not in the group {self._loop.group_id}")
        return Check(ok=True, detail=f"{len(self._loop.assigned)} partitions of the group {self._loop.group_id}")

    def _kafka(self) -> Check:
        seen = self._watch.kafka
        if self._watch.kafka_trouble is not None:
            return Check(ok=False, detail=self._watch.kafka_trouble)
        ago_s = float("inf") if seen is None else time.monotonic() - seen.at_s
        return Check(ok=ago_s <= SEEN_WITHIN_S, detail=f"answered {ago_s:.0f} s ago")

    def _database(self) -> Check:
        if self._loop.waits_for == "database":
            return Check(ok=False, detail="away: every partition waits, and no offset moves")
        trouble = self._watch.state_trouble
        return Check(ok=trouble is None, detail=trouble or "answers")


class ConsumerAdmin:
    """The admin port of one consumer."""

    def __init__(
        self,
        loop: ConsumeLoop,
        effect: Effect,
        *,
        settings: ConsumerSettings,
        stuck_after_s: float,
        reader: TopicReader,
        state: StateLook | None,
        relay: Relay | None,
    ) -> None:
        """stuck_after_s: without a turn of the loop; then /livez fails. reader, state: for its watch, which closes them.

        Raises OperatorError("port_taken") or ("cannot_listen").
        """
        self._loop = loop
        self._linger_s = settings.stop_linger_s
        self._stuck_after_s = stuck_after_s
        self._listener = listen(
            settings.admin_host,
            settings.admin_port,
            "KINGUIN_CONSUMER__ADMIN_PORT or --admin-port",
            host_setting="KINGUIN_CONSUMER__ADMIN_HOST",
        )
        registry = CollectorRegistry()
        self._watch = Watch(reader, loop.topics, lambda: dict(loop.next_offsets), state)
        self._metrics = ConsumerMetrics(loop, effect, self._watch, relay, registry)
        readiness = ConsumerReadiness(loop, effect, self._watch, self._metrics)
        self._server = AdminServer(self._listener, admin_app(readiness, registry, self._stuck))
        self._log = log.bind(consumer=effect.name)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve meanwhile. An OperatorError passes on, after there was time to scrape its code, unless a restart mends it."""
        self._watch.start()
        self._server.start()
        self._log.info("admin_serves", admin="http://{}:{}".format(*self._listener.getsockname()[:2]))
        try:
            yield
        except OperatorError as error:
            if error.code not in MENDED_BY_A_RESTART:
                self._linger(error)
            raise
        finally:
            self._server.stop()
            self._watch.stop()

    def _linger(self, error: OperatorError) -> None:
        self._metrics.stopped = error.code
        self._log.error(
            "consumer_cannot_go_on", reason=error.code, what=error.what, hint=error.hint, ends_in_s=self._linger_s
        )
        until_s = time.monotonic() + self._linger_s
        while time.monotonic() < until_s and not self._loop.is_stopping():
            time.sleep(_TICK_S)

    def _stuck(self) -> str | None:
        since_s = self._loop.turning_for_s
        return f"the loop has not turned for {since_s:.0f} s: it is stuck" if since_s > self._stuck_after_s else None
