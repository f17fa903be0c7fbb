"""A Kafka that does not say who it is, or how far a group has come, when partitions come: it is waited for, and nothing is lost."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from kinguin_streams.consumers import source_identity
from kinguin_streams.consumers.app import App, Context
from kinguin_streams.consumers.loop import ConsumeLoop
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.source_identity import SourceIdentity
from kinguin_streams.consumers.testing import HandlerDriver, ProjectionDriver, events
from kinguin_streams.consumers.testing.processes import Driver, Process
from kinguin_streams.schemas.events import OrderStatus
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import KafkaCluster
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, running_loop
from tests.consumers.running_handlers import running_app

RECORDS = 12


def process_of(driver: Driver, number: int = 0) -> Process:
    return driver._processes[number]


def loop_of(driver: Driver) -> ConsumeLoop:
    return process_of(driver).loop


def turn(driver: Driver) -> None:
    """Let the first process take a turn, long after the last one."""
    driver.clock.advance(60)
    driver._turn(process_of(driver), None)


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def says(code: str) -> Any:
    return failing(OperatorError(code, f"{code}.", "Wait."))


@contextmanager
def kafka_says(driver: Driver, code: str = "kafka_unreachable") -> Iterator[None]:
    """Let the first process hear nothing else when it asks who the cluster is."""
    with pytest.MonkeyPatch.context() as patch:
        identity = loop_of(driver)._member._identity
        patch.setattr(identity, "ask", says(code))
        patch.setattr(identity, "watch", lambda: None)  # the real one never waits for Kafka
        yield


def paused(driver: Driver) -> dict[str, int]:
    return {reason: count for reason, count in loop_of(driver).paused.items() if count}


def send(driver: Driver, first: int = 0) -> None:
    driver.send(*(events.order_status(order_id=f"O{n}") for n in range(first, first + RECORDS)))


class Calls:
    """An App, and the records that it was called for."""

    def __init__(self) -> None:
        self.app = App("calls")
        self.seen: list[tuple[int, int]] = []

        @self.app.on(OrderStatus)
        def handle(_event: OrderStatus, context: Context) -> None:
            self.seen.append((context.partition, context.offset))


@pytest.mark.parametrize("group_protocol", ["classic", "consumer"], indirect=True)
@pytest.mark.usefixtures("group_protocol")
def test_partitions_of_a_projection_that_come_while_kafka_is_away_are_read_once_it_is_back() -> None:
    with ProjectionDriver(ORDER_STATE) as driver:
        send(driver)
        with kafka_says(driver):
            for _ in range(3):
                turn(driver)
                assert paused(driver) == {"kafka": len(loop_of(driver).assigned)}
        turn(driver)
        driver.run()
        assert (loop_of(driver).waits_for, paused(driver), driver.restarts) == (None, {}, 0)
        assert loop_of(driver).applied == RECORDS
        assert len(driver.states()) == RECORDS


def test_a_kafka_and_a_database_that_are_both_away_are_waited_for_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ProjectionDriver(ORDER_STATE) as driver:
        send(driver)
        with monkeypatch.context() as patch:
            patch.setattr(process_of(driver).store, "offsets", says("state_away"))
            with kafka_says(driver):
                turn(driver)
                assert loop_of(driver).waits_for == "kafka"
            turn(driver)
            assert loop_of(driver).waits_for == "database"
        turn(driver)
        driver.run()
        assert (loop_of(driver).waits_for, loop_of(driver).applied, driver.restarts) == (None, RECORDS, 0)


@pytest.mark.parametrize("group_protocol", ["classic", "consumer"], indirect=True)
@pytest.mark.usefixtures("group_protocol")
def test_partitions_of_handlers_that_come_while_kafka_is_away_are_read_once_it_is_back() -> None:
    calls = Calls()
    with HandlerDriver(calls.app) as driver:
        send(driver)
        with kafka_says(driver):
            turn(driver)
            assert paused(driver) == {"kafka": 3}
        turn(driver)
        driver.run()
        assert (driver.restarts, len(calls.seen), len(set(calls.seen))) == (0, RECORDS, RECORDS)


@pytest.mark.parametrize(
    "code", [KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError.COORDINATOR_LOAD_IN_PROGRESS]
)
def test_handlers_wait_for_a_kafka_that_does_not_say_how_far_they_have_come(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    with HandlerDriver(calls.app) as driver:
        send(driver)
        with monkeypatch.context() as patch:
            patch.setattr(process_of(driver).client, "committed", failing(KafkaException(KafkaError(code))))
            for _ in range(3):
                turn(driver)
                assert paused(driver) == {"kafka": 3}
        turn(driver)
        driver.run()
        assert (driver.restarts, len(calls.seen), len(set(calls.seen))) == (0, RECORDS, RECORDS)


@pytest.mark.parametrize("group_protocol", ["consumer"], indirect=True)
@pytest.mark.usefixtures("group_protocol")
def test_what_handlers_have_done_and_could_not_commit_is_not_done_again_after_the_wait() -> None:
    calls = Calls()
    with HandlerDriver(calls.app) as driver:
        driver.join()
        kept, leaver = driver._processes
        send(driver)
        with driver.commits_fail():
            driver._turn(kept, None)
            assert kept.loop.applied == len(calls.seen) > 0
            driver._processes.remove(leaver)
            leaver.loop.close()
            with kafka_says(driver):
                turn(driver)
                assert paused(driver) == {"kafka": 3}
                assert len(kept.client._paused) == 3, "one that it had before is still read, and dropped"
            turn(driver)
        driver.run()
        assert (driver.restarts, len(calls.seen), len(set(calls.seen))) == (0, RECORDS, RECORDS)
        assert sum(driver.offsets().values()) == RECORDS


@pytest.mark.parametrize("code", ["topic_missing", "topic_replaced", "cluster_changed", "not_authorized"])
def test_what_somebody_must_mend_ends_a_consumer_whose_partitions_come(code: str) -> None:
    for driver in (ProjectionDriver(ORDER_STATE), HandlerDriver(Calls().app)):
        with driver:
            send(driver)
            with kafka_says(driver, code), pytest.raises(OperatorError) as ended:
                turn(driver)
            assert ended.value.code == code


@pytest.mark.parametrize("code", ["topic_missing", "topic_replaced", "cluster_changed"])
def test_what_has_become_of_the_topic_meanwhile_ends_the_consumer_once_kafka_says_so(code: str) -> None:
    for driver in (ProjectionDriver(ORDER_STATE), HandlerDriver(Calls().app)):
        with driver:
            with kafka_says(driver):
                turn(driver)
                assert loop_of(driver).waits_for == "kafka"
            topic = driver.topics.name("order.status")
            if code == "cluster_changed":
                driver.kafka.cluster_id = "another"
            else:
                driver.kafka.delete_topic(topic)
            if code == "topic_replaced":
                driver.kafka.make_topic(topic, 3)
            with pytest.raises(OperatorError) as ended:
                turn(driver)
            assert ended.value.code == code


def test_handlers_that_may_not_ask_for_their_offsets_end_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with HandlerDriver(Calls().app) as driver:
        refused = KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED, "not yours"))
        monkeypatch.setattr(process_of(driver).client, "committed", failing(refused))
        with pytest.raises(OperatorError, match="not yours") as ended:
            turn(driver)
        assert ended.value.code == "not_authorized"


def test_an_offset_that_is_gone_ends_the_consumer_once_kafka_says_that_the_topic_is_the_same() -> None:
    for driver in (ProjectionDriver(ORDER_STATE), HandlerDriver(Calls().app)):
        with driver:
            send(driver)
            driver.run(at_most=1)
            driver.run(at_most=1)
            ahead = loop_of(driver).applied
            assert 0 < ahead < RECORDS
            for part in driver.kafka.partitions(driver.topics.name("order.status")):
                log = driver.kafka.log(part)
                assert log is not None
                driver.kafka.delete_records(part, log.end)
            with kafka_says(driver):
                turn(driver)
                assert paused(driver) == {"kafka": len(loop_of(driver).assigned)}
            turn(driver)
            with pytest.raises(OperatorError) as ended:
                turn(driver)
            assert ended.value.code == "offset_out_of_range"


class Unasked:
    """An admin client that gives one answer."""

    def __init__(self, error: int) -> None:
        self._answer: Future[Any] = Future()
        self._answer.set_exception(KafkaException(KafkaError(error, "no")))

    def describe_cluster(self, **_: Any) -> Future[Any]:
        return self._answer

    def describe_topics(self, _topics: Any, **_options: Any) -> Mapping[str, Future[Any]]:
        return {"t": self._answer}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KafkaError._TIMED_OUT, "kafka_unreachable"),
        (KafkaError._TRANSPORT, "kafka_unreachable"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "not_authorized"),
        (KafkaError._AUTHENTICATION, "not_authorized"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "topic_missing"),
    ],
)
def test_who_may_not_ask_about_a_topic_is_not_told_that_kafka_is_away(error: int, code: str) -> None:
    identity = SourceIdentity({"bootstrap.servers": "127.0.0.1:1"}, ["t"], 1.0)
    identity._admin = Unasked(error)  # type: ignore[assignment]
    with pytest.raises(OperatorError) as refused:
        identity.ask()
    assert refused.value.code == code


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


@pytest.mark.kafka
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("kind", ["projection", "handlers"])
def test_the_real_client_goes_on_with_partitions_that_came_while_kafka_did_not_answer(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, protocol: str
) -> None:
    asked: list[bool] = []
    answer = source_identity._Question.answer

    def silent_at_first(question: Any) -> tuple[str, dict[str, str]]:
        asked.append(True)
        if len(asked) in (2, 3):  # the first is the start's
            raise OperatorError("kafka_unreachable", "It does not answer.", "Wait.")
        return answer(question)

    monkeypatch.setattr(source_identity._Question, "answer", silent_at_first)
    streams.kafka = streams.kafka.model_copy(update={"config": {"group.protocol": protocol}})
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(RECORDS)))
    ends = streams.ends("order.status")
    calls = Calls()
    if kind == "projection":
        with running_loop(streams, tmp_path, state_retry_s=0.1) as running:
            running.catch_up(ends)
            assert running.loop.waits_for is None
    else:
        with running_app(streams, calls.app, state_retry_s=0.1) as app:
            app.catch_up(ends)
            assert app.loop.waits_for is None
        assert (len(calls.seen), len(set(calls.seen))) == (RECORDS, RECORDS)
    assert len(asked) >= 4
