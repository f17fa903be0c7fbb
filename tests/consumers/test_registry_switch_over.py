"""The runbook of docs/registry.md, step by step, on a real Kafka and a real registry: no step loses or stops anything."""

from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from kinguin_streams.cluster.connection import consumer_config, new_client
from kinguin_streams.cluster.registry import RegistryIds
from kinguin_streams.cluster.settings import RegistrySettings
from kinguin_streams.consumers import reader
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import RecordName
from kinguin_streams.schemas.versions import shipped
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.commands import run
from tests.conftest import KafkaCluster
from tests.consumers.deliveries import order_complete, order_status
from tests.consumers.kafka_streams import Streams, running_loop

pytestmark = pytest.mark.kafka


def values_of(streams: Streams) -> list[bytes]:
    """Return all values in the order topics."""
    config = consumer_config(streams.kafka, group_id="values", client_id="values")
    consumer = new_client(Consumer, config)
    ends = streams.ends("order.status", "order.complete")
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in ends])
        found: list[bytes] = []
        while len(found) < sum(ends.values()):
            found += [message.value() or b"" for message in consumer.consume(1_000, 1.0)]
        return found
    finally:
        consumer.close()


def test_a_running_system_is_switched_over_to_a_registry_and_back_without_a_flag_day(
    kafka: KafkaCluster, topic_prefix: str, apicurio: str, tmp_path: Path
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    topics: tuple[RecordName, ...] = ("order.status", "order.complete")
    environment = {"KINGUIN_REGISTRY__URL": apicurio, "KINGUIN_TOPICS__PREFIX": topic_prefix}
    settings = RegistrySettings(url=apicurio, timeout_s=20)

    # Before: no registry anywhere.
    without = Encoder()
    streams.write(*(order_status("pending", order_id=f"O{n}") for n in range(100)), encoder=without)
    with running_loop(streams, tmp_path) as running:
        running.catch_up(streams.ends(*topics))

    # 1. Register the schemas; nobody uses them yet.
    registered = run(environment, "schemas", "register")
    assert registered.returncode == 0, registered.stderr

    # 2. Readers first: each consumer is restarted with the setting, and reads on what it read before.
    with running_loop(streams, tmp_path, decoder=Decoder(RegistryIds(settings, streams.topics))) as running:
        streams.write(*(order_status("processing", 1, order_id=f"O{n}") for n in range(100)), encoder=without)
        running.catch_up(streams.ends(*topics))

        # 3. Writers, one by one: for a while both formats come into one topic.
        with_registry = Encoder(ids=RegistryIds(settings, streams.topics))
        for n in range(100):
            streams.write(order_complete(2, order_id=f"O{n}"), encoder=(without, with_registry)[n % 2])
        running.catch_up(streams.ends(*topics))

        # And back: a writer without the setting; the readers keep it.
        streams.write(*(order_status("refunded", 3, order_id=f"O{n}") for n in range(50)), encoder=without)
        running.catch_up(streams.ends(*topics))
        assert running.loop.dead_lettered == 0
    assert reader.orders_by_status(running.state.url) == {"completed": 50, "refunded": 50}
    assert Counter(value[:1] for value in values_of(streams)) == {b"\xc3": 300, b"\x00": 50}

    # A reader that was left out of step 2 stops and says what is missing; nothing is skipped.
    (tmp_path / "forgotten").mkdir()
    with running_loop(streams, tmp_path / "forgotten") as forgotten:
        failure = forgotten.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code == "registry_needed"

    # A new state from the whole topic, both formats in it, is the same.
    (tmp_path / "anew").mkdir()
    with running_loop(streams, tmp_path / "anew", decoder=Decoder(RegistryIds(settings, streams.topics))) as anew:
        anew.catch_up(streams.ends(*topics))
    assert reader.orders_by_status(anew.state.url) == {"completed": 50, "refunded": 50}


def test_a_writer_in_front_of_the_register_step_is_told_which_one(apicurio: str, topic_prefix: str) -> None:
    with pytest.raises(OperatorError, match="kinguin-streams schemas register"):
        RegistryIds(RegistrySettings(url=apicurio), Streams("127.0.0.1:1", topic_prefix).topics).id_of(
            shipped().newest("order.status")
        )
