"""Row 52: whatever the order, the duplicates and the crashes, the state is the fold of the distinct events."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import ORDER_STATE, OrderEvent, rank
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.store import Advance, LostPartition, StateStore
from kinguin_streams.schemas.events import Event, ProductUpdate
from tests.consumers.databases import Crash, Template, crash_before_commit, next_offsets, source, without_fsync
from tests.consumers.deliveries import at, order_complete, order_status, product_update, received

ORDERS = ["A", "B", "C"]
STATUSES = ["processing", "completed", "canceled", "refunded", "new_word"]
ORDER_EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(order_status, st.sampled_from(STATUSES), st.integers(0, 3), order_id=st.sampled_from(ORDERS)),
    st.builds(order_complete, st.integers(0, 3), order_id=st.sampled_from(ORDERS)),
)
PRODUCT_EVENTS: st.SearchStrategy[Event] = st.builds(
    product_update, st.integers(0, 3), kinguin_id=st.integers(1, 3), qty=st.none() | st.integers(0, 2)
)
PARTITIONS = [0, 1]


class Consumer:
    """What one process believes: the next offset of each partition, as it read them when it started."""

    def __init__(self, store: StateStore, topic: str) -> None:
        self.store = store
        stored = next_offsets(store, topic)
        self.expected = {partition: stored.get((topic, partition)) for partition in PARTITIONS}


class Streams(RuleBasedStateMachine):
    """A topic of two partitions, a consumer that crashes, and one that has lost its partitions without knowing."""

    projection: Projection
    events: st.SearchStrategy[Event]
    template: Template

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._settings = self.template.copy(Path(self._folder.name))
        self._topic = "events"
        self._log: dict[int, list[Event]] = {partition: [] for partition in PARTITIONS}
        self._sent: list[Event] = []
        self._live = self._start()
        self._zombie: Consumer | None = None

    def _start(self) -> Consumer:
        return Consumer(without_fsync(StateStore(self._settings, self.projection)), self._topic)

    @rule(data=st.data(), partition=st.sampled_from(PARTITIONS))
    def deliver(self, data: st.DataObject, partition: int) -> None:
        event = data.draw(self.events)
        self._sent.append(event)
        self._log[partition].append(event)

    @precondition(lambda self: self._sent)
    @rule(data=st.data(), partition=st.sampled_from(PARTITIONS))
    def deliver_again(self, data: st.DataObject, partition: int) -> None:
        self._log[partition].append(data.draw(st.sampled_from(self._sent)))

    @rule(records=st.integers(1, 4))
    def consume(self, records: int) -> None:
        self._take(self._live, records)

    @rule(records=st.integers(1, 4))
    def crash_between_fold_and_commit(self, records: int) -> None:
        with crash_before_commit(self._live.store):
            try:
                self._take(self._live, records)
            except Crash:
                self._live.store.close()
                self._live = self._start()

    @precondition(lambda self: self._zombie is None)
    @rule()
    def lose_partitions_without_knowing(self) -> None:
        self._zombie, self._live = self._live, self._start()

    @precondition(lambda self: self._zombie is not None)
    @rule(records=st.integers(1, 4))
    def the_loser_writes_or_is_undone(self, records: int) -> None:
        assert self._zombie is not None
        try:
            if self._take(self._zombie, records):
                self._live.store.close()
                self._live = self._start()  # the zombie was first: now the other one has lost, and starts again
        except LostPartition:
            self._zombie.store.close()
            self._zombie = None

    def _take(self, consumer: Consumer, records: int) -> bool:
        """Apply up to so many records of each partition; return whether there were any."""
        batch, advances = [], []
        for partition, expected in consumer.expected.items():
            first = expected or 0
            chosen = self._log[partition][first : first + records]
            if chosen:
                advances.append(Advance(source(self._topic, partition), expected, first + len(chosen)))
                batch += [
                    received(event, first + i, partition=partition, topic=self._topic) for i, event in enumerate(chosen)
                ]
        if advances:
            consumer.store.apply(batch, advances)
        for advance in advances:
            consumer.expected[advance.source.partition] = advance.next_offset
        return bool(advances)

    @invariant()
    def state_is_the_fold_of_what_the_offsets_say(self) -> None:
        self._compare(self._live)

    def _compare(self, consumer: Consumer) -> None:
        stored = next_offsets(consumer.store, self._topic)
        done = {
            event.event_id: event
            for partition, events in self._log.items()
            for event in events[: stored.get((self._topic, partition), 0)]
        }
        self.compare(self._settings.url, list(done.values()))

    def compare(self, url: str, events: list[Event]) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        self._live.store.close()
        if self._zombie is not None:
            self._zombie.store.close()
        self._live = self._start()
        while self._take(self._live, 100):
            pass
        assert {p: self._live.expected[p] or 0 for p in PARTITIONS} == {p: len(log) for p, log in self._log.items()}
        self._compare(self._live)
        self._live.store.close()
        self._folder.cleanup()


class OrderStreams(Streams):
    projection = ORDER_STATE
    events = ORDER_EVENTS

    def compare(self, url: str, events: list[Event]) -> None:
        facts: dict[str, set[tuple[int, str]]] = {}
        for event in events:
            assert isinstance(event, OrderEvent)
            facts.setdefault(event.order_id, set()).add((event.updated_at_ms, event.status))
        assert {
            view.order_id: (view.status, {(fact.updated_at_ms, fact.status) for fact in view.facts})
            for view in reader.order_views(url)
        } == {order_id: (max(found, key=lambda fact: rank(*fact))[1], found) for order_id, found in facts.items()}


class ProductStreams(Streams):
    projection = PRODUCT_CHANGES
    events = PRODUCT_EVENTS

    def compare(self, url: str, events: list[Event]) -> None:
        expected: dict[int, tuple[int, int]] = {}
        for event in events:
            assert isinstance(event, ProductUpdate)
            changes, newest_ms = expected.get(event.kinguin_id, (0, at(0)))
            expected[event.kinguin_id] = (changes + 1, max(newest_ms, event.updated_at_ms))
        assert {
            view.kinguin_id: (view.summary.changes, view.summary.updated_at_ms) for view in reader.product_views(url)
        } == expected


@pytest.mark.parametrize("machine", [OrderStreams, ProductStreams])
@pytest.mark.parametrize("runs", [25, pytest.param(1_000, marks=[pytest.mark.faults, pytest.mark.timeout(1_800)])])
def test_row_52_any_order_duplicates_crashes_and_lost_partitions_give_the_same_state(
    machine: type[Streams], runs: int, tmp_path: Path
) -> None:
    machine.template = Template(tmp_path, machine.projection)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
