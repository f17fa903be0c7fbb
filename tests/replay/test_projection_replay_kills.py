"""A replay into a projection that is killed, stopped or met by a rebuild: what the receipt says is what the state has."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kinguin_streams.consumers import generations, reader
from kinguin_streams.consumers.effect import StateEffect
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.replay.consumer_target import ConsumerTarget
from kinguin_streams.replay.filters import Filters
from kinguin_streams.replay.plan import Destination, Plan, Selection, Window
from kinguin_streams.replay.receipt import Gap, Positions, Receipt
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Moved, Watch, run
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import state_settings
from tests.replay.test_replay_filters import order_status

TOPIC = "kinguin.order.status"
RECORDS = [
    order_status(order=f"O{number}", status="completed" if number % 2 else "pending", offset=number)
    for number in range(100)
]
SELECTION = Selection(where=('status == "completed"',))


class KilledError(Exception):
    """The process is gone."""


class ListSource:
    """The records in tens, until the process dies at an offset."""

    gaps: Sequence[Gap] = ()

    def __init__(self, dies_at: int | None = None) -> None:
        self._dies_at = dies_at

    def read(self, start: Positions) -> Iterator[Sequence[Record]]:
        for begin in range(start.get((TOPIC, 0), 0), 100, 10):
            if begin == self._dies_at:
                raise KilledError
            yield RECORDS[begin : begin + 10]

    def close(self) -> None:
        pass


@pytest.fixture
def receipt(tmp_path: Path) -> Iterator[Receipt]:
    window = Window(topic=TOPIC, partition=0, start=0, end=100, earliest=0, latest=100)
    plan = Plan(
        replay_id="r",
        made_at_ms=0,
        windows=(window,),
        selection=SELECTION,
        destination=Destination(kind="consumer", name="order-state"),
    )
    receipt = Receipt.create(tmp_path / "receipts", plan)
    yield receipt
    receipt.close()


def replay(
    state: StateSettings, receipt: Receipt, *, dies_at: int | None = None, checkpoint_records: int = 10**6
) -> Moved:
    store = StateStore(state, ORDER_STATE)
    target = ConsumerTarget(
        StateEffect(ORDER_STATE, store),
        decoder=Decoder(),
        expected={TOPIC: "order.status"},
        keep=lambda _letter: None,
        watch=Watch(),
        replay_id="r",
        topic_ids={TOPIC: "the-topic"},
        store=store,
        close=store.close,
    )
    filters = Filters(SELECTION, {}, Decoder().decode)
    try:
        return run(ListSource(dies_at), target, filters, receipt, Watch(checkpoint_records=checkpoint_records))
    finally:
        target.close()


def revisions(state: StateSettings) -> int:
    store = StateStore(state, ORDER_STATE)
    try:
        with store.engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT sum(revision) FROM projection_state").scalar_one())
    finally:
        store.close()


@pytest.mark.parametrize("checkpoint_records", [10, 30, 10**6])
@pytest.mark.parametrize("dies_at", [10, 50, 90])
def test_what_was_left_out_before_the_kill_is_not_counted_as_written(
    tmp_path: Path, receipt: Receipt, dies_at: int, checkpoint_records: int
) -> None:
    state = state_settings(tmp_path)
    with pytest.raises(KilledError):
        replay(state, receipt, dies_at=dies_at, checkpoint_records=checkpoint_records)
    moved = replay(state, receipt, checkpoint_records=checkpoint_records)
    assert (moved.written.records, moved.filtered.records) == (50, 50)
    assert {view.order_id for view in reader.order_views(state.url)} == {f"O{number}" for number in range(1, 100, 2)}
    assert revisions(state) == 50, "a record has taken effect twice"


def rebuilt(state: StateSettings) -> None:
    """Swap a new generation in."""
    build, _ = generations.begin(state, ORDER_STATE)
    assert isinstance(
        generations.swap(state, ORDER_STATE, build, "the-cluster", {TOPIC: "the-topic"}), generations.Swapped
    )


@pytest.mark.parametrize("dies_at", [0, 50])
def test_a_replay_does_not_go_on_in_a_state_that_was_rebuilt_meanwhile(
    tmp_path: Path, receipt: Receipt, dies_at: int
) -> None:
    state = state_settings(tmp_path)
    with pytest.raises(KilledError):
        replay(state, receipt, dies_at=dies_at, checkpoint_records=20)
    rebuilt(state)
    for _run in range(2):
        with pytest.raises(OperatorError, match="rebuilt since") as refused:
            replay(state, receipt)
        assert refused.value.code == "generation_replaced"
    assert receipt.contents().state == "failed"
    assert list(reader.order_views(state.url)) == []


def test_a_receipt_that_does_not_say_the_generation_is_gone_on_with(
    tmp_path: Path, receipt: Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_settings(tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr(ConsumerTarget, "sync", lambda _target: {})
        with pytest.raises(KilledError):
            replay(state, receipt, dies_at=50, checkpoint_records=20)
    moved = replay(state, receipt)
    assert (moved.written.records, moved.filtered.records) == (50, 50)
