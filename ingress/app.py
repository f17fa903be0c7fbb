"""The WSGI application: reads a request, lets `decide` decide, publishes, answers. The order of its lines is the promise."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NoReturn

import falcon
import structlog
import uuid_utils.compat

from kinguin_streams.cluster.publisher import FailureCode, Publisher, PublishFailed
from kinguin_streams.ingress.breaker import Breaker
from kinguin_streams.ingress.decide import (
    MAX_BODY_BYTES,
    Accepted,
    Delivery,
    Invalid,
    Ping,
    Refused,
    decide,
)
from kinguin_streams.ingress.ledger import OTHER, Entry, Ledger
from kinguin_streams.ingress.problems import Problem, invalid_webhook_detail, serialize
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.events import DeadLetter, Event, StoreName
from kinguin_streams.schemas.outgoing import outgoing
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
# As opposed to a refusal of this very record.
_SILENCE: Final[frozenset[FailureCode]] = frozenset({"no_report", "not_delivered", "queue_full"})

Clock = Callable[[], int]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """The resource behind /webhooks and /webhooks/{store}."""

    secrets: Secrets
    topics: Topics
    encoder: Encoder
    publisher: Publisher
    ledger: Ledger
    on_invalid: Literal["accept", "reject"]
    stripped_headers: "StrippedHeaders"
    breaker: Breaker = field(default_factory=Breaker)
    now_ms: Clock = _now_ms

    def on_get(self, req: falcon.Request, resp: falcon.Response, store: str = DEFAULT_STORE) -> None:
        """Answer 204: whoever looks whether somebody is here."""
        with self.ledger.request() as entry:
            self._known_store(entry, store)
            self._ping(entry, resp)

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response, store: str = DEFAULT_STORE) -> None:
        """Answer 2xx only once what was sent is durable in Kafka."""
        with self.ledger.request() as entry:
            received_at_ms = self.now_ms()
            known = self._known_store(entry, store)
            body = self._read_body(entry, req)
            decision = decide(_delivery(req, known, body, received_at_ms), self.secrets)
            match decision:
                case Ping():
                    self._ping(entry, resp)
                case Refused(reason):
                    entry.reason = reason
                    if reason == "headers_missing":
                        self.stripped_headers.seen()
                    raise Problem("unauthorized", headers={"WWW-Authenticate": CHALLENGE})
                case Accepted(event):
                    entry.event = event.record_name
                    self._publish(entry, req, event)
                    entry.outcome, entry.reason = "acked", ""
                    resp.status = falcon.HTTP_204
                case Invalid(dead_letter):
                    entry.event = dead_letter.event or OTHER
                    self._publish(entry, req, dead_letter)
                    entry.outcome, entry.reason = "dead_lettered", dead_letter.reason
                    log.warning("invalid_webhook", store=store, reason=dead_letter.reason, detail=dead_letter.detail)
                    self._answer_invalid(resp, dead_letter)

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

    def _publish(self, entry: Entry, req: falcon.Request, record: Event | DeadLetter) -> None:
        sending = outgoing(record, self.topics, self.encoder, req.get_header("Traceparent"))
        if not self.breaker.may_try(time.monotonic()):
            entry.reason = "kafka_away"
            raise _unavailable()
        try:
            self.publisher.publish(sending)
        except PublishFailed as failed:
            self.ledger.publish_failed(failed.code)
            entry.reason = f"kafka_{failed.code}"
            log.error("not_published", topic=sending.topic, code=failed.code, landed=failed.landed, error=str(failed))
            if failed.code in _SILENCE and self.breaker.waited_in_vain(time.monotonic()):
                log.error("kafka_away", hint="until it is back, one request a second tries; the others get 503 at once")
            raise _unavailable() from failed
        if self.breaker.confirmed(time.monotonic()):
            log.info("kafka_back")
        self.ledger.published(sending.topic)

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


def _unavailable() -> Problem:
    return Problem("unavailable", headers={"Retry-After": str(RETRY_AFTER_S)})


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
