"""What a consumer tells Prometheus, read at each scrape. docs/consuming.md has the table."""

import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kinguin_streams.consumers.effect import Effect
from kinguin_streams.consumers.loop import ConsumeLoop
from kinguin_streams.consumers.relay import Relay
from kinguin_streams.consumers.watch import Watch
from kinguin_streams.telemetry.logs import lines_dropped

Sample = tuple[tuple[str, ...], float]
"""Labels, and the value."""


class ConsumerMetrics(Collector):
    """A Prometheus collector over one consumer in one process."""

    def __init__(
        self, loop: ConsumeLoop, effect: Effect, watch: Watch, relay: Relay | None, registry: CollectorRegistry
    ) -> None:
        """relay: None where nobody is told of states."""
        self._loop = loop
        self._effect = effect
        self._watch = watch
        self._relay = relay
        self._name = (effect.name,)
        self.stopped: str | None = None
        """The code of the error that has ended the consumer."""
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return everything, as of now or of the watch's last look."""
        yield _gauge("build_info", "Always 1.", [((version("kinguin-streams"),), 1)], "version")
        dropped = CounterMetricFamily(
            "kinguin_log_lines_dropped", "Lines of the log that were dropped because nobody took them in time."
        )
        dropped.add_metric((), lines_dropped())
        yield dropped
        yield from self._work()
        yield from self._partitions()
        yield from self._condition()
        if self._relay is not None:
            yield from self._outbox(self._relay)

    def _work(self) -> Iterable[Metric]:
        tally = self._loop.tally
        yield self._counter("consumed", "Records that Kafka has handed out.", _keyed(tally.consumed), "topic")
        for name, text, value in (
            ("applied", "Records that have taken effect.", tally.applied),
            ("stale", "Records that have taken effect and said nothing new. Of folds only.", tally.stale),
            ("duplicates", "Records that came though they had taken effect, and were dropped.", tally.duplicates),
            ("retries", "Calls of a handler that failed and are made again.", tally.retries),
        ):
            yield self._counter(name, text, [((), value)])
        yield self._counter("dlq", "Records that were dead-lettered, by reason.", _keyed(tally.dead_letters), "reason")
        yield self._counter(
            "rebalances", "Assignments, revocations and losses of partitions.", _keyed(tally.rebalances), "event"
        )
        seconds = HistogramMetricFamily(
            "kinguin_consumer_process_duration_seconds",
            "From a batch in memory to its effect.",
            labels=("consumer",),
        )
        tally.batch_seconds.add_to(seconds, self._name)
        yield seconds
        records = HistogramMetricFamily(
            "kinguin_consumer_batch_records", "Records worked on together.", labels=("consumer",)
        )
        tally.batch_records.add_to(records, self._name)
        yield records

    def _partitions(self) -> Iterable[Metric]:
        next_offsets = dict(self._loop.next_offsets)
        where = (*self._name, self._loop.group_id)
        labels = ("consumer", "group", "topic", "partition")
        offsets = [((*where, topic, str(n)), at or 0) for (topic, n), at in next_offsets.items()]
        yield _gauge("next_offset", "The offset that is to take effect next.", offsets, *labels)
        records: list[Sample] = []
        seconds: list[Sample] = []
        seen = self._watch.kafka
        # While Kafka does not answer, nothing is said: an old lag would look like a new one.
        if seen is not None and self._watch.kafka_trouble is None:
            for lag in seen.lags:
                if (lag.topic, lag.partition) in next_offsets:
                    key = (*where, lag.topic, str(lag.partition))
                    records.append((key, lag.records))
                    age_s = lag.seconds(time.time_ns() // 1_000_000)
                    if age_s is not None:
                        seconds.append((key, age_s))
        yield _gauge("lag_records", "Records that have not taken effect yet.", records, *labels)
        yield _gauge(
            "lag_seconds", "Age of the record that is to take effect next; 0: there is none.", seconds, *labels
        )
        yield self._gauge("assigned_partitions", "Partitions that are this process's.", [((), len(next_offsets))])
        yield self._gauge(
            "paused_partitions",
            "Of those, the ones that are not read, by what they wait for.",
            _keyed(self._loop.paused),
            "reason",
        )

    def _condition(self) -> Iterable[Metric]:
        tally = self._loop.tally
        yield self._gauge("turn_age_seconds", "Since the loop last turned.", [((), self._loop.turning_for_s)])
        stored: list[Sample] = [] if tally.stored_at_ms is None else [((), tally.stored_at_ms / 1000)]
        yield self._gauge("last_commit_timestamp_seconds", "When offsets were last stored.", stored)
        breaker = float(self._effect.breaker_is_open)
        yield self._gauge("breaker_open", "Whether the next record that a handler gives up ends it.", [((), breaker)])
        stopped: list[Sample] = [] if self.stopped is None else [((self.stopped,), 1)]
        yield self._gauge("stopped", "Always 1: it has ended by itself, for this reason.", stopped, "reason")
        if self._watch.has_database:
            state = self._watch.state
            generation: list[Sample] = [] if state is None or state.generation is None else [((), state.generation)]
            yield self._gauge("generation", "The make of the state that readers see.", generation)

    def _outbox(self, relay: Relay) -> Iterable[Metric]:
        state = self._watch.state if self._watch.state_trouble is None else None
        rows: list[Sample] = [] if state is None else [((), state.outbox_rows)]
        yield self._gauge("outbox_rows", "Keys whose newest state is to be told in the derived topic.", rows)
        behind_s = relay.behind_s
        age: list[Sample] = [] if behind_s is None else [((), behind_s)]
        yield self._gauge("outbox_age_seconds", "For how long the oldest of them may have waited, at most.", age)
        yield self._gauge("outbox_elected", "Whether this process is the one that tells.", [((), relay.leading)])
        yield self._counter("outbox_published", "States that Kafka has confirmed.", [((), relay.told)])

    def _counter(self, name: str, text: str, values: Iterable[Sample], *labels: str) -> CounterMetricFamily:
        family = CounterMetricFamily(f"kinguin_consumer_{name}", text, labels=("consumer", *labels))
        for key, value in values:
            family.add_metric((*self._name, *key), value)
        return family

    def _gauge(self, name: str, text: str, values: Iterable[Sample], *labels: str) -> GaugeMetricFamily:
        return _gauge(name, text, [((*self._name, *key), value) for key, value in values], "consumer", *labels)


def _keyed(values: Mapping[Any, int]) -> list[Sample]:
    """Return each with its label. A copy is what is gone through: the loop's thread may add a key meanwhile."""
    return [((key,), value) for key, value in dict(values).items()]


def _gauge(name: str, text: str, values: Iterable[Sample], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"kinguin_consumer_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family
