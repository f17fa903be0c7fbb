"""What a reader must see of the corpus, worked out from what was sent: the canonical form of README.md.

Standard library only, and its own way with dates, money and hashes: where it agrees with a reader, both are right, or two
programs by different people made the same mistake.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

from tests.readers.corpus import BadRecord, BadWebhook, Webhook

PARTITIONS = 6
TOPICS = ("product.update", "order.status", "order.complete", "dead-letter")
_PLENTY = Context(prec=2_000)
_MAX_KEPT_BYTES = 196_608
_UPDATED_AT = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|UTC|[+-]\d\d:\d\d)", re.ASCII)


def expected(
    sent: Iterable[Webhook | BadWebhook | BadRecord], prefix: str, base_ms: int
) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return (topic, partition, offset) to canonical record, for deliveries that one producer sent in this order.

    prefix: the first part of the topics' names, which were empty. base_ms: the instant that the corpus counts from.
    """
    ends: Counter[tuple[str, int]] = Counter()
    records = {}
    for delivery in sent:
        record = _dead_letter(delivery, base_ms) if not isinstance(delivery, Webhook) else _event(delivery, base_ms)
        topic = f"{prefix}.{record.pop('topic')}"
        partition = partition_of(record["key"].encode())
        offset = ends[topic, partition]
        ends[topic, partition] += 1
        records[topic, partition, offset] = {"topic": topic, "partition": partition, "offset": offset, **record}
    return records


def _event(sent: Webhook, base_ms: int) -> dict[str, Any]:
    fields = json.loads(sent.body, parse_float=Decimal)
    event_id = _hash("kinguin-event/1", sent.store.encode(), sent.event.encode(), sent.body)
    updated_at_ms = instant_ms(fields["updatedAt"])
    value: dict[str, Any] = {
        "eventId": event_id,
        "store": sent.store,
        "receivedAt": str(base_ms + sent.received_after_ms),
        "updatedAt": str(updated_at_ms),
        "raw": base64.b64encode(sent.body).decode(),
    }
    if sent.event == "product.update":
        key = str(fields["kinguinId"])
        value |= {"kinguinId": key, "productId": fields["productId"]}
        if sent.version > 1:
            value |= {name: _number(fields.get(name)) for name in ("qty", "textQty")}
            value["cheapestOfferId"] = fields.get("cheapestOfferId")
        if sent.version == 2:
            value |= _price(fields.get("price"))
    else:
        key = fields["orderId"]
        value |= {"orderId": key, "orderExternalId": fields.get("orderExternalId")}
        if sent.event == "order.status":
            value["status"] = fields["status"]
    headers = [
        ["ce_specversion", "1.0"],
        ["ce_id", event_id],
        ["ce_source", f"urn:kinguin:store:{sent.store}"],
        ["ce_type", f"net.kinguin.{sent.event}"],
        ["ce_time", rfc3339(updated_at_ms)],
        ["ce_subject", key],
        ["content-type", "application/avro"],
    ]
    if sent.traceparent is not None:
        headers.append(["traceparent", sent.traceparent])
    timestamp = base_ms + sent.received_after_ms
    return {"topic": sent.event, "timestamp": timestamp, "key": key, "headers": headers, "value": value}


def _dead_letter(sent: BadWebhook | BadRecord, base_ms: int) -> dict[str, Any]:
    nothing = dict.fromkeys(("store", "event", "consumer", "sourceTopic", "sourcePartition", "sourceOffset"))
    value: dict[str, Any] = {**nothing, "sourceKey": None, "sourceTimestamp": None}
    if isinstance(sent, BadWebhook):
        origin, body, who = "ingress", sent.body, sent.store
        failed_at_ms = base_ms + sent.received_after_ms
        dead_letter_id = _hash("kinguin-dead-letter/1", b"ingress", sent.store.encode(), sent.event.encode(), body)
        value |= {"store": sent.store, "event": sent.event}
    else:
        origin, body, who = "consumer", sent.value or b"", sent.consumer
        failed_at_ms = base_ms + sent.failed_after_ms
        position = f"{sent.topic}/{sent.partition}/{sent.offset}"
        dead_letter_id = _hash("kinguin-dead-letter/1", b"consumer", sent.consumer.encode(), position.encode())
        value |= {
            "consumer": sent.consumer,
            "sourceTopic": sent.topic,
            "sourcePartition": str(sent.partition),
            "sourceOffset": str(sent.offset),
            "sourceKey": _base64(sent.key),
            "sourceTimestamp": _number(sent.timestamp_ms),
        }
    value |= {
        "deadLetterId": dead_letter_id,
        "origin": origin,
        "reason": sent.reason,
        "detail": sent.detail,
        "failedAt": str(failed_at_ms),
        "body": _base64(body[:_MAX_KEPT_BYTES]),
        "bodySize": str(len(body)),
        "bodySha256": hashlib.sha256(body).hexdigest(),
        "headers": [{"name": name, "value": _base64(content)} for name, content in sent.headers],
    }
    headers = [
        ["ce_specversion", "1.0"],
        ["ce_id", dead_letter_id],
        ["ce_source", f"urn:kinguin-streams:{origin}:{who}"],
        ["ce_type", "kinguin-streams.dead-letter"],
        ["ce_time", rfc3339(failed_at_ms)],
        ["ce_subject", dead_letter_id],
        ["content-type", "application/avro"],
    ]
    return {
        "topic": "dead-letter",
        "timestamp": failed_at_ms,
        "key": dead_letter_id,
        "headers": headers,
        "value": value,
    }


def _hash(purpose: str, *parts: bytes) -> str:
    return hashlib.sha256(b"\0".join((purpose.encode(), *parts))).hexdigest()[:32]


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _number(sent: int | None) -> str | None:
    return None if sent is None else str(sent)


def _price(sent: Decimal | int | str | None) -> dict[str, Any]:
    if sent is None:
        return {"price": None, "priceRounded": False}
    exact = Decimal(sent)
    price = exact.quantize(Decimal("1e-6"), ROUND_HALF_EVEN, _PLENTY)
    return {"price": f"{abs(price) if price.is_zero() else price:f}", "priceRounded": price != exact}


def instant_ms(text: str) -> int:
    """Return milliseconds since 1970-01-01T00:00:00Z, floored, of a time as the sender writes it."""
    match = _UPDATED_AT.fullmatch(text)
    assert match is not None, text
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    milliseconds = int(f"{match[7] or '':0<3}"[:3])
    zone = match[8]
    offset_minutes = 0 if zone in ("Z", "UTC") else int(zone[0] + "1") * (int(zone[1:3]) * 60 + int(zone[4:6]))
    minutes = (_days_since_1970(year, month, day) * 24 + hour) * 60 + minute - offset_minutes
    return (minutes * 60 + second) * 1_000 + milliseconds


def rfc3339(instant: int) -> str:
    """Return an instant in milliseconds as UTC with three fractional digits."""
    seconds, milliseconds = divmod(instant, 1_000)
    days, second_of_day = divmod(seconds, 86_400)
    year, month, day = _civil(days)
    hour, minute, second = second_of_day // 3_600, second_of_day // 60 % 60, second_of_day % 60
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z"


def _days_since_1970(year: int, month: int, day: int) -> int:
    """Count days in the Gregorian calendar, also before it was one. Years begin in March, so that the leap day is last."""
    if month < 3:
        year, month = year - 1, month + 12
    before = 365 * year + year // 4 - year // 100 + year // 400
    return before + (153 * (month - 3) + 2) // 5 + day - 1 - 719_468


def _civil(days: int) -> tuple[int, int, int]:
    year = 1 + (days + 719_162) * 400 // 146_097
    while _days_since_1970(year, 1, 1) > days:
        year -= 1
    while _days_since_1970(year + 1, 1, 1) <= days:
        year += 1
    month = next(month for month in range(12, 0, -1) if _days_since_1970(year, month, 1) <= days)
    return year, month, days - _days_since_1970(year, month, 1) + 1


def partition_of(key: bytes, partitions: int = PARTITIONS) -> int:
    """Return where a Java producer puts this key: murmur2 with its own seed, the sign bit cleared."""
    mask, mix = 0xFFFFFFFF, 0x5BD1E995
    hashed = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for i in range(0, whole, 4):
        word = int.from_bytes(key[i : i + 4], "little") * mix & mask
        word = (word ^ word >> 24) * mix & mask
        hashed = (hashed * mix & mask) ^ word
    if key[whole:]:
        hashed = (hashed ^ int.from_bytes(key[whole:], "little")) * mix & mask
    hashed = (hashed ^ hashed >> 13) * mix & mask
    return ((hashed ^ hashed >> 15) & 0x7FFFFFFF) % partitions
