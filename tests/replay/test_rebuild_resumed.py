"""A rebuild that was begun is gone on with, or given up: over files in memory, without a broker."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from kinguin_streams.consumers import database, reader
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.replay.plan import PaceLimit
from kinguin_streams.replay.rebuild import BUSY_ROUNDS, Files, Identity, Rebuild
from kinguin_streams.replay.receipt import Gap
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Watch
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.replay.test_replay_filters import order_status

TOPIC = "kinguin.order.status"


class InMemory:
    """A source of records of one partition."""

    gaps: tuple[Gap, ...] = ()

    def __init__(self, *records: Record) -> None:
        self._records = records

    def read(self, start: Mapping[tuple[str, int], int]) -> Iterator[Sequence[Record]]:
        wanted = [record for record in self._records if record.offset >= start.get((TOPIC, 0), 0)]
        if wanted:
            yield wanted

    def close(self) -> None: ...


def identity() -> Identity:
    return "the-cluster", {TOPIC: "its-id"}


def rebuild(
    state: StateSettings, files: str, *orders: str, identity: Callable[[], Identity] = identity, **more: Any
) -> Rebuild:
    records = [order_status(order=order, offset=offset) for offset, order in enumerate(orders)]
    return Rebuild(
        ORDER_STATE,
        state=state,
        decoder=Decoder(),
        expected={TOPIC: "order.status"},
        identity=identity,
        windows=lambda: (),
        source=lambda _windows: InMemory(),
        files=Files(files, (TopicPart(TOPIC, 0),), InMemory(*records)),
        **more,
    )


def test_with_anew_other_files_are_read_and_nothing_of_the_first_ones_is_left(tmp_path: Path) -> None:
    state = StateSettings(url=f"sqlite:///{tmp_path / 'state.db'}")
    assert rebuild(state, "one", "A", "B").run(compare=0).differing == 2
    with pytest.raises(OperatorError) as refused:
        rebuild(state, "other", "C").run()
    assert refused.value.code == "files_changed"
    done = rebuild(state, "other", "C").run(anew=True)
    assert (done.resumed, done.applied) == (False, 1)
    assert [view.order_id for view in reader.order_views(state.url)] == ["C"]


@pytest.mark.parametrize("rounds", [2, BUSY_ROUNDS + 1])
def test_a_swap_that_finds_the_database_busy_is_tried_again_some_times(tmp_path: Path, rounds: int) -> None:
    state = StateSettings(url=f"sqlite:///{tmp_path / 'state.db'}", busy_timeout_s=0.02)
    rebuild(state, "one", "A").run(compare=0)
    engine = database.open_for_writing(state)
    held: list[Connection] = []
    asked = 0

    def holding() -> Identity:
        """Take the write lock before the first swap, and give it back after so many of them."""
        nonlocal asked
        asked += 1
        if asked == 2:
            held.append(engine.connect())
            held[0].begin()
        elif asked == 2 + rounds:
            held.pop().close()
        return identity()

    try:
        going_on = rebuild(state, "one", "A", identity=holding)
        if rounds <= BUSY_ROUNDS:
            assert going_on.run().swapped is not None
        else:
            with pytest.raises(OperatorError) as refused:
                going_on.run()
            assert refused.value.code == "state_busy"
    finally:
        for connection in held:
            connection.close()
        engine.dispose()


def test_a_rebuild_keeps_its_pace_and_whoever_stops_it_does_not_wait_along(tmp_path: Path) -> None:
    now_s, stopped = 0.0, False

    def sleep(wait_s: float) -> None:
        nonlocal now_s, stopped
        now_s += wait_s
        stopped = stopped or now_s > 3

    state = StateSettings(url=f"sqlite:///{tmp_path / 'state.db'}")
    orders = [f"O{number}" for number in range(100)]
    watch = Watch(clock=lambda: now_s, sleep=sleep, stop=lambda: stopped)
    done = rebuild(state, "one", *orders, pace=PaceLimit(max_records_per_s=20), watch=watch).run()
    assert (done.interrupted, 55 <= done.applied <= 65) == (True, True), "some 20 a second, for three seconds"
    assert now_s < 3.2
