"""Traces, by OpenTelemetry where it is set up, and handed on untouched where it is not.

Set up means: the extra `otel` is installed and OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is set; everything else
about it is OpenTelemetry's own environment (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, …). Without it a `traceparent` that a
request carries still reaches its record: whoever reads the topic goes on with the sender's trace.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from kinguin_streams.telemetry.operator_error import OperatorError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
MAX_LINKS = 128
"""Of a batch's span; OpenTelemetry keeps no more by default."""


class TraceHeaders(NamedTuple):
    """W3C Trace Context, as it stands in headers. None: there is none."""

    traceparent: str | None = None
    tracestate: str | None = None


class HasHeaders(Protocol):
    """A record as the Kafka client hands it over."""

    def headers(self) -> Any:
        """Return (name, value) pairs, or None."""
        ...


class Span(Protocol):
    """What a step may say of itself."""

    headers: TraceHeaders
    """For whoever comes next."""

    def ended(self, outcome: str, *, failed: bool) -> None:
        """Say how it ended."""
        ...


class Traces(Protocol):
    """Spans of what this process does. One ends with its context, on whatever thread that is."""

    def sending(self, topic: str, within: TraceHeaders) -> AbstractContextManager[Span]:
        """Span a record's way into Kafka or the spool."""
        ...

    def processing(self, consumer: str, records: Sequence[HasHeaders], count: int) -> AbstractContextManager[Span]:
        """Span a batch of so many, linked to the traces of these records."""
        ...


class _Passed:
    """A span that is none: the headers go on as they came."""

    __slots__ = ("headers",)

    def __init__(self, headers: TraceHeaders) -> None:
        self.headers = headers

    def ended(self, outcome: str, *, failed: bool) -> None:
        """Tell nobody."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class PassedOn:
    """Traces that are handed on, and not recorded."""

    def sending(self, _topic: str, within: TraceHeaders) -> _Passed:
        """Hand on what came."""
        return _Passed(within)

    def processing(self, _consumer: str, _records: Sequence[HasHeaders], _count: int) -> _Passed:
        """Do nothing."""
        return _Passed(TraceHeaders())


class _Recorded:
    """A span of OpenTelemetry's."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, context=trace.set_span_in_context(span))
        self._span = span
        self.headers = TraceHeaders(carrier.get("traceparent"), carrier.get("tracestate"))

    def ended(self, outcome: str, *, failed: bool) -> None:
        """Say how it ended."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("kinguin.outcome", outcome)
        if failed:
            self._span.set_status(StatusCode.ERROR, outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._span.end()


class Recorded:
    """Traces by OpenTelemetry. Names and attributes follow its messaging conventions."""

    def __init__(self, tracer: "Tracer") -> None:
        self._tracer = tracer

    def sending(self, topic: str, within: TraceHeaders) -> _Recorded:
        """Span a record's way into Kafka or the spool: kind PRODUCER."""
        from opentelemetry.trace import SpanKind

        attributes = _messaging("send", topic)
        span = self._tracer.start_span(
            f"send {topic}", context=_context(within), kind=SpanKind.PRODUCER, attributes=attributes
        )
        return _Recorded(span)

    def processing(self, consumer: str, records: Sequence[HasHeaders], count: int) -> _Recorded:
        """Span a batch of so many: kind CONSUMER, linked to what it was made of, since a batch has many parents."""
        from opentelemetry import trace
        from opentelemetry.trace import Link, SpanKind

        links: list[Link] = []
        for record in records:
            if len(links) == MAX_LINKS:
                break
            remote = trace.get_current_span(_context(headers_of(record))).get_span_context()
            if remote.is_valid:
                links.append(Link(remote))
        attributes: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.consumer.group.name": consumer,
            "messaging.batch.message_count": count,
        }
        span = self._tracer.start_span(
            f"process {consumer}", kind=SpanKind.CONSUMER, links=links, attributes=attributes
        )
        return _Recorded(span)


def traces(service: str, environment: Mapping[str, str] | None = None) -> Traces:
    """Return what the environment asks for. service: the name, unless OTEL_SERVICE_NAME says another.

    Raises OperatorError("otel_extra_missing") if traces are asked for and OpenTelemetry's SDK is not installed.
    """
    environment = os.environ if environment is None else environment
    if not any(environment.get(name) for name in ENDPOINTS) or environment.get("OTEL_SDK_DISABLED") == "true":
        return PassedOn()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as missing:
        raise OperatorError(
            "otel_extra_missing",
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry cannot be imported: {missing}.",
            "Install kinguin-streams[otel], or unset it.",
        ) from missing
    resource = Resource.create({} if "OTEL_SERVICE_NAME" in environment else {SERVICE_NAME: service})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Recorded(provider.get_tracer("kinguin_streams"))


def _context(headers: TraceHeaders) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name: value for name, value in headers._asdict().items() if value is not None}
    # An empty context to begin with: none that the thread may have from elsewhere.
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def headers_of(record: HasHeaders) -> TraceHeaders:
    """Return what a record carries of the trace that it belongs to."""
    found = {name: value for name, value in record.headers() or () if name in TraceHeaders._fields and value}
    return TraceHeaders(
        *(found[name].decode("ascii", "replace") if name in found else None for name in TraceHeaders._fields)
    )


def _messaging(operation: str, topic: str) -> dict[str, str]:
    return {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": topic,
    }
