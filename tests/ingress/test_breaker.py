"""When requests still wait for Kafka, and when they are refused at once."""

from kinguin_streams.ingress.breaker import QUIET_S, TRY_EVERY_S, Breaker


def test_closed_lets_everybody_try() -> None:
    breaker = Breaker()
    assert all(breaker.may_try(now_s=5) for _ in range(3))


def test_a_wait_in_vain_opens_it_and_says_so_once() -> None:
    breaker = Breaker()
    breaker.confirmed(now_s=10)
    assert breaker.waited_in_vain(now_s=13)
    assert not breaker.waited_in_vain(now_s=13)


def test_one_slow_partition_does_not_open_it_while_others_are_confirmed() -> None:
    breaker = Breaker()
    breaker.confirmed(now_s=12.5)
    assert not breaker.waited_in_vain(now_s=12.5 + QUIET_S)
    assert breaker.may_try(now_s=13.5)


def test_open_lets_one_a_second_try_and_the_first_not_before_a_second() -> None:
    breaker = Breaker()
    breaker.may_try(now_s=10)
    breaker.waited_in_vain(now_s=13)
    times_s = (13, 13.9, 13 + TRY_EVERY_S, 14.5, 15.5)
    assert [breaker.may_try(now_s) for now_s in times_s] == [False, False, True, False, True]


def test_a_confirmation_closes_it_and_says_so_once() -> None:
    breaker = Breaker()
    breaker.waited_in_vain(now_s=13)
    assert breaker.confirmed(now_s=20)
    assert not breaker.confirmed(now_s=20)
    assert all(breaker.may_try(now_s=20) for _ in range(3))
