"""The admin port: what it answers, and that nothing but a stuck process makes it say that a restart helps."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
import urllib3
from prometheus_client import CollectorRegistry, Gauge

from kinguin_streams.telemetry.admin_server import AdminServer, Check, admin_app
from kinguin_streams.telemetry.listening import listen
from kinguin_streams.telemetry.operator_error import OperatorError


class Parts:
    """A process of which one part is out of order, or not."""

    def __init__(self, *, ok: bool = True, odd: str | None = None) -> None:
        self._ok = ok
        self._odd = odd

    def checks(self) -> Mapping[str, Check]:
        return {"one": Check(ok=True, detail="well"), "other": Check(ok=self._ok, detail="away")}

    def warnings(self) -> list[str]:
        return [] if self._odd is None else [self._odd]


@contextmanager
def serving(
    parts: Parts, registry: CollectorRegistry | None = None, stuck: Callable[[], str | None] = lambda: None
) -> Iterator[str]:
    listener = listen("127.0.0.1", 0, "PORT", host_setting="HOST")
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = AdminServer(listener, admin_app(parts, registry or CollectorRegistry(), stuck))
    server.start()
    try:
        yield address
    finally:
        server.stop()


def ask(url: str) -> tuple[int, str]:
    with urllib3.PoolManager() as http:
        answer = http.request("GET", url, retries=False, timeout=5)
        return answer.status, answer.data.decode()


def test_a_process_is_alive_unless_it_says_that_it_is_stuck() -> None:
    why: str | None = None
    with serving(Parts(ok=False), stuck=lambda: why) as address:
        assert ask(f"{address}/livez") == (200, "ok\n")
        why = "it turns no more"
        assert ask(f"{address}/livez") == (503, "it turns no more\n")


def test_readiness_names_what_is_wrong_and_verbose_names_all() -> None:
    with serving(Parts(ok=False)) as address:
        assert ask(f"{address}/readyz") == (503, "[-] other: away\nnot ready\n")
        assert ask(f"{address}/readyz?verbose") == (503, "[+] one: well\n[-] other: away\nnot ready\n")


def test_what_is_odd_is_said_and_leaves_it_ready() -> None:
    with serving(Parts(odd="look here")) as address:
        assert ask(f"{address}/readyz") == (200, "[!] look here\nready\n")


def test_metrics_are_those_of_the_registry() -> None:
    registry = CollectorRegistry()
    Gauge("kinguin_test_size_bytes", "A size.", registry=registry).set(7)
    with serving(Parts(), registry) as address:
        status, text = ask(f"{address}/metrics")
    assert status == 200
    assert "kinguin_test_size_bytes 7.0\n" in text


def test_a_stopped_port_can_be_had_by_the_next_process() -> None:
    with serving(Parts()) as address:
        assert ask(f"{address}/livez")[0] == 200
    port = int(address.rpartition(":")[2])
    listen("127.0.0.1", port, "PORT", host_setting="HOST").close()


def test_it_stops_just_as_well_in_the_moment_of_an_answer() -> None:
    for _ in range(20):
        server = AdminServer(
            listen("127.0.0.1", 0, "PORT", host_setting="HOST"), admin_app(Parts(), CollectorRegistry(), lambda: None)
        )
        trigger = server._server.trigger
        pull = trigger._physical_pull

        def woken_before(pull: Callable[[], None] = pull) -> None:
            pull()  # by an answer: the thread finds the thunk already
            time.sleep(0.01)
            pull()

        trigger._physical_pull = woken_before
        server.start()
        server.stop()


def test_a_port_that_is_taken_says_which_setting_moves_it() -> None:
    with listen("127.0.0.1", 0, "PORT", host_setting="HOST") as first:
        port = first.getsockname()[1]
        with pytest.raises(OperatorError, match="set THE_PORT to another port") as refused:
            listen("127.0.0.1", port, "THE_PORT", host_setting="HOST")
    assert refused.value.code == "port_taken"
    with pytest.raises(OperatorError, match="Set THE_HOST to an address of this machine"):
        listen("203.0.113.1", 0, "PORT", host_setting="THE_HOST")
