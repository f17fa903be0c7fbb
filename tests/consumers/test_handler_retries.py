"""Handlers on a real Kafka: in order, at least once, tried again in place, and at last dead-lettered."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from kinguin_streams.consumers.app import App, Context, Reject
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import OrderStatus
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import KafkaCluster
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, wait_until
from tests.consumers.running_handlers import committed, running_app
from tests.consumers.test_consume_loop import RegistryThatIsAway

pytestmark = pytest.mark.kafka

EVENTS = [order_status("processing", n / 100, order_id=f"O{n}") for n in range(20)]


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


class Calls:
    """An App that notes what it is called with, and fails as it is told to."""

    def __init__(self) -> None:
        self.app = App("notes")
        self.seen: list[tuple[OrderStatus, Context]] = []
        self.done: list[tuple[OrderStatus, Context]] = []
        self.poison: dict[str, int] = {}
        """Order id to how often it fails."""
        self.rejected: set[str] = set()
        self.app.on(OrderStatus)(self.handle)

    def handle(self, event: OrderStatus, context: Context) -> None:
        self.seen.append((event, context))
        if event.order_id in self.rejected:
            raise Reject("unknown_customer", "nobody is called so")
        if context.attempt <= self.poison.get(event.order_id, 0):
            raise ValueError(f"attempt {context.attempt} at {event.order_id}")
        self.done.append((event, context))

    def attempts(self, order_id: str) -> list[int]:
        return [context.attempt for event, context in self.seen if event.order_id == order_id]


def test_every_record_is_handled_in_the_order_of_its_partition(streams: Streams) -> None:
    streams.write(*EVENTS)
    calls = Calls()
    with running_app(streams, calls.app) as running:
        running.catch_up(streams.ends("order.status"))
        assert running.loop.applied == 20
    assert {event.order_id: event for event, _ in calls.done} == {event.order_id: event for event in EVENTS}
    for partition in (0, 1):
        offsets = [context.offset for _, context in calls.seen if context.partition == partition]
        assert offsets == list(range(len(offsets)))
    event, context = calls.done[0]
    assert (context.event_id, context.attempt, context.replay) == (event.event_id, 1, False)
    assert context.received == datetime.fromtimestamp(event.received_at_ms / 1000, UTC)
    assert context.topic == streams.name("order.status")


def test_a_restart_goes_on_where_the_group_has_committed(streams: Streams) -> None:
    streams.write(*EVENTS[:10])
    first = Calls()
    with running_app(streams, first.app):
        wait_until(lambda: len(first.done) == 10, "ten records")
    ends = streams.ends("order.status")
    assert committed(streams, "notes", *ends) == ends  # also what was done just before the stop
    streams.write(*EVENTS[10:])
    second = Calls()
    with running_app(streams, second.app) as running:
        running.catch_up(streams.ends("order.status"))
    assert [len(calls.seen) for calls in (first, second)] == [10, 10]


def test_a_record_is_tried_again_in_place_while_the_other_partition_goes_on(streams: Streams) -> None:
    streams.write(*EVENTS)
    calls = Calls()
    calls.poison = {"O7": 3}
    with running_app(streams, calls.app, handler_retry_s=0.5, handler_retry_max_s=0.5) as running:
        wait_until(lambda: calls.attempts("O7") != [], "the first failure")
        part = next(context.partition for event, context in calls.seen if event.order_id == "O7")
        other = [context for _, context in calls.done if context.partition != part]
        ends = streams.ends("order.status")
        topic = streams.name("order.status")
        wait_until(lambda: committed(streams, "notes", (topic, 1 - part)) == {(topic, 1 - part): ends[topic, 1 - part]}, "the other partition")  # fmt: skip
        assert "O7" not in [event.order_id for event, _ in calls.done], "the other partition had to wait"
        assert other is not None
        running.catch_up(ends)
    assert calls.attempts("O7") == [1, 2, 3, 4]
    offsets = [context.offset for _, context in calls.done if context.partition == part]
    assert offsets == list(range(len(offsets)))
    assert streams.dead_letters() == []


def test_row_51_one_poison_record_in_a_thousand_is_dead_lettered_with_its_own_bytes(streams: Streams) -> None:
    events = [order_status("processing", n / 100, order_id=f"O{n}") for n in range(1000)]
    streams.write(*events)
    calls = Calls()
    calls.poison = {"O500": 1_000_000}
    with running_app(streams, calls.app) as running:
        running.catch_up(streams.ends("order.status"))
        assert (running.loop.applied, running.loop.dead_lettered) == (999, 1)
    assert calls.attempts("O500") == [1, 2, 3, 4, 5]
    assert Counter(event.order_id for event, _ in calls.done) == Counter(e.order_id for e in events if e.order_id != "O500")  # fmt: skip
    [letter] = streams.dead_letters()
    assert (letter.origin, letter.consumer, letter.reason) == ("consumer", "notes", "handler_failed")
    assert letter.detail == "ValueError: attempt 5 at O500"
    written = outgoing(events[500], streams.topics, Encoder())
    assert (letter.body, letter.source_key, tuple(letter.headers)) == (written.value, written.key, written.headers)
    context = next(context for event, context in calls.seen if event.order_id == "O500")
    assert (letter.source_topic, letter.source_partition, letter.source_offset) == (context.topic, context.partition, context.offset)  # fmt: skip


def test_a_rejected_record_is_dead_lettered_at_once_with_the_handlers_reason(streams: Streams) -> None:
    streams.write(*EVENTS)
    calls = Calls()
    calls.rejected = {event.order_id for event in EVENTS[:15]}  # more than the breaker would let pass
    with running_app(streams, calls.app) as running:
        running.catch_up(streams.ends("order.status"))
    assert len(calls.seen) == 20
    assert {(letter.reason, letter.detail) for letter in streams.dead_letters()} == {("unknown_customer", "nobody is called so")}  # fmt: skip
    assert len(streams.dead_letters()) == 15


def test_the_breaker_stops_the_consumer_before_most_of_a_batch_is_dead_lettered(streams: Streams) -> None:
    streams.write(*EVENTS)
    calls = Calls()
    calls.poison = {event.order_id: 1_000_000 for event in EVENTS}
    with running_app(streams, calls.app, handler_attempts=2, handler_breaker_letters=3) as running:
        failure = running.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code == "handler_keeps_failing"
    assert "ValueError: attempt 2 at O" in failure.what
    assert len(streams.dead_letters()) == 3
    mended = Calls()
    with running_app(streams, mended.app) as running:
        running.catch_up(streams.ends("order.status"))
    assert len(mended.done) == 17, "what was not dead-lettered comes first after the restart"


def test_what_nobody_can_read_is_dead_lettered_in_its_turn(streams: Streams) -> None:
    streams.write_bytes("order.status", [b"no Avro"])
    streams.write(*EVENTS)
    streams.write_bytes("order.status", [b"none either"])
    calls = Calls()
    with running_app(streams, calls.app) as running:
        running.catch_up(streams.ends("order.status"))
    assert len(calls.done) == 20
    assert sorted(letter.body for letter in streams.dead_letters()) == [b"no Avro", b"none either"]


def test_an_unknown_schema_holds_its_partition_and_calls_nobody_twice(streams: Streams) -> None:
    registry = RegistryThatIsAway()
    streams.write(*EVENTS[:10])
    streams.write(*EVENTS[10:], encoder=Encoder(ids=registry))
    calls = Calls()
    with running_app(streams, calls.app, decoder=Decoder(registry), schema_retry_s=0.2, schema_retry_max_s=0.2) as running:  # fmt: skip
        wait_until(lambda: registry.asked >= 6, "retries")
        assert {event.order_id for event, _ in calls.seen} == {event.order_id for event in EVENTS[:10]}
        registry.is_back = True
        running.catch_up(streams.ends("order.status"))
    assert Counter(event.order_id for event, _ in calls.seen) == Counter(event.order_id for event in EVENTS)


def test_a_poison_record_in_a_batch_costs_itself_only(kafka: KafkaCluster, topic_prefix: str) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=1).make()
    streams.write(*EVENTS)
    app = App("batches")
    sizes: list[int] = []
    done: list[str] = []

    @app.on_batch(OrderStatus, most_records=10)
    def index(events: Sequence[OrderStatus], contexts: Sequence[Context]) -> None:
        sizes.append(len(events))
        assert [context.event_id for context in contexts] == [event.event_id for event in events]
        if any(event.order_id == "O3" for event in events):
            raise ValueError("O3 is poison")
        done.extend(event.order_id for event in events)

    with running_app(streams, app, handler_attempts=4) as running:
        running.catch_up(streams.ends("order.status"))
        assert (running.loop.applied, running.loop.dead_lettered) == (19, 1)
    assert Counter(done) == Counter(event.order_id for event in EVENTS if event.order_id != "O3")
    assert sizes == [10, 10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 10]  # twice whole, ten alone (O3 twice), the rest whole
    [letter] = streams.dead_letters()
    assert (letter.reason, letter.source_key) == ("handler_failed", b"O3")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="range"),
        pytest.param({"partition.assignment.strategy": "cooperative-sticky"}, id="cooperative-sticky"),
        pytest.param({"group.protocol": "consumer"}, id="consumer protocol"),
    ],
)
def test_row_48_a_rebalance_during_a_retry_loses_nothing_and_repeats_only_what_was_not_done(
    streams: Streams, config: dict[str, str]
) -> None:
    streams.kafka = streams.kafka.model_copy(update={"config": config})
    streams.write(*EVENTS)
    first, second = Calls(), Calls()
    for calls in (first, second):  # both partitions wait for their next attempt, and come to their end only later
        calls.poison = {"O7": 1_000_000, "O8": 1_000_000, "O9": 1_000_000}
    slow = {"handler_retry_s": 0.3, "handler_retry_max_s": 0.3, "handler_attempts": 100}
    with running_app(streams, first.app, **slow) as one:
        wait_until(lambda: len({c.partition for e, c in first.seen if e.order_id in first.poison}) == 2, "both to wait")
        with running_app(streams, second.app, **slow) as two:
            wait_until(lambda: len(one.loop.assigned) == len(two.loop.assigned) == 1, "an even share")
            wait_until(lambda: bool(second.seen), "a call in the second")
            assert second.seen[0][1].attempt == 1
            first.poison, second.poison = {}, {}
            two.catch_up(streams.ends("order.status"))
    done = Counter(event.order_id for calls in (first, second) for event, _ in calls.done)
    assert done == Counter(event.order_id for event in EVENTS)
    assert streams.dead_letters() == []


def test_a_member_whose_record_waits_stays_in_its_group(streams: Streams) -> None:
    """Longer than max.poll.interval.ms: the loop polls on while the partition is paused."""
    streams.kafka = streams.kafka.model_copy(
        update={"config": {"session.timeout.ms": 6_000, "max.poll.interval.ms": 6_000}}
    )
    streams.write(*EVENTS)
    calls = Calls()
    calls.poison = {"O7": 1}
    began_s = time.monotonic()
    with running_app(streams, calls.app, handler_retry_s=8.0, handler_retry_max_s=8.0) as running:
        wait_until(lambda: calls.attempts("O7") == [1, 2], "the second attempt")
        assert time.monotonic() - began_s > 8
        running.catch_up(streams.ends("order.status"))
    assert Counter(event.order_id for event, _ in calls.done) == Counter(event.order_id for event in EVENTS)
    assert len(calls.seen) == 21, "the partition was never given away"


def test_a_handler_slower_than_the_group_allows_is_told_and_its_record_comes_again(streams: Streams) -> None:
    streams.kafka = streams.kafka.model_copy(
        update={"config": {"session.timeout.ms": 6_000, "max.poll.interval.ms": 6_000}}
    )
    streams.write(EVENTS[0])
    app = App("slow")
    began: list[float] = []

    @app.on(OrderStatus)
    def handle(event: OrderStatus, context: Context) -> None:
        began.append(time.monotonic())
        if len(began) == 1:
            time.sleep(7.5)

    with capture_logs() as lines, running_app(streams, app, max_poll_interval_s=6.0) as running:
        wait_until(lambda: len(began) == 2, "the record to come again")
        running.catch_up(streams.ends("order.status"))
    [line] = [line for line in lines if line["event"] == "handler_too_slow"]
    assert line["took_s"] >= 7.5
    assert "max.poll.interval.ms" in line["hint"]
    assert "partitions_lost" in {line["event"] for line in lines}


def test_retention_past_the_committed_offset_stops_the_consumer(streams: Streams) -> None:
    streams.write(*EVENTS[:10])
    calls = Calls()
    with running_app(streams, calls.app) as running:
        running.catch_up(streams.ends("order.status"))
    streams.write(*EVENTS[10:])
    topic = streams.name("order.status")
    streams.delete_records("order.status", 0, streams.ends("order.status")[topic, 0] - 1)
    with running_app(streams, calls.app) as running:
        failure = running.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code == "offset_out_of_range"
    assert "replay group" in failure.hint


@pytest.mark.parametrize("running_on", [True, False], ids=["under a running consumer", "in between"])
def test_a_topic_made_anew_is_never_gone_on_with(streams: Streams, running_on: bool) -> None:
    streams.write(*EVENTS[:10])
    calls = Calls()
    with running_app(streams, calls.app) as running:
        running.catch_up(streams.ends("order.status"))
        if running_on:
            streams.delete("order.status")
            streams.make().write(*EVENTS, *EVENTS)  # longer: the committed offsets exist in it
            failure = running.wait_for_failure()
            assert isinstance(failure, OperatorError)
            assert failure.code in ("topic_replaced", "topic_missing")
            assert "KINGUIN_STATE__URL" not in failure.hint, "a handler has no state database"
    if not running_on:
        streams.delete("order.status")
        streams.make().write(*EVENTS, *EVENTS)
    again = Calls()
    with running_app(streams, again.app) as running:
        wait_until(lambda: running.failure is not None or len(again.done) == 40, "a refusal, or all of it")
    assert isinstance(running.failure, OperatorError) or len(again.done) == 40
    if isinstance(running.failure, OperatorError):
        assert running.failure.code == "topic_replaced"
        assert "replay group" in running.failure.hint
