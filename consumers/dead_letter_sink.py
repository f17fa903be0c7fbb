"""Where a consumer's dead letters go: into Kafka, or the consumer does not go on."""

from typing import Final, Protocol

import structlog

from kinguin_streams.cluster.publisher import Publisher, PublishFailed, TopicMissing
from kinguin_streams.schemas.codec import RecordEncoder
from kinguin_streams.schemas.events import DeadLetter
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

_PASSES: Final = frozenset({"no_report", "not_delivered", "queue_full"})
"""Kafka has not been heard, or too few replicas take the record for now; all else somebody has to mend."""
_ASK_WAIT_S: Final = 3.0


class DeadLetterPublisher(Publisher, Protocol):
    """What is needed of cluster.publisher.KafkaPublisher."""

    def partitions(self, topic: str, timeout_s: float) -> int:
        """Return the topic's number of partitions; raises TopicMissing or PublishFailed."""
        ...


def keep(letter: DeadLetter, publisher: DeadLetterPublisher, topics: Topics, encoder: RecordEncoder) -> None:
    """Return when the dead letter is in Kafka.

    Raises OperatorError: "kafka_unreachable" if it may be taken later, else "dead_letter_refused". Either way it may have landed;
    told again, it has the same id.
    """
    position = f"{letter.source_topic}/{letter.source_partition}/{letter.source_offset}"
    record = outgoing(letter, topics, encoder)
    try:
        publisher.publish(record)
    except PublishFailed as error:
        what = (
            f"The record {position} cannot be processed ({letter.reason}), and the dead-letter topic does not take it "
            f"({error})."
        )
        if _may_pass(error, publisher, record.topic):
            raise OperatorError("kafka_unreachable", what, "It is not skipped: check the cluster.") from error
        raise OperatorError(
            "dead_letter_refused",
            what,
            "The consumer stops instead of skipping it: check `kinguin-streams topics plan` and the cluster.",
        ) from error
    log.warning(
        "record_dead_lettered",
        consumer=letter.consumer,
        position=position,
        reason=letter.reason,
        detail=letter.detail,
    )


def _may_pass(error: PublishFailed, publisher: DeadLetterPublisher, topic: str) -> bool:
    """Return whether waiting may help. The client says of a topic that is not there what it says of a broker that is not."""
    if error.code not in _PASSES:
        return False
    try:
        publisher.partitions(topic, _ASK_WAIT_S)
    except TopicMissing:
        return False
    except PublishFailed:
        return True
    return True
