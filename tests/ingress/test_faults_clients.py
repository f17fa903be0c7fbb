"""Clients that are slow, many, hostile or thrifty."""

import http.client
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import KafkaCluster, OwnKafka
from tests.ingress.faults import Witness, assert_invariants, bodies, spooled, stalled, wait_until_drained
from tests.ingress.running_ingress import (
    SERVERS,
    RunningIngress,
    Samples,
    assert_balanced,
    new_id,
    order_status,
    running_ingress,
    wait_until,
)

pytestmark = pytest.mark.kafka


def answers_on_one_connection(port: int, requests: list[bytes], at_once: bool) -> list[int]:
    """Send these over one connection and return the statuses; fails if the server closes it in between."""
    statuses = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        if at_once:
            connection.sendall(b"".join(requests))
        reader = connection.makefile("rb")
        for request in requests:
            if not at_once:
                connection.sendall(request)
            status = int(reader.readline().split()[1])
            headers = http.client.parse_headers(reader)
            reader.read(int(headers.get("Content-Length", 0)))
            statuses.append(status)
    return statuses


@pytest.mark.parametrize("at_once", [False, True], ids=["one after the other", "without waiting for answers"])
def test_one_connection_carries_many_webhooks_whatever_their_answers(ingress: RunningIngress, at_once: bool) -> None:
    sent = [order_status(new_id()) for _ in range(10)]
    invalid = b'{"n": "%s"}' % new_id().encode()
    requests = [ingress.webhook(body) for body in sent]
    requests.insert(3, ingress.webhook(invalid))
    requests.insert(6, ingress.webhook(order_status(new_id()), secret="wrong"))
    expected = [204] * 3 + [202] + [204] * 2 + [401] + [204] * 5
    assert answers_on_one_connection(ingress.port, requests, at_once) == expected
    assert sorted(kept.record.raw for kept in ingress.log.events()) == sorted(sent)
    assert [letter.body for letter in ingress.log.dead_letters()] == [invalid]


def test_one_connection_carries_what_goes_to_the_spool_too(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(own_kafka.bootstrap_servers, topic_prefix, tmp_path) as running:
        invalid = b'{"n": "%s"}' % new_id().encode()
        requests = [running.webhook(body) for body in (order_status("A"), invalid, order_status("B"))]
        with stalled(own_kafka.broker):
            assert answers_on_one_connection(running.port, requests, at_once=True) == [204, 202, 204]
            assert spooled(running) == 3
            # A dead letter counts once, wherever it waits.
            assert (
                running.metrics()[
                    "kinguin_ingress_requests_total", (("event", "order.status"), ("outcome", "dead_lettered"))
                ]
                == 1
            )
        wait_until_drained(running)
        assert {kept.record.raw for kept in running.log.events()} == {order_status("A"), order_status("B")}
        assert [letter.body for letter in running.log.dead_letters()] == [invalid]


# --- row 20: slow ---


@pytest.mark.parametrize("server", SERVERS)
def test_row_20_a_request_that_never_ends_is_cut_off(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    """A head, or a body, of one byte at a time: as measured, nothing else ends those."""
    with running_ingress(
        kafka.bootstrap_servers, topic_prefix, tmp_path, server=server, request_timeout_s=1
    ) as running:
        whole = running.webhook(order_status(new_id()))
        for first in (whole[:30], whole[: whole.index(b"\r\n\r\n") + 10]):
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
                connection.sendall(first)
                assert _lives_s(connection, whole[len(first) :]) < 8
        assert running.post(order_status(new_id())).status == 204


@pytest.mark.parametrize("server", SERVERS)
def test_a_connection_that_says_nothing_is_cut_off_and_one_that_has_been_answered_is_not(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    settings = {"server": server, "request_timeout_s": 2}
    with (
        running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=10) as silent,
        socket.create_connection(("127.0.0.1", running.port), timeout=10) as answered,
    ):
        answered.sendall(running.webhook(order_status(new_id())))
        assert answered.recv(1000).startswith(b"HTTP/1.1 204")
        began_s = time.monotonic()
        assert silent.recv(1000) in (b"", b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        assert time.monotonic() - began_s < 6
        if server == "waitress":  # granian has one limit for both
            answered.sendall(running.webhook(order_status(new_id())))
            assert answered.recv(1000).startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize("server", SERVERS)
def test_beyond_the_cap_on_what_is_in_flight_the_sender_is_told_at_once_to_come_again(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    cap, more = 20, 15
    settings = {"server": server, "spool__enabled": False, "max_in_flight": cap}
    with running_ingress(own_kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as running:
        with stalled(own_kafka.broker), ExitStack() as open_:
            waiting = [
                open_.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10))
                for _ in range(cap)
            ]
            for connection in waiting:
                connection.sendall(running.webhook(order_status(new_id())))
            wait_until(lambda: running.metrics()["kinguin_ingress_in_flight", ()] == cap, 0.9, "all in flight")
            began_s = time.monotonic()
            answers = [running.post(order_status(new_id())) for _ in range(more)]
            assert time.monotonic() - began_s < 0.5
            assert {(answer.status, answer.headers["retry-after"]) for answer in answers} == {(503, "5")}
            # Who would not wait is answered as ever.
            assert running.post(order_status(new_id()), secret="wrong").status == 401
            assert [connection.recv(12) for connection in waiting] == [b"HTTP/1.1 503"] * cap
        metrics = running.metrics()
        rejected = (("outcome", "refused"), ("reason", "too_many_in_flight"))
        assert metrics["kinguin_ingress_rejected_total", rejected] == more
        assert metrics["kinguin_ingress_in_flight", ()] == 0
        assert_balanced(metrics)


def _lives_s(connection: socket.socket, rest: bytes) -> float:
    """Send a byte every 0.2 s and return how long the server listens; it may say 408 before it closes."""
    began_s = time.monotonic()
    connection.settimeout(0.2)
    for number in range(len(rest)):
        try:
            connection.sendall(rest[number : number + 1])
            if connection.recv(1000) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began_s


@pytest.mark.parametrize("server", SERVERS)
def test_row_20_a_hundred_clients_that_never_finish_stop_nobody_else(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    settings = {"server": server, "request_timeout_s": 3}
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as running, ExitStack() as open_:
        whole = running.webhook(order_status(new_id()))
        for number in range(100):
            connection = open_.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=5))
            connection.sendall(whole[: (0, 40, -5)[number % 3] or None] if number % 3 else b"")
        witness = Witness(tmp_path / "witness.jsonl")
        began_s = time.monotonic()
        while time.monotonic() - began_s < 5:
            assert [answer.status for answer in witness.post(running, bodies(1), clients=1)] == [204]
            time.sleep(0.2)
        assert witness.slowest_s <= 1
        assert_balanced(running.metrics())


# --- row 66: more than it can take ---


@pytest.mark.parametrize(
    ("server", "with_spool"),
    [
        pytest.param("waitress", True, id="waitress with the spool"),
        pytest.param("granian", False, id="granian without"),
        pytest.param("granian", True, id="granian with the spool", marks=pytest.mark.faults),
        pytest.param("waitress", False, id="waitress without", marks=pytest.mark.faults),
    ],
)
def test_row_66_of_a_burst_beyond_what_kafka_takes_all_are_answered_and_none_is_lost(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path, server: str, with_spool: bool
) -> None:
    """No verdict by clock: how many it takes a second is in docs/performance.md.

    Ten records at a time on a line that takes 0.1 s, and 64 clients: far more come than Kafka is given.
    """
    settings = {"server": server, "queue_records": 10, "spool__enabled": with_spool}
    with running_ingress(own_kafka.slow_bootstrap_servers, topic_prefix, tmp_path, **settings) as running:
        witness = Witness(tmp_path / "witness.jsonl")
        burst = bodies(160)
        with own_kafka.line.slow(0.05, 0.05):
            answers = witness.post(running, burst, clients=64)
            assert_balanced(running.metrics())
        left = [body for body, answer in zip(burst, answers, strict=True) if answer.status != 204]
        assert {answer.headers["retry-after"] for answer in answers if answer.status == 503} == (
            set() if with_spool else {"5"}
        )
        if with_spool:
            assert {answer.status for answer in answers} == {204}
        else:
            assert {answer.status for answer in answers} == {204, 503}
        while left:  # the sender comes again
            again = witness.post(running, left, clients=2)
            assert {answer.status for answer in again} <= {204, 503}
            left = [body for body, answer in zip(left, again, strict=True) if answer.status != 204]
        if with_spool:
            wait_until_drained(running)
        outcome = assert_invariants(witness, running, room=with_spool)
        assert outcome.acked == outcome.landed == 160
        metrics = running.metrics()
        assert_balanced(metrics)
        assert metrics["kinguin_ingress_received_total", ()] == sum(outcome.answers.values())
        if with_spool:  # or it was no burst
            assert metrics["kinguin_ingress_requests_total", (("event", "order.status"), ("outcome", "spooled"))] > 50


# --- row 30: before authentication ---


def test_row_30_who_has_no_secret_makes_no_work(own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path) -> None:
    """A body that would be costly to read, and Kafka away: nothing is decoded, encoded, spooled or logged."""
    with running_ingress(own_kafka.bootstrap_servers, topic_prefix, tmp_path) as running:
        bomb = b"[" * 30_000 + b"]" * 30_000
        request = running.webhook(bomb, secret="wrong")
        with stalled(own_kafka.broker):
            said_before = len(running.log_lines())
            cpu_before_s = _cpu_s(running)
            answers = running.send_all([request] * 1_000)
            cpu_each_s = (_cpu_s(running) - cpu_before_s) / 1_000
            assert {answer.status for answer in answers} == {401}
            assert spooled(running) == 0
            metrics = running.metrics()
            assert metrics["kinguin_ingress_kafka_away", ()] == 0  # it was not even asked
            assert len(running.log_lines()) - said_before <= 20  # a sample
        # The row's 1 ms is not the verdict: reading 60 KB off the socket is in it, and a busy machine makes all of it dearer.
        # The verdict is the counts above; this catches work that grows with the bomb, which takes many times as long.
        assert cpu_each_s < 0.004
        assert running.log.dead_letters() == []


def _cpu_s(running: RunningIngress) -> float:
    fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


# --- row 63: labels ---


def labels(metrics: Samples) -> dict[str, set[tuple[str, ...]]]:
    found: dict[str, set[tuple[str, ...]]] = {}
    for name, pairs in metrics:
        found.setdefault(name, set()).add(tuple(label for label, _ in pairs))
    return found


def test_row_63_whatever_happens_and_whatever_is_sent_each_metric_keeps_its_labels_and_they_their_values(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(own_kafka.bootstrap_servers, topic_prefix, tmp_path) as running:

        def made_up(numbers: range) -> Samples:
            for number in numbers:
                running.post(order_status(new_id()), event=f"made-up-{number}")
                running.post(order_status(new_id()), secret=f"guessed-{number}")
                running.post(order_status(new_id()), path=f"/webhooks/made-up-{number}")
            return running.metrics()

        before = running.metrics()
        running.post(order_status(new_id()))
        with stalled(own_kafka.broker):
            during = made_up(range(10))
            assert made_up(range(10, 40)).keys() == during.keys()
        wait_until_drained(running)
        after = running.metrics()
        for metrics in (during, after):
            assert all(len(sets) == 1 for sets in labels(metrics).values())
            assert "made-up" not in str(metrics.keys())
            assert "guessed" not in str(metrics.keys())
            assert_balanced(metrics)
        assert _of_the_spool(before) == _of_the_spool(during) == _of_the_spool(after)


def _of_the_spool(metrics: Samples) -> set[str]:
    return {name for name, _ in metrics if "spool" in name or "kafka_away" in name}
