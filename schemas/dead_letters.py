"""Dead letters: made the same way by whoever gives up."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kinguin_streams.schemas.events import DeadLetter, StoreName

MAX_KEPT_BODY_BYTES: Final = 196_608
"""A dead letter must fit its topic (256 KiB with everything); of a larger value the first part, size and hash are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePosition:
    """The Kafka record that could not be processed."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    timestamp_ms: int | None


def from_ingress(
    *,
    store: StoreName,
    event: str,
    reason: str,
    detail: str,
    body: bytes,
    headers: Sequence[tuple[str, bytes]],
    received_at_ms: int,
) -> DeadLetter:
    """Return the dead letter of an authenticated request that can never become a record.

    headers: the allow-listed ones only. The id covers store, event name and body, so a retry of the request has the same.
    """
    return DeadLetter(
        dead_letter_id=_id(b"ingress", store.encode(), event.encode(), body),
        origin="ingress",
        reason=reason,
        detail=detail,
        failed_at_ms=received_at_ms,
        body=body[:MAX_KEPT_BODY_BYTES],
        body_size=len(body),
        body_sha256=hashlib.sha256(body).hexdigest(),
        headers=tuple(headers),
        store=store,
        event=event,
    )


def from_consumer(
    *,
    consumer: str,
    reason: str,
    detail: str,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
    source: SourcePosition,
    failed_at_ms: int,
) -> DeadLetter:
    """Return the dead letter of a record that a consumer could not process.

    The id covers consumer and position, so that a consumer that crashes between this and its commit makes it once.
    """
    body = value or b""
    position = f"{source.topic}/{source.partition}/{source.offset}".encode()
    return DeadLetter(
        dead_letter_id=_id(b"consumer", consumer.encode(), position),
        origin="consumer",
        reason=reason,
        detail=detail,
        failed_at_ms=failed_at_ms,
        body=body[:MAX_KEPT_BODY_BYTES],
        body_size=len(body),
        body_sha256=hashlib.sha256(body).hexdigest(),
        headers=tuple(headers),
        consumer=consumer,
        source_topic=source.topic,
        source_partition=source.partition,
        source_offset=source.offset,
        source_key=source.key,
        source_timestamp_ms=source.timestamp_ms,
    )


def _id(*parts: bytes) -> str:
    return hashlib.sha256(b"kinguin-dead-letter/1\0" + b"\0".join(parts)).hexdigest()[:32]
