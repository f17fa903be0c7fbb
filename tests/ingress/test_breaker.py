"""When requests still wait for Kafka, and when events go to the spool at once."""

import time
from collections.abc import Callable
from typing import cast

import pytest

from kinguin_streams.cluster.publisher import KafkaPublisher, PublishFailed, Report
from kinguin_streams.ingress.breaker import QUIET_S, TRY_EVERY_S, Breaker
from kinguin_streams.ingress.keeper import KafkaRefuses, Keeper, NotKept
from kinguin_streams.ingress.waiting import in_thread
from kinguin_streams.schemas.outgoing import OutgoingRecord

TOO_LARGE = PublishFailed("refused", "MSG_SIZE_TOO_LARGE", landed="no")
RECORD = OutgoingRecord("t", b"k", b"v", (), 1_700_000_000_000)


def test_closed_lets_everybody_try() -> None:
    breaker = Breaker()
    assert all(breaker.may_try(now_s=5) for _ in range(3))


def test_a_wait_in_vain_opens_it_and_says_so_once() -> None:
    breaker = Breaker()
    breaker.confirmed(now_s=10)
    assert breaker.waited_in_vain(now_s=13)
    assert not breaker.waited_in_vain(now_s=13)
    assert breaker.state == "open"


def test_one_slow_partition_does_not_open_it_while_others_are_confirmed() -> None:
    breaker = Breaker()
    breaker.confirmed(now_s=12.5)
    assert not breaker.waited_in_vain(now_s=12.5 + QUIET_S)
    assert breaker.may_try(now_s=13.5)


def test_open_lets_nobody_try_until_kafka_has_answered_a_question() -> None:
    breaker = Breaker()
    breaker.waited_in_vain(now_s=13)
    assert not any(breaker.may_try(now_s) for now_s in (13, 20, 2_000))
    breaker.answered()
    assert breaker.state == "half_open"


def test_half_open_lets_one_a_second_try_and_a_wait_in_vain_opens_it_again() -> None:
    breaker = Breaker()
    breaker.waited_in_vain(now_s=13)
    breaker.answered()
    assert [breaker.may_try(now_s) for now_s in (20, 20.9, 20 + TRY_EVERY_S)] == [True, False, True]
    assert not breaker.waited_in_vain(now_s=22)  # it has been said that Kafka is away
    assert breaker.state == "open"


def test_a_confirmation_closes_it_and_says_so_once() -> None:
    breaker = Breaker()
    breaker.waited_in_vain(now_s=13)
    assert breaker.confirmed(now_s=20)
    assert not breaker.confirmed(now_s=20)
    assert all(breaker.may_try(now_s=20) for _ in range(3))


def test_an_answer_changes_nothing_while_it_is_closed() -> None:
    breaker = Breaker()
    breaker.answered()
    assert breaker.state == "closed"


class Publisher:
    """Does with each record what `send` does."""

    def __init__(self, send: Callable[[OutgoingRecord], Report]) -> None:
        self.send = self.send_alone = send


def keeper_half_open(send: Callable[[OutgoingRecord], Report]) -> Keeper:
    keeper = Keeper(cast("KafkaPublisher", Publisher(send)), None, ack_wait_s=0.01, spool_timeout_s=0)
    keeper.breaker.waited_in_vain(time.monotonic())
    keeper.breaker.answered()
    return keeper


def test_a_requests_record_that_the_broker_refuses_closes_it() -> None:
    def send(_record: OutgoingRecord) -> Report:
        report = Report()
        report.settle(TOO_LARGE)
        return report

    keeper = keeper_half_open(send)
    with pytest.raises(KafkaRefuses):
        in_thread(keeper.keep(RECORD, time.monotonic() + 5))
    assert keeper.breaker.state == "closed"


def test_a_requests_record_that_the_client_refuses_changes_nothing() -> None:
    def send(_record: OutgoingRecord) -> Report:
        raise TOO_LARGE

    keeper = keeper_half_open(send)
    with pytest.raises(KafkaRefuses):
        in_thread(keeper.keep(RECORD, time.monotonic() + 5))
    assert keeper.breaker.state == "half_open"


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (None, "closed"),
        (TOO_LARGE, "closed"),
        (PublishFailed("not_delivered", "_MSG_TIMED_OUT", landed="maybe"), "half_open"),
    ],
    ids=["there", "refused", "given up"],
)
def test_a_late_report_closes_it_if_kafka_has_looked_at_the_record(failure: PublishFailed | None, state: str) -> None:
    report = Report()
    keeper = keeper_half_open(lambda _record: report)
    with pytest.raises(NotKept):
        in_thread(keeper.keep(RECORD, time.monotonic() + 5))
    report.settle(failure)
    assert keeper.breaker.state == state
