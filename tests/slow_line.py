"""A line that is slow: a TCP proxy that hands everything on, late."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from tests.first_refused import FirstRefused


class SlowLine:
    """Stands before a port of this machine. Quick, until `slow` is entered."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._between_s = (0.0, 0.0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._refusing: FirstRefused | None = None
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def slow(self, least_s: float, most_s: float) -> Iterator[None]:
        """Hold each chunk back for a time between the two, in both directions; at the end nothing is held back any more."""
        self._between_s = (least_s, most_s)
        try:
            yield
        finally:
            self._between_s = (0.0, 0.0)

    @contextmanager
    def first_refused(self, topic: str) -> Iterator[FirstRefused]:
        """Refuse the topic's first Produce request, on the connections that are made meanwhile."""
        self._refusing = FirstRefused(topic)
        try:
            yield self._refusing
        finally:
            self._refusing = None

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection(("127.0.0.1", self._upstream_port))
            except OSError:
                client.close()
                continue
            self._sockets += [client, upstream]
            for source, target, refusing in ((client, upstream, self._refusing), (upstream, client, None)):
                threading.Thread(target=self._hand_on, args=(source, target, refusing), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket, refusing: FirstRefused | None) -> None:
        with suppress(OSError):
            for chunk in _chunks(source) if refusing is None else _passed(source, refusing):
                between_s = self._between_s
                until_s = time.monotonic() + random.uniform(*between_s)
                while not self._closed and between_s is self._between_s and time.monotonic() < until_s:
                    time.sleep(0.02)
                target.sendall(chunk)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed = True
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunks(source: socket.socket) -> Iterator[bytes]:
    while chunk := source.recv(65_536):
        yield chunk


def _passed(client: socket.socket, refusing: FirstRefused) -> Iterator[bytes]:
    """Yield the requests that the broker is to have, each whole."""
    came = b""
    for chunk in _chunks(client):
        came += chunk
        while len(came) >= 4 and len(came) >= (end := 4 + int.from_bytes(came[:4], "big")):
            request, came = came[:end], came[end:]
            if refusing.passes(request, client):
                yield request
