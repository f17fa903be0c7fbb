"""When a handler is tried again, when not, and when to stop: decisions without Kafka. And what an App refuses."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.consumers.app import App, Context
from kinguin_streams.consumers.handling import Breaker, RetryPolicy, described
from kinguin_streams.schemas.events import OrderStatus, ProductUpdate
from kinguin_streams.telemetry.operator_error import OperatorError


def test_waits_double_up_to_a_limit_and_end_with_the_last_attempt() -> None:
    policy = RetryPolicy(attempts=6, first_s=1.0, most_s=5.0)
    assert [policy.wait_s(attempt) for attempt in range(1, 8)] == [1.0, 2.0, 4.0, 5.0, 5.0, None, None]
    assert RetryPolicy(10_000, 1.0, 60.0).wait_s(9_000) == 60.0


def test_a_batch_is_tried_whole_twice_or_as_often_as_anything_is() -> None:
    assert [RetryPolicy(5, 1.0, 9.0).next_of_batch(attempt) for attempt in (1, 2)] == [1.0, None]
    assert RetryPolicy(1, 1.0, 9.0).next_of_batch(1) is None


def test_the_breaker_lets_a_few_pass_and_stops_when_they_are_most() -> None:
    breaker = Breaker(2)
    for _ in range(2):
        assert breaker.may_give_up()
        breaker.gave_up()
    assert not breaker.may_give_up()
    breaker.done(3)
    assert breaker.may_give_up(), "three done, two given up"
    breaker.gave_up()
    assert not breaker.may_give_up()


def test_the_breaker_looks_at_the_last_hundred_only() -> None:
    breaker = Breaker(1)
    breaker.done(100)
    for _ in range(50):
        breaker.gave_up()
    assert not breaker.may_give_up()
    breaker.done(100)
    for _ in range(50):
        assert breaker.may_give_up()
        breaker.gave_up()
    assert not breaker.may_give_up()


def test_what_a_handler_raised_is_described_whatever_it_is() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert described(KeyError("x")) == "KeyError: 'x'"
    assert described(Mute()) == "Mute: (its message cannot be shown)"
    assert len(described(ValueError("x" * 1_000_000))) == 1_000


def no_context(event: OrderStatus) -> None: ...
async def waits(event: OrderStatus, context: Context) -> None: ...


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda app: app.on(no_context), "no_context"),
        (lambda app: app.on(str), "str"),
        (lambda app: app.on(OrderStatus)(no_context), "no_context cannot be called with (event, context)"),
        (lambda app: app.on(OrderStatus)(waits), "coroutine"),
        (lambda app: app.on_batch(OrderStatus, most_records=0), "most_records=0"),
    ],
)
def test_an_app_refuses_what_it_could_not_call(use: Callable[[Any], object], says: str) -> None:
    with pytest.raises(OperatorError) as refused:
        use(App("mine"))
    assert refused.value.code == "handler_refused"
    assert says in refused.value.what


def test_an_app_refuses_a_second_handler_and_a_bad_name() -> None:
    app = App("mine")

    def handle(event: Any, context: Context) -> None: ...

    app.on(OrderStatus)(handle)
    app.on(ProductUpdate)(handle)
    with pytest.raises(OperatorError, match="second handler for OrderStatus"):
        app.on(OrderStatus)(handle)
    with pytest.raises(OperatorError, match="no name for a consumer"):
        App("Order Notifier")
    with pytest.raises(OperatorError, match="order-state is a consumer that comes with the package"):
        App("order-state")  # in the group of `consume order-state`, each would be given half of the records


TYPED = """
from collections.abc import Sequence
from kinguin_streams.consumers.app import App, Context
from kinguin_streams.schemas.events import DeadLetter, OrderStatus, ProductUpdate

app = App("typed")

@app.on(OrderStatus)
def right(event: OrderStatus, context: Context) -> None:
    print(event.order_id, context.attempt)

@app.on_batch(ProductUpdate)
def also_right(events: Sequence[ProductUpdate], contexts: Sequence[Context]) -> None:
    print(events[0].kinguin_id)
"""
WRONG = """
@app.on(ProductUpdate)
def wrong_event(event: OrderStatus, context: Context) -> None: ...

@app.on_batch(OrderStatus)
def wrong_batch(events: OrderStatus, contexts: Sequence[Context]) -> None: ...

@app.on(DeadLetter)
def no_event(event: DeadLetter, context: Context) -> None: ...
"""


@pytest.mark.parametrize(("more", "errors"), [("", 0), (WRONG, 3)], ids=["right", "wrong"])
def test_mypy_checks_a_handler_against_its_event(tmp_path: Path, more: str, errors: int) -> None:
    file = tmp_path / "typed_consumer.py"
    file.write_text(TYPED + more)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(file)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert sum(": error:" in line for line in checked.stdout.splitlines()) == errors, checked.stdout
