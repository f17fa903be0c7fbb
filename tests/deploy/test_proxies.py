"""deploy/haproxy and deploy/nginx: what they let through to the ingress, in which form, and what they never do."""

import http.client
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.deploy.proxies import (
    HAPROXY_CFG,
    KINDS,
    Backend,
    Kind,
    Proxy,
    Recorder,
    dying,
    haproxy_command,
    nginx_command,
    recorder,
    running_proxy,
)
from tests.ingress.running_ingress import Answer, Connection, request_bytes, webhook_headers

NOBODY = [Backend(1, 1), Backend(1, 1)]
BODY = b'{"orderId": "A", "status": "processing", "updatedAt": "2020-10-16T11:24:08+00:00"}'


def test_haproxy_takes_its_configuration() -> None:
    arguments, environment = haproxy_command(NOBODY, free_port(), free_port())
    done = subprocess.run([*arguments, "-c"], env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


def test_haproxy_starts_before_the_names_of_the_ingresses_are_known() -> None:
    arguments, environment = haproxy_command([], free_port(), free_port())
    done = subprocess.run([*arguments, "-c"], env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    arguments = nginx_command(NOBODY, free_port(), tmp_path)
    done = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr, done.stderr


def test_haproxy_takes_its_examples_for_addresses_and_rates(tmp_path: Path) -> None:
    arguments, environment = haproxy_command(NOBODY, free_port(), free_port())
    file = tmp_path / "haproxy.cfg"
    text, examples = re.subn(
        r"^    # (?=stick-table |http-request )", "    ", HAPROXY_CFG.read_text("utf-8"), flags=re.MULTILINE
    )
    file.write_text(text, "utf-8")
    assert examples == 4
    done = subprocess.run(
        [*(str(file) if argument == str(HAPROXY_CFG) else argument for argument in arguments), "-c"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


def test_nginx_takes_its_examples_for_addresses_and_rates(tmp_path: Path) -> None:
    arguments = nginx_command(NOBODY, free_port(), tmp_path)
    file = tmp_path / "nginx.conf"
    text, examples = re.subn(
        r"^( +)# (?=(?:limit_req\w*|allow|deny) .*;$)", r"\1", file.read_text("utf-8"), flags=re.MULTILINE
    )
    file.write_text(text, "utf-8")
    assert examples == 6
    done = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr, done.stderr


# --- what reaches the ingress ---


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which proxy."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def behind(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Recorder]]:
    """A proxy, and what stands for both ingresses behind it."""
    with recorder() as stand_in:
        backends = [stand_in.backend, stand_in.backend]
        with running_proxy(kind, backends, tmp_path_factory.mktemp(kind)) as proxy:
            yield proxy, stand_in


@pytest.fixture
def proxy(behind: tuple[Proxy, Recorder]) -> Proxy:
    """The proxy."""
    return behind[0]


@pytest.fixture
def ingress(behind: tuple[Proxy, Recorder]) -> Recorder:
    """What stands behind it; it has seen nothing yet."""
    behind[1].requests.clear()
    return behind[1]


def exchange(proxy: Proxy, request: bytes, timeout_s: float = 10) -> Answer:
    connection = Connection(proxy.port, timeout_s, documented=False)
    try:
        return connection.exchange(request)
    finally:
        connection.close()


def refused(proxy: Proxy, request: bytes) -> int | None:
    """Return the status of a refusal, or None if the connection was just closed."""
    try:
        return exchange(proxy, request).status
    except (OSError, http.client.HTTPException):
        return None


def stream(proxy: Proxy, sent: bytes) -> list[int]:
    """Send bytes, and return the status of every answer until the proxy closes or says nothing for half a second."""
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as connection:
        connection.sendall(sent)
        connection.settimeout(0.5)
        answers = b""
        try:
            while data := connection.recv(65_536):
                answers += data
        except OSError:
            pass
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


def webhook(*headers: tuple[str | bytes, str | bytes], body: bytes = BODY, length: bool = True) -> bytes:
    sized = [("Content-Length", str(len(body)))] if length else []
    return request_bytes("POST", "/webhooks", [*webhook_headers("order.status", "s3cret"), *sized, *headers], body)


def test_a_webhook_reaches_the_ingress_as_it_was_sent(proxy: Proxy, ingress: Recorder) -> None:
    assert exchange(proxy, webhook(("traceparent", "00-1-2-01"))).status == 204
    (request,) = ingress.requests
    assert request.startswith(b"POST /webhooks HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n" + BODY)
    headers = dict(ingress.headers())
    assert headers["x-event-name"] == "order.status"
    assert headers["x-event-secret"] == "s3cret"
    assert headers["content-type"] == "aplication/json"
    assert headers["traceparent"] == "00-1-2-01"
    assert headers["host"] == "test"


def test_row_27_a_header_with_an_underscore_never_reaches_the_ingress(proxy: Proxy, ingress: Recorder) -> None:
    """Some servers let it override the real one."""
    assert exchange(proxy, webhook(("X_Event_Secret", "alias"), ("X_Event-Name", "alias"))).status == 204
    assert [value for _, value in ingress.headers()].count("alias") == 0
    assert dict(ingress.headers())["x-event-secret"] == "s3cret"


def test_row_33_forged_forwarding_headers_are_taken_out(proxy: Proxy, ingress: Recorder) -> None:
    forged = [(name, "10.9.8.7") for name in ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded")]
    assert exchange(proxy, webhook(*forged)).status == 204
    assert b"10.9.8.7" not in ingress.requests[0]


AMBIGUOUS = [
    pytest.param([("Content-Length", "4"), ("Transfer-Encoding", "chunked")], id="a length and chunks"),
    pytest.param([("Transfer-Encoding", "chunked"), ("Content-Length", "4")], id="chunks and a length"),
    pytest.param([("Content-Length", "4"), ("Content-Length", "40")], id="two lengths"),
    pytest.param([("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")], id="two encodings"),
    pytest.param([("Transfer-Encoding", "xchunked"), ("Content-Length", "4")], id="an unknown encoding"),
    pytest.param([("Transfer-Encoding ", "chunked"), ("Content-Length", "4")], id="a blank before the colon"),
    pytest.param([("Content-Length", "+4")], id="a signed length"),
]


@pytest.mark.parametrize("headers", AMBIGUOUS)
def test_what_has_two_readings_is_refused_or_passed_on_with_one(
    kind: Kind, proxy: Proxy, ingress: Recorder, headers: list[tuple[str, str]]
) -> None:
    """A request inside the body of another would be a way round the proxy. It never becomes one, and the connection ends."""
    inner = request_bytes("POST", "/smuggled", [("Content-Length", "0")])
    statuses = stream(proxy, request_bytes("POST", "/webhooks", headers, b"0\r\n\r\n" + inner))
    if (
        kind == "haproxy"
        and {"Content-Length", "Transfer-Encoding"} == {name for name, _ in headers}
        and ("chunked" in dict(headers).values())
    ):
        # As RFC 9112, section 6.3, lets a proxy: the length is dropped, and nothing more is read from this client.
        assert statuses == [204]
        assert [name for name, _ in ingress.headers()].count("content-length") == 0
        assert ingress.requests[0].endswith(b"\r\n\r\n0\r\n\r\n")
    else:
        assert statuses in ([400], [501])
        assert ingress.requests == []


def test_a_folded_header_is_refused_or_unfolded(kind: Kind, proxy: Proxy, ingress: Recorder) -> None:
    statuses = stream(proxy, webhook(("X-Folded", "a\r\n Transfer-Encoding: chunked")))
    if kind == "haproxy":
        assert statuses == [204]
        assert "transfer-encoding" not in dict(ingress.headers())
        assert dict(ingress.headers())["x-folded"].startswith("a ")
    else:
        assert statuses == [400]


def test_a_request_without_a_host_or_with_two_is_refused(proxy: Proxy, ingress: Recorder) -> None:
    assert refused(proxy, b"POST /webhooks HTTP/1.1\r\nContent-Length: 0\r\n\r\n") == 400
    assert refused(proxy, b"POST /webhooks HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n") == 400
    assert ingress.requests == []


# --- limits ---


def test_row_22_a_body_a_little_too_large_is_left_to_the_ingress_to_refuse_and_count(
    proxy: Proxy, ingress: Recorder
) -> None:
    for size in (65_535, 65_536, 65_537, 98_304):
        ingress.requests.clear()
        assert exchange(proxy, webhook(body=b"x" * size)).status == 204
        assert len(ingress.requests[0].partition(b"\r\n\r\n")[2]) == size


@pytest.mark.parametrize(
    "request_sent",
    [
        pytest.param(webhook(body=b"x" * 98_305), id="a byte more than the ingress should see"),
        pytest.param(webhook(("Content-Length", "1" + 30 * "0"), body=b"", length=False), id="a length of 10^30"),
        pytest.param(
            webhook(("Transfer-Encoding", "chunked"), body=b"1000\r\n" + b"x" * 4096 + b"\r\n", length=False)
            + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 60,
            id="chunks without an end",
        ),
    ],
)
def test_row_22_a_body_far_too_large_never_gets_to_the_ingress(
    proxy: Proxy, ingress: Recorder, request_sent: bytes
) -> None:
    assert refused(proxy, request_sent) in (400, 413)
    assert ingress.requests == []
    assert exchange(proxy, webhook()).status == 204


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(f"X-{number}", "a") for number in range(10_000)], id="10,000 headers"),
        pytest.param([("X-Long", "a" * 300_000)], id="a header of 300 KB"),
        pytest.param([("X-Long", "a" * 16_000)], id="a header as large as the ingress takes all of them"),
    ],
)
def test_row_23_a_flood_of_headers_is_refused_and_the_next_request_served(
    proxy: Proxy, ingress: Recorder, headers: list[tuple[str, str]]
) -> None:
    assert refused(proxy, webhook(*headers)) in (400, 414, 431, None)
    assert ingress.requests == []
    assert exchange(proxy, webhook()).status == 204


@pytest.mark.parametrize("part", ["headers", "body"])
def test_row_20_the_ingress_sees_nothing_of_a_request_that_drips_in(
    kind: Kind, proxy: Proxy, ingress: Recorder, part: str
) -> None:
    """HAProxy ends it after five seconds. nginx counts the pauses in a body only, so it just keeps it to itself."""
    sent = webhook()
    begun = sent[:20] if part == "headers" else sent[:-40]
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as connection:
        connection.sendall(begun)
        started_s = time.monotonic()
        connection.settimeout(0.5)
        ended = False
        while not ended and time.monotonic() - started_s < 6.5:
            try:
                connection.sendall(b"x")
                connection.recv(1000)  # an answer, or the end
                ended = True
            except TimeoutError:
                continue
            except OSError:
                ended = True
        took_s = time.monotonic() - started_s
    assert ingress.requests == []
    if kind == "haproxy" or part == "headers":
        assert ended
        assert took_s < 6.5


def test_a_connection_without_a_request_is_closed_without_an_answer(proxy: Proxy, ingress: Recorder) -> None:
    """As load balancers and scanners make them. An answer nobody asked for may be taken for that of the next request."""
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as connection:
        assert connection.recv(1000) == b""
    assert ingress.requests == []


# --- no ingress ---


def test_without_an_ingress_the_sender_is_told_when_to_come_again(kind: Kind, tmp_path: Path) -> None:
    nobody = [Backend(free_port(), free_port()), Backend(free_port(), free_port())]
    with running_proxy(kind, nobody, tmp_path) as alone:
        answer = exchange(alone, webhook())
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"


def test_what_one_ingress_could_not_answer_the_other_is_asked(kind: Kind, tmp_path: Path) -> None:
    """It dies with the request in its hands; the sender does not notice."""
    with recorder() as good, dying() as bad:
        with running_proxy(kind, [bad.backend, good.backend], tmp_path) as proxy:
            statuses = {exchange(proxy, webhook()).status for _ in range(6)}
        assert statuses == {204}
        assert bad.requests
        assert len(good.requests) == 6
        assert set(good.requests) >= set(bad.requests)


def test_nginx_logs_what_was_refused_or_failed_with_the_address_and_without_a_header(tmp_path: Path) -> None:
    with recorder() as stand_in:
        with running_proxy("nginx", [stand_in.backend, stand_in.backend], tmp_path) as alone:
            assert exchange(alone, webhook()).status == 204
            stand_in.status = b"401 Unauthorized"
            assert exchange(alone, webhook()).status == 401
        lines = alone.log_file.read_text("utf-8").splitlines()
    (line,) = [line for line in lines if "POST" in line]
    assert re.fullmatch(r"127\.0\.0\.1 \[\S+\] POST /webhooks 401 [\d.]+", line)


def test_haproxy_tells_prometheus_about_itself_and_no_other_page(tmp_path: Path) -> None:
    with recorder() as one, running_proxy("haproxy", [one.backend, one.backend], tmp_path) as proxy:
        assert proxy.metrics_port is not None
        metrics = Connection(proxy.metrics_port, documented=False)
        page = metrics.exchange(request_bytes("GET", "/metrics", []), "GET")
        assert b"haproxy_server_status" in page.body
        assert metrics.exchange(request_bytes("GET", "/", []), "GET").status == 404
        metrics.close()
