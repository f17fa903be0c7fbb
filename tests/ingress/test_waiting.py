"""Steps that wait: in a thread or in a loop they go on with the same, once each, in time, and never twice."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from kinguin_streams.cluster.publisher import PublishFailed, Report
from kinguin_streams.ingress.waiting import InLoop, Steps, Wait, in_thread

LOST = PublishFailed("not_delivered", "", landed="maybe")


def asking(*awaited: "Future[str]", timeout_s: float = 5.0) -> Steps[list[str]]:
    """Wait for each in turn, and end with what came of it."""
    heard = []
    for each in awaited:
        try:
            heard.append((yield Wait(each, timeout_s)))
        except TimeoutError:
            heard.append("nothing")
        except ValueError as error:
            heard.append(str(error))
    return heard


def settled(value: str | ValueError) -> "Future[str]":
    future: Future[str] = Future()
    if isinstance(value, ValueError):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


class Loop:
    """Takes notes of what InLoop asks of a loop."""

    def __init__(self) -> None:
        self.wakes = 0
        self.ended: list[list[str]] = []
        self.waiting = InLoop(self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    def start(self, *awaited: "Future[str]", timeout_s: float = 5.0) -> None:
        self.waiting.start(asking(*awaited, timeout_s=timeout_s), self.ended.append)


@pytest.mark.parametrize(
    ("values", "heard"),
    [
        pytest.param([], [], id="steps that wait for nothing"),
        pytest.param(["a", "b"], ["a", "b"], id="results"),
        pytest.param([ValueError("no"), "b"], ["no", "b"], id="an error is raised where the step waits"),
    ],
)
def test_a_thread_and_a_loop_hear_the_same(values: list[str | ValueError], heard: list[str]) -> None:
    assert in_thread(asking(*map(settled, values))) == heard
    loop = Loop()
    loop.start(*map(settled, values))
    while not loop.ended:
        loop.waiting.resume()
    assert loop.ended == [heard]
    assert loop.waiting.is_idle


def test_who_waits_too_long_goes_on_without_and_what_comes_late_changes_nothing() -> None:
    never: Future[str] = Future()
    assert in_thread(asking(never, settled("b"), timeout_s=0.01)) == ["nothing", "b"]
    late, later = Future[str](), Future[str]()
    loop = Loop()
    loop.start(late, later, timeout_s=0.0)
    loop.waiting.time_out()
    late.set_result("too late")
    loop.waiting.resume()
    assert loop.ended == []  # it waits for the second one
    later.set_result("b")
    loop.waiting.resume()
    assert loop.ended == [["nothing", "b"]]


def test_many_results_wake_the_loop_once() -> None:
    loop = Loop()
    futures = [Future[str]() for _ in range(100)]
    for future in futures:
        loop.start(future)
    for number, future in enumerate(futures):
        future.set_result(str(number))
    assert loop.wakes == 1
    loop.waiting.resume()
    assert loop.ended == [[str(number)] for number in range(100)]


def test_steps_that_break_off_take_nobody_with_them() -> None:
    def breaking() -> Steps[list[str]]:
        yield Wait(settled("a"), 1)
        raise RuntimeError

    loop = Loop()
    loop.waiting.start(breaking(), loop.ended.append)
    loop.start(settled("b"))
    loop.waiting.resume()
    assert loop.ended == [["b"]]
    assert loop.waiting.is_idle


def test_an_end_that_fails_takes_nobody_with_it() -> None:
    def cannot_be_written(_value: list[str]) -> None:
        raise OSError

    loop = Loop()
    loop.waiting.start(asking(settled("a")), cannot_be_written)
    loop.start(settled("b"))
    loop.waiting.resume()
    assert loop.ended == [["b"]]
    assert loop.waiting.is_idle


# --- a delivery report ---


def test_a_report_tells_everybody_once_whenever_they_ask() -> None:
    report = Report()
    heard: list[tuple[str, PublishFailed | None]] = []
    report.add_done_callback(lambda one: heard.append(("before", one.result())))
    with pytest.raises(TimeoutError):
        report.result(0.01)
    threading.Timer(0.05, report.settle, [LOST]).start()
    assert report.result(5) is LOST
    assert report.result(0) is LOST
    _until(lambda: heard == [("before", LOST)])
    report.add_done_callback(lambda one: heard.append(("after", one.result(0))))
    assert heard == [("before", LOST), ("after", LOST)]


def test_whoever_fails_on_a_report_keeps_it_from_nobody() -> None:
    def failing(_report: Any) -> None:
        raise RuntimeError

    report = Report()
    heard: list[Report] = []
    for hears in (heard.append, failing, heard.append):
        report.add_done_callback(hears)
    report.settle(None)
    assert heard == [report, report]


def test_a_callback_added_while_the_report_comes_is_called_once() -> None:
    for _ in range(500):
        report = Report()
        heard: list[Report] = []
        settling = threading.Thread(target=report.settle, args=[None])
        settling.start()
        report.add_done_callback(heard.append)
        settling.join()
        assert heard == [report]


def _until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5
    while not reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
