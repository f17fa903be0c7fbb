"""From state to derived topic: queued with the state, told at least once, taken away only when confirmed. Both databases."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import event

from kinguin_streams.cluster.publisher import PublishFailed, Report, TopicMissing
from kinguin_streams.consumers import database, derived, generations, outbox
from kinguin_streams.consumers.derived_records import Digested, digested
from kinguin_streams.consumers.derived_states import every_state
from kinguin_streams.consumers.forgetting import forget_state
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import Projection, StateKey
from kinguin_streams.consumers.relay import Relay
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.consumers.tables import REVISIONS
from kinguin_streams.consumers.testing.processes import ManualClock
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import Derived, OrderStateRecord, ProductStateRecord, StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord, OutgoingTombstone
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import CLUSTER, PRODUCT_TOPIC, STATUS_TOPIC, Crash, advance, crash_before_commit
from tests.consumers.deliveries import order_status, product_update, received

KEY = StateKey("default", "PHS84FJAG5U")


@dataclass
class Kept:
    """A record that the topic has, as a client's message."""

    record: OutgoingRecord | OutgoingTombstone
    place: int

    def key(self) -> bytes:
        return self.record.key

    def value(self) -> bytes | None:
        return self.record.value

    def headers(self) -> list[tuple[str, bytes]]:
        return list(self.record.headers)

    def topic(self) -> str:
        return self.record.topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.place


@dataclass
class Log:
    """A topic in memory, behind the producer's own two methods; real Kafka is in test_derived_topics.py."""

    kept: list[Kept] = field(default_factory=list)
    before_report: Callable[[], None] = lambda: None
    refuses: bytes | None = None
    missing: bool = False

    def partitions(self, topic: str, timeout_s: float) -> int:
        if self.missing:
            raise TopicMissing("not_delivered", f"{topic} after {timeout_s}", landed="no")
        return 1

    def send(self, record: OutgoingRecord | OutgoingTombstone) -> Report:
        report = Report()
        if record.key == self.refuses:
            report.settle(PublishFailed("refused", "too large", landed="no"))
        else:
            self.kept.append(Kept(record, len(self.kept)))
            self.before_report()
            report.settle(None)
        return report

    def table(self) -> dict[str, Derived]:
        told = derived.newest(self.kept, Decoder())  # type: ignore[arg-type]
        return {key: each.content for key, each in told.items() if each.content is not None}


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def new_relay(settings: StateSettings, log: Log) -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def make(projection: Projection = ORDER_STATE) -> Relay:
        made.append(Relay(projection, state=settings, topics=topics(), encoder=Encoder(), sender=log))
        return made[-1]

    yield make
    for relay in made:
        relay.stop()


def queued(store: StateStore, projection: Projection = ORDER_STATE) -> dict[str, int]:
    with store.engine.begin() as connection:
        return {row.key.id: row.revision for row in outbox.peek(connection, projection.name, 1, 100)}


def states(store: StateStore, projection: Projection = ORDER_STATE) -> dict[str, Derived]:
    with store.engine.begin() as connection:
        return {f"{key.store}:{key.id}": state for key, state in every_state(connection, projection, 1)}


def tell_all(relay: Relay) -> None:
    while relay.turn():
        pass


# Queueing


def test_a_key_is_queued_once_with_its_newest_revision(orders: StateStore) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    first = queued(orders)["PHS84FJAG5U"]
    batch = [received(order_status("completed", 1), 1), received(order_status("pending", 0, order_id="B"), 2)]
    orders.apply(batch, [advance(STATUS_TOPIC, 1, 3)])
    assert queued(orders) == {"B": first, "PHS84FJAG5U": first + 1}


def test_a_delivery_that_says_nothing_new_of_an_order_queues_nothing(orders: StateStore, new_relay: Any) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    tell_all(new_relay())
    orders.apply([received(order_status("processing"), 1)], [advance(STATUS_TOPIC, 1, 2)])
    assert queued(orders) == {}


def test_a_crash_before_the_commit_queues_nothing(orders: StateStore) -> None:
    with crash_before_commit(orders), pytest.raises(Crash):
        orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    assert queued(orders) == {}


def test_a_product_is_queued_with_a_revision_that_grows(products: StateStore) -> None:
    batch = [received(product_update(minute), minute) for minute in range(3)]
    products.apply(batch, [advance(PRODUCT_TOPIC, None, 3)])
    assert queued(products, PRODUCT_CHANGES) == {"1949": 1}
    more = [received(product_update(9), 3), received(product_update(9, kinguin_id=2), 4)]
    products.apply(more, [advance(PRODUCT_TOPIC, 3, 5)])
    assert queued(products, PRODUCT_CHANGES) == {"1949": 2, "2": 1}


def test_states_of_before_the_outbox_are_queued_by_the_migration(settings: StateSettings) -> None:
    engine = database.open_for_writing(settings)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(database.MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for row in (
            "INSERT INTO projection_state VALUES ('order-state', 1, 's', 'A', '{}', 7)",
            "INSERT INTO projection_state VALUES ('order-state', 1, 's', 'B', '', 0)",
            (
                "INSERT INTO product_change VALUES "
                "(1, 's', 1949, 'e1', 5, 'p', null, null, null, null, false, 6, 't', 0, 0)"
            ),
            (
                "INSERT INTO product_change VALUES "
                "(1, 's', 1949, 'e2', 5, 'p', null, null, null, null, false, 6, 't', 0, 1)"
            ),
        ):
            connection.exec_driver_sql(row)
    engine.dispose()
    assert database.migrate(settings) == ("0001", REVISIONS[-1])
    engine = database.open_for_writing(settings)
    with engine.begin() as connection:
        assert outbox.peek(connection, "order-state", 1, 9) == [(("s", "A"), 7)]
        assert outbox.peek(connection, "product-changes", 1, 9) == [(("s", "1949"), 1)]
    engine.dispose()


# Telling


def test_what_is_told_is_what_the_database_says(orders: StateStore, log: Log, new_relay: Any) -> None:
    batch = [
        received(order_status("processing"), 0),
        received(order_status("completed", 1), 1),
        received(order_status("refunded", 1), 2),
        received(order_status("pending", order_id="B", updated_at_ms=1), 3),
        received(order_status("pending", order_id="PHS84FJAG5U", store=StoreName("shop-2")), 4),
    ]
    orders.apply(batch, [advance(STATUS_TOPIC, None, 5)])
    tell_all(new_relay())
    table = log.table()
    assert table == states(orders)
    assert queued(orders) == {}
    told = table["default:PHS84FJAG5U"]
    assert isinstance(told, OrderStateRecord)
    assert (told.status, len(told.facts), told.contradictions[0][0]) == ("refunded", 3, "two_outcomes_at_once")
    aside = table["default:B"]
    assert isinstance(aside, OrderStateRecord)
    assert (aside.status, aside.set_aside, aside.updated_at_ms) == (None, 1, None)
    assert table.keys() == {"default:B", "default:PHS84FJAG5U", "shop-2:PHS84FJAG5U"}


def test_a_products_record_has_the_newest_of_each_field(products: StateStore, log: Log, new_relay: Any) -> None:
    batch = [
        received(product_update(3, qty=8, offers=("a", "b")), 0),
        received(product_update(1, qty=9, price="5.79"), 1),
    ]
    products.apply(batch, [advance(PRODUCT_TOPIC, None, 2)])
    tell_all(new_relay(PRODUCT_CHANGES))
    assert log.table() == states(products, PRODUCT_CHANGES)
    (told,) = log.table().values()
    assert isinstance(told, ProductStateRecord)
    assert (told.qty, str(told.price), told.cheapest_offer_ids, told.changes) == (8, "5.790000", ("a", "b"), 2)
    assert told.qty_as_of_ms is not None
    assert told.qty_as_of_ms == told.updated_at_ms == (told.price_as_of_ms or 0) + 120_000


def test_more_keys_than_a_batch_are_all_told(
    orders: StateStore, log: Log, new_relay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinguin_streams.consumers.relay.BATCH_KEYS", 7)
    batch = [received(order_status("pending", order_id=f"O{number}"), number) for number in range(40)]
    orders.apply(batch, [advance(STATUS_TOPIC, None, 40)])
    tell_all(new_relay())
    assert len(log.kept) == 40
    assert queued(orders) == {}


def test_a_crash_between_confirmation_and_commit_tells_a_state_again(
    orders: StateStore, log: Log, new_relay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    dying = new_relay()
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "confirm", _die)
        with pytest.raises(Crash):
            dying.turn()
    dying.stop()
    assert queued(orders) == {"PHS84FJAG5U": 1}
    orders.apply([received(order_status("completed", 1), 1)], [advance(STATUS_TOPIC, 1, 2)])
    tell_all(new_relay())
    assert [kept.record.key for kept in log.kept] == [b"default:PHS84FJAG5U"] * 2
    assert log.table() == states(orders)
    assert queued(orders) == {}


def _die(*_arguments: object) -> None:
    raise Crash


def test_a_state_that_changes_while_it_is_told_is_told_again(orders: StateStore, log: Log, new_relay: Any) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])

    def change() -> None:
        log.before_report = lambda: None
        orders.apply([received(order_status("completed", 1), 1)], [advance(STATUS_TOPIC, 1, 2)])

    log.before_report = change
    relay = new_relay()
    relay.turn()
    assert queued(orders) == {"PHS84FJAG5U": 2}
    relay.turn()
    assert queued(orders) == {}
    assert log.table() == states(orders)


def test_a_record_that_kafka_refuses_keeps_no_other_waiting(orders: StateStore, log: Log, new_relay: Any) -> None:
    batch = [received(order_status("pending", order_id=order_id), i) for i, order_id in enumerate("ABC")]
    orders.apply(batch, [advance(STATUS_TOPIC, None, 3)])
    log.refuses = b"default:A"
    with pytest.raises(PublishFailed):
        new_relay().turn()
    assert queued(orders) == {"A": 1}
    assert log.table().keys() == {"default:B", "default:C"}


def test_a_missing_topic_is_named_and_nothing_is_lost(orders: StateStore, log: Log, new_relay: Any) -> None:
    orders.apply([received(order_status("pending"), 0)], [advance(STATUS_TOPIC, None, 1)])
    log.missing = True
    relay = new_relay()
    with pytest.raises(OperatorError) as missing:
        relay.turn()
    assert (missing.value.code, "topics apply" in missing.value.hint) == ("topic_missing", True)
    log.missing = False
    tell_all(relay)
    assert queued(orders) == {}


# Who tells


def test_one_of_two_relays_tells_and_the_other_takes_over(orders: StateStore, log: Log, new_relay: Any) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    one, other = new_relay(), new_relay()
    for relay in (one, other):
        relay.turn()
    assert (one.leading, other.leading, len(log.kept)) == (True, False, 1)
    one.stop()
    orders.apply([received(order_status("completed", 1), 1)], [advance(STATUS_TOPIC, 1, 2)])
    other.turn()
    assert (other.leading, len(log.kept)) == (True, 2)
    assert log.table() == states(orders)


def test_how_long_a_row_may_have_waited_is_known_without_asking_it(
    settings: StateSettings, orders: StateStore, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinguin_streams.consumers.relay.BATCH_KEYS", 2)
    clock = ManualClock(datetime(2024, 1, 1, tzinfo=UTC))
    relay = Relay(ORDER_STATE, state=settings, topics=topics(), encoder=Encoder(), sender=log, clock=clock)
    assert [relay.behind_s] == [None]  # nobody knows yet who tells
    tell_all(relay)
    clock.advance(9)
    batch = [received(order_status("processing", 0, order_id=order_id), n) for n, order_id in enumerate("ABCDE")]
    orders.apply(batch, [advance(STATUS_TOPIC, None, 5)])
    clock.advance(1)
    assert relay.behind_s == 10
    log.refuses = b"default:A"
    with pytest.raises(PublishFailed):
        relay.turn()
    clock.advance(5)
    tell_all(relay)  # the rest of the round: all but A
    clock.advance(5)
    with pytest.raises(PublishFailed):
        relay.turn()
    assert (relay.behind_s, set(queued(orders))) == (20, {"A"})
    log.refuses = None
    tell_all(relay)
    clock.advance(3)
    assert (relay.behind_s, queued(orders)) == (3, {})
    relay.stop()


def test_relays_of_two_projections_do_not_wait_for_each_other(
    orders: StateStore, products: StateStore, new_relay: Any
) -> None:
    both = [new_relay(), new_relay(PRODUCT_CHANGES)]
    for relay in both:
        relay.turn()
    assert [relay.leading for relay in both] == [True, True]


def test_who_has_lost_the_lock_takes_no_row_away(postgres: Any, log: Log) -> None:
    """PostgreSQL ends the session while the records are under way; another relay leads at once."""
    settings = StateSettings(url=postgres.new_database(), busy_timeout_s=5.0)
    store = StateStore(settings, ORDER_STATE)
    store.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    one, other = (Relay(ORDER_STATE, state=settings, topics=topics(), encoder=Encoder(), sender=log) for _ in range(2))

    def end_session() -> None:
        log.before_report = lambda: None
        with store.engine.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )

    log.before_report = end_session
    with pytest.raises(OperatorError):
        one.turn()
    assert queued(store) == {"PHS84FJAG5U": 1}
    other.turn()
    one.turn()
    assert (one.leading, other.leading) == (False, True)
    assert queued(store) == {"PHS84FJAG5U": 2}  # what it told without a lock is told once more
    other.turn()
    assert queued(store) == {}
    assert log.table() == states(store)
    for relay in (one, other):
        relay.stop()
    store.close()


def test_a_relay_of_another_version_of_the_fold_leaves_a_rebuilt_state_to_the_one_that_made_it(
    orders: StateStore, settings: StateSettings, log: Log, new_relay: Any
) -> None:
    events = [received(order_status("processing"), 0), received(order_status("completed", 1), 1)]
    orders.apply(events[:1], [advance(STATUS_TOPIC, None, 1)])
    old = new_relay()
    tell_all(old)
    mended = replace(ORDER_STATE, version=2)
    build, _ = generations.begin(settings, mended)
    store = StateStore(settings, mended, build)
    store.apply(events, [advance(STATUS_TOPIC, None, 2)])
    store.close()
    generations.swap(settings, mended, build, CLUSTER, {STATUS_TOPIC: f"id-of-{STATUS_TOPIC}"})

    new, told_before = new_relay(mended), len(log.kept)
    for _ in range(2):
        assert not old.turn()
        assert (old.leading, old.behind_s, len(log.kept)) == (False, None, told_before)
    tell_all(new)
    assert (new.leading, len(log.kept)) == (True, told_before + 1)
    (told,) = log.table().values()
    assert isinstance(told, OrderStateRecord)
    assert (told.generation, told.status) == (2, "completed")


# Forgetting


def test_a_forgotten_order_is_a_tombstone_and_what_comes_later_counts_on(
    orders: StateStore, settings: StateSettings, log: Log, new_relay: Any
) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    relay = new_relay()
    tell_all(relay)
    assert forget_state(settings, ORDER_STATE, KEY)
    assert not forget_state(settings, ORDER_STATE, KEY)
    assert states(orders) == {}
    tell_all(relay)
    assert (log.kept[-1].value(), log.table()) == (None, {})

    # An older record that comes after the tombstone does not bring the order back; a new event does.
    log.kept.append(log.kept[0])
    assert log.table() == {}
    orders.apply([received(order_status("refunded", 5), 1)], [advance(STATUS_TOPIC, 1, 2)])
    tell_all(relay)
    assert log.table() == states(orders)
    (state,) = log.table().values()
    assert isinstance(state, OrderStateRecord)
    assert (state.status, state.revision, len(state.facts)) == ("refunded", 3, 1)


def test_an_order_forgotten_before_it_was_told_is_told_as_gone(
    orders: StateStore, settings: StateSettings, log: Log, new_relay: Any
) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    forget_state(settings, ORDER_STATE, KEY)
    tell_all(new_relay())
    assert [kept.value() for kept in log.kept] == [None]
    assert queued(orders) == {}


def test_forgetting_leaves_state_and_outbox_as_they_were_if_it_dies(
    orders: StateStore, settings: StateSettings, new_relay: Any
) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    tell_all(new_relay())
    before = states(orders)

    def die(_connection: Any) -> None:
        raise Crash

    event.listen(orders.engine, "commit", die)
    with pytest.raises(Crash), orders.engine.begin() as connection:
        assert outbox.forget(connection, "order-state", 1, KEY)
    event.remove(orders.engine, "commit", die)
    assert (states(orders), queued(orders)) == (before, {})


# Comparing


def test_compare_names_what_differs() -> None:
    def state(revision: int, status: str = "pending") -> Digested:
        return digested(
            OrderStateRecord(
                store=StoreName("s"),
                order_id="A",
                generation=1,
                revision=revision,
                received_at_ms=1,
                status=status,
                truncated=False,
                set_aside=0,
                set_aside_truncated=False,
            )
        )

    def told(revision: int, status: str | None = "pending") -> derived.Told[bytes]:
        return derived.Told(1, revision, None if status is None else state(revision, status).digest)

    found = derived.compare(
        {
            "same": state(1),
            "missing": state(1),
            "older": state(2),
            "newer": state(1),
            "other": state(1),
            "waiting": state(2),
            "gone": state(1),
        },
        frozenset({"waiting"}),
        {
            "same": told(1),
            "older": told(1),
            "newer": told(2),
            "other": told(1, "completed"),
            "waiting": told(1),
            "gone": told(2, None),
            "left_over": told(1),
            "forgotten": told(3, None),
        },
    )
    assert {difference.key: difference.code for difference in found} == {
        "missing": "missing",
        "older": "older",
        "newer": "newer",
        "other": "other",
        "gone": "newer",
        "left_over": "left_over",
    }
