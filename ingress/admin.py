"""The admin port: /livez, /readyz, /metrics, /openapi.json, served by a thread of its own so that no webhook can delay them."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import falcon
import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from kinguin_streams.ingress.readiness import Readiness

LIVEZ: Final = "/livez"
READYZ: Final = "/readyz"
METRICS: Final = "/metrics"
OPENAPI: Final = "/openapi.json"


STALLED_S: Final = 10.0
"""A loop that serves turns several times a second. One that has not for so long serves nobody, and only a restart helps."""


class _Livez:
    def __init__(self, stalled_s: Callable[[], float]) -> None:
        self._stalled_s = stalled_s

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        stalled_s = self._stalled_s()
        if stalled_s > STALLED_S:
            resp.text = f"no webhook has been served for {stalled_s:.0f} s: the loop is stuck\n"
            resp.status = falcon.HTTP_503
        else:
            resp.text = "ok\n"
        resp.content_type = falcon.MEDIA_TEXT


class _Readyz:
    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        checks = self._readiness.checks()
        ready = all(check.ok for check in checks.values())
        lines = [f"[{'+' if check.ok else '-'}] {name}: {check.detail}" for name, check in checks.items()]
        lines += [f"[!] {warning}" for warning in self._readiness.warnings()]
        verdict = "ready" if ready else "not ready"
        # Without ?verbose, what is wrong, or odd, is still named: an operator reads it first in the orchestrator's events.
        shown = lines if "verbose" in req.params else [line for line in lines if not line.startswith("[+]")]
        resp.text = "\n".join([*shown, verdict, ""])
        resp.content_type = falcon.MEDIA_TEXT
        resp.status = falcon.HTTP_200 if ready else falcon.HTTP_503


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = generate_latest(self._registry)
        resp.content_type = CONTENT_TYPE_LATEST


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
    app = falcon.App()
    app.req_options.keep_blank_qs_values = True  # so that a bare ?verbose counts
    app.add_route(LIVEZ, _Livez(stalled_s))
    app.add_route(READYZ, _Readyz(readiness))
    app.add_route(METRICS, _Metrics(registry))
    app.add_route(OPENAPI, _OpenApi(document))
    return app
