"""The proxies that are shipped, as real processes with the shipped configuration, in front of whatever a test puts there."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
HAPROXY_CFG = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
NGINX_CONF = ROOT / "deploy" / "nginx" / "nginx.conf"
# Debian puts servers where only root's PATH looks.
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

Kind = Literal["haproxy", "nginx"]
KINDS: tuple[Kind, ...] = ("haproxy", "nginx")


def program(name: str) -> str:
    """Return the path of an installed program. Without it the test skips; in CI it fails, as .ci/run installs it."""
    found = shutil.which(name, path=SEARCH)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and {name} is not installed", pytrace=False)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@dataclass(frozen=True)
class Backend:
    """An ingress, or what stands for one: its ports on 127.0.0.1."""

    port: int
    admin_port: int


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    process: "subprocess.Popen[bytes]"
    port: int
    metrics_port: int | None
    log_file: Path


def haproxy_command(backends: Sequence[Backend], port: int, metrics_port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of a HAProxy with the shipped configuration. Two backends."""
    environment = {"PROXY_WEBHOOKS": f"127.0.0.1:{port}", "PROXY_METRICS": f"127.0.0.1:{metrics_port}"}
    for number, backend in enumerate(backends, start=1):
        environment[f"INGRESS_{number}"] = f"127.0.0.1:{backend.port}"
        environment[f"INGRESS_{number}_ADMIN_PORT"] = str(backend.admin_port)
    return [program("haproxy"), "-db", "-f", str(HAPROXY_CFG)], {**os.environ, **environment}


def nginx_command(backends: Sequence[Backend], port: int, folder: Path) -> list[str]:
    """Return the command line of an nginx with the shipped configuration, other addresses put in. Two backends."""
    text = NGINX_CONF.read_text("utf-8")
    for number, backend in enumerate(backends, start=1):
        assert f"server ingress-{number}:8080 " in text
        text = text.replace(f"server ingress-{number}:8080 ", f"server 127.0.0.1:{backend.port} ")
    assert "listen 8080;" in text
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace(" /tmp/", f" {folder}/")
    if os.getuid() == 0:  # its workers would be somebody who may not open the test's folder
        text = "user root;\n" + text
    conf = folder / "nginx.conf"
    conf.write_text(text, "utf-8")
    return [program("nginx"), "-p", str(folder), "-c", str(conf), "-g", "daemon off;"]


@contextmanager
def running_proxy(kind: Kind, backends: Sequence[Backend], folder: Path) -> Iterator[Proxy]:
    """Run a proxy in front of two backends until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    metrics_port = None
    environment = dict(os.environ)
    if kind == "haproxy":
        metrics_port = free_port()
        arguments, environment = haproxy_command(backends, port, metrics_port)
    else:
        arguments = nginx_command(backends, port, folder)
    log_file = folder / f"{kind}.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(arguments, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + 10
        while True:
            assert process.poll() is None, log_file.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline_s, log_file.read_text()
                time.sleep(0.05)
        yield Proxy(process, port, metrics_port, log_file)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Recorder:
    """Stands for an ingress: keeps the bytes of every request as a proxy sends them, answers 204, and is always ready."""

    backend: Backend
    dies: bool = False
    """Close the connection instead of an answer."""
    status: bytes = b"204 No Content"
    requests: list[bytes] = field(default_factory=list)
    """Each request, head and body."""

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers of the only request, names in lower case."""
        (request,) = self.requests
        lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


@contextmanager
def dying() -> Iterator[Recorder]:
    """One that is ready, takes requests, and closes the connection on each of them."""
    with recorder() as found:
        found.dies = True
        yield found


@contextmanager
def recorder() -> Iterator[Recorder]:
    """Listen on two ports; the admin port answers 200 to everything."""
    with socket.create_server(("127.0.0.1", 0)) as webhooks, socket.create_server(("127.0.0.1", 0)) as admin:
        found = Recorder(Backend(webhooks.getsockname()[1], admin.getsockname()[1]))
        for listener, keep in ((webhooks, found), (admin, None)):
            threading.Thread(target=_accept, args=(listener, keep), daemon=True).start()
        yield found


def _accept(listener: socket.socket, keep: Recorder | None) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(connection, keep), daemon=True).start()


def _serve(connection: socket.socket, keep: Recorder | None) -> None:
    with connection:
        waiting = b""
        while True:
            try:
                data = connection.recv(65_536)
            except OSError:
                return
            if not data:
                return
            waiting += data
            while (length := _request_length(waiting)) is not None:
                request, waiting = waiting[:length], waiting[length:]
                if keep is not None:
                    keep.requests.append(request)
                    if keep.dies:
                        return
                status = b"200 OK" if keep is None else keep.status
                length_header = b"" if status.startswith(b"204") else b"Content-Length: 0\r\n"
                connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + length_header + b"\r\n")


def _request_length(data: bytes) -> int | None:
    """Return how long the first request is, read naively, or None while it is not whole."""
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        return None
    lines = [line.partition(b":") for line in head.lower().split(b"\r\n")[1:]]
    headers = {name: value.strip() for name, _, value in lines}
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        end = body.find(b"0\r\n\r\n")
        return None if end < 0 else len(head) + 4 + end + 5
    length = len(head) + 4 + int(headers.get(b"content-length", b"0"))
    return length if len(data) >= length else None
