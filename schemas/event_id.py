"""The id of an event, worked out from what was sent: the sender gives none."""

import hashlib

from kinguin_streams.schemas.events import EventId, EventName, StoreName


def event_id(store: StoreName, event: EventName, body: bytes) -> EventId:
    """Return the id that every replica gives to this delivery and to each byte-equal retry of it: 32 hex digits.

    body: the request body after transfer decoding, byte for byte. A retry that is not byte-equal gets another id, and
    two product changes within one second of the 2021 payload (no milliseconds, no quantities) are byte-equal and get one.
    """
    digest = hashlib.sha256(b"kinguin-event/1\0" + store.encode() + b"\0" + event.encode() + b"\0" + body)
    return EventId(digest.hexdigest()[:32])
