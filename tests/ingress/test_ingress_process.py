"""The life of an ingress process: how it refuses to start, how it stops, what it owes after kill -9, and Kafka away."""

import http.client
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kinguin_streams.schemas.topics import topics
from tests.conftest import KafkaCluster, StartBroker, free_port
from tests.ingress.faults import Witness, assert_invariants, end, kill, stalled, wait_until_drained
from tests.ingress.running_ingress import (
    SERVERS,
    Answer,
    Connection,
    RunningIngress,
    apply_topics,
    assert_balanced,
    command,
    new_id,
    order_status,
    running_ingress,
    start,
    wait_until,
)

pytestmark = pytest.mark.kafka


# --- refusing to start ---


def outcome(arguments: list[str], environment: dict[str, str], folder: Path) -> tuple[int, str]:
    """Return the exit code and what was said on stderr."""
    done = subprocess.run(
        arguments, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("setting", ["port", "admin_port"])
def test_a_port_that_is_taken_is_said_in_one_sentence_and_exit_1(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, setting: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        ports = {"port": free_port(), "admin_port": free_port(), setting: taken}
        code, said = outcome(*command(kafka.bootstrap_servers, topic_prefix, **ports), tmp_path)
    assert code == 1
    assert f"Cannot listen on 127.0.0.1:{taken}: Address already in use." in said
    assert f"KINGUIN_INGRESS__{setting.upper()}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "secrets",
    [
        None,
        "",
        "{}",
        '{"default": []}',
        '{"default": [""]}',
        '{"default": ["changeme"]}',
        '{"default": ["has a space"]}',
        '{"BAD NAME": ["x1y2"]}',
        "no json",
    ],
)
def test_row_65_no_usable_secret_is_exit_2_and_names_the_setting(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, secrets: str | None
) -> None:
    arguments, environment = command(kafka.bootstrap_servers, topic_prefix, port=free_port(), admin_port=free_port())
    del environment["KINGUIN_INGRESS__SECRETS"]
    if secrets is not None:
        environment["KINGUIN_INGRESS__SECRETS"] = secrets
    code, said = outcome(arguments, environment, tmp_path)
    assert code == 2
    assert "KINGUIN_INGRESS__SECRETS" in said
    assert len(said.splitlines()) == 1
    assert "x1y2" not in said


def test_without_its_topics_it_is_alive_but_not_ready_and_says_which_is_missing(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    ports = {"port": free_port(), "admin_port": free_port()}
    arguments, environment = command(kafka.bootstrap_servers, topic_prefix, **ports)
    process = subprocess.Popen(arguments, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _get(ports["admin_port"], "/livez") == (200, "ok\n"), 30, "an ingress that is alive")
        missing = f"[-] topics: not_delivered: topic {topic_prefix}.product.update"
        wait_until(lambda: missing in _get(ports["admin_port"], "/readyz")[1], 10, "the missing topic")
        assert _get(ports["admin_port"], "/readyz")[0] == 503
        apply_topics(kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
        wait_until(lambda: _get(ports["admin_port"], "/readyz")[0] == 200, 10, "readiness once the topics are there")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


# --- stopping ---


class Clients:
    """Post as fast as they are answered, each webhook on a connection of its own, until told to stop or refused."""

    def __init__(self, running: RunningIngress, count: int) -> None:
        self._running = running
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self.acked: set[bytes] = set()
        self.other: list[Answer] = []
        self.cut: list[Exception] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self.stop.is_set():
            body = order_status(new_id())
            connection = Connection(self._running.port)
            try:
                answer = connection.exchange(self._running.webhook(body))
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.cut.append(error)
                return
            finally:
                connection.close()
            with self._lock:
                if answer.status == 204:
                    self.acked.add(body)
                else:
                    self.other.append(answer)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("server", SERVERS)
def test_sigterm_under_load_cuts_no_request_where_a_balancer_heeds_readiness(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, pre_stop_s=4, server=server) as running:
        clients = Clients(running, 16)
        wait_until(lambda: len(clients.acked) > 300, 30, "some load")
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: running.admin("/readyz").status == 503, 3.5, "unreadiness")
        clients.stop.set()
        clients.join()
        assert running.process.wait(20) == 0
        assert clients.cut == []
        assert_all_kept(running, clients)


@pytest.mark.parametrize("server", SERVERS)
def test_sigterm_under_load_answers_all_that_it_has_accepted_and_loses_nothing(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, server=server) as running:
        clients = Clients(running, 16)
        wait_until(lambda: len(clients.acked) > 300, 30, "some load")
        assert running.terminate() == 0
        clients.join()
        # Without a pre-stop time nobody is warned: between the last accept() and close() the kernel may complete more
        # connections, which close() then resets, and granian closes those that have sent nothing yet. At most one of each
        # client; never one whose request was accepted.
        assert len(clients.cut) <= 16
        assert all(isinstance(error, (ConnectionResetError, BrokenPipeError)) for error in clients.cut)
        assert_all_kept(running, clients)


def assert_all_kept(running: RunningIngress, clients: Clients) -> None:
    assert clients.other == []
    assert {kept.record.raw for kept in running.log.events()} == clients.acked
    last = running.log_lines()[-1]
    assert (last["event"], last["in_flight"], last["without_report"]) == ("ingress_stopped", 0, 0)


def test_after_sigterm_it_is_unready_at_once_and_serves_on_for_the_pre_stop_time(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, pre_stop_s=1.5) as running:
        running.process.send_signal(signal.SIGTERM)
        stopped_s = time.monotonic()
        wait_until(lambda: running.admin("/readyz").status == 503, 1.0, "unreadiness")
        assert "[-] not_stopping: stopping" in running.admin("/readyz").body.decode()
        assert running.admin("/livez").status == 200
        assert running.post(order_status(new_id())).status == 204
        assert running.process.wait(20) == 0
        assert time.monotonic() - stopped_s >= 1.5


@pytest.mark.parametrize("server", SERVERS)
def test_a_request_that_was_half_sent_at_sigterm_is_finished(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, server=server) as running:
        body = order_status(new_id())
        request = running.webhook(body)
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(request[:-20])
            time.sleep(0.2)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(1.0)
            connection.sendall(request[-20:])
            assert connection.recv(100).startswith(b"HTTP/1.1 204 ")
        assert running.process.wait(20) == 0
        assert [kept.record.raw for kept in running.log.events()] == [body]


@pytest.mark.parametrize("server", SERVERS)
def test_a_second_signal_ends_it_at_once(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, pre_stop_s=60, server=server) as running:
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: running.admin("/readyz").status == 503, 2.0, "unreadiness")
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 128 + signal.SIGTERM


# --- several processes ---


@pytest.mark.parametrize("server", SERVERS)
def test_row_15_two_processes_on_one_port_have_a_producer_each_and_lose_nothing(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    # Nobody forks here. A server's own workers would: a producer made before fork() never sends.
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, server=server, reuse_port=True) as one:
        other = start(kafka.bootstrap_servers, topic_prefix, tmp_path, server=server, reuse_port=True, port=one.port)
        try:
            bodies = [order_status(new_id()) for _ in range(500)]
            answers = []
            for first in range(0, 500, 50):  # new connections each time, for the kernel to deal out
                answers += one.send_all([one.webhook(body) for body in bodies[first : first + 50]], clients=10)
            assert {answer.status for answer in answers} == {204}
            shares = [running.metrics()["kinguin_ingress_received_total", ()] for running in (one, other)]
            assert sum(shares) == 500
            assert min(shares) > 50
            assert {kept.record.raw for kept in one.log.events()} == set(bodies)
            for running in (one, other):
                assert _children(running.process.pid) == []
            assert other.terminate() == 0
            assert one.post(order_status(new_id())).status == 204
        finally:
            if other.process.poll() is None:
                other.process.kill()
                other.process.wait()
            other.log.close()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text("ascii").split()]


def test_granian_shares_no_port_unless_told_to(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, server="granian") as running:
        ports = {"port": running.port, "admin_port": free_port()}
        code, said = outcome(*command(kafka.bootstrap_servers, topic_prefix, server="granian", **ports), tmp_path)
    assert code == 1
    assert f"Cannot listen on 127.0.0.1:{running.port}: Address already in use." in said


@pytest.mark.parametrize("server", SERVERS)
def test_a_request_that_does_not_come_in_is_cut_off_and_others_are_served(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    with running_ingress(
        kafka.bootstrap_servers, topic_prefix, tmp_path, server=server, request_timeout_s=1
    ) as running:
        request = running.webhook(order_status(new_id()))
        for part in (request[:40], request[:-5]):
            with socket.create_connection(("127.0.0.1", running.port), timeout=5) as slow:
                slow.sendall(part)
                assert running.post(order_status(new_id())).status == 204
                said = slow.recv(1000)
                assert said == b"" or said.startswith(running.differing(b"HTTP/1.1 ---", granian=b"HTTP/1.1 408 "))
                assert slow.recv(1000) == b""
        assert len(running.log.events()) == 2


# --- row 5: kill -9 ---


@pytest.mark.parametrize(
    ("posts", "kills"),
    [
        pytest.param(2_000, 2, id="2,000 posts, 2 kills"),
        pytest.param(20_000, 10, id="20,000 posts, 10 kills", marks=pytest.mark.faults),
    ],
)
def test_row_5_kill_9_under_load_loses_no_acked_event(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, posts: int, kills: int
) -> None:
    bootstrap = kafka.bootstrap_servers
    apply_topics(bootstrap, topics(topic_prefix, partitions=2))
    running = start(bootstrap, topic_prefix, tmp_path)
    ports = {"port": running.port, "admin_port": running.admin_port}
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        with witness.sender(running.port, posts, broken=0.02) as sender:
            for number in range(kills):
                reached = posts * (number + 1) // (kills + 1)
                wait_until(lambda at=reached: sender.report().acked >= at, 120, "posts before a kill")  # type: ignore[misc]
                kill(running)
                running = start(bootstrap, topic_prefix, tmp_path, **ports)
        assert sender.report().all_acked
        assert sender.report().no_answer > 0  # or the kills hit nothing
        wait_until_drained(running)
        assert_invariants(witness, running, killed=True)
        assert running.terminate() == 0
    finally:
        end(running)


# --- Kafka away ---


def test_row_4_without_a_spool_all_get_503_and_retry_after_without_queueing_and_then_it_recovers_by_itself(
    kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path
) -> None:
    broker = kafka_factory(tmp_path / "kafka")
    with running_ingress(broker.bootstrap_servers, topic_prefix, tmp_path, spool__enabled=False) as running:
        witness = Witness(tmp_path / "witness.jsonl")
        (answer,) = witness.post(running, [order_status(new_id())], clients=1)
        assert answer.status == 204
        clients = 100
        bodies = [order_status(new_id()) for _ in range(3 * clients)]
        late_before = witness.longer_than_the_first_wait()
        with stalled(broker):
            started_s = time.monotonic()
            answers = witness.post(running, bodies, clients=clients)
            # 1 s each, at once for those who come later. Were they to wait one after the other it would be a
            # hundred seconds; the bound lies between, so that a busy machine does not decide.
            assert time.monotonic() - started_s < 9
            assert witness.longer_than_the_first_wait() - late_before <= clients  # each once, before it is known
            assert_balanced(running.metrics())
            assert running.admin("/livez").status == 200
            wait_until(lambda: running.admin("/readyz").status == 503, 10, "unreadiness")
        assert {(answer.status, answer.problem_type) for answer in answers} == {(503, "unavailable")}
        assert {answer.headers["retry-after"] for answer in answers} == {"5"}
        wait_until(lambda: running.admin("/readyz").status == 200, 30, "readiness after Kafka's return")
        # The sender comes again with the same bytes; those that landed late share their id with the retry.
        wait_until(
            lambda: witness.post(running, bodies[:1], clients=1)[0].status == 204,
            5,
            "the first that tries after Kafka's return",
        )
        assert {answer.status for answer in witness.post(running, bodies)} == {204}
        outcome = assert_invariants(witness, running, room=False)
        assert outcome.acked == outcome.landed == 1 + len(bodies)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("posts", "away_s"),
    [pytest.param(300, 3, id="3 s"), pytest.param(5_000, 60, id="60 s", marks=pytest.mark.faults)],
)
def test_row_4_while_kafka_is_away_all_get_204_and_the_spool_drains_by_itself(
    kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path, posts: int, away_s: float, *, server: str
) -> None:
    broker = kafka_factory(tmp_path / "kafka")
    with running_ingress(broker.bootstrap_servers, topic_prefix, tmp_path, server=server) as running:
        witness = Witness(tmp_path / "witness.jsonl")
        witness.post(running, [order_status("first")], clients=1)
        # Several changes of each order, so that there is an order to be kept.
        bodies = [order_status(f"O{number % 50}", extra=f', "n": {number}') for number in range(posts)]
        with stalled(broker):
            stopped_s = time.monotonic()
            # One client: the order in which they are sent is the order in which they are answered.
            answers = witness.post(running, bodies, clients=1)
            metrics = running.metrics()
            assert {answer.status for answer in answers} == {204}
            assert metrics["kinguin_ingress_spool_events", ()] == posts
            assert (
                metrics["kinguin_ingress_requests_total", (("event", "order.status"), ("outcome", "spooled"))] == posts
            )
            assert metrics["kinguin_ingress_kafka_away", ()] == 1
            assert_balanced(metrics)
            assert running.admin("/readyz").status == 200  # a balancer has nowhere better to send them
            time.sleep(max(0.0, away_s - (time.monotonic() - stopped_s)))
        wait_until_drained(running)
        witness.post(running, [order_status("last")], clients=1)
        outcome = assert_invariants(witness, running)
        assert outcome.acked == outcome.landed == posts + 2
        by_order: dict[str, list[bytes]] = {}
        for record in outcome.records:
            seen = by_order.setdefault(record.record.order_id, [])
            if record.record.raw not in seen:  # the first one was "maybe", and may be there twice
                seen.append(record.record.raw)
        for order_id, seen in by_order.items():
            sent = [body for body in bodies if f'"{order_id}"'.encode() in body]
            # The first of all was in the producer's memory, not in the spool, when Kafka came back.
            assert [raw for raw in seen if raw != bodies[0]] == [raw for raw in sent if raw != bodies[0]] or not sent
        assert list((tmp_path / ".data" / "spool").glob("*.spool")) != []
    assert list((tmp_path / ".data" / "spool").glob("*.spool")) == []
