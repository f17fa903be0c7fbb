"""Real ingresses behind the shipped proxies: limits, slow clients, and restarts that no sender notices."""

import http.client
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from kinguin_streams.schemas.topics import topics
from tests.conftest import KafkaCluster
from tests.deploy.proxies import KINDS, Backend, Kind, Proxy, program, running_proxy
from tests.ingress.running_ingress import (
    NEXT_SECRET,
    SECRET,
    Answer,
    Connection,
    RunningIngress,
    Samples,
    apply_topics,
    new_id,
    order_status,
    request_bytes,
    samples,
    start,
    wait_until,
)

pytestmark = pytest.mark.kafka

PRE_STOP_S = 3
"""Longer than HAProxy takes to notice: two looks of a second each."""


@dataclass
class Site:
    """A proxy and two ingresses, each with a spool of its own."""

    bootstrap_servers: str
    prefix: str
    server: str
    ingresses: list[RunningIngress]
    proxy: Proxy

    def connection(self, timeout_s: float = 15.0) -> Connection:
        return Connection(self.proxy.port, timeout_s, documented=False)

    def post(self, body: bytes, secret: str = SECRET) -> Answer:
        connection = self.connection()
        try:
            return connection.exchange(RunningIngress.webhook(body, secret=secret))
        finally:
            connection.close()

    def start_again(self, number: int) -> None:
        """Start the ingress of this number anew, on its ports and with its spool."""
        old = self.ingresses[number]
        old.log.close()
        self.ingresses[number] = _start(self.bootstrap_servers, self.prefix, old.log_file.parent, self.server, old)


def _start(
    bootstrap_servers: str, prefix: str, folder: Path, server: str, like: RunningIngress | None = None
) -> RunningIngress:
    folder.mkdir(exist_ok=True)
    ports = {} if like is None else {"port": like.port, "admin_port": like.admin_port}
    return start(bootstrap_servers, prefix, folder, server=server, pre_stop_s=PRE_STOP_S, **ports)


@contextmanager
def running_site(
    bootstrap_servers: str, folder: Path, kind: Kind = "haproxy", server: str = "waitress"
) -> Iterator[Site]:
    """Run a proxy and two ingresses until the end of the block; whoever is still up then must exit 0 at SIGTERM."""
    prefix = f"t{uuid4().hex[:12]}"
    apply_topics(bootstrap_servers, topics(prefix, partitions=2))
    ingresses: list[RunningIngress] = []
    with ExitStack() as stack:
        stack.callback(_stop, ingresses)
        ingresses.extend(_start(bootstrap_servers, prefix, folder / f"ingress-{n}", server) for n in (1, 2))
        backends = [Backend(one.port, one.admin_port) for one in ingresses]
        proxy = stack.enter_context(running_proxy(kind, backends, folder))
        yield Site(bootstrap_servers, prefix, server, ingresses, proxy)


def _stop(ingresses: Sequence[RunningIngress]) -> None:
    for ingress in ingresses:
        ingress.log.close()
        if ingress.process.poll() is None:
            ingress.process.kill()
            ingress.process.wait()


@pytest.fixture(scope="module")
def site(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests of this file that leave it as it was."""
    with running_site(kafka.bootstrap_servers, tmp_path_factory.mktemp("site")) as running:
        yield running


@dataclass
class Load:
    """Clients that post one webhook after the other, and what became of each."""

    site: Site
    clients: int
    each_s: float = 0.01
    """Pause of a client between two webhooks."""
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    in_a_second: int = 0
    """How many were answered 204 within one."""
    acked: list[str] = field(default_factory=list)
    """Order ids that were answered 204."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Load":
        # Half of them keep their connection, half make one for each webhook: both kinds of sender exist.
        self._threads = [threading.Thread(target=self._client, args=(n % 2 == 0,)) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, keeps: bool) -> None:
        connection = self.site.connection()
        while not self._stop.wait(self.each_s):
            order_id = new_id()
            started_s = time.monotonic()
            try:
                outcome = str(connection.exchange(RunningIngress.webhook(order_status(order_id))).status)
            except (OSError, http.client.HTTPException) as error:
                outcome = repr(error)
            took_s = time.monotonic() - started_s
            with self._lock:
                self.outcomes[outcome] += 1
                self.slowest_s = max(self.slowest_s, took_s)
                self.in_a_second += outcome == "204" and took_s <= 1
                if outcome == "204":
                    self.acked.append(order_id)
            if not keeps:
                connection.close()
        connection.close()


def assert_kept(site: Site, acked: list[str]) -> int:
    """Assert that each acknowledged event is in its topic, all copies with one id; return how many copies there are."""
    wait_until(
        lambda: all(one.metrics()["kinguin_ingress_spool_events", ()] == 0 for one in site.ingresses),
        30,
        "empty spools",
    )
    ids: dict[str, set[bytes]] = {}
    copies = 0
    for kept in site.ingresses[0].log.new("order.status"):
        ids.setdefault(kept.record.order_id, set()).add(kept.headers["ce_id"])
        copies += 1
    assert set(acked) <= ids.keys()
    assert all(len(found) == 1 for found in ids.values())
    return copies


# --- one after the other ---


def test_webhooks_go_to_both_ingresses_over_connections_that_stay_open(site: Site) -> None:
    before = [one.metrics()["kinguin_ingress_received_total", ()] for one in site.ingresses]
    for _ in range(20):
        assert site.post(order_status(new_id())).status == 204
    after = [one.metrics()["kinguin_ingress_received_total", ()] for one in site.ingresses]
    assert sum(after) - sum(before) == 20
    assert all(late > early for early, late in zip(before, after, strict=True))


def test_row_22_the_ingress_itself_refuses_a_body_that_is_a_little_too_large(site: Site) -> None:
    def padded(size: int) -> bytes:
        body = order_status(new_id())
        return body[:-1] + b" " * (size - len(body)) + b"}"

    assert [site.post(padded(size)).status for size in (65_535, 65_536)] == [204, 204]
    answer = site.post(padded(65_537))
    assert (answer.status, answer.problem_type) == (413, "body_too_large")


def test_row_24_a_chunked_body_means_the_same_through_the_proxy(site: Site) -> None:
    body = order_status(new_id())
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:20], body[20:])) + b"0\r\n\r\n"
    whole = RunningIngress.webhook(body)
    head = whole.partition(b"\r\n\r\n")[0].replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    site.ingresses[0].log.skip()
    connection = site.connection()
    assert connection.exchange(whole).status == 204
    assert connection.exchange(head + b"\r\n\r\n" + chunked).status == 204
    connection.close()
    one, other = site.ingresses[0].log.new("order.status")
    assert one.headers["ce_id"] == other.headers["ce_id"]
    assert one.record.raw == other.record.raw == body


def test_row_27_an_underscore_alias_authenticates_nobody_and_disturbs_nobody(site: Site) -> None:
    body = order_status(new_id())
    connection = site.connection()
    aliased = RunningIngress.webhook(body, secret=None, headers=[("X_Event_Secret", SECRET)])
    disturbed = RunningIngress.webhook(body, secret=NEXT_SECRET, headers=[("X_Event_Secret", "wrong")])
    assert connection.exchange(aliased).status == 401
    assert connection.exchange(disturbed).status == 204
    connection.close()


# --- slow clients ---


def slow_clients(site: Site, mode: str, connections: int, seconds: int) -> Load:
    """Run slowhttptest against the site, over and over since it ends once it has been cut off; return how a good client fared."""
    arguments = [program("slowhttptest"), mode, "-c", str(connections), "-l", str(seconds), "-r", "200", "-i", "1"]
    arguments += ["-u", f"http://127.0.0.1:{site.proxy.port}/webhooks", "-v", "0"]
    if mode == "-B":
        arguments += ["-s", "8192"]
    if mode == "-X":
        arguments += ["-w", "1", "-y", "2", "-n", "1", "-z", "1", "-k", "3"]
    before = connections_taken(site)
    until_s = time.monotonic() + seconds
    with Load(site, clients=1, each_s=0.2) as good:
        while time.monotonic() < until_s:
            slow = subprocess.run(
                arguments, capture_output=True, text=True, check=False, timeout=seconds + 60, stdin=subprocess.DEVNULL
            )
    assert connections_taken(site) - before >= connections, slow.stdout + slow.stderr
    return good


def connections_taken(site: Site) -> float:
    """Return how many connections HAProxy has taken from clients."""
    return haproxy_metrics(site)["haproxy_frontend_connections_total", (("proxy", "webhooks"),)]


def haproxy_metrics(site: Site) -> Samples:
    """Return what HAProxy says of itself."""
    assert site.proxy.metrics_port is not None
    metrics = Connection(site.proxy.metrics_port, documented=False)
    page = metrics.exchange(request_bytes("GET", "/metrics", []), "GET").body.decode()
    metrics.close()
    return samples(page)


@pytest.mark.parametrize("mode", ["-H", "-B", "-X"])
def test_row_20_slow_clients_do_not_delay_a_good_one(site: Site, mode: str) -> None:
    good = slow_clients(site, mode, connections=100, seconds=4)
    assert good.outcomes.keys() == {"204"}, good.outcomes
    assert good.in_a_second >= 0.9 * sum(good.outcomes.values())  # of twenty, on a machine that does other things too


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["-H", "-B", "-X"])
def test_row_20_four_hundred_slow_clients_for_a_minute_do_not_delay_a_good_one(site: Site, mode: str) -> None:
    good = slow_clients(site, mode, connections=400, seconds=60)
    answered = sum(good.outcomes.values())
    assert answered >= 100
    assert good.in_a_second >= 0.99 * answered, (good.outcomes, good.slowest_s)


# --- restarts ---


def restart_in_turn(site: Site) -> None:
    """Restart both ingresses, one after the other, as an orchestrator does: the next once this one is ready."""
    for number in (0, 1):
        assert site.ingresses[number].terminate() == 0
        site.start_again(number)


@pytest.mark.parametrize("server", ["waitress", "granian"])
def test_a_rolling_restart_under_load_costs_the_sender_nothing(
    kafka: KafkaCluster, tmp_path: Path, server: str
) -> None:
    with running_site(kafka.bootstrap_servers, tmp_path, server=server) as site:
        with Load(site, clients=4) as load:
            time.sleep(0.5)
            restart_in_turn(site)
            time.sleep(0.5)
        assert load.outcomes.keys() == {"204"}, load.outcomes
        assert len(load.acked) > 200
        # Nobody was asked twice: a stop that HAProxy knows of in time leaves no request unanswered.
        assert assert_kept(site, load.acked) == len(load.acked)


def test_a_rolling_restart_behind_nginx_costs_the_sender_nothing_either(kafka: KafkaCluster, tmp_path: Path) -> None:
    """It learns from a refused connection, and asks the other ingress."""
    with running_site(kafka.bootstrap_servers, tmp_path, "nginx") as site:
        with Load(site, clients=4) as load:
            time.sleep(0.5)
            restart_in_turn(site)
            time.sleep(0.5)
        assert load.outcomes.keys() == {"204"}, load.outcomes
        assert_kept(site, load.acked)


@pytest.mark.parametrize("kind", KINDS)
def test_an_ingress_that_is_killed_under_load_costs_the_sender_nothing(
    kafka: KafkaCluster, tmp_path: Path, kind: Kind
) -> None:
    """What was in its hands goes to the other one. An event may then be there twice, with one id."""
    with running_site(kafka.bootstrap_servers, tmp_path, kind) as site:
        with Load(site, clients=4) as load:
            time.sleep(1)
            site.ingresses[0].process.send_signal(signal.SIGKILL)
            site.ingresses[0].process.wait()
            time.sleep(1)
            site.start_again(0)
            time.sleep(1)
        assert load.outcomes.keys() == {"204"}, load.outcomes
        assert_kept(site, load.acked)


def servers_up(site: Site) -> float:
    """Return how many ingresses HAProxy sends webhooks to."""
    return haproxy_metrics(site)["haproxy_backend_active_servers", (("proxy", "ingress"),)]


@pytest.mark.faults
def test_five_rolling_restarts_and_ten_kills_under_more_load_cost_the_sender_nothing(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    with running_site(kafka.bootstrap_servers, tmp_path) as site:
        with Load(site, clients=16) as load:
            for _ in range(5):
                restart_in_turn(site)
            for number in [0, 1] * 5:
                wait_until(
                    lambda: servers_up(site) == 2, 10, "HAProxy to see both"
                )  # both gone is a failure to anybody
                site.ingresses[number].process.send_signal(signal.SIGKILL)
                site.ingresses[number].process.wait()
                site.start_again(number)
        assert load.outcomes.keys() == {"204"}, load.outcomes
        assert load.slowest_s < 5
        assert_kept(site, load.acked)
