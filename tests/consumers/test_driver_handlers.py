"""HandlerDriver: what befalls an App in it is what befalls it in Kafka, and nothing is waited for."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kinguin_streams.consumers.app import App, Context, Reject
from kinguin_streams.consumers.testing import HandlerDriver, events
from kinguin_streams.schemas.events import OrderStatus
from kinguin_streams.telemetry.operator_error import OperatorError


class Calls:
    """An App that notes each call. fails: what an attempt at an order is answered with, if with anything."""

    def __init__(self, fails: Callable[[str, int], Exception | None] = lambda _id, _attempt: None) -> None:
        self.app = App("notes")
        self.seen: list[tuple[str, int]] = []
        """Order id and attempt."""

        @self.app.on(OrderStatus)
        def handle(event: OrderStatus, context: Context) -> None:
            self.seen.append((event.order_id, context.attempt))
            error = fails(event.order_id, context.attempt)
            if error is not None:
                raise error

    @property
    def orders(self) -> list[str]:
        return [order_id for order_id, _ in self.seen]


def orders(count: int) -> list[OrderStatus]:
    return [events.order_status(order_id=f"O{number}", updated_at=events.minutes(number)) for number in range(count)]


def away(order_id: str, attempts: int = 2) -> Callable[[str, int], Exception | None]:
    """Return what fails that often at one order."""
    return lambda found, attempt: OSError("away") if found == order_id and attempt <= attempts else None


def test_each_record_is_handled_and_committed() -> None:
    calls = Calls()
    with HandlerDriver(calls.app) as driver:
        driver.send(*orders(6))
        assert (calls.seen, driver.waiting) == ([], 6)
        driver.run()
        assert sorted(calls.orders) == [f"O{number}" for number in range(6)]
        assert (driver.waiting, sum(driver.offsets().values())) == (0, 6)


def test_a_commit_that_kafka_did_not_take_is_made_again_though_nothing_new_arrives() -> None:
    calls = Calls()
    with HandlerDriver(calls.app) as driver:
        driver.send(*orders(6))
        with driver.commits_fail():
            driver.run()
            assert (len(calls.seen), driver.offsets()) == (6, {})
        driver.run()
        assert (len(calls.seen), sum(driver.offsets().values())) == (6, 6)


def test_of_two_commits_that_kafka_took_the_wrong_way_round_the_later_is_made_again() -> None:
    calls = Calls()
    with HandlerDriver(calls.app, partitions=1) as driver:
        with driver.commits_wait():
            for batch in (orders(10)[:4], orders(10)[4:]):
                driver.send(*batch)
                driver.run()
            assert (len(calls.seen), driver.offsets()) == (10, {})
        driver.run()
        assert (len(calls.seen), sum(driver.offsets().values())) == (10, 10)


def test_a_failed_record_comes_again_when_its_time_has_come_and_holds_up_its_partition_only() -> None:
    calls = Calls(away("O0"))
    with HandlerDriver(calls.app, partitions=2, handler_retry_s=1.0) as driver:
        driver.send(*orders(8))
        driver.run()
        assert calls.seen.count(("O0", 1)) == 1
        assert len({order for order in calls.orders if order != "O0"}) + driver.waiting == 8
        driver.advance(0.9)
        assert ("O0", 2) not in calls.seen
        driver.advance(0.1)
        assert ("O0", 2) in calls.seen
        driver.advance(1.9)
        assert ("O0", 3) not in calls.seen  # the second wait is twice as long
        driver.advance(0.1)
        assert (("O0", 3) in calls.seen, driver.waiting, driver.dead_letters()) == (True, 0, [])


def test_all_waits_that_end_on_the_way_are_waited_for() -> None:
    calls = Calls(away("O0", attempts=4))
    with HandlerDriver(calls.app, handler_attempts=5, handler_retry_s=1.0) as driver:
        driver.send(*orders(1))
        driver.run()
        driver.advance(14.9)
        assert [attempt for _, attempt in calls.seen] == [1, 2, 3, 4]
        driver.advance(0.1)  # 1 + 2 + 4 + 8 seconds
        assert [attempt for _, attempt in calls.seen] == [1, 2, 3, 4, 5]
        assert driver.waiting == 0


def test_a_record_that_fails_every_time_is_a_dead_letter_and_one_that_is_rejected_at_once() -> None:
    def fails(order_id: str, _attempt: int) -> Exception | None:
        return {"O0": OSError("away"), "O1": Reject("unknown_customer", "nobody")}.get(order_id)

    calls = Calls(fails)
    with HandlerDriver(calls.app, handler_attempts=3) as driver:
        sent = orders(3)
        driver.send(*sent)
        driver.run()
        driver.advance(3_600)
        found = {letter.reason: (letter.detail, letter.consumer) for letter in driver.dead_letters()}
        assert found == {
            "handler_failed": ("OSError: away", "notes"),
            "unknown_customer": ("nobody", "notes"),
        }
        assert Counter(calls.orders) == {"O0": 3, "O1": 1, "O2": 1}
        assert driver.waiting == 0


def test_what_was_done_before_a_crash_is_done_again_and_what_was_committed_is_not() -> None:
    calls = Calls()
    with HandlerDriver(calls.app, partitions=1) as driver:
        driver.send(*orders(6))
        driver.crash_before_commit(at_most=2)
        assert (calls.orders, driver.waiting, driver.restarts) == (["O0", "O1"], 6, 1)
        driver.crash_after_commit(at_most=3)
        assert (calls.orders[2:], driver.waiting, driver.restarts) == (["O0", "O1", "O2"], 3, 2)
        driver.run()
        assert calls.orders[5:] == ["O3", "O4", "O5"]
        with pytest.raises(ValueError, match="nothing waits"):
            driver.crash_before_commit()


def test_a_dead_letter_whose_offset_was_not_committed_is_written_again() -> None:
    calls = Calls(lambda _id, _attempt: Reject("no"))
    with HandlerDriver(calls.app) as driver:
        driver.send(*orders(1))
        driver.crash_before_commit()
        driver.run()
        first, second = driver.dead_letters()
        assert first.dead_letter_id == second.dead_letter_id


def test_who_has_lost_a_partition_goes_on_and_its_commits_count_for_nothing() -> None:
    calls = Calls()
    with HandlerDriver(calls.app, partitions=1) as driver:
        driver.send(*orders(4))
        driver.run(at_most=1)
        driver.lose_partition()
        driver.run()
        assert Counter(calls.orders) == {"O0": 1, "O1": 2, "O2": 2, "O3": 2}
        assert (driver.waiting, driver.refused) == (0, 0)
        driver.regain()
        driver.send(*orders(5)[4:])
        driver.run()
        assert calls.orders.count("O4") == 1


def test_two_processes_share_the_partitions_and_a_planned_move_repeats_nothing() -> None:
    calls = Calls()
    with HandlerDriver(calls.app, partitions=2) as driver:
        driver.send(*orders(10))
        driver.run(at_most=3)
        driver.join()
        driver.run()
        driver.regain()
        assert (Counter(calls.orders).most_common(1)[0][1], driver.waiting) == (1, 0)


def test_the_breaker_stops_it_and_whoever_starts_it_again_loses_nothing() -> None:
    broken = True
    calls = Calls(lambda _id, _attempt: OSError("away") if broken else None)
    with HandlerDriver(calls.app, partitions=1, handler_attempts=1, handler_breaker_letters=2) as driver:
        driver.send(*orders(10))
        with pytest.raises(OperatorError) as stopped:
            driver.run()
        assert stopped.value.code == "handler_keeps_failing"
        assert (len(driver.dead_letters()), driver.waiting) == (2, 8)
        with pytest.raises(OperatorError):
            driver.run()  # a new process, that has its own two
        broken = False
        driver.run()
        assert (len(driver.dead_letters()), driver.waiting) == (4, 0)
        assert calls.orders[-6:] == [f"O{number}" for number in range(4, 10)]


def test_a_batch_is_handed_over_whole() -> None:
    app, batches = App("batches"), list[int]()

    @app.on_batch(OrderStatus, most_records=4)
    def handle(given: Sequence[OrderStatus], contexts: Sequence[Context]) -> None:
        batches.append(len(given))

    with HandlerDriver(app, partitions=1) as driver:
        driver.send(*orders(10))
        driver.run()
    assert batches == [4, 4, 2]


def test_retries_of_the_sender_have_the_event_id_that_makes_an_effect_idempotent() -> None:
    done: dict[str, str] = {}
    calls = Calls()
    app = App("idempotent")

    @app.on(OrderStatus)
    def handle(event: OrderStatus, context: Context) -> None:
        calls.seen.append((event.order_id, context.attempt))
        done[context.event_id] = event.order_id

    with HandlerDriver(app) as driver:
        driver.send(*orders(5))
        driver.duplicate()
        driver.shuffle(seed=7)
        driver.run()
    assert (len(calls.seen), len(done)) == (10, 5)


def test_a_topic_made_anew_is_refused_with_the_group_in_the_hint() -> None:
    calls = Calls()
    with HandlerDriver(calls.app, partitions=1) as driver:
        driver.send(*orders(2))
        driver.run()
        driver.kafka.delete_topic("kinguin.order.status")
        driver.kafka.make_topic("kinguin.order.status", 1)
        for _ in range(2):  # the running process, and the one that is started in its place
            with pytest.raises(OperatorError) as stopped:
                driver.run()
            assert stopped.value.code == "topic_replaced"
            assert "replay group kinguin-streams.notes kinguin.order.status" in stopped.value.hint


def test_retention_that_has_passed_the_committed_offset_stops_it() -> None:
    calls = Calls()
    with HandlerDriver(calls.app, partitions=1) as driver:
        driver.send(*orders(4))
        driver.run(at_most=1)
        [part] = driver.kafka.partitions("kinguin.order.status")
        driver.kafka.delete_records(part, before_offset=3)
        with pytest.raises(OperatorError) as stopped:
            driver.run()
        assert stopped.value.code == "offset_out_of_range"
        assert "move the group" in stopped.value.hint


def test_a_handler_that_takes_long_lets_the_others_in_between() -> None:
    app, seen = App("slow"), list[Any]()
    driver = HandlerDriver(app_with(app, seen, lambda: driver.clock.advance(0.7)), partitions=2)
    with driver:
        driver.send(*orders(6))
        driver.run()
    assert len(seen) == 6


def app_with(app: App, seen: list[Any], wait: Callable[[], None]) -> App:
    @app.on(OrderStatus)
    def handle(event: OrderStatus, context: Context) -> None:
        wait()
        seen.append(event)

    return app


def test_an_app_without_handlers_is_refused() -> None:
    with pytest.raises(OperatorError, match="has no handlers"):
        HandlerDriver(App("empty"))
