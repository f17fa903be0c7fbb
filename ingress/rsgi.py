"""The RSGI application, for granian: reads a request, lets `answering` answer it, writes the answer.

RSGI is the thinnest that granian has: no dict of the request is made, and an answer is one call. Header names come as they
were sent, in small letters, so `X_Event_Secret` is not `X-Event-Secret` (granian's WSGI lets it override the real one).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Final, Protocol

from granian.rsgi import ProtocolClosed

from kinguin_streams.ingress.answering import Webhooks
from kinguin_streams.ingress.decide import MAX_BODY_BYTES
from kinguin_streams.ingress.exchange import Answer, Asked
from kinguin_streams.ingress.waiting import TICK_S, InLoop

UNREADABLE: Final = "\ufffd".encode().decode("latin-1")
"""What stands for a header value that is not visible ASCII: granian does not hand its bytes over. It is never a secret or a
known event, for those are visible ASCII."""
# What the server itself says of what it cannot read, without a body, as granian does where it sees it first.
BAD_REQUEST: Final = 400
REQUEST_TIMEOUT: Final = 408
NOT_IMPLEMENTED: Final = 501


class Headers(Protocol):
    """Headers of a request, by the RSGI specification. Values that are not visible ASCII are left out."""

    def __len__(self) -> int:
        """Return how many names there are."""
        ...

    def keys(self) -> list[str]:
        """Return every name once."""
        ...

    def items(self) -> list[tuple[str, str]]:
        """Return every value with its name."""
        ...

    def get_all(self, key: str) -> list[str]:
        """Return the values of one name."""
        ...


class Scope(Protocol):
    """A request without its body."""

    method: str
    path: str
    headers: Headers


class HttpProtocol(Protocol):
    """The body of a request, and its answer."""

    def __call__(self) -> Awaitable[bytes]:
        """Return the whole body."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the body as it comes."""
        ...

    def response_empty(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Answer without a body."""
        ...

    def response_bytes(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Answer."""
        ...


class RsgiApp:
    """The application. All its methods are called on the thread of one event loop."""

    def __init__(self, webhooks: Webhooks, loop: asyncio.AbstractEventLoop) -> None:
        self._webhooks = webhooks
        self._loop = loop
        self._waiting = InLoop(lambda: loop.call_soon_threadsafe(self._waiting.resume))
        loop.call_soon(self._tick)
        self._reading: dict[asyncio.Task[None] | None, float] = {}

    async def __rsgi__(self, scope: Scope, protocol: HttpProtocol) -> None:
        """Serve one request."""
        headers = read_headers(scope.headers)
        task = asyncio.current_task()
        self._reading[task] = time.monotonic()
        try:
            body = await _body(headers, protocol)
        except _Unreadable as unreadable:
            protocol.response_empty(unreadable.status, [("Connection", "close")])
            return
        except asyncio.CancelledError:  # by cut_off_slow
            protocol.response_empty(REQUEST_TIMEOUT, [("Connection", "close")])
            return
        finally:
            del self._reading[task]
        asked = Asked(scope.method, scope.path, headers.get, body, time.monotonic())
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.start(self._webhooks.answer(asked), answered.set_result)
        answer = await answered
        if answer.body:
            protocol.response_bytes(answer.status, list(answer.headers), answer.body)
        else:
            protocol.response_empty(answer.status, list(answer.headers))

    def _tick(self) -> None:
        self._waiting.time_out()
        self._loop.call_later(TICK_S, self._tick)

    def cut_off_slow(self, timeout_s: float) -> int:
        """Give up requests whose body has been coming in for longer than this; return how many."""
        before_s = time.monotonic() - timeout_s
        slow = [task for task, began_s in self._reading.items() if began_s < before_s]
        for task in slow:
            if task is not None:
                task.cancel()
        return len(slow)


def read_headers(headers: Headers) -> Mapping[str, str]:
    """Return the headers by name, in small letters."""
    readable = headers.items()
    found = dict(readable)
    if len(found) < len(readable):
        found = {name: ", ".join(headers.get_all(name)) for name in found}
    if len(found) < len(headers):
        found |= dict.fromkeys(headers.keys() - found.keys(), UNREADABLE)
    return found


class _Unreadable(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


async def _body(headers: Mapping[str, str], protocol: HttpProtocol) -> bytes | None:
    """Return the body, or None if it is too large; a chunked one is read up to the first chunk over the limit.

    Raises _Unreadable if it is not whole, or of a coding that nobody here undoes.
    """
    coding = headers.get("transfer-encoding")
    if coding is None:
        announced = int(headers.get("content-length", 0))  # granian has refused what is no number
        if announced > MAX_BODY_BYTES:
            return None
        try:
            return await protocol() if announced else b""
        except ProtocolClosed as closed:  # by the client, which hears nothing
            raise _Unreadable(BAD_REQUEST) from closed
    if coding.strip().lower() != "chunked":
        raise _Unreadable(NOT_IMPLEMENTED)
    chunks: list[bytes] = []
    size = empty = 0
    async for chunk in protocol:
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            return None
        if chunk:
            chunks.append(chunk)
        else:
            empty += 1
    if empty > 1:
        # The end is an empty chunk. A connection that breaks is another one, and so is a trailer, which no webhook has.
        raise _Unreadable(BAD_REQUEST)
    return b"".join(chunks)
