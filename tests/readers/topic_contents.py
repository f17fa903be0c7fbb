"""All records that topics have now, by confluent_kafka's plain consumer."""

from collections.abc import Iterator, Sequence
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from tests.readers.canonical import KafkaRecord

IDLE_S = 30.0


def read(bootstrap_servers: str, topics: Sequence[str]) -> Iterator[KafkaRecord]:
    """Yield every record of the topics, from the first to the end there is now."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": "none", "enable.auto.commit": False}  # assigned by hand
    )
    metadata = consumer.list_topics(timeout=IDLE_S).topics
    ends = {}
    for topic in topics:
        for partition in metadata[topic].partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=IDLE_S)
            if first < end:
                ends[topic, partition] = end
    consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in ends])
    while ends:
        message = consumer.poll(IDLE_S)
        if message is None:
            raise TimeoutError(f"no record for {IDLE_S:g} s, and there are more in {ends}")
        if message.error():
            raise RuntimeError(message.error())
        record = _record(message)
        yield record
        if record.offset + 1 == ends[record.topic, record.partition]:
            del ends[record.topic, record.partition]
    consumer.close()


def _record(message: Any) -> KafkaRecord:
    return KafkaRecord(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        timestamp=message.timestamp()[1],
        key=message.key(),
        headers=message.headers(),
        value=message.value(),
    )
