"""Windows are read to their ends whatever happens to the topic meanwhile. On a real Kafka."""

import pytest

from kinguin_streams.cluster.connection import consumer_config
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.replay.plan import Window
from kinguin_streams.replay.receipt import Gap
from kinguin_streams.replay.topic_source import TopicSource, source_config
from tests.replay.replay_topics import ORIGIN_MS, Bench

pytestmark = pytest.mark.kafka


def source(bench: Bench, *windows: Window, batch_records: int = 500, **config: object) -> TopicSource:
    plain = consumer_config(KafkaSettings(bootstrap_servers=bench.bootstrap_servers), group_id="x", client_id="x")
    return TopicSource({**source_config(plain), **config}, windows, batch_records)


def window(topic: str, start: int, end: int, partition: int = 0) -> Window:
    return Window(topic=topic, partition=partition, start=start, end=end, earliest=0, latest=end)


def test_a_window_ends_within_a_topic_that_goes_on(bench: Bench) -> None:
    topic = bench.topic("live", 3)
    for partition in range(2):
        bench.produce(
            topic, [{"value": b"%d" % n, "partition": partition, "timestamp": ORIGIN_MS} for n in range(3_000)]
        )
    reading = source(
        bench, window(topic, 10, 20), window(topic, 0, 2_000, partition=1), window(topic, 0, 0, partition=2)
    )
    found = sorted((record.partition, record.offset) for batch in reading.read({}) for record in batch)
    assert found == [(0, offset) for offset in range(10, 20)] + [(1, offset) for offset in range(2_000)]
    again = source(bench, window(topic, 10, 20)).read({(topic, 0): 15})
    assert [record.offset for batch in again for record in batch] == [15, 16, 17, 18, 19]


def test_what_retention_takes_before_it_is_read_is_a_gap(bench: Bench) -> None:
    topic = bench.topic("old", 1)
    bench.produce(topic, [{"value": b"%d" % n, "timestamp": ORIGIN_MS} for n in range(100)])
    bench.delete_before(topic, {0: 40})
    reading = source(bench, window(topic, 10, 90))
    assert [record.offset for batch in reading.read({}) for record in batch] == list(range(40, 90))
    assert reading.gaps == [Gap(topic=topic, partition=0, start=10, end=40)]
    beyond = source(bench, window(topic, 10, 30))
    assert list(beyond.read({})) == []
    assert beyond.gaps == [Gap(topic=topic, partition=0, start=10, end=30)]


def test_what_retention_takes_while_it_is_read_is_a_gap(bench: Bench) -> None:
    """The client has a little in hand; what lies behind that goes from under it."""
    count = 4_000
    topic = bench.topic("going", 1)
    bench.produce(topic, [{"value": b"x" * 1_000, "timestamp": ORIGIN_MS} for _ in range(count)])
    little = {"queued.max.messages.kbytes": 64, "queued.min.messages": 1, "fetch.message.max.bytes": 20_000}
    reading = source(bench, window(topic, 0, count), batch_records=10, **little)
    batches = reading.read({})
    found = [record.offset for record in next(iter(batches))]
    bench.delete_before(topic, {0: count - 100})
    found += [record.offset for batch in batches for record in batch]
    (gap,) = reading.gaps
    assert gap.end == count - 100
    assert found == [*range(gap.start), *range(gap.end, count)]
