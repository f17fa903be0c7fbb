"""When requests still wait for Kafka, and when events go to the spool at once."""

from kinguin_streams.ingress.breaker import QUIET_S, TRY_EVERY_S, Breaker


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
