"""The contract: Avro schemas, event records, topics and keys, codec, compatibility. Pure: no clock, no socket, no Kafka client."""
