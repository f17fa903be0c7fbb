"""What one dead letter cannot do to the others: each that took effect has its trail, whatever became of its neighbours."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.cluster.publisher import PublishFailed, Report
from kinguin_streams.consumers import reader
from kinguin_streams.consumers.app import App, Context
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.projection import FoldProjection
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.replay.dead_letters import Found, with_trails
from kinguin_streams.replay.redrive import HandlerRedriver, ProjectionRedriver, Redrive, Redriven, Redriver
from kinguin_streams.replay.run import Watch
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.dead_letters import SourcePosition, from_consumer, from_ingress
from kinguin_streams.schemas.events import DeadLetter, DeadLetterTrail, OrderStatus, StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status

STATUS = "kinguin.order.status"
TRAIL = "kinguin.dead-letter.trail"
AT_MS = 1_770_000_000_000
UNKNOWN_SCHEMA = b"\xc3\x01" + b"\x07" * 8
Says = Callable[[OutgoingRecord, bool], PublishFailed | None]
"""What Kafka says of a record, and whether it came alone."""


def takes_all(_record: OutgoingRecord, _alone: bool) -> None:
    return None


class Kafka:
    """What a redrive needs of a publisher; keeps what it was sent."""

    def __init__(self, says: Says = takes_all) -> None:
        self.says = says
        self.taken: list[OutgoingRecord] = []

    def send(self, record: OutgoingRecord) -> Report:
        return self._report(record, alone=False)

    def send_alone(self, record: OutgoingRecord) -> Report:
        return self._report(record, alone=True)

    def _report(self, record: OutgoingRecord, *, alone: bool) -> Report:
        report, failed = Report(), self.says(record, alone)
        if failed is None:
            self.taken.append(record)
        report.settle(failed)
        return report

    def events(self) -> list[OutgoingRecord]:
        return [record for record in self.taken if record.topic == STATUS]

    def trails(self) -> dict[str, DeadLetterTrail]:
        """Return the newest of each id."""
        decoded = [Decoder().decode(record.value) for record in self.taken if record.topic == TRAIL]
        return {trail.dead_letter_id: trail for trail in decoded if isinstance(trail, DeadLetterTrail)}


def at_consumer(number: int, *, topic: str = STATUS, consumer: str = "mine", value: bytes | None = None) -> DeadLetter:
    return from_consumer(
        consumer=consumer,
        reason="handler_failed",
        detail="of long ago",
        value=Encoder().encode(order_status("completed", order_id=f"O{number}")) if value is None else value,
        headers=[],
        source=SourcePosition(topic=topic, partition=0, offset=number, key=b"O", timestamp_ms=AT_MS),
        failed_at_ms=AT_MS,
    )


def at_ingress(number: int) -> DeadLetter:
    body = f'{{"orderId":"O{number}","orderExternalId":null,"status":"completed","updatedAt":"2026-01-31T12:00:00.000+00:00"}}'
    return from_ingress(
        store=StoreName("default"),
        event="order.status",
        reason="invalid_field",
        detail="of long ago",
        body=body.encode(),
        headers=[],
        received_at_ms=AT_MS,
    )


class Calls(list[str]):
    """Order ids that a handler was called with."""

    @property
    def redriver(self) -> HandlerRedriver:
        app = App("mine")

        @app.on(OrderStatus)
        def take(event: OrderStatus, _context: Context) -> None:
            self.append(event.order_id)

        expected: Any = {STATUS: "order.status"}
        return HandlerRedriver(app, ConsumerSettings(), decoder=Decoder(), expected=expected, watch=Watch())


def redrive(kafka: Kafka, letters: Sequence[DeadLetter], redriver: Redriver) -> Redriven:
    """Redrive those that are open by what Kafka has of their trails."""
    trails = kafka.trails()
    found = [Found(letter, 0, at, trails.get(letter.dead_letter_id)) for at, letter in enumerate(letters)]
    still_open = [each for each in found if each.state in ("new", "refused")]
    return Redrive(
        "a-redrive",
        sender=kafka,
        topics=topics(),
        encoder=Encoder(),
        redriver_of=lambda _: redriver,
        most_attempts=3,
        by="me",
    ).run(still_open, len(still_open))


@pytest.mark.parametrize(
    ("poison", "why"),
    [
        pytest.param(at_consumer(9, topic="kinguin.order.complete"), "topic_not_read", id="of a topic no longer read"),
        pytest.param(at_consumer(9, value=UNKNOWN_SCHEMA), "schema_unknown", id="written with a schema not known here"),
    ],
)
def test_a_dead_letter_that_can_never_be_redriven_is_refused_in_the_end_parked_and_stops_no_other(
    poison: DeadLetter, why: str
) -> None:
    kafka, calls = Kafka(), Calls()
    letters = [*map(at_consumer, range(3)), poison, *map(at_consumer, range(10, 13))]
    assert redrive(kafka, letters, calls.redriver) == Redriven(redriven=6, refused=1)
    assert redrive(kafka, letters, calls.redriver) == Redriven(refused=1)
    assert redrive(kafka, letters, calls.redriver) == Redriven(parked=1)
    assert redrive(kafka, letters, calls.redriver) == Redriven()
    assert calls == ["O0", "O1", "O2", "O10", "O11", "O12"], "each once"
    assert str(kafka.trails()[poison.dead_letter_id].steps[0][2]).startswith(f"{why}: ")


@pytest.fixture
def state_of_fragile_fold(tmp_path: Path) -> Iterator[ProjectionRedriver]:
    """A projection whose fold raises at one order."""

    def fold(state: Any, received: Any) -> Any:
        if received.event.order_id == "O9":
            raise ZeroDivisionError("a fold with a bug")
        return ORDER_STATE.fold(state, received)

    fragile: FoldProjection[Any, Any] = dataclasses.replace(ORDER_STATE, fold=fold)
    expected: Any = {STATUS: "order.status"}
    redriver = ProjectionRedriver(
        fragile, StateStore(state_settings(tmp_path), fragile), decoder=Decoder(), expected=expected
    )
    yield redriver
    redriver.close()


def test_a_record_at_which_a_fold_raises_is_refused_and_stops_no_other(
    state_of_fragile_fold: ProjectionRedriver, tmp_path: Path
) -> None:
    kafka = Kafka()
    letters = [at_consumer(number, consumer="order-state") for number in (1, 9, 2)]
    assert redrive(kafka, letters, state_of_fragile_fold) == Redriven(redriven=2, refused=1)
    assert (
        kafka.trails()[letters[1].dead_letter_id].steps[0][2] == "redrive_failed: ZeroDivisionError: a fold with a bug"
    )
    assert reader.orders_by_status(state_settings(tmp_path).url) == {"completed": 2}


class AwayAt:
    """A redriver whose database is away when it comes to one order."""

    def __init__(self, inner: Redriver, order_offset: int) -> None:
        self._inner, self._order_offset = inner, order_offset

    def redrive(self, found: Found) -> str | None:
        if found.letter.source_offset == self._order_offset:
            raise OperatorError("state_away", "The database is away.", "Wait.")
        return self._inner.redrive(found)

    def forget(self, found: Found) -> None:
        self._inner.forget(found)

    def close(self) -> None:
        self._inner.close()


def test_what_ends_a_run_leaves_a_trail_of_all_that_took_effect_before_and_the_next_run_goes_on_behind_it() -> None:
    kafka, calls = Kafka(), Calls()
    letters = [at_ingress(1), *map(at_consumer, range(6))]
    with pytest.raises(OperatorError, match="away"):
        redrive(kafka, letters, AwayAt(calls.redriver, 3))
    assert calls == ["O0", "O1", "O2"]
    assert len(kafka.trails()) == 4
    assert redrive(kafka, letters, calls.redriver) == Redriven(redriven=3)
    assert calls == [f"O{number}" for number in range(6)]
    assert len(kafka.events()) == 1


def test_an_event_that_kafka_refuses_in_company_is_sent_alone_and_only_then_refused() -> None:
    letters = [*map(at_ingress, range(5)), at_consumer(9)]

    def refuses_the_batch_because_of_3(record: OutgoingRecord, alone: bool) -> PublishFailed | None:
        if record.topic == TRAIL or (alone and record.key != b"O3"):
            return None
        return PublishFailed("refused", "MSG_SIZE_TOO_LARGE", landed="no")

    kafka, calls = Kafka(refuses_the_batch_because_of_3), Calls()
    assert redrive(kafka, letters, calls.redriver) == Redriven(redriven=5, refused=1)
    assert redrive(kafka, letters, calls.redriver) == Redriven(refused=1)
    assert Counter(record.key for record in kafka.events()) == {b"O0": 1, b"O1": 1, b"O2": 1, b"O4": 1}
    assert calls == ["O9"]
    assert str(kafka.trails()[letters[3].dead_letter_id].steps[0][2]).startswith("refused_by_kafka: ")


def test_an_event_that_kafka_has_not_confirmed_has_no_trail_and_the_others_have() -> None:
    letters = [*map(at_ingress, range(5)), at_consumer(9)]

    def times_out_at_3(record: OutgoingRecord, _alone: bool) -> PublishFailed | None:
        return PublishFailed("not_delivered", "_MSG_TIMED_OUT", landed="maybe") if record.key == b"O3" else None

    kafka, calls = Kafka(times_out_at_3), Calls()
    with pytest.raises(OperatorError, match="_MSG_TIMED_OUT"):
        redrive(kafka, letters, calls.redriver)
    assert kafka.trails().keys() == {each.dead_letter_id for each in letters} - {letters[3].dead_letter_id}
    kafka.says = takes_all
    assert redrive(kafka, letters, calls.redriver) == Redriven(redriven=1)
    assert len(kafka.events()) == 5
    assert calls == ["O9"]


def test_two_records_that_had_one_position_are_both_taken_into_the_state_and_a_kill_before_the_trail_repeats_neither(
    state_of_fragile_fold: ProjectionRedriver, tmp_path: Path
) -> None:
    value = Encoder().encode(order_status("completed", order_id="of the topic made anew"))
    letters = [
        (at_consumer(1, consumer="order-state"), 0, 0),
        (at_consumer(1, consumer="order-state", value=value), 0, 1),
    ]
    found = list(with_trails(letters, {}))
    for _ in range(2):
        assert [state_of_fragile_fold.redrive(each) for each in found] == [None, None]
    assert reader.orders_by_status(state_settings(tmp_path).url) == {"completed": 2}
