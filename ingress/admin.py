"""The admin port of the ingress: what every process has there, and the description of what it serves."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import falcon
import msgspec
from prometheus_client import CollectorRegistry

from kinguin_streams.telemetry import admin_server
from kinguin_streams.telemetry.admin_server import Readiness, admin_app

LIVEZ: Final = admin_server.LIVEZ
READYZ: Final = admin_server.READYZ
HEALTHZ: Final = admin_server.HEALTHZ
METRICS: Final = admin_server.METRICS
OPENAPI: Final = "/openapi.json"


STALLED_S: Final = 10.0
"""A loop that serves turns several times a second. One that has not for so long serves nobody, and only a restart helps."""


class _OpenApi:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._text = msgspec.json.encode(document)

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = self._text
        resp.content_type = falcon.MEDIA_JSON


def make_admin_app(
    readiness: Readiness,
    registry: CollectorRegistry,
    document: Mapping[str, Any],
    stalled_s: Callable[[], float],
) -> falcon.App:  # type: ignore[type-arg]
    """Return the WSGI application of the admin port.

    document: the OpenAPI document of this process. stalled_s: for how long the loop that serves webhooks has not turned.
    """

    def stuck() -> str | None:
        since_s = stalled_s()
        return f"no webhook has been served for {since_s:.0f} s: the loop is stuck" if since_s > STALLED_S else None

    app = admin_app(readiness, registry, stuck)
    app.add_route(OPENAPI, _OpenApi(document))
    return app
