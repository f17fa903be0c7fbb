"""The AsyncAPI document says of the topics what is true of them."""

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import jsonschema
import pytest

from kinguin_streams.schemas.asyncapi import Cluster, Reader, document
from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Encoder
from kinguin_streams.schemas.dead_letters import SourcePosition, from_consumer
from kinguin_streams.schemas.events import EVENT_NAMES, OrderStatus, Record, StoreName
from kinguin_streams.schemas.names import EventId
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import topics
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaVersion, shipped

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
TOPICS = topics("shop", partitions=3)
READERS = [
    Reader(
        name="order-state",
        group_id="mine.order-state",
        records=("order.status", "order.complete"),
        derived="order.state",
    ),
    Reader(
        name="product-changes", group_id="mine.product-changes", records=("product.update",), derived="product.state"
    ),
]
DOCUMENT = document(version="1.2.3", topics=TOPICS, readers=READERS)
MESSAGES = DOCUMENT["components"]["messages"]
VERSIONS = [
    pytest.param(schema, id=f"{record} {schema.version}")
    for record in RECORD_NAMES
    for schema in shipped().versions(record)
]
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ORDER_STATUS = OrderStatus(
    event_id=EventId("0" * 32),
    store=StoreName("shop-2"),
    received_at_ms=1_615_204_800_123,
    order_id="PHS84FJAG5U",
    status="canceled",
    updated_at_ms=-1,
    raw=b"{}",
)
DEAD_LETTER = from_consumer(
    consumer="order-state",
    reason="truncated",
    detail="the record ends early",
    value=b"\x00",
    headers=[],
    source=SourcePosition(topic="shop.order.status", partition=0, offset=7, key=b"A", timestamp_ms=None),
    failed_at_ms=1_615_204_800_123,
)


def message(schema: SchemaVersion) -> Any:
    return MESSAGES[f"{schema.record}.{schema.version}"]


def resolved(reference: dict[str, str]) -> Any:
    """Return what a reference points to."""
    part: Any = DOCUMENT
    for name in reference["$ref"].removeprefix("#/").split("/"):
        part = part[name]
    return part


def test_every_topic_is_a_channel_as_it_is_declared() -> None:
    assert [channel["address"] for channel in DOCUMENT["channels"].values()] == [spec.name for spec in TOPICS.specs]
    for spec in TOPICS.specs:
        binding = DOCUMENT["channels"][spec.record]["bindings"]["kafka"]
        assert (binding["topic"], binding["partitions"]) == (spec.name, 3)
        said = {
            key: ",".join(value) if isinstance(value, list) else str(value)
            for key, value in binding["topicConfiguration"].items()
        }
        assert said == spec.config


def test_every_schema_version_is_a_message_of_its_channel_and_nothing_else_is() -> None:
    for record in RECORD_NAMES:
        of_channel = DOCUMENT["channels"][record]["messages"].values()
        assert [resolved(each) for each in of_channel] == [message(schema) for schema in shipped().versions(record)]
    assert len(MESSAGES) == len(VERSIONS)


@pytest.mark.parametrize("schema", VERSIONS)
def test_a_payload_is_the_shipped_schema_and_its_fingerprint_the_one_on_the_wire(schema: SchemaVersion) -> None:
    payload = message(schema)["payload"]
    assert payload == {"schemaFormat": "application/vnd.apache.avro;version=1.9.0", "schema": json.loads(schema.text)}
    assert message(schema)["x-fingerprint"] == schema.fingerprint.hex()


@pytest.mark.parametrize("schema", VERSIONS)
def test_an_example_is_what_the_golden_bytes_say(schema: SchemaVersion) -> None:
    (example,) = message(schema)["examples"]
    body = io.BytesIO()
    # bytes are written as text whose characters are single bytes
    fields = {field["name"]: field["type"] for field in json.loads(schema.text)["fields"]}
    payload = {name: _with_bytes(value, fields[name]) for name, value in example["payload"].items()}
    fastavro.schemaless_writer(body, fastavro.parse_schema(_plain(json.loads(schema.text))), payload, strict=True)
    golden = [
        file.read_bytes()[SINGLE_OBJECT_HEADER_BYTES:]
        for file in (EXAMPLES / schema.record).glob(f"{schema.version}/*.avro")
    ]
    assert body.getvalue() in golden or schema.record in ("dead-letter", "dead-letter.trail")
    sent = example["payload"]
    of_state = f"{{ce_subject}}@{sent.get('generation')}.{sent.get('revision')}".format_map(example["headers"])
    expected = sent.get("eventId", sent.get("deadLetterId", of_state))
    if schema.record == "dead-letter.trail":
        expected += f"@{sent['at']}"
    assert example["headers"]["ce_id"] == expected


def _plain(avro: Any) -> Any:
    if isinstance(avro, dict):
        return {key: _plain(value) for key, value in avro.items() if key != "logicalType"}
    return [_plain(part) for part in avro] if isinstance(avro, list) else avro


def _with_bytes(value: Any, kind: Any) -> Any:
    match kind:
        case ["null", inner]:
            return None if value is None else _with_bytes(value, inner)
        case "bytes" | {"type": "bytes"}:
            return value.encode("latin-1")
        case {"type": "array", "items": items}:
            return [_with_bytes(part, items) for part in value]
        case {"type": "record", "fields": fields}:
            return {field["name"]: _with_bytes(value[field["name"]], field["type"]) for field in fields}
    return value


@pytest.mark.parametrize("record", [ORDER_STATUS, DEAD_LETTER], ids=lambda record: record.record_name)
@pytest.mark.parametrize("traceparent", [None, TRACEPARENT, "00-no-valid-one"])
def test_the_headers_that_are_sent_satisfy_the_documented_schema(record: Record, traceparent: str | None) -> None:
    sent = {name: value.decode() for name, value in outgoing(record, TOPICS, Encoder(), traceparent).headers}
    schema = resolved(MESSAGES[f"{record.record_name}.1"]["headers"])
    jsonschema.validate(sent, schema, jsonschema.Draft7Validator)
    assert set(sent) <= set(schema["properties"])
    assert set(sent) - {"traceparent"} == set(schema["required"])


@pytest.mark.parametrize("schema", VERSIONS)
def test_the_headers_of_every_example_satisfy_the_documented_schema(schema: SchemaVersion) -> None:
    (example,) = message(schema)["examples"]
    jsonschema.validate(example["headers"], resolved(message(schema)["headers"]), jsonschema.Draft7Validator)


def test_the_ingress_sends_the_version_that_is_written_and_readers_take_them_all() -> None:
    held_back = document(version="1.2.3", topics=TOPICS, readers=READERS, written={"product.update": 2})
    for described, version in ((DOCUMENT, 3), (held_back, 2)):
        sends = described["operations"]["ingress.product.update"]
        assert sends["action"] == "send"
        assert [each["$ref"] for each in sends["messages"]] == [
            f"#/channels/product.update/messages/product.update.{version}"
        ]
        receives = described["operations"]["product-changes.product.update"]
        assert receives["action"] == "receive"
        assert receives["bindings"]["kafka"]["groupId"]["enum"] == ["mine.product-changes"]
        assert len(receives["messages"]) == 3


def test_every_operation_is_of_a_channel_and_of_messages_that_are_there() -> None:
    operations = DOCUMENT["operations"]
    assert {name for name, each in operations.items() if each["action"] == "send"} == {
        *(f"ingress.{record}" for record in (*EVENT_NAMES, "dead-letter")),
        "dead-letters.dead-letter.trail",
        "order-state.dead-letter",
        "order-state.order.state",
        "product-changes.dead-letter",
        "product-changes.product.state",
    }
    assert {resolved(each["channel"])["title"] for each in operations.values() if each["action"] == "receive"} == {
        *EVENT_NAMES,
        "dead-letter",
    }
    for operation in operations.values():
        for each in operation["messages"]:
            assert each["$ref"].startswith(operation["channel"]["$ref"])
            assert resolved(resolved(each))["name"].startswith("kinguin.v1.")


def test_without_a_registry_no_message_claims_a_schema_id() -> None:
    assert "servers" not in DOCUMENT
    assert {tuple(each["bindings"]["kafka"]) for each in MESSAGES.values()} == {("key", "bindingVersion")}


def test_with_a_registry_servers_and_messages_say_where_the_schema_id_is() -> None:
    cluster = Cluster(bootstrap_servers=("a:9092", "b:9092"), encrypted=True, registry_url="https://registry.example")
    described = document(version="1.2.3", topics=TOPICS, readers=READERS, cluster=cluster)
    assert [(each["host"], each["protocol"]) for each in described["servers"].values()] == [
        ("a:9092", "kafka-secure"),
        ("b:9092", "kafka-secure"),
    ]
    for server in described["servers"].values():
        assert server["bindings"]["kafka"]["schemaRegistryUrl"] == "https://registry.example"
    for each in described["components"]["messages"].values():
        binding = each["bindings"]["kafka"]
        assert (binding["schemaIdLocation"], binding["schemaIdPayloadEncoding"]) == ("payload", "confluent")
