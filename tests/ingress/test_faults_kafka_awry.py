"""Kafka is there and will not do: full, slow, silent, without a topic, too strict. Nobody waits past the deadline."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from kinguin_streams.schemas.topics import topics
from tests.conftest import KafkaCluster, OwnKafka, free_port
from tests.ingress.faults import (
    LATEST_S,
    Witness,
    admin,
    assert_invariants,
    bodies,
    configure,
    end,
    resident_bytes,
    spooled,
    stalled,
    wait_until_drained,
)
from tests.ingress.running_ingress import (
    SERVERS,
    UPDATED_AT,
    Log,
    RunningIngress,
    apply_topics,
    assert_balanced,
    command,
    is_ready,
    new_id,
    order_status,
    running_ingress,
    start,
    wait_until,
)

pytestmark = pytest.mark.kafka


def product_update(number: int) -> bytes:
    product = {"kinguinId": number, "productId": f"{number:024x}", "qty": 1, "textQty": 1, "updatedAt": UPDATED_AT}
    return json.dumps(product).encode()


# --- rows 10 and 21: silent ---


@pytest.mark.parametrize("with_spool", [True, False], ids=["with the spool", "without"])
def test_row_10_a_full_producer_queue_is_no_500_and_takes_no_memory(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path, with_spool: bool
) -> None:
    queue_records = 10
    settings = {"queue_records": queue_records, "spool__enabled": with_spool}
    with running_ingress(own_kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as running:
        witness = Witness(tmp_path / "witness.jsonl")
        witness.post(running, bodies(50))
        before = resident_bytes(running.process.pid)
        late_before = witness.longer_than_the_first_wait()
        with stalled(own_kafka.broker):
            answers = witness.post(running, bodies(200), clients=50)
            assert resident_bytes(running.process.pid) - before < 20_000_000
            assert_balanced(running.metrics())
        # Those in the queue wait for Kafka; whoever does not fit into it is answered at once.
        assert witness.longer_than_the_first_wait() - late_before <= queue_records
        assert {answer.status for answer in answers} == {204 if with_spool else 503}
        assert {answer.headers.get("retry-after") for answer in answers} == {None if with_spool else "5"}
        assert witness.slowest_s <= LATEST_S
        if with_spool:
            wait_until_drained(running)
        else:
            wait_until(lambda: _is_taken(witness, running), 20, "Kafka's return")
        assert assert_invariants(witness, running, room=with_spool).acked == (250 if with_spool else 51)


def _is_taken(witness: Witness, running: RunningIngress) -> bool:
    return [answer.status for answer in witness.post(running, [order_status("last")], clients=1)] == [204]


def test_all_of_300_posts_on_300_connections_are_answered_by_the_deadline_while_kafka_is_silent(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(own_kafka.bootstrap_servers, topic_prefix, tmp_path) as running:
        witness = Witness(tmp_path / "witness.jsonl")
        with stalled(own_kafka.broker):
            answers = witness.post(running, bodies(300), clients=300)
        assert {answer.status for answer in answers} == {204}
        assert witness.slowest_s <= LATEST_S
        wait_until_drained(running)
        assert assert_invariants(witness, running).acked == 300


def test_row_21_probes_and_metrics_answer_while_50_posts_wait(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(own_kafka.bootstrap_servers, topic_prefix, tmp_path, spool__enabled=False) as running:
        running.post(order_status(new_id()))
        over = threading.Event()

        def keep_one_open() -> None:
            while not over.is_set():
                running.post(order_status(new_id()))

        with ThreadPoolExecutor(50) as pool:
            try:
                with stalled(own_kafka.broker):
                    waiting = [pool.submit(keep_one_open) for _ in range(50)]
                    took_s: dict[str, list[float]] = {}
                    for _ in range(20):
                        for path in ("/livez", "/readyz", "/metrics"):
                            began_s = time.monotonic()
                            assert running.admin(path).status in (200, 503)
                            took_s.setdefault(path, []).append(time.monotonic() - began_s)
                        assert_balanced(running.metrics())
                        time.sleep(0.05)
            finally:
                over.set()
            for each in waiting:
                each.result(20)
        assert {path: max(times) for path, times in took_s.items() if max(times) > 0.5} == {}


# --- row 11: slow ---


def test_row_11_on_a_line_of_any_slowness_every_answer_is_a_204_by_the_deadline(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(own_kafka.slow_bootstrap_servers, topic_prefix, tmp_path) as running:
        witness = Witness(tmp_path / "witness.jsonl")
        for slowest_s in (0.5, 2.0, 20.0):
            with own_kafka.line.slow(0, slowest_s):
                answers = witness.post(running, bodies(90), clients=30)
            assert {answer.status for answer in answers} == {204}
        assert witness.slowest_s <= LATEST_S
        wait_until_drained(running)
        outcome = assert_invariants(witness, running)
        assert outcome.acked == outcome.landed == 270


# --- row 12: no topic ---


@pytest.mark.parametrize("with_spool", [True, False], ids=["with the spool", "without"])
def test_row_12_a_topic_deleted_at_run_time_costs_no_event_and_no_time(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, with_spool: bool
) -> None:
    bootstrap, declared = kafka.bootstrap_servers, topics(topic_prefix, partitions=2)
    deleted = declared.name("order.status")
    with running_ingress(bootstrap, topic_prefix, tmp_path, spool__enabled=with_spool) as running:
        client = admin(bootstrap)
        client.delete_topics([deleted])[deleted].result(timeout=10)
        named = f"[!] topics: {deleted} is missing"
        wait_until(lambda: named in running.admin("/readyz").body.decode(), 10, "a warning that names the topic")
        # The topic is missing behind every ingress: unready, none of them would get any event, and the spool takes them.
        assert is_ready(running) == with_spool
        assert running.metrics()["kinguin_ingress_topics_missing", ()] == 1
        assert f'"topics": ["{deleted}"]' in running.log_text()
        witness = Witness(tmp_path / "witness.jsonl")
        answers = witness.post(running, bodies(100), clients=20)
        assert {answer.status for answer in answers} == {204 if with_spool else 503}
        assert witness.slowest_s <= LATEST_S
        # The other topics are there, and Kafka takes their events again before this one is.
        others = (product_update(number) for number in range(1_000))
        published = ("kinguin_ingress_published_total", (("topic", declared.name("product.update")),))

        def another_goes_on() -> bool:
            witness.post(running, [next(others)], clients=1, event="product.update")
            return running.metrics().get(published, 0) > 0

        wait_until(another_goes_on, 20, "events of another topic that Kafka takes")
        apply_topics(bootstrap, declared)
        if with_spool:
            wait_until_drained(running, 90)
            outcome = assert_invariants(witness, running)
            assert outcome.acked == outcome.landed
            assert outcome.acked > 100
        else:
            wait_until(lambda: _is_taken(witness, running), 60, "the topic's return")
            assert_invariants(witness, running, room=False)
        wait_until(lambda: is_ready(running), 10, "readiness")
        wait_until(lambda: not running.metrics()["kinguin_ingress_topics_missing", ()], 10, "the topic's return")
        assert "is missing" not in running.admin("/readyz?verbose").body.decode()


MORE_THAN_A_BATCH = 1_100
"""The drain reads a thousand at once."""


def test_row_12_a_thousand_spooled_events_of_a_missing_topic_hold_up_no_other_topic(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    bootstrap, declared = own_kafka.bootstrap_servers, topics(topic_prefix, partitions=2)
    deleted = declared.name("order.status")
    with running_ingress(bootstrap, topic_prefix, tmp_path) as running:
        witness = Witness(tmp_path / "witness.jsonl")
        client = admin(bootstrap)
        client.delete_topics([deleted])[deleted].result(timeout=10)
        wait_until(lambda: f"{deleted} is missing" in running.admin("/readyz").body.decode(), 10, "a warning")
        with stalled(own_kafka.broker):
            answers = witness.post(running, bodies(MORE_THAN_A_BATCH))
            answers += witness.post(running, [product_update(number) for number in range(20)], event="product.update")
        assert {answer.status for answer in answers} == {204}
        published = ("kinguin_ingress_spool_drained_total", ())
        wait_until(lambda: running.metrics()[published] >= 20, 60, "the events of the other topic in Kafka")
        assert spooled(running) >= MORE_THAN_A_BATCH - 1  # the first one may be in Kafka's old log, and never counted
        apply_topics(bootstrap, declared)
        wait_until_drained(running, 120)
        outcome = assert_invariants(witness, running)
        assert outcome.acked == outcome.landed == MORE_THAN_A_BATCH + 20


@pytest.mark.parametrize("with_spool", [True, False], ids=["with the spool", "without"])
def test_row_12_a_partition_that_begins_to_be_led_between_two_events_costs_neither(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path, with_spool: bool
) -> None:
    """A topic that was made anew a moment ago refuses the first event and takes the second: Kafka's client confirms both."""
    settings = {"spool__enabled": with_spool, "kafka__config": json.dumps({"batch.num.messages": 1})}
    order = new_id()
    both = [order_status(order, "processing"), order_status(order, "completed")]
    with own_kafka.line.first_refused(f"{topic_prefix}.order.status") as refusing:
        bootstrap = own_kafka.slow_bootstrap_servers
        with running_ingress(bootstrap, topic_prefix, tmp_path, **settings) as running:
            witness = Witness(tmp_path / "witness.jsonl")
            answers = witness.post(running, both, clients=2)
            assert refusing.in_flight_together
            if with_spool:
                assert {answer.status for answer in answers} == {204}
                wait_until_drained(running)
            else:
                assert {answer.status for answer in answers} == {204, 503}
                refused = [body for body, answer in zip(both, answers, strict=True) if answer.status == 503]
                assert {answer.status for answer in witness.post(running, refused)} == {204}
            outcome = assert_invariants(witness, running, room=with_spool)
            assert (outcome.acked, outcome.landed, outcome.copies) == (2, 2, 0)


# --- row 13: strict ---


@pytest.mark.parametrize("server", SERVERS)
def test_row_13_a_batch_that_is_too_large_costs_no_event_that_is_not(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, server=server) as running:
        configure(kafka.bootstrap_servers, f"{topic_prefix}.order.status", "max.message.bytes", "8192")
        wait_until(lambda: running.post(bodies(1, size=20_000)[0]).status == 202, 10, "the limit")
        padding = "x" * 400
        small = [order_status("one-key", extra=f', "p": "{padding}", "n": {number}') for number in range(600)]
        (large,) = bodies(1, size=20_000)
        running.log.skip()
        answers = running.send_all([running.webhook(body) for body in [*small, large]], clients=64)
        assert [answer.status for answer in answers] == [204] * 600 + [202]
        assert {kept.record.raw for kept in running.log.events()} == set(small)
        assert [letter.body for letter in running.log.dead_letters()] == [large]


def test_row_13_what_a_topic_refuses_for_good_is_a_dead_letter_with_its_size_and_hash_through_the_spool_too(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    bootstrap = own_kafka.bootstrap_servers
    with running_ingress(bootstrap, topic_prefix, tmp_path) as running:
        configure(bootstrap, f"{topic_prefix}.order.status", "max.message.bytes", "10000")
        (large,) = bodies(1, size=20_000)
        answer = running.post(large)
        assert (answer.status, answer.fault, answer.body) == (202, "refused_by_kafka", b"")
        (letter,) = running.log.dead_letters()
        assert (letter.reason, letter.body, letter.body_size) == ("refused_by_kafka", large, len(large))
        # Kafka cannot say so while it is silent: then the event is on disk, and goes the same way from there.
        witness = Witness(tmp_path / "witness.jsonl")
        (other,) = bodies(1, size=20_000)
        with stalled(own_kafka.broker):
            small = bodies(10)
            assert {answer.status for answer in witness.post(running, small[:5], clients=5)} == {204}
            assert running.post(other).status == 204
            assert {answer.status for answer in witness.post(running, small[5:], clients=5)} == {204}
        wait_until_drained(running)
        through_spool = ("kinguin_ingress_spool_dead_lettered_total", (("topic", f"{topic_prefix}.order.status"),))
        wait_until(lambda: running.metrics()[through_spool] == 1, 20, "a dead letter of what was on disk")
        (letter,) = running.log.dead_letters()
        assert (letter.reason, letter.body, letter.body_size) == ("refused_by_kafka", other, len(other))
        # The id that it would have had without the spool, so that a retry of the sender's makes no second one.
        assert running.post(other).fault == "refused_by_kafka"
        (again,) = running.log.dead_letters()
        assert again.dead_letter_id == letter.dead_letter_id
        metrics = running.metrics()
        assert metrics["kinguin_ingress_spool_refused_events", ()] == 0
        assert_balanced(metrics)
        # Once as what it was when it was answered: `spooled`.
        event = ("event", "order.status")
        assert metrics["kinguin_ingress_requests_total", (event, ("outcome", "dead_lettered"))] == 2
        assert metrics["kinguin_ingress_requests_total", (event, ("outcome", "spooled"))] >= 1
        assert assert_invariants(witness, running).landed == 10
        assert is_ready(running)


def test_row_13_what_even_the_dead_letter_topic_refuses_stays_in_the_spool_and_says_why(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    bootstrap = own_kafka.bootstrap_servers
    with running_ingress(bootstrap, topic_prefix, tmp_path) as running:
        for topic in ("order.status", "dead-letter"):
            configure(bootstrap, f"{topic_prefix}.{topic}", "max.message.bytes", "10000")
        (large,) = bodies(1, size=20_000)
        with stalled(own_kafka.broker):
            assert running.post(large).status == 204
        wait_until(lambda: "spooled_record_set_aside" in running.log_text(), 40, "a record that is set aside")

        # The same while Kafka answers: the spool has room, and coming again would help nobody.
        def kafka_is_back() -> bool:
            running.post(order_status(new_id()))
            return running.metrics()["kinguin_ingress_kafka_away", ()] == 0

        wait_until(kafka_is_back, 20, "Kafka's return")
        answers = [running.post(body) for body in (*bodies(1, size=20_000), b"{" + b" " * 20_000)]
        assert [(answer.status, answer.fault) for answer in answers] == [
            (202, "refused_by_kafka"),
            (202, "malformed_json"),
        ]
        refused = ("kinguin_ingress_spool_refused_events", ())
        wait_until(lambda: running.metrics()[refused] == 3, 20, "dead letters that are set aside")
        metrics = running.metrics()
        assert metrics["kinguin_ingress_spool_events", ()] == 0
        assert metrics["kinguin_ingress_failure_ratio", ()] == 0
        assert_balanced(metrics)
        assert running.log.dead_letters() == []
        assert is_ready(running)
    (left,) = (tmp_path / ".data" / "spool").glob("*.spool")
    shown = subprocess.run(
        [sys.executable, "-m", "kinguin_streams", "spool", "export", "--path", str(left.parent)],
        capture_output=True,
        check=True,
        timeout=30,
        text=True,
    )
    why, *of_letters = [json.loads(line)["refused"] for line in shown.stdout.splitlines()]
    assert [said.partition("; and ")[2] for said in of_letters] == ["no dead letter: it is a dead-letter itself"] * 2
    assert re.fullmatch("refused: MSG_SIZE_TOO_LARGE.*; and no dead letter: refused: MSG_SIZE_TOO_LARGE.*", why)


# --- row 14: fatal ---

FENCED = """
    import signal
    import sys
    from confluent_kafka import KafkaError
    from kinguin_streams.cluster.publisher import KafkaPublisher

    plain = KafkaPublisher.__init__

    def with_a_handle(self, *arguments, **settings):
        plain(self, *arguments, **settings)
        fenced = KafkaError(KafkaError._FENCED, "a test says so", fatal=True)
        signal.signal(signal.SIGUSR1, lambda *_: self._on_error(fenced))

    KafkaPublisher.__init__ = with_a_handle
    sys.argv = ["kinguin-streams", "ingress"]
    from kinguin_streams.cli.main import main
    main()
"""


def _ready_until_it_ends(running: RunningIngress) -> list[bool]:
    """Return what the readiness probe says, look by look; what is not answered any more is not in it."""
    found = []
    while running.process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            found.append(running.admin("/readyz").status == 200)
    return found


def _start_fenced(bootstrap_servers: str, prefix: str, folder: Path) -> RunningIngress:
    """Start an ingress that takes SIGUSR1 for the fatal error. For its end it has the time that is the default."""
    declared = topics(prefix, partitions=2)
    apply_topics(bootstrap_servers, declared)
    port, admin_port = free_port(), free_port()
    _, environment = command(bootstrap_servers, prefix, port=port, admin_port=admin_port, pre_stop_s=60)
    log_file = folder / "fenced.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(FENCED)], cwd=folder, env=environment, stderr=log
        )
    running = RunningIngress(process, port, admin_port, Log(bootstrap_servers, declared), log_file)
    try:
        wait_until(lambda: is_ready(running), 30, "readiness")
    except BaseException:
        end(running)
        raise
    return running


@pytest.mark.parametrize("signals", [(signal.SIGUSR1,), (signal.SIGTERM,)], ids=["the fatal error", "SIGTERM"])
def test_rows_14_and_16_clients_that_wait_when_the_end_comes_are_answered_and_lose_nothing(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path, signals: tuple[signal.Signals]
) -> None:
    """Kafka is silent, and each client waits for the report of a record that is in the producer's hands."""
    running = _start_fenced(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        witness.post(running, bodies(5))
        waiting = bodies(20)
        with ThreadPoolExecutor(1) as pool, stalled(own_kafka.broker):
            answers = pool.submit(witness.post, running, waiting, clients=20)
            wait_until(lambda: running.metrics()["kinguin_ingress_in_flight", ()] == 20, 5, "20 clients that wait")
            os.kill(running.process.pid, signals[0])
            told_s = time.monotonic()
            assert {answer.status for answer in answers.result(30)} == {204}
            assert witness.slowest_s <= LATEST_S
            if signals[0] == signal.SIGUSR1:
                assert running.process.wait(20) == 1
                assert time.monotonic() - told_s <= 5
            else:
                running.process.send_signal(signal.SIGTERM)  # or it would serve on for its pre-stop time
                running.process.wait(20)
        running.log.close()
        running = start(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
        wait_until_drained(running)
        assert assert_invariants(witness, running).acked == 25
        assert running.terminate() == 0
    finally:
        end(running)


def test_row_14_a_fatal_producer_ends_the_process_with_1_and_loses_nothing(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    """Nothing from outside fences an idempotent producer without transactions: the signal calls what librdkafka calls then.

    So this shows what the ingress does of it, not that librdkafka says it.
    """
    running = _start_fenced(kafka.bootstrap_servers, topic_prefix, tmp_path)
    process, port, admin_port, log_file = running.process, running.port, running.admin_port, running.log_file
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        with witness.sender(port, 3_000) as sender:
            wait_until(lambda: sender.report().acked > 300, 30, "some load")
            os.kill(process.pid, signal.SIGUSR1)
            fatal_s = time.monotonic()
            ready = _ready_until_it_ends(running)
            assert process.wait(20) == 1
            assert time.monotonic() - fatal_s <= 5
            # Before it goes it is unready, at once and for good, so that a balancer sends nobody there.
            assert False in ready
            assert True not in ready[ready.index(False) :]
            assert "producer_fatal" in log_file.read_text()
            running = start(
                kafka.bootstrap_servers, topic_prefix, tmp_path, port=port, admin_port=admin_port
            )  # as whatever supervises it does
        assert set(sender.report().answers) == {204}
        wait_until_drained(running)
        assert_invariants(witness, running, killed=True)
        assert running.terminate() == 0
    finally:
        end(running)
