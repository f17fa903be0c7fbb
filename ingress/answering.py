"""What becomes of one request: `decide` decides, the keeper keeps, the answer follows. The order of its lines is the promise.

Knows no server: app.py (Falcon on waitress) and rsgi.py (granian) read a request, run these steps, and write the answer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import structlog
import uuid_utils

from kinguin_streams.ingress import problems
from kinguin_streams.ingress.decide import (
    Accepted,
    Delivery,
    Invalid,
    Ping,
    Refused,
    decide,
    refused_by_kafka,
)
from kinguin_streams.ingress.exchange import Answer, Asked
from kinguin_streams.ingress.keeper import KafkaRefuses, NotKept, Where
from kinguin_streams.ingress.ledger import OTHER, Entry, Ledger
from kinguin_streams.ingress.problems import Problem, invalid_webhook_detail
from kinguin_streams.ingress.request_log import RequestLog
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.ingress.waiting import Steps
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.events import DeadLetter, Event, StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.traces import TraceHeaders, Traces

log = structlog.get_logger()

DEFAULT_STORE: Final = StoreName("default")
PATHS: Final = ("/webhooks", "/webhooks/{store}")
"""The first stands for the store named `default`."""
METHODS: Final = ("GET", "HEAD", "POST")
REQUEST_ID_HEADER: Final = "X-Request-Id"
FAULT_HEADER: Final = "Kinguin-Streams-Fault"
CHALLENGE: Final = "X-Event-Secret"
"""What `WWW-Authenticate` says: which header is wrong or missing."""
RETRY_AFTER_S: Final = 5
STRIPPED_HEADERS_LOG_EVERY_S: Final = 60.0
# What a dead letter keeps of the request. The secret is not among them, nor anything a proxy adds about the client.
KEPT_HEADERS: Final = ("X-Event-Name", "Content-Type", "Content-Encoding", "User-Agent", "Traceparent")
_KEPT: Final = tuple((name, name.lower()) for name in KEPT_HEADERS)

_COME_AGAIN: Final = (("Retry-After", str(RETRY_AFTER_S)),)
_NOTHING_TO_SAY: Final = Answer(204, ())

Clock = Callable[[], int]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Keeps(Protocol):
    """Takes a record and keeps it, or says that it did not: ingress/keeper.py."""

    def keep(self, record: OutgoingRecord, deadline_s: float, /) -> Steps[Where]:
        """End once the record is durable, by then. Raises NotKept, or KafkaRefuses."""
        ...

    def keep_on_disk(self, record: OutgoingRecord, deadline_s: float, refused: KafkaRefuses, /) -> Steps[Where]:
        """Do the same with a record that Kafka has refused for good. Raises NotKept."""
        ...


class StrippedHeaders:
    """Says at most once a minute that bodies arrive without their headers: a proxy in front of us removes them."""

    def __init__(self) -> None:
        self._last_s = -STRIPPED_HEADERS_LOG_EVERY_S

    def seen(self) -> None:
        """Note one such request."""
        now_s = time.monotonic()
        if now_s - self._last_s >= STRIPPED_HEADERS_LOG_EVERY_S:
            self._last_s = now_s
            log.error(
                "headers_missing",
                hint="a POST with a body had neither X-Event-Name nor X-Event-Secret: does a proxy strip headers?",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """Everything that is answered on the webhook port."""

    secrets: Secrets
    topics: Topics
    encoder: Encoder
    keeper: Keeps
    ledger: Ledger
    on_invalid: Literal["accept", "reject"]
    stripped_headers: StrippedHeaders
    vigil: Vigil
    deadline_s: float
    max_in_flight: int
    request_log: RequestLog
    traces: Traces
    now_ms: Clock = _now_ms

    def answer(self, asked: Asked) -> Steps[Answer]:
        """End with the answer: a 2xx only once what was sent is durable, in Kafka or in the spool. Raises nothing."""
        # An id of our own; one from outside would not be trusted. Time-ordered, so that log lines sort by it.
        request_id = str(uuid_utils.uuid7())
        entry = self.ledger.open()
        try:
            try:
                answer = yield from self._answer(asked, entry, request_id)
            finally:
                self.ledger.close(entry)
        except Problem as problem:
            answer = problems.answer(problem, request_id)
        except Exception as error:
            log.error("internal_error", request_id=request_id, exc_info=error)
            answer = problems.answer(Problem("internal_error"), request_id)
        if entry.authenticated:
            self.vigil.answered(failed=not 200 <= answer.status < 300)
        self.request_log.ended(asked, entry, answer.status, request_id)
        return Answer(answer.status, ((REQUEST_ID_HEADER, request_id), *answer.headers), answer.body)

    def _answer(self, asked: Asked, entry: Entry, request_id: str) -> Steps[Answer]:
        received_at_ms = self.now_ms()
        store = self._known_store(entry, asked.path)
        if asked.method not in METHODS:
            entry.reason = "method_not_allowed"
            raise Problem("method_not_allowed", headers=(("Allow", ", ".join(METHODS)),))
        if asked.body is None:
            entry.reason = "body_too_large"
            raise Problem("body_too_large")
        if asked.method != "POST":
            return _ping(entry)
        entry.body_bytes = len(asked.body)
        delivery = _delivery(asked, store, asked.body, received_at_ms)

        def authenticated() -> None:
            entry.authenticated = True
            in_flight = self.ledger.in_flight
            if in_flight > self.max_in_flight:
                # Others are answered at once and hold nothing. Each of these would hold its body while Kafka or the disk is slow.
                entry.reason = "too_many_in_flight"
                log.error("not_kept", request_id=request_id, code=entry.reason, in_flight=in_flight)
                raise Problem("unavailable", headers=_COME_AGAIN)

        match decide(delivery, self.secrets, authenticated):
            case Ping():
                return _ping(entry)
            case Refused(reason):
                entry.reason = reason
                if reason == "headers_missing":
                    self.stripped_headers.seen()
                raise Problem("unauthorized", headers=(("WWW-Authenticate", CHALLENGE),))
            case Accepted(event):
                entry.event = event.record_name
                self.vigil.came(store, event.record_name)
                try:
                    where = yield from self._keep(asked, event, entry, request_id)
                except KafkaRefuses as refuses:
                    # The topic takes less than we do. Coming again would not help the sender, so it is no failure of his.
                    self.ledger.publish_failed("kafka_refused")
                    dead_letter = refused_by_kafka(delivery, str(refuses))
                    return (yield from self._dead_letter(asked, dead_letter, entry, request_id))
                entry.outcome, entry.reason = "acked" if where == "kafka" else "spooled", ""
                return _NOTHING_TO_SAY
            case Invalid(dead_letter):
                self.vigil.came(store, dead_letter.event or OTHER)
                return (yield from self._dead_letter(asked, dead_letter, entry, request_id))

    def _known_store(self, entry: Entry, path: str) -> StoreName:
        store = store_of(path)
        if store is None:
            entry.reason = "unknown_path"
            raise Problem("not_found")
        if not self.secrets.has(store):
            entry.reason = "unknown_store"
            raise Problem("unknown_store")
        return store

    def _keep(self, asked: Asked, record: Event | DeadLetter, entry: Entry, request_id: str) -> Steps[Where]:
        topic = self.topics.name(record.record_name)
        came_with = TraceHeaders(asked.header("traceparent"), asked.header("tracestate"))
        with self.traces.sending(topic, came_with) as span:
            began_s = time.perf_counter()
            try:
                sending = outgoing(record, self.topics, self.encoder, *span.headers)
                where = yield from self._kept(sending, record, asked.arrived_s + self.deadline_s)
            except NotKept as failed:
                span.ended(failed.code, failed=True)
                self.ledger.publish_failed(failed.code)
                entry.reason = failed.code
                log.error("not_kept", request_id=request_id, topic=topic, code=failed.code, error=str(failed))
                raise Problem("unavailable", headers=_COME_AGAIN) from failed
            span.ended(where, failed=False)
        entry.topic, entry.kept, entry.kept_after_s = topic, where, time.perf_counter() - began_s
        return where

    def _kept(self, sending: OutgoingRecord, record: Event | DeadLetter, deadline_s: float) -> Steps[Where]:
        try:
            return (yield from self.keeper.keep(sending, deadline_s))
        except KafkaRefuses as refuses:
            if not isinstance(record, DeadLetter):
                raise
            # There is no other topic for it. Sent again it would be refused again, and each time be a failure of the sender's.
            return (yield from self.keeper.keep_on_disk(sending, deadline_s, refuses))

    def _dead_letter(self, asked: Asked, dead_letter: DeadLetter, entry: Entry, request_id: str) -> Steps[Answer]:
        entry.event = dead_letter.event or OTHER
        yield from self._keep(asked, dead_letter, entry, request_id)
        reason = dead_letter.reason
        entry.outcome, entry.reason = "dead_lettered", reason
        log.warning(
            "invalid_webhook", request_id=request_id, store=dead_letter.store, reason=reason, detail=dead_letter.detail
        )
        fault = ((FAULT_HEADER, reason),)
        if self.on_invalid == "reject":
            raise Problem("invalid_webhook", detail=invalid_webhook_detail(reason), headers=fault)
        # The sender asks for an empty body, and counts failures until it disables the endpoint: a payload that will
        # never be valid must not be one of them.
        return Answer(202, fault)


def store_of(path: str) -> StoreName | None:
    """Return the store that a path addresses, whether there is one or not; None if it is no path of ours."""
    first, _, rest = path.removesuffix("/").removeprefix("/").partition("/")
    if first != "webhooks" or not path.startswith("/") or "/" in rest:
        return None
    return StoreName(rest) if rest else DEFAULT_STORE


def _ping(entry: Entry) -> Answer:
    entry.outcome, entry.reason = "ping", ""
    return _NOTHING_TO_SAY


def _delivery(asked: Asked, store: StoreName, body: bytes, received_at_ms: int) -> Delivery:
    header = asked.header
    secret = header("x-event-secret")
    return Delivery(
        store=store,
        event_name=header("x-event-name"),
        secret=None if secret is None else secret.encode("latin-1"),
        content_type=header("content-type"),
        content_encoding=header("content-encoding"),
        kept_headers=[(name, value.encode("latin-1")) for name, key in _KEPT if (value := header(key)) is not None],
        body=body,
        received_at_ms=received_at_ms,
    )
