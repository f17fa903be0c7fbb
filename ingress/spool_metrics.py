"""What the spool tells Prometheus, read at each scrape."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kinguin_streams.ingress.breaker import Breaker
from kinguin_streams.ingress.drain import Drain
from kinguin_streams.ingress.spool import Spool


class SpoolMetrics(Collector):
    """A Prometheus collector over one process's spool."""

    def __init__(self, spool: Spool, drain: Drain, breaker: Breaker, registry: CollectorRegistry) -> None:
        self._spool = spool
        self._drain = drain
        self._breaker = breaker
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return what waits, for how long, what has been drained, and whether Kafka is worth waiting for."""
        contents, unsettled = self._spool.contents, self._spool.unsettled
        age_s = 0.0 if contents.oldest_ms is None else max(0.0, time.time() - contents.oldest_ms / 1000)
        gauges = (
            ("kinguin_ingress_spool_events", "Events on disk, waiting for Kafka.", unsettled),
            (
                "kinguin_ingress_spool_refused_events",
                "Events on disk that Kafka will never take, nor their dead letters.",
                max(0, contents.records - unsettled),
            ),
            ("kinguin_ingress_spool_bytes", "Bytes of all events on disk.", contents.bytes),
            ("kinguin_ingress_spool_limit_bytes", "Bytes beyond which no event is taken.", self._spool.max_bytes),
            ("kinguin_ingress_spool_oldest_age_seconds", "How long the oldest event has been on disk.", age_s),
            ("kinguin_ingress_spool_usable", "Whether the spool takes events.", self._spool.trouble() is None),
            ("kinguin_ingress_kafka_away", "Whether events go to the spool at once.", self._breaker.state != "closed"),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(name, text)
            gauge.add_metric((), float(value))
            yield gauge
        drained = CounterMetricFamily("kinguin_ingress_spool_drained", "Events brought from disk into Kafka.")
        drained.add_metric((), self._drain.drained)
        yield drained
        dead_lettered = CounterMetricFamily(
            "kinguin_ingress_spool_dead_lettered",
            "Events that their topic refuses for good, brought from disk into the dead-letter topic.",
            labels=("topic",),
        )
        for topic, count in list(self._drain.dead_lettered.items()):
            dead_lettered.add_metric((topic,), count)
        yield dead_lettered
