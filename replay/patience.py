"""Questions to a cluster that is just restarting: asked again for a while, since a replay of hours must survive that."""

import time
from collections.abc import Callable
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException

from kinguin_streams.cluster.topic_admin import unreachable

PATIENCE_S = 60.0
_AGAIN_AFTER_S = 0.5
# What a broker says, or librdkafka in its place, while partitions change their leader or a broker comes back.
_PASSING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
    }
)

Answer = TypeVar("Answer")


def patiently(ask: Callable[[], Answer], patience_s: float = PATIENCE_S) -> Answer:
    """Return the answer. Raises OperatorError("kafka_unreachable") for an error that does not pass, or not in time."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _PASSING or time.monotonic() >= deadline_s:
                raise unreachable(error) from error
        time.sleep(_AGAIN_AFTER_S)
