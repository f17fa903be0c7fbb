"""A derived topic that has a state wrong: whoever may have caused it puts it right, and a command does so for the rest."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kinguin_streams.cluster.connection import producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher, Report
from kinguin_streams.consumers import derived
from kinguin_streams.consumers.derived import Difference, Told
from kinguin_streams.consumers.derived_records import digested
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.relay import Relay
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import OrderStateRecord
from kinguin_streams.schemas.outgoing import OutgoingRecord, OutgoingTombstone, outgoing
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import KafkaCluster
from tests.consumers.databases import PRODUCT_TOPIC, STATUS_TOPIC, advance
from tests.consumers.deliveries import order_status, product_update, received
from tests.consumers.kafka_streams import Streams, wait_until
from tests.consumers.test_consumer_kill import environment, start
from tests.consumers.test_derived_topics import topic_reader, verify_command
from tests.consumers.test_outbox import Log, queued, states, tell_all


@dataclass
class SlowLog(Log):
    """A topic whose sender is held up before its record gets there."""

    before_keeping: Callable[[], None] = field(default=lambda: None)

    def send(self, record: OutgoingRecord | OutgoingTombstone) -> Report:
        self.before_keeping()
        return super().send(record)

    def compacted(self) -> dict[str, bytes | None]:
        """Return what compaction leaves: the last record of each key, whatever it says."""
        return {kept.key().decode(): kept.value() for kept in self.kept}

    def right(self, store: StateStore) -> bool:
        """Whether compaction leaves what the database holds."""
        values = {key: value for key, value in self.compacted().items() if value is not None}
        return {key: Decoder().decode(value) for key, value in values.items()} == states(store)


def relay(settings: StateSettings, log: Log, projection: Projection = ORDER_STATE) -> Relay:
    return Relay(projection, state=settings, topics=topics(), encoder=Encoder(), sender=log)


def end_sessions_with_a_lock(store: StateStore) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )


@pytest.mark.parametrize("stops", [False, True], ids=["goes on", "is stopped"])
def test_a_relay_that_lost_its_lock_on_the_way_puts_back_what_it_may_have_told_too_late(
    postgres: Any, stops: bool
) -> None:
    """It has read its batch; the next leader tells a newer state; then its own record gets there, the last of its key."""
    settings = StateSettings(url=postgres.new_database(), busy_timeout_s=5.0)
    store = StateStore(settings, ORDER_STATE)
    log = SlowLog()
    one, other = relay(settings, log), relay(settings, log)
    store.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])

    def lose_the_lock() -> None:
        log.before_keeping = lambda: None
        end_sessions_with_a_lock(store)
        store.apply([received(order_status("completed", 1), 1)], [advance(STATUS_TOPIC, 1, 2)])
        tell_all(other)
        assert other.leading

    log.before_keeping = lose_the_lock
    with pytest.raises(OperatorError):
        one.turn()
    assert queued(store) == {}
    assert not log.right(store), "the older state came last: compaction would keep it"
    [difference] = compared(store, log)
    assert (difference.code, difference.in_topic, difference.in_database) == ("overtaken", (1, 2), (1, 2))

    if stops:
        one.start()
        wait_until(lambda: queued(store) != {}, "what is doubtful to be queued")
        one.stop()
    else:
        one.turn()
    tell_all(other)
    assert queued(store) == {}
    assert log.right(store)
    for each in (one, other):
        each.stop()
    store.close()


def compared(store: StateStore, log: Log, projection: Projection = ORDER_STATE) -> tuple[Difference, ...]:
    held = {key: digested(record) for key, record in states(store, projection).items()}
    return derived.compare(held, frozenset(), derived.newest_digests(log.kept, Decoder()))  # type: ignore[arg-type]


def test_what_was_told_under_a_lock_that_lasted_is_told_once(settings: StateSettings, orders: StateStore) -> None:
    log = SlowLog()
    one = relay(settings, log)
    for number in range(3):
        orders.apply(
            [received(order_status("processing", number), number)], [advance(STATUS_TOPIC, number or None, number + 1)]
        )
        tell_all(one)
    tell_all(one)
    assert len(log.kept) == 3
    one.stop()


def order_record(order_id: str, revision: int, generation: int = 1) -> OrderStateRecord:
    return OrderStateRecord(
        store=order_status("x").store, order_id=order_id, generation=generation, revision=revision, received_at_ms=1,
        truncated=False, set_aside=0, set_aside_truncated=False,
    )  # fmt: skip


def test_every_difference_that_can_be_mended_is_mended_by_telling_again(
    settings: StateSettings, orders: StateStore
) -> None:
    log = SlowLog()
    one = relay(settings, log)
    names = ("missing", "older", "newer", "other", "overtaken", "right")
    orders.apply(
        [received(order_status("completed", order_id=name), n) for n, name in enumerate(names)],
        [advance(STATUS_TOPIC, None, len(names))],
    )
    tell_all(one)
    right = {kept.key().decode(): kept for kept in log.kept}
    log.kept.clear()

    def put(record: OrderStateRecord) -> None:
        log.send(outgoing(record, topics(), Encoder()))

    # What somebody else wrote, or a topic that was restored from a copy, or a late record, may leave.
    put(order_record("older", 0))
    put(order_record("newer", 70))
    put(order_record("other", 1))
    log.kept += [right["default:overtaken"], right["default:right"]]
    put(order_record("overtaken", 0))
    put(order_record("left_over", 9))
    put(order_record("later-make", 9, generation=2))

    def differences() -> dict[str, Difference]:
        return {difference.key.partition(":")[2]: difference for difference in compared(orders, log)}

    before = differences()
    assert {name: difference.code for name, difference in before.items()} == {
        **{name: name for name in ("missing", "older", "newer", "other", "overtaken", "left_over")},
        "later-make": "left_over",
    }
    left = derived.repair(ORDER_STATE, settings, before.values())
    assert [difference.key for difference in left] == ["default:later-make"]
    tell_all(one)
    assert differences().keys() == {"later-make"}
    last = log.compacted()
    assert (last.pop("default:left_over"), last.pop("default:later-make") is None) == (None, False)
    assert {key: Decoder().decode(value or b"") for key, value in last.items()} == states(orders)
    # Again: nothing more is queued for what is right now, and an order that comes later counts on from there.
    assert derived.repair(ORDER_STATE, settings, ()) == ()
    assert queued(orders) == {}
    orders.apply([received(order_status("refunded", 9, order_id="newer"), 20)], [advance(STATUS_TOPIC, len(names), 21)])
    tell_all(one)
    assert log.table()["default:newer"] == states(orders)["default:newer"]
    one.stop()


def test_a_product_is_mended_too(settings: StateSettings, products: StateStore) -> None:
    log = SlowLog()
    one = relay(settings, log, PRODUCT_CHANGES)
    products.apply([received(product_update(1, qty=3), 0)], [advance(PRODUCT_TOPIC, None, 1)])
    tell_all(one)
    [kept] = log.kept
    state = Decoder().decode(kept.value() or b"")
    log.send(outgoing(msgspec.structs.replace(state, revision=30), topics(), Encoder()))
    [difference] = compared(products, log, PRODUCT_CHANGES)
    assert difference.code == "newer"
    assert derived.repair(PRODUCT_CHANGES, settings, [difference]) == ()
    assert queued(products, PRODUCT_CHANGES) == {"1949": 31}
    tell_all(one)
    assert log.table() == states(products, PRODUCT_CHANGES)
    one.stop()


def test_a_key_that_is_none_of_ours_is_left(settings: StateSettings, orders: StateStore) -> None:
    strange = Difference("no-colon", "left_over", (1, 1), None)
    assert derived.repair(ORDER_STATE, settings, [strange]) == (strange,)
    assert queued(orders) == {}


def test_the_same_revision_told_again_behind_an_older_one_is_right_again() -> None:
    log = SlowLog()
    for revision in (1, 2, 1, 2):
        log.send(outgoing(order_record("A", revision), topics(), Encoder()))
    assert derived.newest(log.kept[:3], Decoder())["default:A"] == Told(1, 2, order_record("A", 2), is_last=False)  # type: ignore[arg-type]
    assert derived.newest(log.kept, Decoder())["default:A"] == Told(1, 2, order_record("A", 2))  # type: ignore[arg-type]


@pytest.mark.kafka
def test_by_command_what_differs_is_told_once_more(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(*(order_status("processing", order_id=order_id) for order_id in "ABC"))
    env, log = environment(streams, tmp_path), tmp_path / "consumer.log"

    def verified(*more: str) -> tuple[int, dict[str, Any]]:
        ended = verify_command(env, tmp_path, "verify", "--derived", "--json", *more)
        return ended.returncode, json.loads(ended.stdout or "{}").get(streams.name("order.state"), {})

    process = start(env, log)
    try:
        right = 0, {"keys": 3, "waiting": 0, "differences": []}
        wait_until(lambda: verified() == right, f"all told ({log})")
        with topic_reader(streams) as made:
            c = derived.read_derived(made, streams.name("order.state"), Decoder())["default:C"]
        assert isinstance(c, OrderStateRecord)
        another_fact = msgspec.structs.replace(c, facts=((c.facts[0][0], "pending", *c.facts[0][2:]),))
        with KafkaPublisher(producer_config(streams.kafka, client_id="stranger")) as publisher:
            for record in (order_record("A", 99), order_record("B", 0), another_fact, order_record("unknown", 5)):
                publisher.publish(outgoing(record, streams.topics, Encoder()))
        exit_code, found = verified()
        assert (exit_code, {each["key"]: each["difference"] for each in found["differences"]}) == (
            1,
            {
                "default:A": "newer",
                "default:B": "overtaken",
                "default:C": "other",
                "default:unknown": "left_over",
            },
        )
        exit_code, found = verified("--repair")
        assert (exit_code, found["queued"], len(found["differences"])) == (0, 4, 4)
        wait_until(lambda: verified() == right, f"all to be mended ({log})")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
