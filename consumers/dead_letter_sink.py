"""Where a consumer's dead letters go: into Kafka, or the consumer stops."""

import structlog

from kinguin_streams.cluster.publisher import Publisher, PublishFailed
from kinguin_streams.schemas.codec import RecordEncoder
from kinguin_streams.schemas.events import DeadLetter
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()


def keep(letter: DeadLetter, publisher: Publisher, topics: Topics, encoder: RecordEncoder) -> None:
    """Return when the dead letter is in Kafka. Raises OperatorError("dead_letter_refused")."""
    position = f"{letter.source_topic}/{letter.source_partition}/{letter.source_offset}"
    try:
        publisher.publish(outgoing(letter, topics, encoder))
    except PublishFailed as error:
        raise OperatorError(
            "dead_letter_refused",
            f"The record {position} cannot be processed ({letter.reason}), and the dead-letter topic does not take it "
            f"({error}).",
            "The consumer stops instead of skipping it: check `kinguin-streams topics plan` and the cluster.",
        ) from error
    log.warning(
        "record_dead_lettered",
        consumer=letter.consumer,
        position=position,
        reason=letter.reason,
        detail=letter.detail,
    )
