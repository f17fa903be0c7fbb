"""Calls on a thread of their own: in their order, and the first failure is the one that is told."""

import threading
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
