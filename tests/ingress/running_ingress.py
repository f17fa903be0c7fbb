"""The ingress as operators run it, for tests: a process of its own, real sockets, real topics, its log and its metrics."""

import http.client
import io
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.schemas.events import DeadLetter, RecordName
from kinguin_streams.schemas.topics import Topics, topics
from tests.commands import clean_environment
from tests.conftest import free_port
from tests.ingress.documented import assert_documented

SECRET = "k7Qw-test-secret-2nEr"
NEXT_SECRET = "k7Qw-test-secret-next"
SHOP_2_SECRET = "9xZt-other-store"
UPDATED_AT = "2020-10-16T11:24:08+00:00"
SERVERS = ("waitress", "granian")
EVENT_TOPICS: tuple[RecordName, ...] = ("product.update", "order.status", "order.complete")

T = TypeVar("T")
Header = tuple[str | bytes, str | bytes]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def order_status(order_id: str, status: str = "processing", updated_at: str = UPDATED_AT, extra: str = "") -> bytes:
    """Return a valid order.status body. extra: more JSON members, with their leading comma."""
    fields = json.dumps({"orderId": order_id, "status": status, "updatedAt": updated_at})
    return (fields[:-1] + extra + "}").encode()


def new_id() -> str:
    """Return an order id that no other test has."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem details in the body."""
        assert self.headers["content-type"] == "application/problem+json"
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded

    @property
    def problem_type(self) -> str:
        """The last part of the problem's type."""
        return str(self.problem["type"]).removeprefix("urn:kinguin-streams:problem:")

    @property
    def fault(self) -> str | None:
        """The reason code of what was accepted although it is bad."""
        return self.headers.get("kinguin-streams-fault")


def as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def request_bytes(method: str, path: str | bytes, headers: Iterable[Header], body: bytes = b"") -> bytes:
    """Return a request as it goes over the wire, with nothing added but the Host."""
    head = [method.encode() + b" " + as_bytes(path) + b" HTTP/1.1", b"Host: test"]
    head += [as_bytes(name) + b": " + as_bytes(value) for name, value in headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def webhook_headers(event: str | bytes | None, secret: str | bytes | None) -> list[Header]:
    headers: list[Header] = [("Content-Type", "aplication/json")]
    if event is not None:
        headers.append(("X-Event-Name", event))
    if secret is not None:
        headers.append(("X-Event-Secret", secret))
    return headers


class Connection:
    """One TCP connection, made anew when the server closes it. Not for several threads at once.

    documented: whether every answer must be one that the OpenAPI document lists for the webhook port.
    """

    def __init__(self, port: int, timeout_s: float = 15.0, *, documented: bool = True) -> None:
        self._port = port
        self._documented = documented
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def exchange(self, request: bytes, method: str = "POST") -> Answer:
        """Send these bytes and return the answer. Raises OSError or http.client.HTTPException if there is none."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), self._timeout_s)
        try:
            self._socket.sendall(request)
            response = http.client.HTTPResponse(self._socket, method=method)
            response.begin()
            answer = Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        except BaseException:
            self.close()
            raise
        if response.will_close:
            self.close()
        response.close()
        if self._documented:
            assert_documented(request, answer.status, answer.headers, answer.body)
        return answer

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass(frozen=True)
class Kept:
    """A record as it is in a topic, and what it says."""

    message: Message
    record: Any

    @property
    def headers(self) -> dict[str, bytes]:
        headers: Any = self.message.headers() or []
        return dict(headers)


class Log:
    """Reads topics from where it last stopped, with a plain consumer."""

    def __init__(self, bootstrap_servers: str, declared: Topics) -> None:
        self._topics = declared
        self._decoder = Decoder()
        self._next: dict[tuple[str, int], int] = {}
        self._config = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "read-back",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 10,  # a fetch that waits for more keeps every other request of the connection waiting
        }
        self._consumer = self._new_consumer()

    def _new_consumer(self) -> Consumer:
        return Consumer(self._config, logger=CLIENT_LOGGER)

    def new(self, name: RecordName) -> list[Kept]:
        """Return the records of a topic that were not returned before, in no order across partitions."""
        topic = self._topics.name(name)
        found: list[Kept] = []
        for partition, end in self._ends(topic).items():
            first = self._next.get((topic, partition), 0)
            if end > first:
                found += self._read(topic, partition, first, end)
                self._next[topic, partition] = end
        return found

    def _ends(self, topic: str) -> dict[int, int]:
        """Return where each partition ends. One of a broker that was paused or killed has no leader for a moment.

        Seen once, after a pause: this client, which had been idle, did not find the broker again within 30 s, while
        others used it. So a new one asks again.
        """
        deadline_s = time.monotonic() + 30
        while True:
            try:
                partitions = self._consumer.list_topics(topic, timeout=10).topics[topic].partitions
                return {
                    partition: self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
                    for partition in partitions
                }
            except KafkaException:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)
                self._consumer.close()
                self._consumer = self._new_consumer()

    def _read(self, topic: str, partition: int, first: int, end: int) -> Iterator[Kept]:
        self._consumer.assign([TopicPartition(topic, partition, first)])
        at = first
        deadline_s = time.monotonic() + 20
        while at < end:
            assert time.monotonic() < deadline_s, f"{topic}/{partition} could not be read from {at} to {end}"
            for message in self._consumer.consume(min(1000, end - at), timeout=0.5):
                assert message.error() is None, message.error()
                offset = message.offset()
                assert offset is not None
                at = offset + 1
                if offset < end:
                    yield Kept(message, self._decoder.decode(message.value()))
        self._consumer.unassign()

    def events(self) -> list[Kept]:
        """Return the new records of all event topics."""
        return [kept for name in EVENT_TOPICS for kept in self.new(name)]

    def dead_letters(self) -> list[DeadLetter]:
        """Return the new dead letters."""
        return [kept.record for kept in self.new("dead-letter")]

    def skip(self) -> None:
        """Forget what is there by now."""
        self.events()
        self.dead_letters()

    def close(self) -> None:
        self._consumer.close()


@dataclass
class RunningIngress:
    """A running `kinguin-streams ingress`."""

    process: "subprocess.Popen[bytes]"
    port: int
    admin_port: int
    log: Log
    log_file: Path
    server: str = "waitress"

    def differing(self, waitress: T, *, granian: T) -> T:
        """Return what this ingress's server does where the two differ. docs/http.md lists every such place."""
        return waitress if self.server == "waitress" else granian

    def memory_kib(self) -> int:
        """Return how much memory the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        return int(status.split("VmRSS:")[1].split()[0])

    def post(
        self,
        body: bytes,
        *,
        event: str | bytes | None = "order.status",
        secret: str | bytes | None = SECRET,
        headers: Sequence[Header] = (),
        path: str = "/webhooks",
    ) -> Answer:
        """Post one webhook on a connection of its own."""
        return self.send(self.webhook(body, event=event, secret=secret, headers=headers, path=path))

    @staticmethod
    def webhook(
        body: bytes,
        *,
        event: str | bytes | None = "order.status",
        secret: str | bytes | None = SECRET,
        headers: Sequence[Header] = (),
        path: str = "/webhooks",
    ) -> bytes:
        """Return the bytes of one webhook."""
        sized: list[Header] = [*webhook_headers(event, secret), *headers, ("Content-Length", str(len(body)))]
        return request_bytes("POST", path, sized, body)

    def send(self, request: bytes, method: str = "POST") -> Answer:
        """Send raw bytes on a connection of their own."""
        connection = Connection(self.port)
        try:
            return connection.exchange(request, method)
        finally:
            connection.close()

    def send_all(self, requests: Sequence[bytes], clients: int = 8) -> list[Answer]:
        """Send many, over some connections at once; return the answers in the order of the requests."""

        def client(number: int) -> list[Answer]:
            connection = Connection(self.port)
            try:
                return [connection.exchange(request) for request in requests[number::clients]]
            finally:
                connection.close()

        answers: list[Answer | None] = [None] * len(requests)
        with ThreadPoolExecutor(clients) as pool:
            for number, share in enumerate(pool.map(client, range(clients))):
                answers[number::clients] = share
        return [answer for answer in answers if answer is not None]

    def admin(self, path: str) -> Answer:
        """Get a page of the admin port."""
        connection = Connection(self.admin_port, timeout_s=5, documented=False)
        try:
            return connection.exchange(request_bytes("GET", path, [("Connection", "close")]), "GET")
        finally:
            connection.close()

    def metrics(self) -> Samples:
        """Return every sample of one scrape."""
        return samples(self.admin("/metrics").body.decode())

    def log_text(self) -> str:
        return self.log_file.read_text("utf-8", errors="surrogateescape")

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the log's lines; fails on one that is not a JSON object."""
        lines = [json.loads(line) for line in self.log_text().splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        return lines

    def terminate(self, timeout_s: float = 20.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def samples(exposition: str) -> Samples:
    """Return every sample of a Prometheus text: (name, labels) to value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def assert_balanced(metrics: Samples) -> None:
    """Assert that the ledger of one scrape balances: received = in flight + all that ended, by outcome."""
    ended = sum(value for (name, _), value in metrics.items() if name == "kinguin_ingress_requests_total")
    received = metrics["kinguin_ingress_received_total", ()]
    assert received == metrics["kinguin_ingress_in_flight", ()] + ended


def apply_topics(bootstrap_servers: str, declared: Topics) -> None:
    admin = TopicAdmin({"bootstrap.servers": bootstrap_servers})
    admin.apply(plan(declared, admin.describe(declared)))


def command(bootstrap_servers: str, prefix: str, **settings: object) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of an ingress.

    settings: KINGUIN_INGRESS__<KEY> by its lower-case key, or another room's as spool__<key>.
    """
    environment = clean_environment({}) | {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
        "KINGUIN_TOPICS__PREFIX": prefix,
        "KINGUIN_LOG__FORMAT": "json",
        "KINGUIN_INGRESS__SECRETS": json.dumps({"default": [SECRET, NEXT_SECRET], "shop-2": [SHOP_2_SECRET]}),
    }
    for key, value in settings.items():
        environment[f"KINGUIN_{'' if '__' in key else 'INGRESS__'}{key.upper()}"] = str(value)
    return [sys.executable, "-m", "kinguin_streams", "ingress"], environment


def start(bootstrap_servers: str, prefix: str, folder: Path, **settings: object) -> RunningIngress:
    """Start an ingress in this folder and return it once it says that it is ready."""
    ports = {"port": free_port(), "admin_port": free_port(), **settings}
    arguments, environment = command(bootstrap_servers, prefix, **ports)
    log_file = folder / f"ingress-{ports['port']}.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=log, stderr=log)
    running = RunningIngress(
        process,
        int(str(ports["port"])),
        int(str(ports["admin_port"])),
        Log(bootstrap_servers, topics(prefix, partitions=2)),
        log_file,
        str(settings.get("server", "waitress")),
    )
    try:
        wait_until(lambda: is_ready(running), 30, f"an ingress that is ready: see {log_file}")
    except BaseException:
        process.kill()
        process.wait()
        raise
    return running


def is_ready(running: RunningIngress) -> bool:
    assert running.process.poll() is None, running.log_text()
    try:
        return running.admin("/readyz").status == 200
    except (OSError, http.client.HTTPException):
        return False


def wait_until(reached: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return once it is so; fails after timeout_s."""
    deadline_s = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.05)


@contextmanager
def running_ingress(bootstrap_servers: str, prefix: str, folder: Path, **settings: object) -> Iterator[RunningIngress]:
    """Make the topics, run an ingress, and stop it by SIGTERM: it must exit 0, unless the test has ended it itself."""
    apply_topics(bootstrap_servers, topics(prefix, partitions=2))
    running = start(bootstrap_servers, prefix, folder, **settings)
    try:
        yield running
        if running.process.poll() is None:
            assert running.terminate() == 0, running.log_text()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
        running.log.close()


def call_wsgi(
    application: Any, headers: Iterable[tuple[str, str]], body: bytes, path: str = "/webhooks", method: str = "POST"
) -> Answer:
    """Call a WSGI application as waitress does, without a server. For what only a faulty part inside can bring about."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "CONTENT_LENGTH": str(len(body)),
    }
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers}
    started: list[tuple[int, dict[str, str]]] = []

    def start_response(status: str, answered: list[tuple[str, str]], _: object = None) -> None:
        started.append((int(status[:3]), {name.lower(): value for name, value in answered}))

    content = b"".join(application(environ, start_response))
    return Answer(*started[-1], content)
