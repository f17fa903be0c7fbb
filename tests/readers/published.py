"""The corpus in real topics: through the ingress's validator, our encoder and our producer's configuration."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from confluent_kafka import KafkaError, Message, Producer

from kinguin_streams.cluster.connection import CLIENT_LOGGER, admin_config, producer_config
from kinguin_streams.cluster.registry import RegistryIds
from kinguin_streams.cluster.settings import KafkaSettings, RegistrySettings
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.ingress.decide import Accepted, Delivery, Invalid, decide
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.schemas.codec import Encoder, SchemaIds
from kinguin_streams.schemas.dead_letters import SourcePosition, from_consumer
from kinguin_streams.schemas.events import Record, StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import topics
from tests import commands
from tests.readers.corpus import STORES, BadRecord, BadWebhook, Webhook, bad_records, bad_webhooks, webhooks
from tests.readers.witness import PARTITIONS

Delivered = Webhook | BadWebhook | BadRecord
SECRET = "Zx81-independent-readers"


@dataclass(frozen=True, slots=True)
class Published:
    """Topics of their own that hold the deliveries, in the order of `sent` in each partition."""

    prefix: str
    topics: tuple[str, ...]
    sent: tuple[Delivered, ...]
    base_ms: int


def publish_corpus(bootstrap_servers: str, prefix: str, base_ms: int, ids: SchemaIds | None = None) -> Published:
    """Create the topics under the prefix and send the whole corpus: single-object encoding, or Confluent's with ids."""
    declared = topics(prefix, PARTITIONS)
    sent: tuple[Delivered, ...] = (*webhooks(), *bad_webhooks(), *bad_records())
    publish(bootstrap_servers, prefix, records(sent, prefix, base_ms, ids))
    return Published(prefix, tuple(spec.name for spec in declared.specs), sent, base_ms)


def registered_ids(registry_url: str, prefix: str) -> SchemaIds:
    """Register the schemas for the topics under the prefix, as a deployment does it, and return their ids."""
    registered = commands.run(
        {"KINGUIN_REGISTRY__URL": registry_url, "KINGUIN_TOPICS__PREFIX": prefix}, "schemas", "register"
    )
    assert registered.returncode == 0, registered.stderr
    return RegistryIds(RegistrySettings(url=registry_url), topics(prefix))


def publish(bootstrap_servers: str, prefix: str, records: Iterable[OutgoingRecord]) -> None:
    """Create the topics under the prefix, send the records, and return when all are confirmed."""
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers)
    admin = TopicAdmin(admin_config(kafka))
    declared = topics(prefix, PARTITIONS)
    admin.apply(plan(declared, admin.describe(declared)))
    refused: list[KafkaError] = []

    def report(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer(producer_config(kafka, client_id="test"), logger=CLIENT_LOGGER)
    for record in records:
        producer.produce(
            record.topic,
            key=record.key,
            value=record.value,
            headers=list(record.headers),
            timestamp=record.timestamp_ms,
            on_delivery=report,
        )
    assert producer.flush(30) == 0
    assert refused == []


def records(
    sent: Iterable[Delivered], prefix: str, base_ms: int, ids: SchemaIds | None = None
) -> Iterable[OutgoingRecord]:
    """Yield each delivery as the record that the ingress, or a consumer that gives up, would have published."""
    declared = topics(prefix, PARTITIONS)
    secrets = Secrets({StoreName(store): (SECRET,) for store in STORES})

    @cache
    def encoder(version: int | None) -> Encoder:
        return Encoder(write={} if version is None else {"product.update": version}, ids=ids)

    for delivery in sent:
        match delivery:
            case Webhook(event="product.update", version=version):
                yield outgoing(_record(delivery, base_ms, secrets), declared, encoder(version), delivery.traceparent)
            case Webhook():
                yield outgoing(_record(delivery, base_ms, secrets), declared, encoder(None), delivery.traceparent)
            case _:
                yield outgoing(_record(delivery, base_ms, secrets), declared, encoder(None))


def _record(sent: Delivered, base_ms: int, secrets: Secrets) -> Record:
    if isinstance(sent, BadRecord):
        return from_consumer(
            consumer=sent.consumer,
            reason=sent.reason,
            detail=sent.detail,
            value=sent.value,
            headers=sent.headers,
            source=SourcePosition(
                topic=sent.topic,
                partition=sent.partition,
                offset=sent.offset,
                key=sent.key,
                timestamp_ms=sent.timestamp_ms,
            ),
            failed_at_ms=base_ms + sent.failed_after_ms,
        )
    delivery = Delivery(
        store=StoreName(sent.store),
        event_name=sent.event,
        secret=SECRET.encode(),
        content_type="aplication/json",
        content_encoding=None,
        kept_headers=sent.headers if isinstance(sent, BadWebhook) else (),
        body=sent.body,
        received_at_ms=base_ms + sent.received_after_ms,
    )
    decision = decide(delivery, secrets)
    if isinstance(sent, Webhook):
        assert isinstance(decision, Accepted), (decision, sent.body)
        return decision.event
    assert isinstance(decision, Invalid), (decision, sent.body)
    return decision.dead_letter
