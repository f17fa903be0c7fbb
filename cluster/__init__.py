"""Whatever touches Kafka: connection, publisher, topic admin, schema-registry client, a local broker for one machine."""
