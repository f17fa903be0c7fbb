"""The watch: what it remembers of Kafka and the database when one of them does not answer."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.consumers.watch import StateLook, StateSeen, Watch
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import STATUS_TOPIC, advance
from tests.consumers.deliveries import order_status, received
from tests.consumers.kafka_streams import wait_until
from tests.consumers.test_lag import TopicsInMemory

PART = TopicPart("t", 0)


class Kafka(TopicsInMemory):
    """Two partitions, as long as it answers."""

    def __init__(self) -> None:
        super().__init__({("t", 0): (0, 10), ("t", 1): (0, 10)}, {})
        self.is_away = False
        self.asked_without_partitions = 0

    def bounds_of(self, partitions: Any) -> Any:
        if self.is_away:
            raise OperatorError("kafka_unreachable", "Kafka does not answer.", "")
        return super().bounds_of(partitions)

    def bounds(self, topics: Any) -> Any:
        self.asked_without_partitions += 1
        return self.bounds_of((topic, 0) for topic in topics)

    def close(self) -> None:
        pass


@pytest.fixture
def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
def look(settings: StateSettings, orders: StateStore) -> Iterator[StateLook]:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    look = StateLook(settings, ORDER_STATE.name)
    yield look
    look.close()


def test_both_are_asked_and_the_last_answer_is_kept(kafka: Any, look: StateLook) -> None:
    watch = Watch(kafka, ["t"], lambda: {PART: 7}, look)
    assert (watch.kafka_trouble, watch.state_trouble) == ("not asked yet", "not asked yet")
    watch.look()
    assert (watch.kafka_trouble, watch.state_trouble) == (None, None)
    assert watch.state == StateSeen(generation=1, outbox_rows=1)
    assert watch.kafka is not None
    assert [lag.records for lag in watch.kafka.lags] == [3]
    kafka.is_away = True
    watch.look()
    assert watch.kafka_trouble == "Kafka does not answer."
    assert watch.state_trouble is None


def test_a_database_that_is_away_keeps_nobody_from_looking_at_kafka(kafka: Any, tmp_path: Path) -> None:
    settings = StateSettings(url=f"sqlite:///{tmp_path / 'state.db'}")
    StateStore(settings, ORDER_STATE).close()
    look = StateLook(settings, ORDER_STATE.name)
    look.close()  # its next look opens the file anew
    (tmp_path / "state.db").rename(tmp_path / "elsewhere.db")
    (tmp_path / "state.db").mkdir()
    watch = Watch(kafka, ["t"], lambda: {PART: None}, look)
    watch.look()
    assert watch.kafka_trouble is None
    assert watch.state_trouble is not None
    assert "state.db" in watch.state_trouble
    look.close()


def test_who_has_no_partition_still_asks_whether_kafka_is_there(kafka: Any) -> None:
    watch = Watch(kafka, ["t"], dict, None)
    watch.look()
    assert (kafka.asked_without_partitions, watch.kafka_trouble, watch.has_database) == (1, None, False)
    kafka.is_away = True
    watch.look()
    assert watch.kafka_trouble == "Kafka does not answer."


def test_partitions_that_come_are_looked_at_at_once(kafka: Any) -> None:
    offsets: dict[TopicPart, int | None] = {}
    watch = Watch(kafka, ["t"], lambda: dict(offsets), None, look_every_s=60)
    watch.start()
    try:
        wait_until(lambda: watch.kafka is not None, "a first look")
        offsets[PART] = 4
        began_s = time.monotonic()
        wait_until(lambda: watch.kafka is not None and len(watch.kafka.lags) == 1, "a second look")
        assert time.monotonic() - began_s < 30
    finally:
        watch.stop()


def test_a_look_that_fails_as_nobody_expected_is_not_the_last_one(kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = kafka.bounds_of

    def fail(_partitions: object) -> None:
        monkeypatch.setattr(kafka, "bounds_of", bounds)
        raise RuntimeError("a bug")

    monkeypatch.setattr(kafka, "bounds_of", fail)
    watch = Watch(kafka, ["t"], lambda: {PART: 7}, None, look_every_s=0.01)
    watch.start()
    try:
        wait_until(lambda: watch.kafka_trouble is None, "an answer")
    finally:
        watch.stop()
