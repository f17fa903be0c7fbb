"""What an error of Kafka's or its client's means for a consumer: the topic is gone, it may not, or nobody answers for now."""

from typing import Final

from confluent_kafka import KafkaError

from kinguin_streams.telemetry.operator_error import OperatorError

NO_SUCH_TOPIC: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
NOT_AUTHORIZED: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,
    }
)
AWAY: Final = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
    }
)
"""Measured without a broker: a question about the cluster, its topics or committed offsets ends with _TIMED_OUT. The others are
a broker's that goes, or comes."""


def not_authorized(error: KafkaError) -> OperatorError:
    """Return the error for a consumer that Kafka refuses."""
    return OperatorError(
        "not_authorized",
        f"Kafka refuses this consumer: {error.str()}.",
        "Check the user in KINGUIN_KAFKA__CONFIG and its rights to read the topics and the group.",
    )
