"""What we tell librdkafka, and what a user may tell it."""

from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from kinguin_streams.cluster.connection import (
    admin_config,
    consumer_config,
    new_client,
    producer_config,
)
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.telemetry.operator_error import OperatorError


def kafka(**config: Any) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers="127.0.0.1:1", config={key.replace("__", "."): v for key, v in config.items()}
    )


def producer(settings: KafkaSettings) -> dict[str, Any]:
    return producer_config(settings, client_id="test")


def consumer(settings: KafkaSettings) -> dict[str, Any]:
    return consumer_config(settings, group_id="group", client_id="test")


def test_a_producer_promises_durability_order_and_the_partitions_of_java() -> None:
    config = producer(kafka())
    assert config["acks"] == "all"
    assert config["enable.idempotence"] is True
    assert config["partitioner"] == "murmur2_random"


def test_a_consumer_commits_nothing_by_itself_and_skips_nothing() -> None:
    config = consumer(kafka())
    assert config["enable.auto.commit"] is False
    assert config["enable.auto.offset.store"] is False
    assert config["auto.offset.reset"] == "error"
    assert config["isolation.level"] == "read_committed"
    assert config["group.id"] == "group"


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (producer, "acks", "1"),
        (producer, "acks", 0),
        (producer, "request.required.acks", 1),
        (producer, "enable.idempotence", False),
        (producer, "enable.idempotence", "false"),
        (producer, "partitioner", "consistent_random"),
        (producer, "partitioner", "murmur2"),
        (consumer, "enable.auto.commit", True),
        (consumer, "enable.auto.offset.store", "true"),
        (consumer, "auto.offset.reset", "latest"),
        (consumer, "auto.offset.reset", "earliest"),
    ],
)
def test_a_key_that_breaks_a_promise_is_refused_by_name(make: Any, key: str, value: object) -> None:
    with pytest.raises(OperatorError) as refused:
        make(kafka(**{key: value}))
    assert refused.value.code == "kafka_config_refused"
    assert f"{key}={value}" in refused.value.what


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (producer, "acks", "all"),
        (producer, "acks", -1),
        (producer, "request.required.acks", "-1"),
        (producer, "enable.idempotence", "True"),
        (consumer, "enable.auto.commit", "false"),
    ],
)
def test_a_key_that_repeats_a_promise_is_harmless(make: Any, key: str, value: object) -> None:
    config = make(kafka(**{key: value}))
    assert config == make(kafka())


def test_any_other_key_goes_through_and_wins_over_what_we_prefer() -> None:
    config = producer(kafka(linger__ms=20, security__protocol="SASL_SSL", client__id="mine"))
    assert (config["linger.ms"], config["security.protocol"], config["client.id"]) == (20, "SASL_SSL", "mine")
    assert consumer(kafka(isolation__level="read_uncommitted"))["isolation.level"] == "read_uncommitted"
    assert admin_config(kafka(ssl__ca__location="/ca"))["ssl.ca.location"] == "/ca"


def test_the_group_and_the_servers_are_settings_of_their_own() -> None:
    config = consumer(kafka(group__id="theirs", bootstrap__servers="elsewhere:1"))
    assert (config["group.id"], config["bootstrap.servers"]) == ("group", "127.0.0.1:1")


def test_the_consumer_protocol_has_its_own_name_for_the_assignor() -> None:
    assert consumer(kafka())["partition.assignment.strategy"] == "range"
    config = consumer(kafka(group__protocol="consumer"))
    assert config["group.remote.assignor"] == "range"
    assert "partition.assignment.strategy" not in config
    assert (
        consumer(kafka(group__protocol="consumer", group__remote__assignor="uniform"))["group.remote.assignor"]
        == "uniform"
    )
    new_client(Consumer, config).close()


def test_a_record_is_given_up_after_the_delivery_timeout() -> None:
    config = producer_config(kafka(), client_id="test", delivery_timeout_s=1.5, queue_records=10)
    assert (config["message.timeout.ms"], config["queue.buffering.max.messages"]) == (1500, 10)


@pytest.mark.parametrize("make", [producer, consumer, admin_config])
def test_without_servers_the_variable_is_named(make: Any) -> None:
    with pytest.raises(OperatorError, match="KINGUIN_KAFKA__BOOTSTRAP_SERVERS") as missing:
        make(KafkaSettings())
    assert missing.value.code == "no_bootstrap_servers"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"linger.ms": "soon"}, "queue.buffering.max.ms"),  # librdkafka's own name for it
        ({"linger.ms": [1]}, "queue.buffering.max.ms"),
        ({"max.in.flight": 10}, "max.in.flight"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/no/such/ca.pem"}, "ssl.ca.location"),
    ],
)
def test_what_only_librdkafka_can_refuse_is_a_sentence_too(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError) as refused:
        new_client(Producer, producer(kafka(**config)))
    assert refused.value.code == "kafka_config_refused"
    assert says in refused.value.what
    assert "KINGUIN_KAFKA__CONFIG" in refused.value.hint


def test_every_kind_of_client_takes_what_we_tell_it() -> None:
    assert isinstance(new_client(Producer, producer(kafka())), Producer)
    assert isinstance(new_client(AdminClient, admin_config(kafka())), AdminClient)
    new_client(Consumer, consumer(kafka())).close()
