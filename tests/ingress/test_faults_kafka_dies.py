"""Kafka and the ingress are killed, in every order; the witness then asks for what it was promised."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kinguin_streams.cluster.local_broker import LocalBroker
from kinguin_streams.schemas.topics import topics
from tests.conftest import OwnKafka, StartBroker, free_port
from tests.ingress.faults import (
    Witness,
    assert_invariants,
    end,
    kill,
    spooled,
    stalled,
    wait_until_drained,
)
from tests.ingress.running_ingress import apply_topics, command, new_id, order_status, start, wait_until

pytestmark = pytest.mark.kafka

RATE_PER_S = 200
"""So that there is still something to be sent when the last kill is over."""


def kill_broker(broker: LocalBroker) -> None:
    os.kill(broker.pid, signal.SIGKILL)
    wait_until(lambda: not broker.is_alive(), 10, "a broker that is dead")


@pytest.mark.parametrize(
    ("posts", "kills"),
    [
        pytest.param(600, 1, id="600 posts, 1 kill"),
        pytest.param(20_000, 5, id="20,000 posts, 5 kills", marks=[pytest.mark.faults, pytest.mark.timeout(900)]),
    ],
)
def test_row_1_the_broker_is_killed_under_load_and_nobody_but_us_notices(
    kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path, posts: int, kills: int
) -> None:
    broker = kafka_factory(tmp_path / "kafka")
    apply_topics(broker.bootstrap_servers, topics(topic_prefix, partitions=2))
    running = start(broker.bootstrap_servers, topic_prefix, tmp_path)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        with witness.sender(running.port, posts, broken=0.02, rate_per_s=RATE_PER_S) as sender:
            for number in range(kills):
                reached = posts * (number + 1) // (kills + 2)
                wait_until(lambda at=reached: sender.report().acked >= at, 200, "posts before a kill")  # type: ignore[misc]
                kill_broker(broker)
                wait_until(lambda: spooled(running) > 20, 30, "events that wait on disk")
                broker = kafka_factory(tmp_path / "kafka")
        assert sender.report().attempts == posts  # each was answered 2xx the first time
        wait_until_drained(running)
        outcome = assert_invariants(witness, running)
        assert outcome.acked == outcome.landed
        assert running.terminate() == 0
    finally:
        end(running)


@pytest.mark.parametrize(
    ("posts", "rounds"),
    [
        pytest.param(600, 1, id="600 posts, 1 round"),
        pytest.param(20_000, 5, id="20,000 posts, 5 rounds", marks=[pytest.mark.faults, pytest.mark.timeout(900)]),
    ],
)
def test_row_1_and_5_broker_and_ingress_are_killed_in_one_run_and_no_acked_event_is_lost(
    kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path, posts: int, rounds: int
) -> None:
    broker = kafka_factory(tmp_path / "kafka")
    apply_topics(broker.bootstrap_servers, topics(topic_prefix, partitions=2))
    running = start(broker.bootstrap_servers, topic_prefix, tmp_path)
    ports = {"port": running.port, "admin_port": running.admin_port}
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        with witness.sender(running.port, posts, broken=0.02, rate_per_s=RATE_PER_S) as sender:
            for number in range(rounds):
                reached = posts * (number + 1) // (rounds + 2)
                wait_until(lambda at=reached: sender.report().acked >= at, 200, "posts before a kill")  # type: ignore[misc]
                kill_broker(broker)
                wait_until(lambda: spooled(running) > 20, 30, "events that wait on disk")  # noqa: B023
                kill(running)
                broker = kafka_factory(tmp_path / "kafka")
                running = start(broker.bootstrap_servers, topic_prefix, tmp_path, **ports)
        assert sender.report().all_acked
        assert sender.report().no_answer > 0  # or the kills hit nothing
        wait_until_drained(running)
        assert_invariants(witness, running, killed=True)
        assert running.terminate() == 0
    finally:
        end(running)


QUEUE_RECORDS = 100
BATCH_RECORDS = QUEUE_RECORDS // 2


@pytest.mark.parametrize(
    ("posts", "kills"),
    [
        pytest.param(600, 1, id="600 spooled, 1 kill"),
        pytest.param(2_000, 5, id="2,000 spooled, 5 kills", marks=pytest.mark.faults),
    ],
)
def test_row_6_killed_while_the_spool_drains_it_loses_nothing_and_repeats_one_batch_at_most(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path, posts: int, kills: int
) -> None:
    bootstrap = own_kafka.slow_bootstrap_servers
    apply_topics(own_kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
    running = start(bootstrap, topic_prefix, tmp_path, queue_records=QUEUE_RECORDS)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        with own_kafka.line.slow(0.15, 0.15):
            with stalled(own_kafka.broker):
                answers = witness.post(running, [order_status(new_id()) for _ in range(posts)])
                assert {answer.status for answer in answers} == {204}
            for number in range(kills):
                left = posts * (kills - number) // (kills + 1)
                wait_until(lambda at=left: 0 < spooled(running) <= at, 30, "a spool half drained")  # type: ignore[misc] # noqa: B023
                kill(running)
                running = start(bootstrap, topic_prefix, tmp_path, queue_records=QUEUE_RECORDS)
        wait_until_drained(running)
        outcome = assert_invariants(witness, running)
        assert outcome.acked == outcome.landed == posts
        assert outcome.copies <= kills * BATCH_RECORDS
        assert running.terminate() == 0
    finally:
        end(running)


def test_two_processes_share_a_folder_and_one_adopts_what_the_other_left_at_its_death(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    apply_topics(own_kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
    dies = start(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
    survives = start(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        assert len(list((tmp_path / ".data" / "spool").glob("*.spool"))) == 2
        with stalled(own_kafka.broker):
            for running in (dies, survives):
                answers = witness.post(running, [order_status(new_id()) for _ in range(50)])
                assert {answer.status for answer in answers} == {204}
            kill(dies)
        # It looks around every ten seconds.
        wait_until(lambda: "spool_file_adopted" in survives.log_text(), 25, "an adoption")
        wait_until_drained(survives)
        outcome = assert_invariants(witness, survives)
        assert outcome.acked == outcome.landed == 100
        assert survives.terminate() == 0
        assert list((tmp_path / ".data" / "spool").glob("*.spool")) == []
    finally:
        end(dies)
        end(survives)


def test_a_late_report_drops_what_was_spooled_in_doubt_and_the_drain_makes_no_copy(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """Longer than anybody waits, shorter than the producer gives up: delivered after all, and known to be."""
    apply_topics(own_kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
    running = start(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        warm = [order_status(new_id()) for _ in range(5)]
        assert {answer.status for answer in witness.post(running, warm)} == {204}
        bodies = [order_status(new_id()) for _ in range(20)]
        with stalled(own_kafka.broker):
            # Each client waits for its report: all 20 are in the producer's hands, and on disk.
            assert {answer.status for answer in witness.post(running, bodies, clients=20)} == {204}
            assert spooled(running) == 20
            time.sleep(1.0)
        wait_until_drained(running)
        # The late reports tell, without another webhook, that Kafka is back.
        wait_until(lambda: running.metrics()["kinguin_ingress_kafka_away", ()] == 0, 10, "a breaker that is closed")
        outcome = assert_invariants(witness, running)
        assert outcome.acked == outcome.landed == 25
        assert outcome.copies == 0
        assert running.metrics()["kinguin_ingress_spool_drained_total", ()] == 0
        assert running.terminate() == 0
    finally:
        end(running)


def test_row_31_the_same_bytes_again_and_again_while_kafka_is_away_are_one_event(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    apply_topics(own_kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
    running = start(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        body = order_status(new_id())
        with stalled(own_kafka.broker):
            answers = witness.post(running, [body] * 100, clients=10)
        assert {answer.status for answer in answers} == {204}
        wait_until_drained(running)
        outcome = assert_invariants(witness, running)
        assert (outcome.acked, outcome.landed, outcome.copies) == (1, 1, 99)
        assert running.terminate() == 0
    finally:
        end(running)


def test_row_16_sigterm_with_500_records_in_the_producers_hands_ends_in_time_and_leaves_them_on_disk(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    apply_topics(own_kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
    running = start(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        with stalled(own_kafka.broker):
            answers = witness.post(running, [order_status(new_id()) for _ in range(500)])
            assert {answer.status for answer in answers} == {204}
            kill(running)
        with own_kafka.line.slow(60, 60):
            # The next process hands all of them to its producer, which hears nothing of Kafka.
            ports = {"port": free_port(), "admin_port": free_port(), "stop_timeout_s": 2}
            arguments, environment = command(own_kafka.slow_bootstrap_servers, topic_prefix, **ports)
            said = tmp_path / "second.log"
            with said.open("wb") as log:
                process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=log)
            try:
                wait_until(lambda: "ingress_serves" in said.read_text(), 30, "an ingress that serves")
                time.sleep(1.5)
                at_s = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
                assert time.monotonic() - at_s < 2 + 1 + 3  # its time, the last flush, and a busy machine
            finally:
                process.kill()
                process.wait()
            last = json.loads(said.read_text().splitlines()[-2])
            assert (last["event"], last["records"]) == ("spool_left", 500)
        running = start(own_kafka.bootstrap_servers, topic_prefix, tmp_path)
        wait_until_drained(running)
        outcome = assert_invariants(witness, running)
        assert outcome.acked == outcome.landed == 500
        assert running.terminate() == 0
    finally:
        end(running)


def test_sigterm_while_kafka_is_there_drains_the_spool_first(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    apply_topics(own_kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
    running = start(own_kafka.slow_bootstrap_servers, topic_prefix, tmp_path, queue_records=QUEUE_RECORDS)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        with own_kafka.line.slow(0.1, 0.1):
            with stalled(own_kafka.broker):
                witness.post(running, [order_status(new_id()) for _ in range(500)])
            wait_until(lambda: 0 < spooled(running) < 450, 20, "a spool that drains")
            assert running.terminate(20) == 0
        assert list((tmp_path / ".data" / "spool").glob("*.spool")) == []
        assert assert_invariants(witness, running).landed == 500
    finally:
        end(running)
