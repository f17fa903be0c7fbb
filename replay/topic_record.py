"""A Kafka message as a Record."""

from confluent_kafka import Message

from kinguin_streams.replay.record import Record


def record_of(message: Message) -> Record:
    """Return the record of a message that is no error. topic_source.py does the same in place, for speed."""
    kind, timestamp_ms = message.timestamp()
    return Record(
        str(message.topic()),
        int(message.partition() or 0),
        int(message.offset() or 0),
        timestamp_ms if kind else None,
        message.key(),
        message.value(),
        tuple(message.headers() or ()),  # type: ignore[arg-type]
    )
