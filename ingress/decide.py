"""From (headers, body) to (record | refusal): everything the ingress decides about a delivery, without HTTP or Kafka."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

import msgspec

from kinguin_streams.ingress.payloads import InvalidWebhook, read_event, reasons
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.schemas.dead_letters import from_ingress
from kinguin_streams.schemas.events import EVENT_NAMES, DeadLetter, Event, EventName, StoreName

MAX_BODY_BYTES: Final = 65_536
"""The sender's payloads are under 1 KiB."""
MAX_KEPT_NAME_CHARACTERS: Final = 256
# Each parameter of a Content-Type; a semicolon in quotes ends none.
_PARAMETER: Final = re.compile(r';((?:"(?:[^"\\]|\\.)*"|[^;"])*)', re.DOTALL)

REFUSED_BY_KAFKA: Final = "refused_by_kafka"
INVALID_REASONS: Final = frozenset(
    {"unsupported_encoding", "missing_event_name", "unknown_event", REFUSED_BY_KAFKA, *reasons()}
)
RefusalReason = Literal["headers_missing", "wrong_secret"]
REFUSAL_REASONS: Final[tuple[RefusalReason, ...]] = get_args(RefusalReason)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One POST, as far as the decision needs it. Absent headers are None."""

    store: StoreName
    event_name: str | None
    secret: bytes | None
    content_type: str | None
    content_encoding: str | None
    kept_headers: Sequence[tuple[str, bytes]]
    """What a dead letter may carry: an allow-list that never holds a secret."""
    body: bytes
    received_at_ms: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Nothing was sent: perhaps the dashboard's TEST URL button, whose request is undocumented."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not authenticated. Nothing is kept."""

    reason: RefusalReason


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event to be published before the answer."""

    event: Event


@dataclass(frozen=True, slots=True)
class Invalid:
    """Authenticated, but it can never become an event: a dead letter to be published before the answer."""

    dead_letter: DeadLetter


Decision = Ping | Refused | Accepted | Invalid


def decide(delivery: Delivery, secrets: Secrets, on_authenticated: Callable[[], object] = lambda: None) -> Decision:
    """Return what is to be done. No work is spent on the content before the secret has been found right.

    on_authenticated: called then, so that it is known even if the content is too much for us. It may raise, to go no further.
    """
    if delivery.event_name is None and delivery.secret is None:
        # A body without either header is no ping: a proxy that strips headers would lose everything behind a 2xx.
        return Refused("headers_missing") if delivery.body else Ping()
    if not delivery.secret or not secrets.accept(delivery.store, delivery.secret):
        return Refused("wrong_secret")
    on_authenticated()
    return validated(delivery)


def validated(delivery: Delivery) -> Accepted | Invalid:
    """Return what the content of a delivery is, whoever sent it: also for webhooks of long ago, read by today's rules."""
    try:
        _check_encoding(delivery)
        return Accepted(read_event(delivery.store, _known(delivery.event_name), delivery.body, delivery.received_at_ms))
    except InvalidWebhook as invalid:
        return Invalid(_dead_letter(delivery, invalid.code, invalid.detail))


def refused_by_kafka(delivery: Delivery, detail: str) -> DeadLetter:
    """Return the dead letter of an event that its topic will never take: it allows less than the limit of bodies."""
    return _dead_letter(delivery, REFUSED_BY_KAFKA, detail)


def _dead_letter(delivery: Delivery, reason: str, detail: str) -> DeadLetter:
    return from_ingress(
        store=delivery.store,
        event=(delivery.event_name or "")[:MAX_KEPT_NAME_CHARACTERS],
        reason=reason,
        detail=detail,
        body=delivery.body,
        headers=delivery.kept_headers,
        received_at_ms=delivery.received_at_ms,
    )


def _check_encoding(delivery: Delivery) -> None:
    if (delivery.content_encoding or "identity").strip().lower() != "identity":
        raise InvalidWebhook("unsupported_encoding", "the body has a Content-Encoding")
    if delivery.content_type is not None and not _is_utf_8(delivery.content_type):
        raise InvalidWebhook("unsupported_encoding", "the body has a charset that is not UTF-8")


@lru_cache(maxsize=64)  # a sender has one
def _is_utf_8(content_type: str) -> bool:
    # The type itself is not looked at: the sender spells it "aplication/json". The standard library's email.message raises
    # TypeError or ValueError at charset*0, charset*=x and charset*<5000 digits>, by RFC 2231: no webhook needs those.
    for parameter in _PARAMETER.findall(content_type):
        name, _, value = parameter.partition("=")
        name = name.strip().lower()
        if name.startswith("charset*"):
            return False
        if name == "charset" and value.strip().strip('"').lower() not in {"utf-8", "utf8", "us-ascii"}:
            return False
    return True


def _known(name: str | None) -> EventName:
    if not name:
        raise InvalidWebhook("missing_event_name", "the request has no X-Event-Name")
    for known in EVENT_NAMES:
        if name == known:
            return known
    raise InvalidWebhook("unknown_event", f"X-Event-Name is none of {', '.join(EVENT_NAMES)}")
