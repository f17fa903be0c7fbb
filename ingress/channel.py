"""What waitress does not do by itself: keep a connection after an answer without a body, know when a request had arrived,
cut off who never finishes one, and answer later than when it is asked.
"""

import time
from collections.abc import Iterable
from typing import Any, Final, cast

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import WSGITask

from kinguin_streams.ingress.exchange import Answer

ARRIVED: Final = "kinguin.arrived_s"
"""In the WSGI environment: when the last byte of the request was there, on the monotonic clock."""
ANSWER: Final = "kinguin.answer"
"""In the WSGI environment: what is to be answered, if that has been found out already."""


class Request(HTTPRequestParser):
    """A request that knows when its first and its last byte came."""

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self.began_s = self.arrived_s = time.monotonic()
        self.answer: Answer | None = None
        self.environ: dict[str, Any] | None = None

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head. Raises ParsingError, which is answered 400."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # a Content-Length of more digits than Python makes a number of: 4,300
            raise ParsingError("the head cannot be read") from error

    def received(self, data: bytes) -> int:
        """Take more bytes; return how many belong to this request."""
        taken = int(super().received(data))
        if self.completed:
            self.arrived_s = time.monotonic()
        return taken


class Task(WSGITask):
    """Serves one request."""

    _may_stay = False

    def get_environment(self) -> dict[str, Any]:
        """Return the WSGI environment."""
        request = cast("Request", self.request)  # a task of the other kind answers for one that could not be read
        if request.environ is None:
            request.environ = super().get_environment()
            request.environ[ARRIVED] = request.arrived_s
        if request.answer is not None:
            request.environ[ANSWER] = request.answer
        return request.environ

    def build_response_header(self) -> bytes:
        """Return the head of the answer."""
        # waitress takes an answer without Content-Length for one that ends with the connection; a 204 has neither. Opening
        # a connection for each webhook halved what one process answered.
        wants_close = cast("Request", self.request).headers.get("CONNECTION", "").lower() == "close"
        self._may_stay = not self.has_body and self.version == "1.1" and not wants_close
        return bytes(super().build_response_header())

    def set_close_on_finish(self) -> None:
        """Close the connection after the answer, unless the answer says itself where it ends."""
        if not self._may_stay:
            super().set_close_on_finish()


class Channel(HTTPChannel):
    """One connection of a client."""

    task_class = Task
    parser_class = Request

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.silent_since_s: float | None = time.monotonic()
        """When it was opened; None once its first byte has come."""

    def received(self, data: bytes) -> bool:
        """Take bytes from the client."""
        self.silent_since_s = None
        return bool(super().received(data))

    def asked(self) -> dict[str, Any] | None:
        """Return the WSGI environment of the oldest request; None if the server answers that itself, or nobody is there."""
        request = self.requests[0]
        return None if request.error or not self.connected else Task(self, cast("Any", request)).get_environment()

    def waits_since_s(self) -> float | None:
        """Since when a request has been coming in, or is due on a new connection; None while the client owes nothing."""
        return self.request.began_s if isinstance(self.request, Request) else self.silent_since_s

    def answered(self, answer: Answer) -> None:
        """Answer the oldest request. Raises what keeps the answer from being written; the connection is then closed."""
        try:
            cast("Request", self.requests[0]).answer = answer
            self.service()
        except Exception:
            self.will_close = True
            raise


def cut_off_slow(channels: Iterable[object], timeout_s: float) -> int:
    """Close the connections whose request has been coming in, or whose first is due, for longer than this; return how many.

    Measured: a body of one byte a second was never cut off, and a hundred such clients stopped all service.
    """
    before_s = time.monotonic() - timeout_s
    slow = [
        channel
        for channel in channels
        if isinstance(channel, Channel)
        and not channel.requests
        and (since_s := channel.waits_since_s()) is not None
        and since_s < before_s
    ]
    for channel in slow:
        channel.will_close = True
    return len(slow)
