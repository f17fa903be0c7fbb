"""A trace goes in with the webhook, through the record, and out to whoever reads it; recorded only where it is asked for."""

import secrets
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from kinguin_streams.consumers import reader
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.traces import PassedOn, Recorded, TraceHeaders, traces
from tests.commands import COMMAND, clean_environment
from tests.conftest import KafkaCluster
from tests.ingress.running_ingress import RunningIngress, new_id, order_status, running_ingress, wait_until

TRACE_ID, PARENT_ID = secrets.token_hex(16), secrets.token_hex(8)
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
TRACESTATE = "shop=a:1,other=b"


class Collector:
    """An OTLP collector: keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    raise NotImplementedError
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    named = {one.key: one.value.string_value for one in resource.resource.attributes}
                    spans.extend(
                        (named["service.name"], span) for scope in resource.scope_spans for span in scope.spans
                    )
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


def trace_headers(ingress: RunningIngress) -> dict[str, bytes]:
    """Post one webhook within a trace, and return its record's headers."""
    body = order_status(new_id())
    assert ingress.post(body, headers=[("Traceparent", TRACEPARENT), ("Tracestate", TRACESTATE)]).status == 204
    (kept,) = [record for record in ingress.log.events() if record.record.raw == body]
    return kept.headers


@pytest.mark.kafka
def test_without_a_collector_the_senders_trace_reaches_the_record_as_it_is(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path) as ingress:
        headers = trace_headers(ingress)
        assert (headers["traceparent"], headers["tracestate"]) == (TRACEPARENT.encode(), TRACESTATE.encode())
        body = order_status(new_id())
        ingress.post(body, headers=[("Traceparent", "00-zz-1-01"), ("Tracestate", TRACESTATE)])
        (kept,) = ingress.log.events()
        assert not {"traceparent", "tracestate"} & kept.headers.keys()


@pytest.mark.kafka
def test_with_a_collector_the_way_from_webhook_to_state_is_one_trace(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path) as ingress:
        headers = trace_headers(ingress)
    version, trace_id, span_id, _flags = headers["traceparent"].decode().split("-")
    assert (version, trace_id) == ("00", TRACE_ID)
    assert span_id != PARENT_ID
    assert headers["tracestate"] == TRACESTATE.encode()
    wait_until(lambda: bool(collector.spans), 10, "a span")
    ((service, sent),) = collector.spans
    assert (service, sent.name, sent.kind) == (
        "kinguin-streams-ingress",
        f"send {topic_prefix}.order.status",
        Span.SPAN_KIND_PRODUCER,
    )
    assert (sent.trace_id.hex(), sent.span_id.hex(), sent.parent_span_id.hex()) == (TRACE_ID, span_id, PARENT_ID)

    collector.spans.clear()
    _consume_once(kafka, topic_prefix, tmp_path)
    wait_until(lambda: bool(collector.spans), 10, "a span of the consumer")
    service, processed = collector.spans[0]
    assert (service, processed.name, processed.kind) == (
        "kinguin-streams-order-state",
        "process order-state",
        Span.SPAN_KIND_CONSUMER,
    )
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in processed.links] == [(TRACE_ID, span_id)]


def _consume_once(kafka: KafkaCluster, prefix: str, folder: Path) -> None:
    """Run the order-state consumer as a command until it has the record."""
    url = f"sqlite:///{folder / 'state.db'}"
    settings = {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KINGUIN_TOPICS__PREFIX": prefix,
        "KINGUIN_CONSUMER__GROUP_PREFIX": prefix,
        "KINGUIN_STATE__URL": url,
    }
    with subprocess.Popen(
        [*COMMAND, "consume", "order-state"], env=clean_environment(settings), stderr=subprocess.DEVNULL
    ) as consumer:
        wait_until(lambda: bool(reader.orders_by_status(url)), 30, "the state")
        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(20) == 0


def test_traces_are_asked_for_by_opentelemetrys_own_environment() -> None:
    for environment in ({}, {"OTEL_SERVICE_NAME": "x"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}):
        assert isinstance(traces("test", environment), PassedOn)
    off = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}
    assert isinstance(traces("test", off), PassedOn)


def test_without_the_extra_whoever_asks_for_traces_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(OperatorError) as missing:
        traces("test", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"})
    assert missing.value.code == "otel_extra_missing"
    assert "kinguin-streams[otel]" in missing.value.hint


@pytest.mark.parametrize(
    ("outcome", "failed", "status"),
    [("applied", False, StatusCode.UNSET), ("lost_partition", True, StatusCode.ERROR)],
)
def test_the_span_of_a_batch_may_end_on_another_thread_and_keeps_no_record_until_then(
    outcome: str, failed: bool, status: StatusCode
) -> None:
    class Record:
        def headers(self) -> list[tuple[str, bytes]]:
            return [("traceparent", TRACEPARENT.encode())]

    exported, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    records = [Record()]
    its = weakref.ref(records[0])
    open_span = Recorded(provider.get_tracer("test")).processing("any", records, 1)
    del records
    assert its() is None
    assert exported.get_finished_spans() == ()

    def end() -> None:
        with open_span as span:
            span.ended(outcome, failed=failed)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    (span,) = exported.get_finished_spans()
    assert span.attributes is not None
    assert (span.attributes["kinguin.outcome"], span.status.status_code) == (outcome, status)
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE_ID]
    provider.shutdown()


def test_what_is_handed_on_is_what_came() -> None:
    came: Any = TraceHeaders(TRACEPARENT, TRACESTATE)
    with PassedOn().sending("any", came) as span:
        assert span.headers is came
        span.ended("kafka", failed=False)
