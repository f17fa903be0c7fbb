"""The reference: a Falcon application that reads the body and answers 204, on waitress as the ingress configures it.

python benchmarks/noop_ingress.py PORT
"""

import logging
import sys

import falcon
import waitress

from kinguin_streams.ingress.listening import BACKSTOP_BODY_BYTES, MAX_HEADER_BYTES
from kinguin_streams.ingress.settings import IngressSettings


class Noop:
    """Keeps nothing."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer that somebody is here."""
        resp.status = falcon.HTTP_204

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 204 without having done anything."""
        req.bounded_stream.read()
        resp.status = falcon.HTTP_204


logging.getLogger("waitress.queue").setLevel(logging.ERROR)
app = falcon.App()
app.add_route("/webhooks", Noop())
defaults = IngressSettings()
waitress.serve(
    app,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    threads=defaults.threads,
    connection_limit=defaults.connection_limit,
    max_request_body_size=BACKSTOP_BODY_BYTES,
    max_request_header_size=MAX_HEADER_BYTES,
    asyncore_use_poll=True,
    backlog=1024,
    ident=None,
    clear_untrusted_proxy_headers=True,
    _quiet=True,
)
