"""What nobody notices by itself: a sender that has gone quiet, and failures that make it disable the endpoint.

Warnings, not readiness: a process that is taken out of service because nobody calls it would not be called again.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kinguin_streams.ingress.last_seen import SilentSince
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.schemas.events import EVENT_NAMES, StoreName

WINDOW_S: Final = 300.0
_SLOT_S: Final = 10.0
LEAST_REQUESTS: Final = 20
"""Of fewer in the window, a share says nothing."""


class Vigil(Collector):
    """Remembers when each store's events last came, and how many of the sender's requests failed lately."""

    def __init__(
        self,
        secrets: Secrets,
        registry: CollectorRegistry,
        *,
        silence_s: float,
        failure_budget: float,
        earlier: SilentSince | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """silence_s: after which a store is said to be quiet. failure_budget: share of requests that may fail, 0 to 1.

        earlier: what an earlier process knew; of what it did not, silence counts from this start.
        """
        self._secrets = secrets
        self._silence_s = silence_s
        self._budget = failure_budget
        self._now_s = now_s
        self._started_s = now_s()
        self._lock = threading.Lock()
        self._last = dict(earlier or {})
        self._slots: deque[tuple[float, int, int]] = deque()
        self.reload_failures = 0
        """How often new secrets could not be used."""
        registry.register(self)

    def came(self, store: StoreName, event: str) -> None:
        """Note an authenticated event, valid or not; of a name that we do not know, nothing."""
        if event in EVENT_NAMES:
            with self._lock:
                self._last[store, event] = self._now_s()

    def answered(self, *, failed: bool) -> None:
        """Note the answer to an authenticated request: only those are the sender's."""
        slot = self._now_s() // _SLOT_S * _SLOT_S
        with self._lock:
            if not self._slots or self._slots[-1][0] != slot:
                self._slots.append((slot, 0, 0))
                self._forget()
            at, requests, failures = self._slots[-1]
            self._slots[-1] = (at, requests + 1, failures + failed)

    def _forget(self) -> None:
        while self._slots and self._slots[0][0] < self._now_s() - WINDOW_S:
            self._slots.popleft()

    def failing(self) -> tuple[int, int]:
        """Return how many authenticated requests there were in the window, and how many of them failed."""
        with self._lock:
            self._forget()
            return sum(requests for _, requests, _ in self._slots), sum(failures for _, _, failures in self._slots)

    def silent_since(self) -> SilentSince:
        """Return when each store's last event of each kind came, or since when it is waited for."""
        with self._lock:
            return {
                (store, event): self._last.get((store, event), self._started_s)
                for store in sorted(self._secrets.stores)
                for event in EVENT_NAMES
            }

    def silence(self) -> dict[tuple[StoreName, str], float]:
        """Return the seconds since each store's last event of each kind, or since it is waited for if there was none."""
        now_s = self._now_s()
        return {each: now_s - at_s for each, at_s in self.silent_since().items()}

    def warnings(self) -> list[str]:
        """Return what an operator should look at, in sentences."""
        found = []
        quiet = self.silence()
        for store in sorted(self._secrets.stores):
            least_s = min(quiet[store, event] for event in EVENT_NAMES)
            if least_s > self._silence_s:
                found.append(
                    f"store {store}: no event for {least_s:.0f} s; is the endpoint still enabled in the dashboard?"
                )
        requests, failures = self.failing()
        if requests >= LEAST_REQUESTS and failures / requests > self._budget:
            found.append(
                f"{failures} of {requests} requests of the last {WINDOW_S:.0f} s failed, more than the budget of "
                f"{self._budget:.1%}: the sender disables endpoints that fail too often"
            )
        return found

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        silence = GaugeMetricFamily(
            "kinguin_ingress_silence_seconds",
            "Seconds since the last authenticated event, be it before a restart; or since the first start, if there was none.",
            labels=("store", "event"),
        )
        for (store, event), seconds in self.silence().items():
            silence.add_metric((store, event), seconds)
        yield silence
        requests, failures = self.failing()
        share = GaugeMetricFamily(
            "kinguin_ingress_failure_ratio", "Share of authenticated requests of the last five minutes without a 2xx."
        )
        share.add_metric((), failures / requests if requests else 0.0)
        yield share
        budget = GaugeMetricFamily("kinguin_ingress_failure_budget_ratio", "The share that may fail.")
        budget.add_metric((), self._budget)
        yield budget
        used = GaugeMetricFamily(
            "kinguin_ingress_secret_last_used_timestamp_seconds",
            "When a live secret was last used; 0: not since the start. `secret` is a hash.",
            labels=("store", "secret"),
        )
        for use in self._secrets.uses():
            used.add_metric((use.store, use.name), use.last_used_s or 0.0)
        yield used
        failed = CounterMetricFamily("kinguin_ingress_secrets_reload_failures", "New secrets that could not be used.")
        failed.add_metric((), self.reload_failures)
        yield failed
