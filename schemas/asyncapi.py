"""The topics as an AsyncAPI 3.0 document, made of the data that the program runs on. Pure, but for the package's own files.

Topics come from `topics.py`, payloads are the shipped .avsc files, examples the golden ones, and their headers those that
`outgoing.py` gives them; only the sentences are written here.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import fastavro

from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Decoder, Encoder
from kinguin_streams.schemas.dead_letters import from_ingress
from kinguin_streams.schemas.events import (
    EVENT_NAMES,
    DeadLetter,
    DeadLetterTrail,
    Derived,
    DerivedName,
    EventName,
    Record,
    RecordName,
    StoreName,
)
from kinguin_streams.schemas.outgoing import CONTENT_TYPE, outgoing
from kinguin_streams.schemas.topics import Topics, TopicSpec
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaCatalogue, SchemaVersion, shipped

Json = dict[str, Any]

SCHEMA_FORMAT: Final = "application/vnd.apache.avro;version=1.9.0"
_BINDING_VERSION: Final = "0.5.0"
# From schemas/examples; a version that is not named here shows its `compact` one.
_EXAMPLES: Final[Mapping[tuple[RecordName, int], str]] = {
    ("product.update", 1): "documented",
    ("product.update", 2): "indented",
    ("order.status", 1): "documented",
    ("order.complete", 1): "documented",
}
_TRACEPARENT_PATTERN: Final = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A consumer group, and which records it reads. What it cannot process it sends to the dead-letter topic.

    derived: what it makes of them, in a topic of its own, if anything.
    """

    name: str
    group_id: str
    records: tuple[RecordName, ...]
    derived: DerivedName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the topics are, as far as it is known. A schema registry says that records go out in its wire format."""

    bootstrap_servers: tuple[str, ...] = ()
    encrypted: bool = False
    registry_url: str | None = None


def document(
    *,
    version: str,
    topics: Topics,
    readers: Sequence[Reader],
    cluster: Cluster | None = None,
    written: Mapping[RecordName, int] | None = None,
    catalogue: SchemaCatalogue | None = None,
) -> Json:
    """Return the document as JSON values.

    version: of the package. written: record name to the version that a setting holds it back at.
    """
    where = cluster or Cluster()
    schemas = catalogue or shipped()
    newest = {record: schemas.newest(record).version for record in RECORD_NAMES} | dict(written or {})
    servers = _servers(where)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "kinguin-streams topics",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": CONTENT_TYPE.decode(),
        **({"servers": servers} if servers else {}),
        "channels": {spec.record: _channel(spec, schemas) for spec in topics.specs},
        "operations": dict(_operations(schemas, newest, readers)),
        "components": {
            "messages": {
                _message_name(schema): _message(schema, topics, where)
                for spec in topics.specs
                for schema in schemas.versions(spec.record)
            },
            "schemas": {_headers_name(spec.record): _headers(spec, topics) for spec in topics.specs},
        },
    }


_DESCRIPTION: Final = """\
Kinguin's webhooks as Avro records, one topic for each event, and a topic of dead letters; and what the consumers make of them,
the newest state of each order and product, in compacted topics.

Values come in two wire formats, and one topic may hold both; a reader looks at the first byte of each value.

- Avro single-object encoding, which is written without a schema registry: `C3 01`, the 8-byte CRC-64-AVRO fingerprint of
  the writer's schema in little-endian order (`x-fingerprint` of each message, as it is on the wire), then the Avro body.
- Confluent's wire format, which is written with a schema registry: `00`, the 4-byte big-endian schema id, then the Avro body;
  the subject is the topic's name and `-value`.

Keys are UTF-8 text in both. Record headers follow the CloudEvents 1.0 Kafka binding in binary mode.

Each message here is one schema version ever written, and a topic may hold all of them: resolve the writer's schema, which the
value names, to the newest one. Versions are FULL_TRANSITIVE compatible. Delivery is at least once and in no order across
keys or retries: records with the same `eventId` are one delivery, and `updatedAt` decides which of two is newer. Of the states of a
key the one with the greatest (`generation`, `revision`) counts; one without a value says that there is none any more.

Topics have min(3, brokers) replicas. Examples are in Avro's JSON encoding, but for unions, whose values stand without their
type's name: bytes are text in which each character is one byte.
"""


def _servers(cluster: Cluster) -> Json:
    server: Json = {"protocol": "kafka-secure" if cluster.encrypted else "kafka"}
    if cluster.registry_url:
        registry = {"schemaRegistryUrl": cluster.registry_url, "bindingVersion": _BINDING_VERSION}
        server["bindings"] = {"kafka": registry}
    return {f"kafka-{i}": {"host": host} | server for i, host in enumerate(cluster.bootstrap_servers, start=1)}


def _channel(spec: TopicSpec, schemas: SchemaCatalogue) -> Json:
    return {
        "address": spec.name,
        "title": spec.record,
        "summary": json.loads(schemas.newest(spec.record).text)["doc"],
        "description": f"Record key: {spec.key}. " + _kept(spec),
        "messages": {
            _message_name(schema): {"$ref": f"#/components/messages/{_message_name(schema)}"}
            for schema in schemas.versions(spec.record)
        },
        "bindings": {
            "kafka": {
                "topic": spec.name,
                "partitions": spec.partitions,
                "topicConfiguration": {key: _typed(key, value) for key, value in spec.config.items()},
                "bindingVersion": _BINDING_VERSION,
            }
        },
    }


def _kept(spec: TopicSpec) -> str:
    if spec.compacted:
        return "Compacted: the newest record of a key is kept for ever, one without a value for a day."
    return "Kept for ever." if spec.retention_ms < 0 else f"Kept for {spec.retention_ms // 86_400_000} days."


def _typed(key: str, value: str) -> object:
    """Return a topic setting as the Kafka binding has it: Kafka itself knows only text."""
    if key == "cleanup.policy":
        return value.split(",")
    return int(value) if value.lstrip("-").isdecimal() else value


def _operations(
    schemas: SchemaCatalogue, newest: Mapping[RecordName, int], readers: Sequence[Reader]
) -> Iterator[tuple[str, Json]]:
    taken: tuple[RecordName, ...] = (*EVENT_NAMES, "dead-letter")
    for record in taken:
        what = (
            f"The ingress keeps a webhook {record}" if record != "dead-letter" else "The ingress keeps what is no event"
        )
        yield f"ingress.{record}", _operation("send", schemas.get(record, newest[record]), summary=f"{what}.")
    yield (
        "dead-letters.dead-letter",
        _operation(
            "receive",
            *schemas.versions("dead-letter"),
            summary="`dead-letters` lists, exports and redrives them; none is ever changed.",
        ),
    )
    yield (
        "dead-letters.dead-letter.trail",
        _operation(
            "send",
            schemas.get("dead-letter.trail", newest["dead-letter.trail"]),
            summary="`dead-letters redrive` and `discard` note what has become of a dead letter.",
        ),
    )
    for reader in readers:
        for record in reader.records:
            yield (
                f"{reader.name}.{record}",
                _operation(
                    "receive",
                    *schemas.versions(record),
                    summary=f"`consume {reader.name}` makes its state of {record}.",
                    bindings={"groupId": {"type": "string", "enum": [reader.group_id]}},
                ),
            )
        yield (
            f"{reader.name}.dead-letter",
            _operation(
                "send",
                schemas.get("dead-letter", newest["dead-letter"]),
                summary=f"`consume {reader.name}` keeps a record that it can never process.",
            ),
        )
        if reader.derived is not None:
            yield (
                f"{reader.name}.{reader.derived}",
                _operation(
                    "send",
                    schemas.get(reader.derived, newest[reader.derived]),
                    summary=f"`consume {reader.name}` tells the newest state of a key.",
                ),
            )


def _operation(action: str, *messages: SchemaVersion, summary: str, bindings: Json | None = None) -> Json:
    channel = f"#/channels/{messages[0].record}"
    operation: Json = {
        "action": action,
        "channel": {"$ref": channel},
        "summary": summary,
        "messages": [{"$ref": f"{channel}/messages/{_message_name(schema)}"} for schema in messages],
    }
    if bindings:
        operation["bindings"] = {"kafka": bindings | {"bindingVersion": _BINDING_VERSION}}
    return operation


# --- messages ---


def _message_name(schema: SchemaVersion) -> str:
    return f"{schema.record}.{schema.version}"


def _headers_name(record: RecordName) -> str:
    return f"{record}.headers"


def _message(schema: SchemaVersion, topics: Topics, cluster: Cluster) -> Json:
    avro = json.loads(schema.text)
    binding: Json = {"key": {"type": "string"}}
    if cluster.registry_url:
        binding |= {
            "schemaIdLocation": "payload",
            "schemaIdPayloadEncoding": "confluent",
            "schemaLookupStrategy": "TopicNameStrategy",
        }
    record, payload = _example(schema)
    return {
        "name": f"{avro['namespace']}.{avro['name']}",
        "title": f"{schema.record}, schema version {schema.version}",
        "summary": avro["doc"],
        "contentType": CONTENT_TYPE.decode(),
        "headers": {"$ref": f"#/components/schemas/{_headers_name(schema.record)}"},
        "payload": {"schemaFormat": SCHEMA_FORMAT, "schema": avro},
        "bindings": {"kafka": binding | {"bindingVersion": _BINDING_VERSION}},
        "examples": [{"headers": _sent_headers(record, topics), "payload": payload}],
        "x-fingerprint": schema.fingerprint.hex(),
        "x-schema-version": schema.version,
    }


def _headers(spec: TopicSpec, topics: Topics) -> Json:
    """Return the schema of a topic's record headers. Each is UTF-8 text; the names are those that are really sent."""
    record, _ = _example(shipped().newest(spec.record))
    sent = _sent_headers(record, topics)
    dead = isinstance(record, DeadLetter)
    if isinstance(record, Derived):
        return _headers_of_state(sent)
    if isinstance(record, DeadLetterTrail):
        return _headers_of_trail(sent)
    known: Json = {
        "ce_specversion": {"const": sent["ce_specversion"]},
        "ce_id": {
            "pattern": "^[0-9a-f]{32}$",
            "description": "The record's deadLetterId." if dead else "The record's eventId.",
        },
        "ce_source": {
            "format": "uri",
            "description": "Who gave up: urn:kinguin-streams:ingress:<store> or urn:kinguin-streams:consumer:<consumer>."
            if dead
            else "urn:kinguin:store:<store>.",
        },
        "ce_type": {"const": sent["ce_type"]},
        "ce_time": {
            "format": "date-time",
            "description": "When it was given up." if dead else "updatedAt: when the sender says that it happened.",
        },
        "ce_subject": {"description": "The record key."},
        "content-type": {"const": sent["content-type"]},
        "traceparent": {
            "pattern": _TRACEPARENT_PATTERN,
            "description": "W3C Trace Context, if the webhook had a valid one.",
        },
    }
    return {
        "type": "object",
        "required": list(sent),
        "properties": {name: {"type": "string"} | schema for name, schema in known.items()},
    }


def _headers_of_state(sent: Mapping[str, str]) -> Json:
    known: Json = {
        "ce_specversion": {"const": sent["ce_specversion"]},
        "ce_id": {"description": "<key>@<generation>.<revision>."},
        "ce_source": {"const": sent["ce_source"]},
        "ce_type": {"const": sent["ce_type"]},
        "ce_subject": {"description": "The record key."},
        "ce_generation": {"pattern": "^[0-9]+$", "description": "The record's generation; a tombstone has one too."},
        "ce_revision": {"pattern": "^[0-9]+$", "description": "The record's revision; a tombstone has one too."},
        "ce_time": {"format": "date-time", "description": "updatedAt, if there is one."},
        "content-type": {"const": sent["content-type"], "description": "Not of a tombstone."},
    }
    return {
        "type": "object",
        "required": [name for name in known if name not in ("ce_time", "content-type")],
        "properties": {name: {"type": "string"} | schema for name, schema in known.items()},
    }


def _headers_of_trail(sent: Mapping[str, str]) -> Json:
    known: Json = {
        "ce_specversion": {"const": sent["ce_specversion"]},
        "ce_id": {"description": "<deadLetterId>@<at in milliseconds>."},
        "ce_source": {"const": sent["ce_source"]},
        "ce_type": {"const": sent["ce_type"]},
        "ce_time": {"format": "date-time", "description": "When the last step was taken."},
        "ce_subject": {"description": "The record key."},
        "content-type": {"const": sent["content-type"]},
    }
    return {
        "type": "object",
        "required": list(sent),
        "properties": {name: {"type": "string"} | schema for name, schema in known.items()},
    }


def _sent_headers(record: Record, topics: Topics) -> dict[str, str]:
    return {name: value.decode() for name, value in outgoing(record, topics, Encoder()).headers}


def _example(schema: SchemaVersion) -> tuple[Record, Json]:
    """Return a record, and how this version of its schema has it."""
    match schema.record:
        case "dead-letter":
            value = Encoder({"dead-letter": schema.version}).encode(_dead_letter())
        case "dead-letter.trail":
            value = Encoder({"dead-letter.trail": schema.version}).encode(_trail())
        case _:
            value = _golden(schema)
    body = io.BytesIO(value[SINGLE_OBJECT_HEADER_BYTES:])
    avro = fastavro.parse_schema(_without_logical_types(json.loads(schema.text)))
    return Decoder().decode(value), _json_encoded(fastavro.schemaless_reader(body, avro, None))


def _golden(schema: SchemaVersion) -> bytes:
    case = _EXAMPLES.get((schema.record, schema.version), "compact")
    folder = files(__package__) / "examples" / schema.record / str(schema.version)
    return (folder / f"{case}.avro").read_bytes()


def _dead_letter() -> DeadLetter:
    event: EventName = EVENT_NAMES[1]
    return from_ingress(
        store=StoreName("default"),
        event=event,
        reason="malformed_json",
        detail="the body is not JSON",
        body=(files(__package__) / "examples" / "refused" / "cut_off.json").read_bytes(),
        headers=[("X-Event-Name", event.encode()), ("Content-Type", b"aplication/json")],
        received_at_ms=1_615_204_800_123,  # the golden records' receivedAt
    )


def _trail() -> DeadLetterTrail:
    refused_at_ms, discarded_at_ms = 1_615_204_860_123, 1_615_208_400_123
    redrive = "0193a5f2-6b1c-7c3e-9d41-5f0c2a7b8e90"
    return DeadLetterTrail(
        dead_letter_id=_dead_letter().dead_letter_id,
        state="discarded",
        attempts=1,
        at_ms=discarded_at_ms,
        steps=(
            (refused_at_ms, "refused", "malformed_json: the body is not JSON", "ops@host-1", redrive),
            (discarded_at_ms, "discarded", "cut off by our proxy; sent again by the sender", "ops@host-1", None),
        ),
    )


def _without_logical_types(avro: Any) -> Any:
    """Return the schema in which times are numbers and decimals bytes, as JSON can have them."""
    if isinstance(avro, dict):
        return {key: _without_logical_types(value) for key, value in avro.items() if key != "logicalType"}
    return [_without_logical_types(part) for part in avro] if isinstance(avro, list) else avro


def _json_encoded(value: Any) -> Any:
    match value:
        case bytes():
            return value.decode("latin-1")
        case dict():
            return {key: _json_encoded(part) for key, part in value.items()}
        case list():
            return [_json_encoded(part) for part in value]
    return value
