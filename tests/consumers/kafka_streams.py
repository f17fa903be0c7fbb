"""Real topics to consume, and a consumer in a thread, for the tests of this folder."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from kinguin_streams.cluster.connection import CLIENT_LOGGER, admin_config, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.consumers import reader
from kinguin_streams.consumers.effect import StateEffect
from kinguin_streams.consumers.loop import ConsumeLoop
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.settings import ConsumerSettings, StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.schemas.codec import Decoder, Encoder, RecordEncoder
from kinguin_streams.schemas.events import DeadLetter, Record, RecordName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import Topics, topics
from kinguin_streams.telemetry.traces import PassedOn
from tests.consumers.databases import state_settings

PATIENCE_S = 30.0


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Return as soon as the condition holds; fail the test if it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.05)


class Streams:
    """The topics of one test, under a prefix of its own."""

    def __init__(self, bootstrap_servers: str, prefix: str, partitions: int = 2) -> None:
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap_servers)
        self.prefix = prefix
        self.topics: Topics = topics(prefix, partitions)
        self.admin = AdminClient(admin_config(self.kafka), logger=CLIENT_LOGGER)
        config = producer_config(self.kafka, client_id="test", queue_records=100_000)
        # With more than one request on its way, the client may report what a topic made anew refused as delivered (ADR 17).
        config["max.in.flight.requests.per.connection"] = 1
        self._producer = Producer(config, logger=CLIENT_LOGGER)
        self._refused: list[str] = []

    def make(self, *only: RecordName) -> "Streams":
        """Create the topics, or only these."""
        wanted = Topics(tuple(spec for spec in self.topics.specs if not only or spec.record in only))
        topic_admin = TopicAdmin(admin_config(self.kafka))
        topic_admin.apply(plan(wanted, topic_admin.describe(wanted)))
        return self

    def name(self, record: RecordName) -> str:
        return self.topics.name(record)

    def write(self, *records: Record, encoder: Encoder | None = None) -> None:
        """Write records as the ingress does; all of them are in Kafka then."""
        encoder = encoder or Encoder()
        for record in records:
            out = outgoing(record, self.topics, encoder)
            self._produce(
                out.topic, key=out.key, value=out.value, headers=list(out.headers), timestamp=out.timestamp_ms
            )
        self._flush()

    def write_bytes(self, record: RecordName, values: Sequence[bytes | None], partition: int = 0) -> None:
        """Write values as they are into the topic of a record."""
        for value in values:
            self._produce(self.name(record), key=b"poison", value=value, partition=partition)
        self._flush()

    def _produce(self, topic: str, **record: Any) -> None:
        self._producer.produce(topic, on_delivery=self._on_delivery, **record)
        self._producer.poll(0)

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._refused.append(error.str())

    def _flush(self) -> None:
        assert self._producer.flush(PATIENCE_S) == 0
        assert self._refused == []  # an empty queue alone proves nothing

    def ends(self, *records: RecordName) -> dict[tuple[str, int], int]:
        """Return the end offsets of all partitions that are not empty."""
        consumer = Consumer(
            {"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "ends"}, logger=CLIENT_LOGGER
        )
        try:
            found = {}
            for name in map(self.name, records):
                for partition in consumer.list_topics(name, timeout=PATIENCE_S).topics[name].partitions:
                    low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=PATIENCE_S)
                    if high > low:
                        found[name, partition] = high
            return found
        finally:
            consumer.close()

    def dead_letters(self, decoder: Decoder | None = None) -> list[DeadLetter]:
        """Return all that is in the dead-letter topic. decoder: where a registry's ids were written."""
        name = self.name("dead-letter")
        ends = self.ends("dead-letter")
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "letters"}, logger=CLIENT_LOGGER)  # fmt: skip
        try:
            consumer.assign([TopicPartition(name, partition, 0) for _, partition in ends])
            letters: list[DeadLetter] = []
            while len(letters) < sum(ends.values()):
                for message in consumer.consume(1_000, 1.0):
                    letter = (decoder or Decoder()).decode(message.value())
                    assert isinstance(letter, DeadLetter)
                    letters.append(letter)
            return letters
        finally:
            consumer.close()

    def delete(self, record: RecordName) -> None:
        """Delete a topic, and return when it is gone."""
        name = self.name(record)
        self.admin.delete_topics([name], operation_timeout=PATIENCE_S)[name].result()

        def is_gone() -> bool:
            future = self.admin.describe_topics(TopicCollection([name]))[name]
            return future.exception(timeout=PATIENCE_S) is not None

        wait_until(is_gone, f"{name} to be gone")

    def delete_records(self, record: RecordName, partition: int, before_offset: int) -> None:
        """Do what retention does: take the records below an offset away."""
        cut = TopicPartition(self.name(record), partition, before_offset)
        self.admin.delete_records([cut])[cut].result()


class RunningInThread:
    """A consume loop in a thread of this process, until it is stopped or stops by itself."""

    def __init__(self, loop: ConsumeLoop) -> None:
        self.loop = loop
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            self.failure = error

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until it holds; raise what stops the loop before."""
        wait_until(lambda: self.failure is not None or condition(), what)
        if self.failure is not None:
            raise self.failure

    def wait_for_failure(self) -> Exception:
        """Wait until the loop stops by itself, and return why."""
        wait_until(lambda: self.failure is not None, "the loop to stop")
        assert self.failure is not None
        return self.failure

    def stop(self) -> None:
        self.loop.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


class RunningLoop(RunningInThread):
    """The loop of a projection."""

    def __init__(
        self,
        streams: Streams,
        folder: Path,
        projection: Projection = ORDER_STATE,
        *,
        decoder: Decoder | None = None,
        encoder: RecordEncoder | None = None,
        publisher_wait_s: float = 5.0,
        state: StateSettings | None = None,
        store: StateStore | None = None,
        **settings: Any,
    ) -> None:
        self.state = state or state_settings(folder)
        self.store = store or StateStore(self.state, projection)
        self._projection = projection
        self._publisher = KafkaPublisher(
            producer_config(streams.kafka, client_id="dead-letters"), ack_wait_s=publisher_wait_s
        )
        super().__init__(
            ConsumeLoop(
                StateEffect(projection, self.store, ahead_from=1),
                kafka=streams.kafka,
                topics=streams.topics,
                settings=ConsumerSettings(group_prefix=streams.prefix, **settings),
                decoder=decoder or Decoder(),
                encoder=encoder or Encoder(),
                publisher=self._publisher,
                traces=PassedOn(),
            )
        )

    def stored(self) -> dict[tuple[str, int], int]:
        return reader.stored_offsets(self.state.url, self._projection.name)

    def catch_up(self, ends: dict[tuple[str, int], int]) -> None:
        """Wait until every record below these ends has taken effect, and the loop knows it of its own partitions."""
        self.wait_for(lambda: self.stored() == ends and self._knows(ends), f"offsets {ends}")

    def _knows(self, ends: dict[tuple[str, int], int]) -> bool:
        mine = dict(self.loop.next_offsets)
        return all(mine[part] == end for part, end in ends.items() if part in mine)

    def stop(self) -> None:
        super().stop()
        self._publisher.close(timeout_s=0)
        self.store.close()


@contextmanager
def running_loop(*arguments: Any, **settings: Any) -> Iterator[RunningLoop]:
    """A loop that is stopped at the end."""
    running = RunningLoop(*arguments, **settings)
    try:
        yield running
    finally:
        running.stop()
