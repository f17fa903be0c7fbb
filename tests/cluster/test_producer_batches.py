"""A topic's max.message.bytes limits whole batches; what is queued at once must still be taken."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from kinguin_streams.cluster.connection import admin_config, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import topics
from tests.conftest import KafkaCluster

pytestmark = pytest.mark.kafka


def test_a_burst_of_large_records_is_taken_though_together_they_exceed_the_topics_limit(
    kafka: KafkaCluster, topic_prefix: str
) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    declared = topics(topic_prefix)
    admin = TopicAdmin(admin_config(settings))
    admin.apply(plan(declared, admin.describe(declared)))
    topic = declared.name("order.status")
    # Of one key, so that all go to one partition: 64 records of 60 KB are fifteen times the limit of a batch. A linger
    # makes the client batch whatever it may.
    config = {**producer_config(settings, client_id="burst"), "linger.ms": 200}
    record = OutgoingRecord(topic, b"PHS84FJAG5U", bytes(60_000), (), 1_600_000_000_000)

    with KafkaPublisher(config, ack_wait_s=20) as publisher, ThreadPoolExecutor(64) as requests:
        answers = [requests.submit(publisher.publish, record) for _ in range(64)]

    assert [answer.exception() for answer in answers] == [None] * 64
