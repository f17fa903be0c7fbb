"""The admin port of a process: /livez, /readyz and /metrics, on threads of its own, so that no work can delay an answer."""

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import falcon
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from waitress import wasyncore
from waitress.server import create_server

LIVEZ: Final = "/livez"
READYZ: Final = "/readyz"
HEALTHZ: Final = "/healthz"
"""The same, by the name that many load balancers and people try first."""
METRICS: Final = "/metrics"

STOP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold for a process to be ready."""

    ok: bool
    detail: str


class Readiness(Protocol):
    """Whether a process is ready. It is asked on threads of the admin port."""

    def checks(self) -> Mapping[str, Check]:
        """Return every check by name; it is ready if all of them hold."""
        ...

    def warnings(self) -> list[str]:
        """Return what an operator should look at, though it is ready."""
        ...


class _Livez:
    def __init__(self, stuck: Callable[[], str | None]) -> None:
        self._stuck = stuck

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        why = self._stuck()
        resp.text = "ok\n" if why is None else f"{why}\n"
        resp.status = falcon.HTTP_200 if why is None else falcon.HTTP_503
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


def admin_app(readiness: Readiness, registry: CollectorRegistry, stuck: Callable[[], str | None]) -> falcon.App:  # type: ignore[type-arg]
    """Return the WSGI application of an admin port, to which a process may add routes of its own.

    stuck: why only a restart helps this process, in a sentence, or None.
    """
    app = falcon.App()
    app.req_options.keep_blank_qs_values = True  # so that a bare ?verbose counts
    app.add_route(LIVEZ, _Livez(stuck))
    readyz = _Readyz(readiness)
    app.add_route(READYZ, readyz)
    app.add_route(HEALTHZ, readyz)
    app.add_route(METRICS, _Metrics(registry))
    return app


class AdminServer:
    """Serves an application on threads of its own."""

    def __init__(self, listener: socket.socket, app: Any) -> None:
        """listener: of telemetry.listening.listen. It answers only once started; until then connections wait."""
        self._connections: dict[int, Any] = {}
        # Any: to the type stubs it may be one of several kinds, of which one has no trigger.
        self._server: Any = create_server(
            app, map=self._connections, sockets=[listener], threads=2, asyncore_use_poll=True, ident=None
        )
        self._thread = threading.Thread(target=self._server.run, name="admin", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection."""
        pulled = threading.Event()

        def close() -> None:
            # An answer that was sent at this moment wakes the thread too, before the pull below: closing the trigger's pipe
            # then would let the pull write into whatever has the descriptor by now.
            pulled.wait(STOP_S)
            wasyncore.close_all(self._connections)

        # On its own thread: nobody else may touch the sockets that it waits for.
        self._server.trigger.pull_trigger(close)
        pulled.set()
        self._thread.join(STOP_S)
        self._server.task_dispatcher.shutdown()
