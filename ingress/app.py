"""The WSGI application, by Falcon: reads a request, lets `answering` answer it, writes the answer."""

import re
import time
from typing import Any, Final

import falcon
import uuid_utils

from kinguin_streams.ingress import problems
from kinguin_streams.ingress.answering import REQUEST_ID_HEADER, Webhooks
from kinguin_streams.ingress.channel import ANSWER, ARRIVED
from kinguin_streams.ingress.decide import MAX_BODY_BYTES
from kinguin_streams.ingress.exchange import Answer, Asked
from kinguin_streams.ingress.problems import Problem
from kinguin_streams.ingress.waiting import in_thread

_ANYTHING: Final = re.compile("")
_NOT_PREFIXED: Final = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}


def make_app(webhooks: Webhooks) -> falcon.App:  # type: ignore[type-arg]
    """Return the WSGI application.

    What is to be answered stands in the environment already: waitress_front.py has it found out in waitress's loop. Where it
    does not, as in a test that calls the application without a server, the thread waits.
    """

    def serve(req: falcon.Request, resp: falcon.Response, **_: str) -> None:
        _write(resp, req.env.get(ANSWER) or in_thread(webhooks.answer(read(req.env))))

    app = falcon.App()
    app.resp_options.default_media_type = None  # type: ignore[assignment] # an answer without a body has no type either
    # A sink and no routes: Falcon would answer OPTIONS by itself, and 400 to methods that it has never heard of.
    app.add_sink(serve, _ANYTHING)
    app.add_error_handler(falcon.HTTPError, _refused_by_falcon)
    return app


def read(environ: dict[str, Any]) -> Asked:
    """Return the request of a WSGI environment."""
    # WSGI hands the path over as latin-1 text.
    path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
    arrived_s = environ.get(ARRIVED, time.monotonic())
    return Asked(environ["REQUEST_METHOD"], path, _Headers(environ).get, _body(environ), arrived_s)


def _body(environ: dict[str, Any]) -> bytes | None:
    """Return the body, chunked or not, or None if it is too large, reading at most one byte over the limit."""
    announced = environ.get("CONTENT_LENGTH")
    if announced and int(announced) > MAX_BODY_BYTES:
        return None
    # A chunked request may have no length: Falcon's bounded_stream and get_media would then read it as empty. get_media
    # answers 415 to the sender's "aplication/json" besides.
    if not announced and not environ.get("wsgi.input_terminated"):
        return b""
    body: bytes = environ["wsgi.input"].read(int(announced) if announced else MAX_BODY_BYTES + 1)
    return body if len(body) <= MAX_BODY_BYTES else None


class _Headers:
    """Headers in the WSGI environment, where names are in capitals with underscores."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ

    def get(self, name: str) -> str | None:
        """Return the values of a header, given in small letters."""
        key = _NOT_PREFIXED.get(name) or "HTTP_" + name.upper().replace("-", "_")
        value: str | None = self._environ.get(key)
        return value


def _write(resp: falcon.Response, answer: Answer) -> None:
    resp.status = answer.status
    resp.set_headers(answer.headers)
    resp.data = answer.body


def _refused_by_falcon(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: object) -> None:
    """Answer what Falcon does not take for HTTP, such as the method WEBSOCKET, as has been found out without it."""
    if ANSWER in req.env:
        _write(resp, req.env[ANSWER])
        return
    request_id = str(uuid_utils.uuid7())
    answer = problems.answer(Problem("bad_request"), request_id)
    _write(resp, answer._replace(headers=((REQUEST_ID_HEADER, request_id), *answer.headers)))
