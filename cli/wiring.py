"""Settings to parts: where the rooms are put together."""

from functools import cache
from typing import TYPE_CHECKING

from kinguin_streams.cluster.settings import KafkaSettings, RegistrySettings
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.topics import topics as declared_topics

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.cluster.publisher import KafkaPublisher
    from kinguin_streams.consumers.projection import Projection
    from kinguin_streams.consumers.relay import Relay
    from kinguin_streams.schemas.codec import Decoder, Encoder, RecordEncoder, SchemaIds


def kafka(settings: "Settings") -> KafkaSettings:
    """Return where Kafka is: as set, else the local broker of this data folder.

    Raises OperatorError("no_bootstrap_servers") later, when a client is configured, if there is neither.
    """
    if settings.kafka.bootstrap_servers:
        return settings.kafka
    from kinguin_streams.cluster import local_broker

    broker = local_broker.find(settings.local)
    if broker is None:
        return settings.kafka
    return settings.kafka.model_copy(update={"bootstrap_servers": broker.bootstrap_servers})


def topics(settings: "Settings") -> Topics:
    """Return the declared topics under the configured prefix."""
    return declared_topics(settings.topics.prefix, settings.topics.partitions)


def _schema_ids(settings: "Settings") -> "SchemaIds | None":
    return None if settings.registry.url is None else _registry_ids(settings.registry, topics(settings))


@cache
def _registry_ids(registry: RegistrySettings, topics: Topics) -> "SchemaIds":
    """Return one for the process: who reads and who writes share what the registry has told."""
    from kinguin_streams.cluster.registry import RegistryIds

    return RegistryIds(registry, topics)


def encoder(settings: "Settings") -> "Encoder":
    """Return the encoder: the Confluent wire format if there is a registry, else single-object encoding.

    Raises OperatorError as cluster.registry.RegistryIds.id_of does: who writes events starts with ids or not at all.
    """
    from kinguin_streams.schemas.codec import Encoder

    return Encoder(settings.schemas.write, _schema_ids(settings))


def dead_letter_encoder(settings: "Settings") -> "RecordEncoder":
    """Return an encoder for a consumer, which has much to read before it writes: it starts without a registry too."""
    from kinguin_streams.cluster.registry_encoder import EncoderOnDemand

    return EncoderOnDemand(lambda: encoder(settings))


def decoder(settings: "Settings") -> "Decoder":
    """Return the decoder for both wire formats."""
    from kinguin_streams.schemas.codec import Decoder

    return Decoder(_schema_ids(settings))


def publisher(settings: "Settings", client_id: str) -> "KafkaPublisher":
    """Return a connected publisher; the caller closes it."""
    from kinguin_streams.cluster.connection import producer_config
    from kinguin_streams.cluster.publisher import KafkaPublisher

    config = producer_config(
        kafka(settings),
        client_id=client_id,
        delivery_timeout_s=settings.ingress.delivery_timeout_s,
        queue_records=settings.ingress.queue_records,
    )
    return KafkaPublisher(config, ack_wait_s=settings.ingress.ack_wait_s)


def relay(settings: "Settings", projection: "Projection", publisher: "KafkaPublisher") -> "Relay | None":
    """Return the relay to a projection's derived topic, or None if there is to be none. Its tables must be there."""
    from kinguin_streams.consumers.relay import Relay

    if projection.derived is None or not settings.consumer.derived:
        return None
    return Relay(
        projection,
        state=settings.state,
        topics=topics(settings),
        encoder=dead_letter_encoder(settings),
        sender=publisher,
    )
