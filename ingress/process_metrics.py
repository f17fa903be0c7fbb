"""What the process and its producer tell Prometheus, read at each scrape."""

from collections.abc import Iterable
from importlib.metadata import version

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.telemetry.logs import lines_dropped


class ProcessMetrics(Collector):
    """A Prometheus collector over one process."""

    def __init__(self, publisher: KafkaPublisher, registry: CollectorRegistry) -> None:
        self._publisher = publisher
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return which version runs, and what its producer holds in memory."""
        build = GaugeMetricFamily("kinguin_ingress_build_info", "Always 1.", labels=("version",))
        build.add_metric((version("kinguin-streams"),), 1)
        yield build
        queue = GaugeMetricFamily(
            "kinguin_ingress_producer_queue_messages", "Records handed to the Kafka client and not reported yet."
        )
        queue.add_metric((), self._publisher.queue_records)
        yield queue
        dropped = CounterMetricFamily(
            "kinguin_log_lines_dropped", "Lines of the log that were dropped because nobody took them in time."
        )
        dropped.add_metric((), lines_dropped())
        yield dropped
