"""A batch is stored while the next one is fetched and decoded: whatever changes meanwhile, each record is folded in once."""

import decimal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinguin_streams.consumers import loop as loop_module
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.effect import StateEffect
from kinguin_streams.consumers.order_state import order_key
from kinguin_streams.consumers.projection import FoldProjection, Received
from kinguin_streams.consumers.store import Advance, StateStore
from kinguin_streams.consumers.testing import ProjectionDriver, events
from kinguin_streams.schemas.codec import Decoder, UnknownSchema
from kinguin_streams.schemas.events import OrderStatus, Record
from kinguin_streams.telemetry.operator_error import OperatorError
from kinguin_streams.telemetry.traces import HasHeaders, PassedOn, TraceHeaders

SLICE, BATCH = 3, 8


class Places(msgspec.Struct, frozen=True):
    """Every record that was folded in, as often as it was: no duplicate goes unseen, as it would in a set of facts."""

    folded: tuple[tuple[int, int], ...] = ()


def _fold(state: Places | None, received: Received[OrderStatus]) -> Places:
    before = () if state is None else state.folded
    return Places((*before, (received.partition, received.offset)))


PLACES = FoldProjection(
    name="places", version=1, events=("order.status",), state_type=Places, key=order_key, fold=_fold
)


class _Span:
    """What is said of a batch, and whether it has ended."""

    def __init__(self, count: int) -> None:
        self.headers = TraceHeaders()
        self.said: tuple[int, str | None, bool] = count, None, False
        self.has_ended = False

    def ended(self, outcome: str, *, failed: bool) -> None:
        self.said = self.said[0], outcome, failed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.has_ended = True


class _Traces(PassedOn):
    """Keeps the spans of batches."""

    def __init__(self) -> None:
        self.spans: list[_Span] = []

    def processing(self, _consumer: str, _records: Sequence[HasHeaders], count: int) -> _Span:  # type: ignore[override]
        self.spans.append(_Span(count))
        return self.spans[-1]


class AheadDriver(ProjectionDriver[Places]):
    """Every batch is stored beside the next; a process may join whenever one is about to fetch."""

    def __init__(self, **driver_settings: Any) -> None:
        self.stores: list[StateStore] = []
        self.effects: list[StateEffect] = []
        super().__init__(PLACES, batch_records=BATCH, **driver_settings)

    def _new_effect(self) -> tuple[StateEffect, StateStore | None]:
        _, store = super()._new_effect()
        assert store is not None
        self.stores.append(store)
        self.effects.append(StateEffect(PLACES, store, ahead_from=1))
        return self.effects[-1], store

    def add_process(self) -> None:
        """Join the group, without a word to the processes that are at work."""
        self._start()

    def run(self, at_most: int | None = None) -> None:
        """As ever; a process that has nothing more to fetch may have a batch in hand, which its next turn waits for."""
        super().run(at_most)
        before = -1
        while before != (applied := sum(process.loop.applied for process in self._processes)):
            before = applied
            super().run(at_most)

    def turn(self) -> None:
        """Let the first process take a turn."""
        self._turn(self._processes[0], None)

    def wait_stored(self) -> None:
        """Return when the transaction in hand has ended, however it did; the loop has not heard of it."""
        in_hand = self.effects[0]._in_hand
        assert in_hand is not None
        in_hand.transaction.exception(30)

    def spanned(self) -> list["_Span"]:
        """Return where the spans of the first process's batches will be."""
        traces = _Traces()
        self.loop._traces = traces
        return traces.spans

    def on_fetch(self, number: int, do: Any) -> None:
        """Have it done before the first process's consume() of that number, counted from now."""
        client = self._processes[0].client
        consume, calls = client.consume, iter(range(1_000_000))

        def consuming(most: int, wait_s: float) -> Any:
            if next(calls) == number:
                do()
            return consume(most, wait_s)

        client.consume = consuming  # type: ignore[method-assign, assignment]

    @property
    def loop(self) -> loop_module.ConsumeLoop:
        return self._processes[0].loop

    @property
    def consumed(self) -> int:
        return sum(self.loop.tally.consumed.values())

    @property
    def folded(self) -> list[tuple[int, int]]:
        return sorted(place for state in self.states().values() for place in state.folded)

    @property
    def all_records(self) -> list[tuple[int, int]]:
        (topic,) = self._source_topics
        return sorted((record.partition(), record.offset()) for record in self.kafka.records(topic))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "SLICE_RECORDS", SLICE)


@pytest.fixture
def driver() -> Iterator[AheadDriver]:
    with AheadDriver() as driver:
        yield driver


def send(driver: AheadDriver, count: int, first: int = 0) -> None:
    driver.send(
        *(events.order_status(order_id=f"O{n % 7}", updated_at=events.minutes(n)) for n in range(first, first + count))
    )


@contextmanager
def held_back(store: StateStore) -> Iterator[threading.Event]:
    """Let transactions begin only once the event is set."""
    gate, apply = threading.Event(), store.apply_by_key

    def waiting(batch: Any, advances: list[Advance]) -> None:
        assert gate.wait(30)
        apply(batch, advances)

    store.apply_by_key = waiting  # type: ignore[method-assign, assignment]
    try:
        yield gate
    finally:
        gate.set()
        store.apply_by_key = apply  # type: ignore[method-assign]


def test_the_next_batch_is_fetched_while_one_is_stored_and_nothing_is_done_before_its_transaction(
    driver: AheadDriver,
) -> None:
    send(driver, 20)
    driver.run(at_most=0)
    with held_back(driver.stores[0]) as gate:
        driver.turn()
        assert (driver.consumed, driver.loop.applied) == (BATCH, 0)
        fetched = threading.Thread(target=driver.turn)
        fetched.start()
        while driver.consumed < 2 * BATCH:
            assert fetched.is_alive()
        assert driver.loop.applied == 0
        assert driver.offsets() == {}
        assert set(driver.loop.next_offsets.values()) == {None}
        gate.set()
        fetched.join(30)
    assert driver.loop.applied >= BATCH
    driver.run()
    assert driver.loop.applied == 20
    assert driver.folded == driver.all_records


def test_a_partition_is_given_up_once_the_batch_in_hand_is_stored(driver: AheadDriver) -> None:
    send(driver, 20)
    driver.run(at_most=0)
    driver.turn()
    assert driver.loop.applied == 0
    driver.add_process()
    driver.turn()  # gives up what it has
    assert driver.loop.applied == BATCH
    driver.run()
    assert driver.refused == 0
    assert driver.folded == driver.all_records


@pytest.mark.parametrize("group_protocol", ["classic", "consumer"], indirect=True)
@pytest.mark.usefixtures("group_protocol")
@pytest.mark.parametrize("fetch", range(8))
def test_a_rebalance_between_two_slices_of_a_batch_costs_nothing_and_repeats_nothing(fetch: int) -> None:
    with AheadDriver() as driver:
        send(driver, 40)
        driver.run(at_most=0)
        driver.on_fetch(fetch, driver.add_process)
        driver.run()
        assert len(driver.stores) == 2
        assert driver.refused == 0
        assert driver.folded == driver.all_records


@pytest.mark.parametrize("code", ["state_away", "state_busy"])
def test_a_batch_in_hand_that_the_database_did_not_take_is_read_again_with_what_was_fetched_since(
    driver: AheadDriver, code: str
) -> None:
    send(driver, 20)
    driver.run(at_most=0)
    apply = driver.stores[0].apply_by_key

    def away(*_: Any) -> None:
        raise OperatorError(code, "It does not answer.", "Wait.")

    driver.stores[0].apply_by_key = away  # type: ignore[method-assign, assignment]
    driver.turn()
    driver.turn()
    assert driver.loop.waits_for == "database"
    assert (driver.loop.applied, driver.offsets()) == (0, {})
    driver.stores[0].apply_by_key = apply  # type: ignore[method-assign]
    driver.clock.advance(60)
    driver.run()
    assert driver.loop.applied == 20
    assert driver.folded == driver.all_records


def test_a_batch_ends_in_its_span_and_in_the_metrics_when_its_transaction_does(driver: AheadDriver) -> None:
    send(driver, BATCH)
    driver.run(at_most=0)
    spans, seconds = driver.spanned(), driver.loop.tally.batch_seconds
    with held_back(driver.stores[0]) as gate:
        driver.turn()
        (span,) = spans
        assert (span.has_ended, span.said, sum(seconds._counts)) == (False, (BATCH, None, False), 0)
        driver.clock.advance(7)
        gate.set()
        driver.wait_stored()
    driver.clock.advance(60)  # before the loop hears of it
    assert (span.has_ended, span.said) == (True, (BATCH, "applied", False))
    driver.run()
    assert (sum(seconds._counts), seconds._sum) == (1, 7)


def test_a_batch_that_was_undone_after_it_was_handed_over_does_not_pass_for_applied(driver: AheadDriver) -> None:
    send(driver, 2 * BATCH)
    driver.run(at_most=0)
    spans = driver.spanned()
    _fail_once(driver.stores[0])
    driver.turn()
    driver.wait_stored()
    assert [(span.has_ended, span.said) for span in spans] == [(True, (BATCH, "state_away", True))]
    driver.turn()  # fetches the next one, which is dropped
    assert driver.loop.waits_for == "database"
    driver.clock.advance(60)
    driver.run()
    assert [span.said[1] for span in spans] == ["state_away", "state_away", "applied", "applied"]
    assert all(span.has_ended for span in spans)
    assert sum(driver.loop.tally.batch_records._counts) == 2
    assert driver.folded == driver.all_records


def test_a_kafka_that_is_away_is_waited_for_with_nothing_in_hand(
    driver: AheadDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(driver, 3 * BATCH)
    driver.run(at_most=0)
    driver.turn()
    for part in driver.loop.assigned:
        log = driver.kafka.log(part)
        assert log is not None
        driver.kafka.delete_records(part, log.end)

    def away() -> None:
        raise OperatorError("kafka_unreachable", "It does not answer.", "Wait.")

    with monkeypatch.context() as patch, held_back(driver.stores[0]) as gate:
        patch.setattr(driver.loop._member._identity, "ask", away)
        patch.setattr(driver.loop._member._identity, "watch", lambda: None)
        threading.Timer(0.1, gate.set).start()
        driver.turn()
    assert (driver.loop.waits_for, driver.loop.applied) == ("kafka", BATCH)
    driver.clock.advance(60)
    with pytest.raises(OperatorError) as ended:
        driver.run()
    assert ended.value.code == "offset_out_of_range"


def test_what_stops_a_consumer_stops_it_also_when_it_comes_from_the_batch_in_hand(driver: AheadDriver) -> None:
    send(driver, BATCH)
    driver.run(at_most=0)

    def refused(*_: Any) -> None:
        raise OperatorError("state_disk_full", "The disk is full.", "Make room.")

    driver.stores[0].apply_by_key = refused  # type: ignore[method-assign, assignment]
    driver.turn()
    with pytest.raises(OperatorError, match="The disk is full"):
        driver.turn()
    assert driver.offsets() == {}


def test_a_stop_waits_for_the_batch_in_hand(driver: AheadDriver) -> None:
    send(driver, BATCH)
    driver.run(at_most=0)
    driver.turn()
    driver.loop.close()
    assert driver.loop.applied == BATCH
    assert sum(driver.offsets().values()) == BATCH


class LearningDecoder(Decoder):
    """Knows the schema of none of the records of some orders, until it has learnt it."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: frozenset[str] = frozenset()

    def decode(self, data: bytes | None) -> Record:
        record = super().decode(data)
        if isinstance(record, OrderStatus) and record.order_id in self.unknown:
            raise UnknownSchema("new")
        return record


def test_a_record_that_waits_for_its_schema_does_so_beside_a_batch_in_hand() -> None:
    decoder = LearningDecoder()
    with AheadDriver(decoder=decoder, partitions=1) as driver:
        send(driver, 3)
        decoder.unknown = frozenset({"O3"})
        send(driver, 17, first=3)
        driver.run(at_most=0)
        with held_back(driver.stores[0]) as gate:
            driver.turn()
            assert driver.loop.paused["schema"] == 1
            gate.set()
        driver.run()
        assert driver.folded == [(0, offset) for offset in range(3)]
        decoder.unknown = frozenset()
        driver.advance(120)
        driver.run()
        assert driver.folded == driver.all_records


class Sum(msgspec.Struct, frozen=True):
    """A third for every record, as exact as decimal's context says."""

    thirds: decimal.Decimal = decimal.Decimal(0)


SUMS = FoldProjection(
    name="sums",
    version=1,
    events=("order.status",),
    state_type=Sum,
    key=order_key,
    fold=lambda before, _: Sum((before or Sum()).thirds + decimal.Decimal(1) / 3),
)


@pytest.mark.parametrize("ahead_from", [None, 1])
def test_a_fold_has_the_same_context_on_either_thread(ahead_from: int | None) -> None:
    class SumDriver(ProjectionDriver[Sum]):
        def _new_effect(self) -> tuple[StateEffect, StateStore | None]:
            _, store = super()._new_effect()
            assert store is not None
            return StateEffect(SUMS, store, ahead_from=ahead_from), store

    with decimal.localcontext(prec=50), SumDriver(SUMS) as driver:
        driver.send(events.order_status(order_id="O1"))
        driver.run()
        driver.run()
        assert str(driver.states().popitem()[1].thirds) == f"0.{'3' * 50}"


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 25)),
        st.tuples(st.just("turn"), st.integers(0, 3)),
        st.tuples(st.just("join at fetch"), st.integers(0, 4)),
        st.tuples(st.just("leave"), st.integers(0, 3)),
        st.tuples(st.just("away"), st.integers(0, 3)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_whatever_happens_each_record_is_folded_in_once(steps: list[Step]) -> None:
    with AheadDriver() as driver:
        sent = 0
        for what, number in steps:
            processes = driver._processes
            process = processes[number % len(processes)]
            if what == "send":
                send(driver, number, first=sent)
                sent += number
            elif what == "turn":
                driver._turn(process, None)
            elif what == "join at fetch" and len(processes) < 4:
                driver.on_fetch(number, driver.add_process)
            elif what == "leave" and len(processes) > 1:
                processes.remove(process)
                process.loop.close()
                process.close()
            elif what == "away":
                _fail_once(process.store)
        for _ in range(20):
            driver.run()
            driver.advance(60)
        assert driver.folded == driver.all_records


def _fail_once(store: StateStore | None) -> None:
    assert store is not None
    apply = StateStore.apply_by_key.__get__(store)

    def away(*_: Any) -> None:
        store.apply_by_key = apply  # type: ignore[method-assign]
        raise OperatorError("state_away", "It does not answer.", "Wait.")

    store.apply_by_key = away  # type: ignore[method-assign, assignment]


def test_the_batches_of_one_effect_are_stored_in_their_order(driver: AheadDriver) -> None:
    send(driver, 100)
    driver.run()
    assert driver.folded == driver.all_records
    assert driver.offsets() == {
        TopicPart(driver.topics.name("order.status"), partition): 1 + max(o for p, o in driver.folded if p == partition)
        for partition in {partition for partition, _ in driver.folded}
    }
