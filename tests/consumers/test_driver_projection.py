"""The driver runs the real loop and state: what it lets happen, and that it lets nothing pass that should not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from kinguin_streams.consumers.order_state import ORDER_STATE, OrderState, order_key, status
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import FoldProjection, StateKey
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.testing import ProjectionDriver, events
from kinguin_streams.ingress.payloads import read_event
from kinguin_streams.schemas.events import Event, EventName, OrderStatus, StoreName
from kinguin_streams.schemas.versions import shipped
from kinguin_streams.telemetry.operator_error import OperatorError


@pytest.fixture
def driver() -> Iterator[ProjectionDriver[OrderState]]:
    with ProjectionDriver(ORDER_STATE) as driver:
        yield driver


def statuses(driver: ProjectionDriver[OrderState]) -> dict[str, str | None]:
    return {key.id: status(tuple(reversed(state.facts))) for key, state in driver.states().items()}


def send_some(driver: ProjectionDriver[OrderState], orders: int = 6) -> None:
    """Send two events of each order: it is being processed, then it is completed."""
    for minute, word in enumerate(("processing", "completed")):
        driver.send(
            *(
                events.order_status(order_id=f"O{n}", status=word, updated_at=events.minutes(minute))
                for n in range(orders)
            )
        )


def completed(orders: int = 6) -> dict[str, str]:
    return {f"O{n}": "completed" for n in range(orders)}


# Events


@pytest.mark.parametrize(
    "event",
    [
        events.order_status(),
        events.order_status(order_external_id=None, status="возврат", store="shop-2", updated_at=events.minutes(-1.5)),
        events.order_complete(),
        events.order_complete(order_external_id=None, received_at=events.minutes(3)),
        events.product_update(),
        events.product_update(qty=0, text_qty=2, price="5.990001", cheapest_offer_ids=("a", "b")),
    ],
)
def test_an_event_is_what_the_ingress_makes_of_its_body(event: Event) -> None:
    assert read_event(event.store, cast("EventName", event.record_name), event.raw, event.received_at_ms) == event


def test_a_retry_differs_in_the_time_of_receipt_alone() -> None:
    event = events.order_status()
    retry = events.retried(event)
    assert retry != event
    assert msgspec.structs.replace(retry, received_at_ms=event.received_at_ms) == event


# In and out


def test_nothing_takes_effect_before_it_is_run(driver: ProjectionDriver[OrderState]) -> None:
    send_some(driver)
    assert (driver.waiting, driver.states()) == (12, {})
    driver.run(at_most=5)
    assert driver.waiting == 7
    driver.run()
    assert (driver.waiting, statuses(driver)) == (0, completed())
    assert sum(driver.offsets().values()) == 12


def test_a_state_is_found_by_its_key(driver: ProjectionDriver[OrderState]) -> None:
    driver.send(events.order_status(order_id="A"), events.order_status(order_id="A", store="shop-2", status="error"))
    driver.run()
    state, other = driver.state("A"), driver.state(StateKey("shop-2", "A"))
    assert state is not None
    assert other is not None
    assert (state.facts[0].status, other.facts[0].status) == ("processing", "error")
    assert driver.state("B") is None
    assert driver.states() == driver.expected_states()


def test_duplicates_are_further_records(driver: ProjectionDriver[OrderState]) -> None:
    send_some(driver, orders=1)
    driver.duplicate()
    driver.duplicate(events.order_status(order_id="O0"))
    assert driver.waiting == 5
    driver.run()
    state = driver.state("O0")
    assert state is not None
    assert len(state.facts) == 2
    assert driver.states() == driver.expected_states()


def test_what_has_been_read_is_not_shuffled_and_the_rest_is() -> None:
    with ProjectionDriver(ORDER_STATE, partitions=1) as driver:
        topic = driver.topics.name("order.status")
        send_some(driver, orders=20)
        driver.run(at_most=10)
        before = [record.key() for record in driver.kafka.records(topic)]
        driver.shuffle(seed=1)
        after = [record.key() for record in driver.kafka.records(topic)]
        assert after[:10] == before[:10]
        assert after[10:] != before[10:]
        assert sorted(map(str, after)) == sorted(map(str, before))
        assert [record.offset() for record in driver.kafka.records(topic)] == list(range(40))
        driver.run()
        assert statuses(driver) == completed(20)


def test_rows_are_read_as_rows() -> None:
    with ProjectionDriver(PRODUCT_CHANGES) as driver:
        driver.send(events.product_update(qty=5), events.product_update(qty=4, updated_at=events.minutes(1)))
        driver.duplicate()
        driver.run()
        assert sorted(row["qty"] for row in driver.rows()) == [4, 5]
        assert driver.rows() == driver.expected_rows()
        with pytest.raises(TypeError, match="rows"):
            driver.states()


def test_states_of_a_fold_are_no_rows(driver: ProjectionDriver[OrderState]) -> None:
    with pytest.raises(TypeError, match="states"):
        driver.rows()


def test_a_record_that_nobody_can_read_is_a_dead_letter(driver: ProjectionDriver[OrderState]) -> None:
    part = driver.send_bytes("order.status", b"no Avro", key=b"poison")
    send_some(driver)
    driver.run()
    [letter] = driver.dead_letters()
    assert (letter.reason, letter.body, letter.source_key, letter.source_partition) == (
        "unknown_frame", b"no Avro", b"poison", part.partition,
    )  # fmt: skip
    assert (driver.waiting, statuses(driver)) == (0, completed())


def test_a_dead_letter_that_nobody_takes_stops_the_consumer(driver: ProjectionDriver[OrderState]) -> None:
    driver.kafka.delete_topic(driver.topics.name("dead-letter"))
    driver.send_bytes("order.status", b"no Avro")
    with pytest.raises(OperatorError) as raised:
        driver.run()
    assert raised.value.code == "dead_letter_refused"
    assert driver.waiting == 1


def test_a_record_of_a_newer_schema_waits_and_time_alone_does_not_help(driver: ProjectionDriver[OrderState]) -> None:
    assert shipped().by_fingerprint(bytes(8)) is None
    driver.send_bytes("order.status", b"\xc3\x01" + bytes(8), partition=0)
    driver.run()
    assert driver.waiting == 1
    driver.advance(3_600)
    assert (driver.waiting, driver.dead_letters()) == (1, [])


def test_the_loop_lives_by_the_drivers_clock(driver: ProjectionDriver[OrderState]) -> None:
    """A second after its last commit the loop commits to Kafka, for lag tools."""
    group = driver.kafka.group("kinguin-streams.order-state")
    send_some(driver)
    driver.run()
    assert group.committed == {}
    driver.advance(1)
    assert sum(group.committed.values()) == 12
    with pytest.raises(ValueError, match="back"):
        driver.advance(-1)


def test_settings_of_the_consumer_are_taken() -> None:
    with ProjectionDriver(ORDER_STATE, group_prefix="mine", batch_records=2) as driver:
        send_some(driver)
        driver.run(at_most=100)
        assert driver.waiting == 10
        driver.run()
        driver.advance(1)
        assert sum(driver.kafka.group("mine.order-state").committed.values()) == 12


# Faults


def test_what_dies_before_its_commit_is_undone_and_done_again(driver: ProjectionDriver[OrderState]) -> None:
    send_some(driver)
    driver.crash_before_commit(at_most=4)
    assert (driver.waiting, driver.states(), driver.restarts) == (12, {}, 1)
    driver.run()
    assert (driver.waiting, statuses(driver)) == (0, completed())
    assert driver.states() == driver.expected_states()


def test_what_dies_after_its_commit_stays_done(driver: ProjectionDriver[OrderState]) -> None:
    send_some(driver)
    driver.crash_after_commit(at_most=4)
    assert (driver.waiting, driver.restarts) == (8, 1)
    driver.run()
    assert (driver.waiting, statuses(driver)) == (0, completed())


def test_a_crash_needs_something_to_lose(driver: ProjectionDriver[OrderState]) -> None:
    with pytest.raises(ValueError, match="nothing waits"):
        driver.crash_before_commit()
    send_some(driver)
    driver.run()
    with pytest.raises(ValueError, match="nothing waits"):
        driver.crash_after_commit()


@pytest.mark.parametrize("loser_writes_first", [False, True])
def test_of_two_that_write_for_one_partition_the_second_is_refused(
    driver: ProjectionDriver[OrderState], loser_writes_first: bool
) -> None:
    send_some(driver)
    driver.run(at_most=2)
    driver.lose_partition(loser_writes_first=loser_writes_first)
    driver.run()
    assert driver.refused == 1
    assert (driver.waiting, statuses(driver)) == (0, completed())
    driver.send(events.order_status(order_id="O1", status="refunded", updated_at=events.minutes(5)))
    driver.regain()
    driver.run()
    assert (driver.waiting, statuses(driver)) == (0, {**completed(), "O1": "refunded"})
    assert driver.refused == 1


def test_a_loser_that_notices_in_time_is_not_refused(driver: ProjectionDriver[OrderState]) -> None:
    send_some(driver)
    driver.run(at_most=2)
    driver.lose_partition(loser_writes_first=True)
    driver.regain()
    driver.run()
    assert (driver.refused, driver.waiting, statuses(driver)) == (0, 0, completed())


@pytest.mark.parametrize("partitions", [1, 3])
def test_who_joins_takes_a_share_and_gives_it_back(partitions: int) -> None:
    with ProjectionDriver(ORDER_STATE, partitions=partitions) as driver:
        send_some(driver)
        driver.join()
        driver.join()
        driver.run()
        assert (driver.waiting, statuses(driver)) == (0, completed())
        driver.regain()
        driver.duplicate()
        driver.run()
        assert (driver.waiting, driver.refused, driver.restarts) == (0, 0, 0)


def test_retention_that_has_passed_the_stored_offset_stops_the_consumer() -> None:
    with ProjectionDriver(ORDER_STATE, partitions=1) as driver:
        send_some(driver)
        driver.run(at_most=2)
        [part] = driver.kafka.partitions(driver.topics.name("order.status"))
        driver.kafka.delete_records(part, before_offset=5)
        with pytest.raises(OperatorError) as raised:
            driver.run()
        assert raised.value.code == "offset_out_of_range"


def test_a_topic_made_anew_stops_the_consumer(driver: ProjectionDriver[OrderState]) -> None:
    send_some(driver)
    driver.run()
    driver.kafka.make_topic(driver.topics.name("order.status"), 3)
    with pytest.raises(OperatorError) as raised:
        driver.run()
    assert raised.value.code == "topic_replaced"


# Where the state is kept


def test_every_fault_on_either_database(settings: StateSettings) -> None:
    with ProjectionDriver(ORDER_STATE, database=settings) as driver:
        send_some(driver)
        driver.crash_before_commit(at_most=3)
        driver.crash_after_commit(at_most=3)
        driver.join()
        driver.lose_partition()
        driver.duplicate()
        driver.run()
        assert driver.states() == driver.expected_states()
        assert (driver.waiting, statuses(driver), driver.restarts - driver.refused) == (0, completed(), 2)


def test_what_a_driver_has_made_is_gone_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ProjectionDriver(ORDER_STATE) as driver:
        send_some(driver)
        driver.join()
        driver.run()
        assert list(tmp_path.iterdir()) != []
    assert list(tmp_path.iterdir()) == []


class Bodies(msgspec.Struct, frozen=True):
    """What a fold was given as body."""

    seen: tuple[str, ...] = ()


def bodies(*unused: Any) -> FoldProjection[OrderStatus, Bodies]:
    return FoldProjection(
        name="bodies",
        version=1,
        events=("order.status",),
        state_type=Bodies,
        key=order_key,
        fold=lambda before, received: Bodies((*(before or Bodies()).seen, str(received.event.raw))),
        unused=unused,
    )


def test_a_fold_is_not_given_what_it_says_it_does_without() -> None:
    for projection, seen in ((bodies(), str(events.order_status().raw)), (bodies("raw"), "UNSET")):
        with ProjectionDriver(projection) as driver:
            driver.send(events.order_status())
            driver.run()
            assert [state.seen for state in driver.states().values()] == [(seen,)]


def test_only_what_nobody_else_needs_can_be_left_out() -> None:
    with pytest.raises(
        OperatorError, match=r"bodies says that it does without 'store'.* unused takes 'event_id' and 'raw'"
    ):
        bodies("raw", "store")


def test_a_store_name_is_one_of_the_contract() -> None:
    assert events.order_status(store="shop-2").store == StoreName("shop-2")


@pytest.mark.parametrize("act", ["crash_after_commit", "join", "lose_partition"])
def test_kafka_is_told_of_what_a_process_has_done_that_could_not_tell_it_any_more(act: str) -> None:
    """Where nothing more arrives, the lag would stand for ever in everybody's tools."""
    with ProjectionDriver(ORDER_STATE, partitions=2) as driver:
        send_some(driver)
        if act != "crash_after_commit":
            driver.run()
        getattr(driver, act)()
        driver.run()
        driver.advance(2)  # a commit a second
        assert driver.waiting == 0
        told = driver.kafka.group("kinguin-streams.order-state").committed
        assert told == driver.offsets()
