"""What a consumer counts: each record in its column, and which of its partitions wait for what."""

from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.held import HeldPartitions
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.tally import MOST_REASONS, OTHER, Tally, count_stale
from tests.consumers.deliveries import order_status, received


def test_what_a_fold_hears_for_the_second_time_is_stale() -> None:
    tally = Tally()
    fold = count_stale(ORDER_STATE, tally).fold  # type: ignore[union-attr]
    state = fold(None, received(order_status("processing")))
    assert tally.stale == 0
    assert fold(state, received(order_status("processing"), offset=9)) is state
    assert tally.stale == 1
    fold(state, received(order_status("completed", 1), offset=10))
    assert tally.stale == 1


def test_rows_are_left_as_they_are() -> None:
    assert count_stale(PRODUCT_CHANGES, Tally()) is PRODUCT_CHANGES


def test_reasons_cannot_grow_without_end() -> None:
    tally = Tally()
    for number in range(MOST_REASONS + 10):
        tally.dead_letter(f"unknown_customer_{number}")
    assert len(tally.dead_letters) == MOST_REASONS + 1
    assert tally.dead_letters[OTHER] == 10
    assert tally.dead_lettered == MOST_REASONS + 10


def test_partitions_that_wait_are_counted_by_what_they_wait_for() -> None:
    held = HeldPartitions(1.0, 60.0)

    class _Message:
        def offset(self) -> int:
            return 7

    message: object = _Message()
    held.hold_for_schema(TopicPart("t", 0), [message], 10.0)  # type: ignore[list-item]
    held.hold(TopicPart("t", 1), [message], 15.0)  # type: ignore[list-item]
    held.hold(TopicPart("t", 2), [message], 10.0)  # type: ignore[list-item]
    assert held.waiting(10.0) == {"database": 0, "kafka": 0, "schema": 1, "retry": 1, "handler": 1}
    held.clear()
    assert sum(held.waiting(10.0).values()) == 0
