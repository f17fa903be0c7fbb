"""Who the cluster and its topics are, asked by one who cannot wait for the answer."""

from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.source_identity import SourceIdentity
from kinguin_streams.consumers.testing import ProjectionDriver, events
from kinguin_streams.telemetry.operator_error import OperatorError


class Admin:
    """An admin client that answers when the test does."""

    def __init__(self) -> None:
        self.asked: list[tuple[Future[Any], Future[Any]]] = []

    def describe_cluster(self, **_: Any) -> Future[Any]:
        self.asked.append((Future(), Future()))
        return self.asked[-1][0]

    def describe_topics(self, _topics: Any, **_options: Any) -> Mapping[str, Future[Any]]:
        return {"t": self.asked[-1][1]}

    def answer(self, cluster_id: str = "here", topic_id: str = "first") -> None:
        cluster, topic = self.asked[-1]
        cluster.set_result(SimpleNamespace(cluster_id=cluster_id))
        topic.set_result(SimpleNamespace(topic_id=topic_id))

    def refuse(self, code: int) -> None:
        for future in self.asked[-1]:
            future.set_exception(KafkaException(KafkaError(code, "no")))


@pytest.fixture
def admin() -> Admin:
    return Admin()


@pytest.fixture
def identity(admin: Admin) -> SourceIdentity:
    identity = SourceIdentity({"bootstrap.servers": "127.0.0.1:1"}, ["t"], 1.0)
    identity._admin = admin  # type: ignore[assignment]
    identity._known = ("here", {"t": "first"})
    return identity


def test_whoever_cannot_wait_asks_until_the_answer_is_there(admin: Admin, identity: SourceIdentity) -> None:
    assert [identity.is_as_before() for _ in range(3)] == [False] * 3
    assert len(admin.asked) == 1
    admin.answer()
    assert identity.is_as_before()
    assert not identity.is_as_before()
    assert len(admin.asked) == 2


def test_an_answer_that_does_not_come_in_time_is_told_once_and_asked_for_anew(
    admin: Admin, identity: SourceIdentity
) -> None:
    assert not identity.is_as_before()
    admin.refuse(KafkaError._TIMED_OUT)
    with pytest.raises(OperatorError) as told:
        identity.is_as_before()
    assert told.value.code == "kafka_unreachable"
    assert not identity.is_as_before()
    admin.answer()
    assert identity.is_as_before()


@pytest.mark.parametrize(
    ("now", "code"), [(("there", "first"), "cluster_changed"), (("here", "second"), "topic_replaced")]
)
@pytest.mark.parametrize("asks", ["is_as_before", "watch"])
def test_what_has_changed_is_told_by_either_way_of_asking(
    admin: Admin, identity: SourceIdentity, now: tuple[str, str], code: str, asks: str
) -> None:
    getattr(identity, asks)()
    admin.answer(*now)
    with pytest.raises(OperatorError) as told:
        getattr(identity, asks)()
    assert told.value.code == code


def test_who_watches_does_not_mind_a_kafka_that_is_away(admin: Admin, identity: SourceIdentity) -> None:
    identity.watch()
    admin.refuse(KafkaError._TIMED_OUT)
    identity.watch()
    assert len(admin.asked) == 1


@pytest.mark.parametrize("code", ["kafka_unreachable", "state_away"])
def test_a_consumer_that_waits_never_stands_still_for_an_answer_of_kafkas(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says(*_: Any) -> None:
        raise OperatorError(code, "It does not answer.", "Wait.")

    def stands_still() -> None:
        raise AssertionError("nobody could stop it meanwhile")

    with ProjectionDriver(ORDER_STATE) as driver:
        driver.send(events.order_status())
        (process,) = driver._processes
        identity = process.loop._member._identity
        with monkeypatch.context() as patch:
            if code == "state_away":
                patch.setattr(process.store, "offsets", says)
            else:
                patch.setattr(identity, "ask_again", says)
                patch.setattr(identity, "watch", lambda: None)
            driver._turn(process, None)
        with monkeypatch.context() as patch:
            patch.setattr(identity, "ask_again", stands_still)
            patch.setattr(identity, "watch", stands_still)
            patch.setattr(identity, "is_as_before", lambda: False)
            for _ in range(3):
                driver.clock.advance(60)
                driver._turn(process, None)
            assert process.loop.paused["database" if code == "state_away" else "kafka"] == len(process.loop.assigned)
        driver.clock.advance(60)
        driver._turn(process, None)
        driver.run()
        assert (process.loop.waits_for, process.loop.applied, driver.restarts) == (None, 1, 0)
