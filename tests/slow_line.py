"""A line that is slow: a TCP proxy that hands everything on, late."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self


class SlowLine:
    """Stands before a port of this machine. Quick, until `slow` is entered."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._between_s = (0.0, 0.0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
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
            for source, target in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._hand_on, args=(source, target), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65_536):
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
