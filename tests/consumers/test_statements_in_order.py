"""Calls on a thread of their own: in their order, and the first failure is the one that is told."""

import signal
import threading
import time
from concurrent.futures import Future

import pytest

from kinguin_streams.consumers.in_order import AtOnce, Beside


class Refused(Exception):
    """By the database."""


class Consequence(Exception):
    """What it says to every statement after that."""


def refuse(error: type[Exception]) -> None:
    raise error


@pytest.mark.parametrize("kind", [AtOnce, Beside])
def test_calls_are_made_in_their_order_and_all_have_been_made_at_the_end(kind: type[AtOnce | Beside]) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * 2

    with kind() as statements:
        results = [statements.submit(make, number) for number in range(50)]
    assert made == list(range(50))
    assert [result.result() for result in results] == [number * 2 for number in range(50)]


def test_beside_is_another_thread() -> None:
    with Beside() as statements:
        assert statements.submit(threading.get_ident).result() != threading.get_ident()


def test_after_a_failure_nothing_more_is_made_and_it_is_what_is_raised() -> None:
    made: list[str] = []
    later: list[Future[None]] = []

    def refused_at_once() -> None:
        with Beside() as statements:
            statements.submit(refuse, Refused)
            later.append(statements.submit(refuse, Consequence))
            later.append(statements.submit(made.append, "after it"))

    with pytest.raises(Refused):
        refused_at_once()
    assert [type(each.exception()) for each in later] == [Refused, Refused]
    assert made == []


def test_an_error_of_the_body_is_raised_once_the_calls_have_been_made() -> None:
    made: list[str] = []

    def failing() -> None:
        with Beside() as statements:
            statements.submit(made.append, "made")
            raise Consequence

    with pytest.raises(Consequence):
        failing()
    assert made == ["made"]


def test_who_is_interrupted_while_waiting_still_waits_for_the_call_in_hand_and_no_other_is_made() -> None:
    """A second Ctrl-C ends a replay at once: its connection is rolled back next, and nobody may be using it then."""
    made: list[str] = []
    waits = threading.Event()

    def slow() -> None:
        assert waits.wait(10)
        time.sleep(0.1)  # by now the other thread waits for this one
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)
        made.append("in hand")

    def interrupted() -> None:
        with Beside() as statements:
            statements.submit(slow)
            statements.submit(made.append, "after it")
            waits.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert made == ["in hand"]
        time.sleep(0.2)
        assert made == ["in hand"]
    finally:
        signal.signal(signal.SIGINT, before)
