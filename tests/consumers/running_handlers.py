"""An App's handlers in a thread of this process, and what its group has committed, for the tests of this folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from kinguin_streams.cluster.connection import CLIENT_LOGGER, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.consumers.app import App
from kinguin_streams.consumers.handler_effect import HandlerEffect
from kinguin_streams.consumers.loop import ConsumeLoop
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.telemetry.traces import PassedOn
from tests.consumers.kafka_streams import PATIENCE_S, RunningInThread, Streams

FAST = {"handler_retry_s": 0.05, "handler_retry_max_s": 0.2}


def committed(streams: Streams, app_name: str, *parts: tuple[str, int]) -> dict[tuple[str, int], int]:
    """Return the offsets that the group has committed for these partitions."""
    consumer = Consumer(
        {"bootstrap.servers": streams.kafka.bootstrap_servers, "group.id": f"{streams.prefix}.{app_name}"},
        logger=CLIENT_LOGGER,
    )
    try:
        found = consumer.committed([TopicPartition(*part) for part in parts], timeout=PATIENCE_S)
        return {(each.topic, each.partition): each.offset for each in found if each.offset >= 0}
    finally:
        consumer.close()


class RunningApp(RunningInThread):
    """A consume loop of handlers."""

    def __init__(
        self,
        streams: Streams,
        app: App,
        *,
        decoder: Decoder | None = None,
        max_poll_interval_s: float = 300.0,
        **settings: Any,
    ) -> None:
        self._streams = streams
        self._name = app.name
        self._publisher = KafkaPublisher(producer_config(streams.kafka, client_id="dead-letters"), ack_wait_s=5.0)
        consumer_settings = ConsumerSettings(group_prefix=streams.prefix, **{**FAST, **settings})
        super().__init__(
            ConsumeLoop(
                HandlerEffect(app, consumer_settings, max_poll_interval_s=max_poll_interval_s),
                kafka=streams.kafka,
                topics=streams.topics,
                settings=consumer_settings,
                decoder=decoder or Decoder(),
                encoder=Encoder(),
                publisher=self._publisher,
                traces=PassedOn(),
            )
        )

    def catch_up(self, ends: dict[tuple[str, int], int]) -> None:
        """Wait until the group has committed these offsets."""
        self.wait_for(lambda: committed(self._streams, self._name, *ends) == ends, f"offsets {ends}")

    def stop(self) -> None:
        super().stop()
        self._publisher.close(timeout_s=0)


@contextmanager
def running_app(*arguments: Any, **settings: Any) -> Iterator[RunningApp]:
    """A loop that is stopped at the end."""
    running = RunningApp(*arguments, **settings)
    try:
        yield running
    finally:
        running.stop()
