"""Records for what the consumers room offers: with the accessors of a client's message, and sorted out."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from kinguin_streams.consumers.batch import Batch, sort_out
from kinguin_streams.replay.record import Record
from kinguin_streams.schemas.codec import Decoder, RegistryNeeded
from kinguin_streams.schemas.events import RecordName
from kinguin_streams.telemetry.operator_error import OperatorError

_NO_TIMESTAMP: Final = 0
_CREATE_TIME: Final = 1


class AsMessage:
    """What consumers.batch.Message asks for."""

    __slots__ = ("_record",)

    def __init__(self, record: Record) -> None:
        self._record = record

    def topic(self) -> str:
        """The topic."""
        return self._record.topic

    def partition(self) -> int:
        """The partition."""
        return self._record.partition

    def offset(self) -> int:
        """The offset."""
        return self._record.offset

    def key(self) -> bytes | None:
        """The key."""
        return self._record.key

    def value(self) -> bytes | None:
        """The value."""
        return self._record.value

    def headers(self) -> list[tuple[str, bytes | None]]:
        """The headers."""
        return list(self._record.headers)

    def timestamp(self) -> tuple[int, int]:
        """Kind and milliseconds."""
        instant_ms = self._record.timestamp_ms
        return (_NO_TIMESTAMP, 0) if instant_ms is None else (_CREATE_TIME, instant_ms)


def refuse_unread(topics: Iterable[str], its_own: Collection[str], consumer: str) -> None:
    """Raise OperatorError("topic_not_read") if there is one among the topics that the consumer does not read."""
    for topic in topics:
        if topic not in its_own:
            raise OperatorError(
                "topic_not_read",
                f"{consumer} does not read {topic}; it reads {', '.join(sorted(its_own))}.",
                "Name its own topics, or files of them, with the same KINGUIN_TOPICS__PREFIX.",
            )


def sorted_out(
    records: Sequence[Record], decoder: Decoder, expected: Mapping[str, RecordName], consumer: str
) -> tuple[Batch, list[AsMessage]]:
    """Return what is in these records for a consumer, and the messages. expected: topic to what it holds.

    A replay does not wait for a schema: raises OperatorError("schema_unknown"), ("registry_needed"), and ("topic_not_read")
    for a record of a topic that the consumer does not read.
    """
    messages = [AsMessage(record) for record in records]
    refuse_unread({record.topic for record in records}, expected, consumer)
    try:
        batch = sort_out(
            messages,
            decode=decoder.decode,
            expected=expected,
            consumer=consumer,
            now_ms=round(time.time() * 1000),
        )
    except RegistryNeeded as error:
        raise OperatorError(
            "registry_needed",
            f"A record is in the Confluent wire format: {error}.",
            "Set KINGUIN_REGISTRY__URL, and go on: nothing that was done is done again.",
        ) from error
    for part, held in batch.held.items():
        raise OperatorError(
            "schema_unknown",
            f"{part.topic}/{part.partition}/{held.messages[0].offset()} cannot be read here: {held.reason}.",
            "Upgrade, or see to the schema registry, and go on: nothing that was done is done again.",
        )
    return batch, messages
