"""Faults that come in pairs or at the end of a run: the loop over a Kafka in memory."""

from collections.abc import Iterator
from typing import Any

import pytest

from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.testing import ProjectionDriver
from kinguin_streams.telemetry.operator_error import OperatorError


class LoopDriver(ProjectionDriver[Any]):
    """Gives its first process to the test."""

    @property
    def process(self) -> Any:
        return self._processes[0]

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
    loop, seen = driver.process.loop, []

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
