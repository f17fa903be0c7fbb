"""Schema registries over real HTTP for tests: a stand-in that speaks the API, and a front before a real one.

Both count what they are asked, check who asks, and can be silent, wrong or gone.
"""

import base64
import json
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from kinguin_streams.cluster.settings import RegistrySettings

Answer = tuple[int, bytes]


class Certificates(NamedTuple):
    """PEM files: an authority, and what it has signed for 127.0.0.1 and for a client."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


class RegistryServer:
    """An HTTP server that can be stopped and started again on the same port. Subclasses answer."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        """Method and path, without the query, of every request that was let in."""
        self.authorization: set[str | None] = set()
        self.wanted_authorization: str | None = None
        self.answer: Answer | None = None  # to everything, instead of the right one
        self.silent_s = 0.0
        self.go_on = threading.Event()
        self._port = 0
        self._prefix = ""
        self._certificates: Certificates | None = None
        self._running: tuple[_Server, threading.Thread] | None = None

    def reply(self, method: str, path: str, body: bytes) -> Answer:
        raise NotImplementedError

    def start(self, certificates: Certificates | None = None, *, ask_for_client: bool = False) -> Self:
        self._certificates = certificates
        server = _Server(self, self._port)
        self._port = server.server_port
        if certificates is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificates.server, certificates.server_key)
            if ask_for_client:
                tls.verify_mode = ssl.CERT_REQUIRED
                tls.load_verify_locations(certificates.ca)
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.go_on.clear()
        self._running = server, thread
        return self

    def stop(self) -> None:
        """Go away: connections are refused from now on."""
        if self._running is None:
            return
        server, thread = self._running
        self._running = None
        self.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()

    @property
    def url(self) -> str:
        return f"{'http' if self._certificates is None else 'https'}://127.0.0.1:{self._port}{self._prefix}"

    @property
    def settings(self) -> RegistrySettings:
        return RegistrySettings(url=self.url)

    def expect_basic(self, username: str, password: str) -> None:
        self.wanted_authorization = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()

    def asked_about_ids(self) -> dict[int, int]:
        """Return how often each id was asked about."""
        return {
            int(path.rpartition("/")[2]): times
            for path, times in self.asked.items()
            if path.startswith("GET /schemas/ids/")
        }


class StandIn(RegistryServer):
    """A registry in memory, as strict as we need it: text decides what is the same schema."""

    def __init__(self) -> None:
        super().__init__()
        self.schemas: dict[int, str] = {}
        self.subjects: dict[str, list[int]] = {}
        self.levels: dict[str, str] = {}
        self.missing: set[tuple[str, int]] = set()  # versions that are listed, and not there when they are asked for
        self.refuses: str | None = None  # what it says to whoever registers
        self.refuses_levels = False
        self.next_id = 101

    def register(self, subject: str, text: str) -> int:
        number = next((number for number, known in self.schemas.items() if known == text), self.next_id)
        if number == self.next_id:
            self.next_id += 1
        self.schemas[number] = text
        ids = self.subjects.setdefault(subject, [])
        if number not in ids:
            ids.append(number)
        return number

    def reply(self, method: str, path: str, body: bytes) -> Answer:
        match method, path.strip("/").split("/"):
            case "GET", ["schemas", "ids", number]:
                text = self.schemas.get(int(number))
                return _ok({"schema": text}) if text is not None else _error(404, 40403, "Schema not found")
            case "GET", ["subjects", subject, "versions"] if subject in self.subjects:
                return _ok(list(range(1, len(self.subjects[subject]) + 1)))
            case "GET", ["subjects", subject, "versions", version] if (subject, int(version)) in self.missing:
                return _error(404, 40402, "Version not found")
            case "GET", ["subjects", subject, "versions", version] if subject in self.subjects:
                number_ = self.subjects[subject][int(version) - 1]
                known = {"subject": subject, "version": int(version), "id": number_, "schema": self.schemas[number_]}
                return _ok(known)
            case "POST", ["subjects", _subject, "versions"] if self.refuses is not None:
                return _error(409, 409, self.refuses)
            case "POST", ["subjects", subject, "versions"]:
                return _ok({"id": self.register(subject, json.loads(body)["schema"])})
            case "GET", ["config", subject] if subject in self.levels:
                return _ok({"compatibilityLevel": self.levels[subject]})
            case "PUT", ["config", _subject] if self.refuses_levels:
                return _error(403, 40301, "not yours to set")
            case "PUT", ["config", subject]:
                self.levels[subject] = json.loads(body)["compatibility"]
                return _ok({"compatibility": self.levels[subject]})
            case _:
                return _error(404, 40401, "Subject not found")


class Front(RegistryServer):
    """Stands before a real registry, and passes everything on."""

    def __init__(self, behind: str) -> None:
        super().__init__()
        self._behind = urlsplit(behind)
        self._prefix = self._behind.path

    def reply(self, method: str, path: str, body: bytes) -> Answer:
        connection = HTTPConnection(self._behind.hostname or "", self._behind.port, timeout=20)
        try:
            headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"} if body else {}
            connection.request(method, f"{self._prefix}{path}", body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, registry: RegistryServer, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.registry = registry

    def handle_error(self, *_args: object) -> None:
        """A client that gave up waiting, or that does not trust us, is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _serve(self) -> None:
        registry = self.server.registry
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = unquote(self.path.partition("?")[0]).removeprefix(registry._prefix)
        given = self.headers["Authorization"]
        registry.authorization.add(given)
        if registry.wanted_authorization not in (None, given):
            self._answer(_error(401, 40101, "Unauthorized"))
            return
        registry.asked[f"{self.command} {path}"] += 1
        registry.go_on.wait(registry.silent_s)
        self._answer(registry.answer or registry.reply(self.command, path, body))

    do_GET = do_POST = do_PUT = _serve  # noqa: N815 - the names http.server calls

    def _answer(self, answer: Answer) -> None:
        status, content = answer
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def running(
    registry: RegistryServer, certificates: Certificates | None = None, *, ask_for_client: bool = False
) -> Iterator[None]:
    """Start a registry, and stop it at the end."""
    registry.start(certificates, ask_for_client=ask_for_client)
    try:
        yield
    finally:
        registry.stop()


def make_certificates(folder: Path) -> Certificates:
    """Make an authority nobody else trusts, a server's certificate for 127.0.0.1 and a client's, with `openssl`."""
    files = Certificates(
        *(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"))
    )
    ca_key = folder / "ca.key"

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)  # noqa: S607

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2")
    openssl("req", "-x509", *new_key, "-subj", "/CN=test authority", "-keyout", ca_key, "-out", files.ca)
    for name, certificate, key in (
        ("server", files.server, files.server_key),
        ("client", files.client, files.client_key),
    ):
        openssl(
            "req", "-x509", *new_key, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE", "-CA", files.ca, "-CAkey", ca_key,
            "-keyout", key, "-out", certificate,
        )  # fmt: skip
    return files


def _ok(content: Any) -> Answer:
    return 200, json.dumps(content).encode()


def _error(status: int, code: int, message: str) -> Answer:
    return status, json.dumps({"error_code": code, "message": message}).encode()
