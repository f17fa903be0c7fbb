"""The reference for waitress: a Falcon application that reads the body and answers 204, on threads, as waitress is meant.

It has what else the ingress does to waitress: connections that stay open after a 204, and a short switch interval.

python benchmarks/peers/noop_waitress.py PORT
"""

import logging
import sys

import falcon
import waitress
from waitress.server import create_server

from kinguin_streams.ingress.channel import Channel
from kinguin_streams.ingress.listening import BACKLOG, BACKSTOP_BODY_BYTES, MAX_HEADER_BYTES, listen
from kinguin_streams.ingress.settings import IngressSettings
from kinguin_streams.ingress.waitress_front import SWITCH_INTERVAL_S


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
sys.setswitchinterval(SWITCH_INTERVAL_S)
app = falcon.App()
app.add_route("/webhooks", Noop())
defaults = IngressSettings()
server = create_server(
    app,
    sockets=[listen("127.0.0.1", int(sys.argv[1]), "the port", shared=True)],
    threads=32,
    connection_limit=defaults.connection_limit,
    max_request_body_size=BACKSTOP_BODY_BYTES,
    max_request_header_size=MAX_HEADER_BYTES,
    asyncore_use_poll=True,
    backlog=BACKLOG,
    ident=None,
    clear_untrusted_proxy_headers=True,
)
assert isinstance(server, waitress.server.BaseWSGIServer)
server.channel_class = Channel  # connections stay after a 204, as the ingress's do
server.run()
