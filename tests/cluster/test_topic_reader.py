"""A fixed stretch of a topic: what retention has taken is not there to be read, and nobody waits for it."""

from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from kinguin_streams.cluster.connection import CLIENT_LOGGER, admin_config, consumer_config, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.operator_error import OperatorError

AT_MS = 1_600_000_000_000


@pytest.mark.kafka
def test_records_are_read_from_offset_to_offset_and_those_deleted_are_passed_over(
    kafka: Any, topic_prefix: str
) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    declared = topics(topic_prefix, partitions=1)
    admin = TopicAdmin(admin_config(settings))
    admin.apply(plan(declared, admin.describe(declared)))
    topic = declared.name("product.update")
    with KafkaPublisher(producer_config(settings, client_id="test"), ack_wait_s=20) as publisher:
        for number in range(6):
            publisher.publish(OutgoingRecord(topic, b"1949", str(number).encode(), (), AT_MS))
    reader = TopicReader(consumer_config(settings, group_id=topic_prefix, client_id="test"))
    end = {(topic, 0): 5}
    assert [message.value() for message in reader.read({(topic, 0): 1}, end)] == [b"1", b"2", b"3", b"4"]

    client = AdminClient(admin_config(settings), logger=CLIENT_LOGGER)
    for future in client.delete_records([TopicPartition(topic, 0, 3)]).values():
        future.result(15)

    assert reader.bounds([topic, "missing"]) == {(topic, 0): (3, 6)}
    assert [message.value() for message in reader.read({}, end)] == [b"3", b"4"]
    assert list(reader.read({}, {(topic, 0): 3})) == []
    reader.close()


@pytest.mark.kafka
def test_the_time_of_the_next_record_is_told_again_and_again(kafka: Any, topic_prefix: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    declared = topics(topic_prefix, partitions=1)
    admin = TopicAdmin(admin_config(settings))
    admin.apply(plan(declared, admin.describe(declared)))
    product, status = (declared.name(name) for name in ("product.update", "order.status"))
    with KafkaPublisher(producer_config(settings, client_id="test"), ack_wait_s=20) as publisher:
        for number in range(3):
            publisher.publish(OutgoingRecord(product, b"1949", b"v", (), AT_MS + number))
        publisher.publish(OutgoingRecord(status, b"A", b"v", (), AT_MS + 7))
    reader = TopicReader(consumer_config(settings, group_id=topic_prefix, client_id="test"))
    assert reader.bounds_of([(product, 0)]) == {(product, 0): (0, 3)}
    assert reader.times_at({}) == {}
    for offset in (1, 2, 0):
        assert reader.times_at({(product, 0): offset, (status, 0): 0}) == {
            (product, 0): AT_MS + offset,
            (status, 0): AT_MS + 7,
        }
    assert reader.times_at({(product, 0): 3}) == {}
    reader.close()


def test_a_cluster_that_is_away_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinguin_streams.cluster.topic_reader.REQUEST_TIMEOUT_S", 0.3)
    reader = TopicReader(
        consumer_config(KafkaSettings(bootstrap_servers="127.0.0.1:1"), group_id="test", client_id="test")
    )
    with pytest.raises(OperatorError) as away:
        reader.end_offsets(["any"])
    assert away.value.code == "kafka_unreachable"
    reader.close()
