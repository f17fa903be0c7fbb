"""Faults that come in pairs or at the end of a run: the loop over a Kafka in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from structlog.testing import capture_logs

from kinguin_streams.consumers.loop import ConsumeLoop
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.testing import ProjectionDriver, events
from kinguin_streams.consumers.testing.memory_client import MemoryClient
from kinguin_streams.telemetry.operator_error import OperatorError


class LoopDriver(ProjectionDriver[Any]):
    """Gives its first process to the test."""

    @property
    def process(self) -> Any:
        return self._processes[0]

    @property
    def loop(self) -> ConsumeLoop:
        return self.process.loop  # type: ignore[no-any-return]

    def turn(self) -> None:
        """Let the first process take a turn."""
        self._turn(self.process, None)


@pytest.fixture
def driver() -> Iterator[LoopDriver]:
    with LoopDriver(ORDER_STATE) as driver:
        yield driver


def test_who_hangs_while_it_ends_by_itself_is_stuck_until_it_has_closed(
    driver: LoopDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = driver.loop
    seen: list[float] = []

    def lost() -> None:
        raise OperatorError("topic_missing", "There is no topic.", "Make it.")

    def closing_slowly() -> None:
        driver.clock.advance(400)
        seen.append(loop.turning_for_s)
        raise OperatorError("kafka_client_failed", "The line is broken.", "Start again.")

    monkeypatch.setattr(loop, "open", lambda: None)
    monkeypatch.setattr(loop, "turn", lost)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "close", closing_slowly)
        with pytest.raises(OperatorError, match="The line is broken"):
            loop.run()
    assert seen == [400]
    assert loop.turning_for_s == 0


def away(code: str) -> Any:
    def failing(*_: Any) -> None:
        raise OperatorError(code, f"{code}: it does not answer.", "Wait.")

    return failing


def test_a_kafka_that_is_away_while_the_database_is_waited_for_is_waited_for_too(
    driver: LoopDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.send(events.order_status())
    driver.run(at_most=0)
    with monkeypatch.context() as patch:
        patch.setattr(driver.process.store, "apply_by_key", away("state_away"))
        driver.turn()
        assert driver.loop.waits_for == "database"
        patch.setattr(driver.loop._member._identity, "ask", away("kafka_unreachable"))
        patch.setattr(driver.loop._member._identity, "watch", lambda: None)  # the real one never waits for Kafka
        for _ in range(3):
            driver.clock.advance(60)
            driver.turn()
            assert driver.loop.paused["kafka"] == len(driver.loop.assigned)
    driver.clock.advance(60)
    driver.turn()
    driver.run()
    assert driver.loop.waits_for is None
    assert driver.loop.applied == 1


def noted(call: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    def noting(*of: Any) -> Any:
        names.append(call.__name__)
        return call(*of)

    return noting


@pytest.mark.parametrize(
    ("is_incremental", "assigned", "unassigned"),
    [(False, ["assign"], []), (True, ["incremental_assign"], ["incremental_unassign"])],
)
def test_partitions_go_on_before_they_are_told_where(
    monkeypatch: pytest.MonkeyPatch, *, is_incremental: bool, assigned: list[str], unassigned: list[str]
) -> None:
    """The other way round the real client sometimes never reads one of them again."""
    told: list[str] = []
    with LoopDriver(ORDER_STATE) as driver:
        driver.process.loop._member._is_incremental = is_incremental
        driver.send(events.order_status())
        for name in ("pause", "resume", *assigned, *unassigned):
            monkeypatch.setattr(MemoryClient, name, noted(getattr(MemoryClient, name), told))
        driver.run(at_most=0)
        assert told == ["resume", *assigned]
        with monkeypatch.context() as patch:
            patch.setattr(driver.process.store, "apply_by_key", away("state_away"))
            driver.turn()
        assert told[2:] == ["pause"]
        driver.clock.advance(60)
        driver.turn()
        driver.run()
        assert told[3:] == ["resume", *unassigned, *assigned]
        assert driver.loop.applied == 1


def test_a_topic_that_is_gone_while_the_database_is_waited_for_ends_the_consumer(
    driver: LoopDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.send(events.order_status())
    driver.run(at_most=0)
    monkeypatch.setattr(driver.process.store, "apply_by_key", away("state_away"))
    driver.turn()
    monkeypatch.setattr(driver.loop._member._identity, "ask", away("topic_missing"))
    monkeypatch.setattr(driver.loop._member._identity, "watch", lambda: None)
    driver.clock.advance(60)
    with pytest.raises(OperatorError, match="topic_missing"):
        driver.turn()


def test_offsets_that_the_client_does_not_even_take_are_told_again(
    driver: LoopDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE))

    driver.send(events.order_status())
    driver.run(at_most=0)
    group = driver.kafka.group(driver.loop.group_id)
    with monkeypatch.context() as patch:
        patch.setattr(driver.process.client, "commit", full)
        driver.run()
        driver.clock.advance(60)
        driver.turn()
    assert (driver.loop.applied, sum(group.committed.values())) == (1, 0)
    driver.clock.advance(60)
    driver.turn()
    assert sum(group.committed.values()) == 1


def test_a_broker_that_is_away_is_said_once_in_a_while_and_another_trouble_at_once(driver: LoopDriver) -> None:
    def said(error: int, times: int = 1) -> list[tuple[str, int]]:
        with capture_logs() as lines:
            for _ in range(times):
                driver.loop._member._on_error(KafkaError(error, "it is away"))
        return [(line["error"], line["unsaid"]) for line in lines if line["event"] == "kafka_trouble"]

    assert said(KafkaError._TRANSPORT, 100) == [("_TRANSPORT", 0)]
    assert said(KafkaError._ALL_BROKERS_DOWN, 2) == [("_ALL_BROKERS_DOWN", 0)]
    driver.clock.advance(9.9)
    assert said(KafkaError._TRANSPORT) == []
    driver.clock.advance(0.1)
    assert said(KafkaError._TRANSPORT, 5) == [("_TRANSPORT", 100)]
    assert said(KafkaError._RESOLVE) == [("_RESOLVE", 0)]
    driver.clock.advance(10)
    assert said(KafkaError._TRANSPORT) == [("_TRANSPORT", 4)]


def test_records_are_counted_by_their_topic(driver: LoopDriver) -> None:
    assert sorted(driver.loop.tally.consumed.values()) == [0, 0]
    driver.send(events.order_status(), events.order_complete(), events.order_status(status="completed"))
    driver.run()
    assert driver.loop.tally.consumed == {"kinguin.order.status": 2, "kinguin.order.complete": 1}
