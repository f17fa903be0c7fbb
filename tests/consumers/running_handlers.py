"""An App's handlers in a thread of this process, and what its group has committed, for the tests of this folder."""

import threading
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
from tests.consumers.kafka_streams import PATIENCE_S, Streams, wait_until

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


class RunningApp:
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
        self.loop = ConsumeLoop(
            HandlerEffect(app, consumer_settings, max_poll_interval_s=max_poll_interval_s),
            kafka=streams.kafka,
            topics=streams.topics,
            settings=consumer_settings,
            decoder=decoder or Decoder(),
            encoder=Encoder(),
            publisher=self._publisher,
            traces=PassedOn(),
        )
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            self.failure = error

    def catch_up(self, ends: dict[tuple[str, int], int]) -> None:
        """Wait until the group has committed these offsets."""

        def is_there() -> bool:
            return self.failure is not None or committed(self._streams, self._name, *ends) == ends

        wait_until(is_there, f"offsets {ends}")
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
        self._publisher.close(timeout_s=0)


@contextmanager
def running_app(*arguments: Any, **settings: Any) -> Iterator[RunningApp]:
    """A loop that is stopped at the end."""
    running = RunningApp(*arguments, **settings)
    try:
        yield running
    finally:
        running.stop()
