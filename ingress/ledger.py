"""The ingress's books: every request is received, and ends as exactly one outcome. They balance at every scrape.

received = in flight + acked + spooled + dead-lettered + refused + pings
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kinguin_streams.ingress.keeper import Where
from kinguin_streams.schemas.events import EVENT_NAMES
from kinguin_streams.telemetry.histogram import Histogram

Outcome = Literal["acked", "spooled", "dead_lettered", "refused", "ping"]
OUTCOMES: tuple[Outcome, ...] = ("acked", "spooled", "dead_lettered", "refused", "ping")
OTHER = "other"
"""The label of an event name that is not in the fixed set: a sender must not be able to make series."""

_DURATIONS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SIZES_BYTES = (128, 256, 512, 1024, 4096, 16_384, 65_536)


@dataclass(slots=True)
class Entry:
    """How one request ends; filled in while it is served. A request that nothing closes was refused: it got no 2xx."""

    event: str = OTHER
    outcome: Outcome = "refused"
    reason: str = "internal_error"
    authenticated: bool = False
    """Whether it came with a live secret: then its failure is one that the sender counts."""
    body_bytes: int | None = None
    """None: no body was read."""
    topic: str = ""
    kept: Where | None = None
    kept_after_s: float = 0.0
    """From the decision to the confirmation."""
    opened_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The books at one instant."""

    received: int
    in_flight: int
    acked: int
    spooled: int
    dead_lettered: int
    """In Kafka or in the spool: each counts once."""
    refused: int
    pings: int

    @property
    def balances(self) -> bool:
        """Whether every request received is accounted for."""
        ended = self.acked + self.spooled + self.dead_lettered + self.refused + self.pings
        return self.received == self.in_flight + ended


@dataclass(eq=False)
class Ledger(Collector):
    """Counts under one lock, so that a reader never sees a request between two columns. A Prometheus collector."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _received: int = 0
    _in_flight: int = 0
    _requests: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    _reasons: Counter[tuple[Outcome, str]] = field(default_factory=Counter)
    _published: Counter[str] = field(default_factory=Counter)
    _publish_failures: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Register with the registry: a process has one ledger, a test as many as it likes."""
        self.registry.register(self)
        self._durations = Histogram(_DURATIONS_S)
        self._bodies = Histogram(_SIZES_BYTES)
        self._kept: dict[Where, Histogram] = {where: Histogram(_DURATIONS_S) for where in get_args(Where)}

    def open(self) -> Entry:
        """Return an entry for a request that has just been received. Whoever opens it closes it, whatever happens."""
        with self._lock:
            self._received += 1
            self._in_flight += 1
        return Entry(opened_s=time.perf_counter())

    @property
    def in_flight(self) -> int:
        """How many entries are open."""
        return self._in_flight

    def close(self, entry: Entry) -> None:
        """Count the request as what it has become."""
        took_s = time.perf_counter() - entry.opened_s
        event = entry.event if entry.event in EVENT_NAMES else OTHER
        with self._lock:
            self._in_flight -= 1
            self._requests[event, entry.outcome] += 1
            if entry.reason:
                self._reasons[entry.outcome, entry.reason] += 1
            if entry.kept == "kafka":
                self._published[entry.topic] += 1
            if entry.kept is not None:
                self._kept[entry.kept].observe(entry.kept_after_s)
            if entry.body_bytes is not None:
                self._bodies.observe(entry.body_bytes)
            self._durations.observe(took_s)

    def publish_failed(self, code: str) -> None:
        """Note a record that neither Kafka nor the spool has taken, or that Kafka will never take."""
        with self._lock:
            self._publish_failures[code] += 1

    def balance(self) -> Balance:
        """Return the books at this instant."""
        with self._lock:
            return self._balance()

    def _balance(self) -> Balance:
        ended = dict.fromkeys(OUTCOMES, 0)
        for (_, outcome), count in self._requests.items():
            ended[outcome] += count
        return Balance(
            received=self._received,
            in_flight=self._in_flight,
            acked=ended["acked"],
            spooled=ended["spooled"],
            dead_lettered=ended["dead_lettered"],
            refused=ended["refused"],
            pings=ended["ping"],
        )

    def collect(self) -> Iterable[Metric]:
        """Return the counters as Prometheus metrics, all read under one lock."""
        received = CounterMetricFamily("kinguin_ingress_received", "Requests received, whatever became of them.")
        in_flight = GaugeMetricFamily("kinguin_ingress_in_flight", "Requests being served.")
        requests = CounterMetricFamily(
            "kinguin_ingress_requests", "Requests ended, by what became of them.", labels=("event", "outcome")
        )
        reasons = CounterMetricFamily(
            "kinguin_ingress_rejected", "Requests not published as an event, by reason.", labels=("outcome", "reason")
        )
        published = CounterMetricFamily("kinguin_ingress_published", "Records confirmed by Kafka.", labels=("topic",))
        failures = CounterMetricFamily(
            "kinguin_ingress_publish_failures", "Records not kept, by code.", labels=("error",)
        )
        durations = HistogramMetricFamily(
            "kinguin_ingress_request_duration_seconds", "From the last byte of a request to its answer."
        )
        bodies = HistogramMetricFamily("kinguin_ingress_request_body_bytes", "Size of request bodies that were read.")
        kept = HistogramMetricFamily(
            "kinguin_ingress_publish_duration_seconds",
            "From a decision to the confirmation, by Kafka or by the disk.",
            labels=("where",),
        )
        with self._lock:
            self._durations.add_to(durations)
            self._bodies.add_to(bodies)
            for where, histogram in self._kept.items():
                histogram.add_to(kept, (where,))
            received.add_metric((), self._received)
            in_flight.add_metric((), self._in_flight)
            for (event, outcome), count in self._requests.items():
                requests.add_metric((event, outcome), count)
            for (rejected, reason), count in self._reasons.items():
                reasons.add_metric((rejected, reason), count)
            for topic, count in self._published.items():
                published.add_metric((topic,), count)
            for code, count in self._publish_failures.items():
                failures.add_metric((code,), count)
        return received, in_flight, requests, reasons, published, failures, durations, bodies, kept
