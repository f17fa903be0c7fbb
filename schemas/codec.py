"""Record values to and from bytes, in both wire formats.

Single-object encoding (Avro specification): 0xC3 0x01, the schema's 8-byte fingerprint, the Avro body. Needs nothing but
the shipped schemas. Confluent wire format: 0x00, a 4-byte big-endian schema id, the Avro body. Needs a registry.
An Encoder writes one of them; a Decoder reads either, record by record, so that a topic may hold both.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastavro import schemaless_reader, schemaless_writer

from kinguin_streams.schemas import money
from kinguin_streams.schemas.events import DeadLetter, OrderComplete, OrderStatus, ProductUpdate, Record, RecordName
from kinguin_streams.schemas.versions import SchemaCatalogue, SchemaVersion, shipped

SINGLE_OBJECT_MARKER = b"\xc3\x01"
SINGLE_OBJECT_HEADER_BYTES = 10
CONFLUENT_MARKER = b"\x00"
CONFLUENT_HEADER_BYTES = 5


class UndecodableRecord(Exception):
    """These bytes can never be read, now or later: dead-letter them.

    code: no_value, unknown_frame, truncated, malformed, trailing_bytes or not_canonical.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class UnknownSchema(Exception):
    """A newer writer's schema: these bytes can be read after an upgrade of this reader. Wait, never dead-letter."""


class RegistryNeeded(Exception):
    """A record in the Confluent wire format met a reader without a registry. Stop: no record of this topic may be skipped."""


class SchemaIds(Protocol):
    """What a schema registry knows: ids for our schema versions, and back."""

    def id_of(self, schema: SchemaVersion) -> int:
        """Return the registered id of a shipped version, under the subject of its topic."""
        ...

    def schema_of(self, schema_id: int) -> SchemaVersion:
        """Return the shipped version behind an id; raises UnknownSchema if it is none of ours, or cannot be asked now."""
        ...


class Encoder:
    """Writes records: the newest schema version of each, unless `write` holds one back."""

    def __init__(self, write: Mapping[RecordName, int] | None = None, ids: SchemaIds | None = None) -> None:
        """write: record name to version, for a roll-out in which readers are not there yet. ids: a registry, if any.

        Raises KeyError for a version that is not shipped.
        """
        held_back = write or {}
        self._frames: dict[RecordName, tuple[bytes, SchemaVersion]] = {}
        for name in _TO_AVRO:
            schema = shipped().get(name, held_back[name]) if name in held_back else shipped().newest(name)
            header = SINGLE_OBJECT_MARKER + schema.fingerprint
            if ids is not None:
                header = CONFLUENT_MARKER + ids.id_of(schema).to_bytes(4, "big")
            self._frames[name] = (header, schema)

    def encode(self, record: Record) -> bytes:
        """Return the record's value. Numbers must fit an Avro long, as the validator has seen to."""
        header, schema = self._frames[record.record_name]
        return header + _write_body(schema, _TO_AVRO[record.record_name](record))


class Decoder:
    """Reads records of every shipped version, in either wire format."""

    def __init__(self, ids: SchemaIds | None = None, catalogue: SchemaCatalogue | None = None) -> None:
        self._ids = ids
        self._catalogue = catalogue or shipped()

    def decode(self, value: bytes | None) -> Record:
        """Return the record.

        Raises UndecodableRecord, UnknownSchema or RegistryNeeded; nothing else, in time and memory proportional to
        the length of the value whatever the bytes are.
        """
        if value is None:
            raise UndecodableRecord("no_value", "the record has no value")
        schema, body = self._explain(value)
        fields = _read_body(schema, body)
        try:
            return _FROM_AVRO[schema.record](fields)
        except ValueError as error:
            raise _not_canonical(schema) from error

    def _explain(self, value: bytes) -> tuple[SchemaVersion, bytes]:
        if value.startswith(SINGLE_OBJECT_MARKER):
            if len(value) < SINGLE_OBJECT_HEADER_BYTES:
                raise UndecodableRecord("truncated", f"{len(value)} bytes end within the single-object header of 10")
            fingerprint = value[2:SINGLE_OBJECT_HEADER_BYTES]
            schema = self._catalogue.by_fingerprint(fingerprint)
            if schema is None:
                raise UnknownSchema(f"no shipped schema has the fingerprint {fingerprint.hex()}")
            return schema, value[SINGLE_OBJECT_HEADER_BYTES:]
        if value.startswith(CONFLUENT_MARKER):
            if len(value) < CONFLUENT_HEADER_BYTES:
                raise UndecodableRecord("truncated", f"{len(value)} bytes end within the Confluent header of 5")
            schema_id = int.from_bytes(value[1:CONFLUENT_HEADER_BYTES], "big")
            if self._ids is None:
                raise RegistryNeeded(
                    f"a record refers to schema id {schema_id} of a registry; set KINGUIN_REGISTRY__URL"
                )
            return self._ids.schema_of(schema_id), value[CONFLUENT_HEADER_BYTES:]
        raise UndecodableRecord(
            "unknown_frame", f"a value must begin with c301 or 00, this one with {value[:2].hex()!r}"
        )


def _write_body(schema: SchemaVersion, fields: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    schemaless_writer(out, schema.wire, fields)
    return out.getvalue()


def _read_body(schema: SchemaVersion, body: bytes) -> dict[str, Any]:
    source = io.BytesIO(body)
    try:
        fields: dict[str, Any] = schemaless_reader(source, schema.wire, None)  # type: ignore[assignment]
    except Exception as error:  # fastavro raises what its parts raise: Unicode, Index, Value, Overflow, Memory, …
        # It says IndexError for a number that is cut off, and for a union index past the end.
        if isinstance(error, EOFError) or (isinstance(error, IndexError) and source.tell() == len(body)):
            detail = f"{schema.record} version {schema.version} wants more bytes"
            raise UndecodableRecord("truncated", detail) from error
        raise UndecodableRecord("malformed", f"not a {schema.record} version {schema.version}: {error}") from error
    if source.tell() != len(body):
        raise UndecodableRecord("trailing_bytes", f"{len(body) - source.tell()} bytes follow the {schema.record}")
    # fastavro reads union index -1 as the last branch, a negative length as "all that is left" and overlong varints as
    # short ones. Writing the record again is the one check that none of these passes.
    try:
        canonical = _write_body(schema, fields)
    except ValueError as error:  # read as an int, and too large for one
        raise _not_canonical(schema) from error
    if canonical != body:
        raise _not_canonical(schema)
    return fields


def _not_canonical(schema: SchemaVersion) -> UndecodableRecord:
    return UndecodableRecord(
        "not_canonical", f"no writer of {schema.record} version {schema.version} wrote these bytes"
    )


def _product_update_to_avro(record: ProductUpdate) -> dict[str, Any]:
    # Fields that the written version lacks are passed over by fastavro; `raw` has them all.
    return {
        "eventId": record.event_id,
        "store": record.store,
        "receivedAt": record.received_at_ms,
        "kinguinId": record.kinguin_id,
        "productId": record.product_id,
        "updatedAt": record.updated_at_ms,
        "qty": record.qty,
        "textQty": record.text_qty,
        "price": None if record.price is None else money.to_wire(record.price),
        "priceRounded": record.price_rounded,
        # A list: fastavro takes a tuple for a hint (branch name, value).
        "cheapestOfferId": None if record.cheapest_offer_ids is None else list(record.cheapest_offer_ids),
        "raw": record.raw,
    }


def _product_update_from_avro(fields: dict[str, Any]) -> ProductUpdate:
    offers = fields.get("cheapestOfferId")
    price = fields.get("price")
    return ProductUpdate(
        event_id=fields["eventId"],
        store=fields["store"],
        received_at_ms=fields["receivedAt"],
        kinguin_id=fields["kinguinId"],
        product_id=fields["productId"],
        updated_at_ms=fields["updatedAt"],
        qty=fields.get("qty"),
        text_qty=fields.get("textQty"),
        price=None if price is None else money.from_wire(price),
        price_rounded=fields.get("priceRounded", False),
        cheapest_offer_ids=None if offers is None else tuple(offers),
        raw=fields["raw"],
    )


def _order_status_to_avro(record: OrderStatus) -> dict[str, Any]:
    return {
        "eventId": record.event_id,
        "store": record.store,
        "receivedAt": record.received_at_ms,
        "orderId": record.order_id,
        "orderExternalId": record.order_external_id,
        "status": record.status,
        "updatedAt": record.updated_at_ms,
        "raw": record.raw,
    }


def _order_status_from_avro(fields: dict[str, Any]) -> OrderStatus:
    return OrderStatus(
        event_id=fields["eventId"],
        store=fields["store"],
        received_at_ms=fields["receivedAt"],
        order_id=fields["orderId"],
        order_external_id=fields["orderExternalId"],
        status=fields["status"],
        updated_at_ms=fields["updatedAt"],
        raw=fields["raw"],
    )


def _order_complete_to_avro(record: OrderComplete) -> dict[str, Any]:
    return {
        "eventId": record.event_id,
        "store": record.store,
        "receivedAt": record.received_at_ms,
        "orderId": record.order_id,
        "orderExternalId": record.order_external_id,
        "updatedAt": record.updated_at_ms,
        "raw": record.raw,
    }


def _order_complete_from_avro(fields: dict[str, Any]) -> OrderComplete:
    return OrderComplete(
        event_id=fields["eventId"],
        store=fields["store"],
        received_at_ms=fields["receivedAt"],
        order_id=fields["orderId"],
        order_external_id=fields["orderExternalId"],
        updated_at_ms=fields["updatedAt"],
        raw=fields["raw"],
    )


def _dead_letter_to_avro(record: DeadLetter) -> dict[str, Any]:
    return {
        "deadLetterId": record.dead_letter_id,
        "origin": record.origin,
        "reason": record.reason,
        "detail": record.detail,
        "failedAt": record.failed_at_ms,
        "body": record.body,
        "bodySize": record.body_size,
        "bodySha256": record.body_sha256,
        "headers": [{"name": name, "value": value} for name, value in record.headers],
        "store": record.store,
        "event": record.event,
        "consumer": record.consumer,
        "sourceTopic": record.source_topic,
        "sourcePartition": record.source_partition,
        "sourceOffset": record.source_offset,
        "sourceKey": record.source_key,
        "sourceTimestamp": record.source_timestamp_ms,
    }


def _dead_letter_from_avro(fields: dict[str, Any]) -> DeadLetter:
    return DeadLetter(
        dead_letter_id=fields["deadLetterId"],
        origin=fields["origin"],
        reason=fields["reason"],
        detail=fields["detail"],
        failed_at_ms=fields["failedAt"],
        body=fields["body"],
        body_size=fields["bodySize"],
        body_sha256=fields["bodySha256"],
        headers=tuple((header["name"], header["value"]) for header in fields["headers"]),
        store=fields["store"],
        event=fields["event"],
        consumer=fields["consumer"],
        source_topic=fields["sourceTopic"],
        source_partition=fields["sourcePartition"],
        source_offset=fields["sourceOffset"],
        source_key=fields["sourceKey"],
        source_timestamp_ms=fields["sourceTimestamp"],
    )


_TO_AVRO: dict[RecordName, Callable[[Any], dict[str, Any]]] = {
    "product.update": _product_update_to_avro,
    "order.status": _order_status_to_avro,
    "order.complete": _order_complete_to_avro,
    "dead-letter": _dead_letter_to_avro,
}
_FROM_AVRO: dict[RecordName, Callable[[dict[str, Any]], Record]] = {
    "product.update": _product_update_from_avro,
    "order.status": _order_status_from_avro,
    "order.complete": _order_complete_from_avro,
    "dead-letter": _dead_letter_from_avro,
}
