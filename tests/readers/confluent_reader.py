"""confluent_kafka's own AvroDeserializer and SchemaRegistryClient. Called as README.md says; Confluent wire format only."""

import sys

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.readers import canonical, topic_contents


def main(bootstrap_servers: str, wire_format: str, where: str, *topics: str) -> None:
    assert wire_format == "confluent"
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": where}))
    for record in topic_contents.read(bootstrap_servers, topics):
        value = deserialize(record.value, SerializationContext(record.topic, MessageField.VALUE))
        assert isinstance(value, dict)
        print(canonical.line(record, value))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
