"""The WSGI application: reads a request, lets `decide` decide, publishes, answers. The order of its lines is the promise."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, Protocol

import falcon
import structlog
import uuid_utils.compat

from kinguin_streams.ingress.channel import ARRIVED
from kinguin_streams.ingress.decide import (
    MAX_BODY_BYTES,
    Accepted,
    Delivery,
    Invalid,
    Ping,
    Refused,
    decide,
    refused_by_kafka,
)
from kinguin_streams.ingress.keeper import KafkaRefuses, NotKept, Where
from kinguin_streams.ingress.ledger import OTHER, Entry, Ledger
from kinguin_streams.ingress.problems import Problem, invalid_webhook_detail, serialize
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.events import DeadLetter, Event, StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import Topics

log = structlog.get_logger()

DEFAULT_STORE: Final = StoreName("default")
PATHS: Final = ("/webhooks", "/webhooks/{store}")
"""The first stands for the store named `default`."""
FAULT_HEADER: Final = "Kinguin-Streams-Fault"
METHODS: Final = ("GET", "HEAD", "POST")
CHALLENGE: Final = "X-Event-Secret"
"""What `WWW-Authenticate` says: which header is wrong or missing."""
RETRY_AFTER_S: Final = 5
STRIPPED_HEADERS_LOG_EVERY_S: Final = 60.0
# What a dead letter keeps of the request. The secret is not among them, nor anything a proxy adds about the client.
KEPT_HEADERS: Final = ("X-Event-Name", "Content-Type", "Content-Encoding", "User-Agent", "Traceparent")

Clock = Callable[[], int]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Keeps(Protocol):
    """Takes a record and keeps it, or says that it did not: ingress/keeper.py."""

    def keep(self, record: OutgoingRecord, deadline_s: float, /) -> Where:
        """Return once the record is durable, by then. Raises NotKept, or KafkaRefuses."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """The resource behind /webhooks and /webhooks/{store}."""

    secrets: Secrets
    topics: Topics
    encoder: Encoder
    keeper: Keeps
    ledger: Ledger
    on_invalid: Literal["accept", "reject"]
    stripped_headers: "StrippedHeaders"
    vigil: Vigil
    deadline_s: float
    now_ms: Clock = _now_ms

    def on_get(self, req: falcon.Request, resp: falcon.Response, store: str = DEFAULT_STORE) -> None:
        """Answer 204: whoever looks whether somebody is here."""
        with self.ledger.request() as entry:
            self._known_store(entry, store)
            self._ping(entry, resp)

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response, store: str = DEFAULT_STORE) -> None:
        """Answer 2xx only once what was sent is durable, in Kafka or in the spool."""
        with self.ledger.request() as entry:
            received_at_ms = self.now_ms()
            known = self._known_store(entry, store)
            body = self._read_body(entry, req)
            delivery = _delivery(req, known, body, received_at_ms)
            match decide(delivery, self.secrets):
                case Ping():
                    self._ping(entry, resp)
                case Refused(reason):
                    entry.reason = reason
                    if reason == "headers_missing":
                        self.stripped_headers.seen()
                    raise Problem("unauthorized", headers={"WWW-Authenticate": CHALLENGE})
                case Accepted(event):
                    entry.event = event.record_name
                    self.vigil.came(known, event.record_name)
                    try:
                        where = self._keep(entry, req, event)
                    except KafkaRefuses as refuses:
                        self._refused_by_kafka(entry, req, resp, delivery, refuses)
                        return
                    entry.outcome, entry.reason = "acked" if where == "kafka" else "spooled", ""
                    resp.status = falcon.HTTP_204
                case Invalid(dead_letter):
                    self.vigil.came(known, dead_letter.event or OTHER)
                    self._dead_letter(entry, req, resp, dead_letter)

    def refuse_method(self, store: str = DEFAULT_STORE) -> NoReturn:
        """Answer 405."""
        with self.ledger.request() as entry:
            self._known_store(entry, store)
            entry.reason = "method_not_allowed"
            raise falcon.HTTPMethodNotAllowed(METHODS)

    def _known_store(self, entry: Entry, store: str) -> StoreName:
        if StoreName(store) not in self.secrets.stores:
            entry.reason = "unknown_store"
            raise Problem("unknown_store")
        return StoreName(store)

    def _read_body(self, entry: Entry, req: falcon.Request) -> bytes:
        """Return the body, chunked or not, reading at most one byte over the limit."""
        body = b""
        if (req.content_length or 0) <= MAX_BODY_BYTES:
            # A chunked request may have no length: Falcon's bounded_stream and get_media would then read it as empty.
            # get_media answers 415 to the sender's "aplication/json" besides.
            limit = MAX_BODY_BYTES + 1 if req.content_length is None else req.content_length
            reads_to_end = req.content_length is not None or req.env.get("wsgi.input_terminated")
            body = req.env["wsgi.input"].read(limit) if reads_to_end else b""
        if (req.content_length or 0) > MAX_BODY_BYTES or len(body) > MAX_BODY_BYTES:
            entry.reason = "body_too_large"
            raise Problem("body_too_large")
        self.ledger.body_read(len(body))
        return body

    def _keep(self, entry: Entry, req: falcon.Request, record: Event | DeadLetter) -> Where:
        sending = outgoing(record, self.topics, self.encoder, req.get_header("Traceparent"))
        try:
            where = self.keeper.keep(sending, req.env.get(ARRIVED, time.monotonic()) + self.deadline_s)
        except NotKept as failed:
            self.ledger.publish_failed(failed.code)
            entry.reason = failed.code
            log.error("not_kept", topic=sending.topic, code=failed.code, error=str(failed))
            self.vigil.answered(failed=True)
            raise Problem("unavailable", headers={"Retry-After": str(RETRY_AFTER_S)}) from failed
        self.vigil.answered(failed=False)
        if where == "kafka":
            self.ledger.published(sending.topic)
        return where

    def _dead_letter(self, entry: Entry, req: falcon.Request, resp: falcon.Response, dead_letter: DeadLetter) -> None:
        entry.event = dead_letter.event or OTHER
        try:
            self._keep(entry, req, dead_letter)
        except KafkaRefuses as refuses:
            entry.reason = "kafka_refused"
            log.error("not_kept", topic=self.topics.name("dead-letter"), code="kafka_refused", error=str(refuses))
            raise Problem("unavailable", headers={"Retry-After": str(RETRY_AFTER_S)}) from refuses
        entry.outcome, entry.reason = "dead_lettered", dead_letter.reason
        log.warning("invalid_webhook", store=dead_letter.store, reason=dead_letter.reason, detail=dead_letter.detail)
        self._answer_invalid(resp, dead_letter)

    def _refused_by_kafka(
        self, entry: Entry, req: falcon.Request, resp: falcon.Response, delivery: Delivery, refuses: KafkaRefuses
    ) -> None:
        # The topic takes less than we do. Coming again would not help the sender, so it is no failure of his.
        dead_letter = refused_by_kafka(delivery, str(refuses))
        self.ledger.publish_failed("kafka_refused")
        self._dead_letter(entry, req, resp, dead_letter)

    def _answer_invalid(self, resp: falcon.Response, dead_letter: DeadLetter) -> None:
        headers = {FAULT_HEADER: dead_letter.reason}
        if self.on_invalid == "reject":
            raise Problem("invalid_webhook", detail=invalid_webhook_detail(dead_letter.reason), headers=headers)
        # The sender asks for an empty body, and counts failures until it disables the endpoint: a payload that will
        # never be valid must not be one of them.
        resp.status = falcon.HTTP_202
        resp.set_headers(headers)

    def _ping(self, entry: Entry, resp: falcon.Response) -> None:
        entry.outcome, entry.reason = "ping", ""
        resp.status = falcon.HTTP_204


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


class _RequestId:
    """Gives each request an id of our own, for its answer and its log lines; one from outside would not be trusted."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        req.context.request_id = str(uuid_utils.compat.uuid7())
        resp.set_header("X-Request-Id", req.context.request_id)
        structlog.contextvars.bind_contextvars(request_id=req.context.request_id)

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, succeeded: bool) -> None:
        structlog.contextvars.clear_contextvars()


class _OnlyOurMethods:
    """Refuses every other method, also OPTIONS, which Falcon would answer, and those it has never heard of (400)."""

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: dict[str, str]
    ) -> None:
        if isinstance(resource, Webhooks) and req.method not in METHODS:
            resource.refuse_method(**params)


class _Unrouted:
    """Whatever path is none of ours."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, req: falcon.Request, resp: falcon.Response, **_: str) -> None:
        with self._ledger.request() as entry:
            entry.reason = "unknown_path"
            raise Problem("not_found")


def _delivery(req: falcon.Request, store: StoreName, body: bytes, received_at_ms: int) -> Delivery:
    secret = req.get_header("X-Event-Secret")
    return Delivery(
        store=store,
        event_name=req.get_header("X-Event-Name"),
        # WSGI hands header bytes over as latin-1 text; these are the bytes again.
        secret=None if secret is None else secret.encode("latin-1"),
        content_type=req.get_header("Content-Type"),
        content_encoding=req.get_header("Content-Encoding"),
        kept_headers=tuple(
            (name, value.encode("latin-1")) for name in KEPT_HEADERS if (value := req.get_header(name)) is not None
        ),
        body=body,
        received_at_ms=received_at_ms,
    )


def make_app(webhooks: Webhooks) -> falcon.App:  # type: ignore[type-arg]
    """Return the WSGI application."""
    app = falcon.App(middleware=_RequestId())
    app.add_middleware(_OnlyOurMethods())
    app.req_options.strip_url_path_trailing_slash = True
    app.set_error_serializer(serialize)
    app.add_error_handler(Exception, _internal_error)
    for path in PATHS:
        app.add_route(path, webhooks)
    app.add_sink(_Unrouted(webhooks.ledger), "/")
    return app


def _internal_error(req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, object]) -> None:
    log.error("internal_error", exc_info=error)
    raise Problem("internal_error") from error
