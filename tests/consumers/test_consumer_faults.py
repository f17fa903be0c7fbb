"""Faults of a consumer's surroundings, one by one, on a real Kafka and on either database. Numbers: docs/faults.md."""

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from sqlalchemy import event

from kinguin_streams.cluster import local_config
from kinguin_streams.cluster.connection import CLIENT_LOGGER, producer_config
from kinguin_streams.consumers import derived, membership, reader
from kinguin_streams.consumers.app import App, Context, Reject
from kinguin_streams.consumers.order_state import ORDER_STATE, order_key, rank
from kinguin_streams.consumers.projection import FoldProjection, Received
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.consumers.testing import ProjectionDriver, events
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import OrderComplete, OrderStatus, RecordName
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import KafkaCluster, StartBroker
from tests.consumers.databases import STATUS_TOPIC, advance, state_settings
from tests.consumers.deliveries import order_complete, order_status, received
from tests.consumers.kafka_streams import PATIENCE_S, RunningLoop, Streams, running_loop, wait_until
from tests.consumers.running_handlers import committed, running_app
from tests.consumers.test_derived_topics import relaying, topic_reader, verified
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.kafka

ORDER_TOPICS: tuple[RecordName, ...] = ("order.status", "order.complete")
STATUSES = ("processing", "completed", "canceled", "refunded")
QUICK = {"state_retry_s": 0.05, "state_retry_max_s": 0.2}


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


def some_orders(count: int, dice: random.Random) -> list[OrderStatus | OrderComplete]:
    """Return events of a fifth as many orders: 10 % come again, 20 % come late."""
    sent: list[OrderStatus | OrderComplete] = []
    for number in range(count):
        order_id = f"O{dice.randrange(count // 5)}"
        late = dice.randrange(500) if dice.random() < 0.2 else 0
        if sent and dice.random() < 0.1:
            sent.append(dice.choice(sent))
        elif dice.random() < 0.1:
            sent.append(order_complete(number - late, order_id=order_id))
        else:
            sent.append(order_status(dice.choice(STATUSES), number - late, order_id=order_id))
    return sent


def of_facts(sent: list[OrderStatus | OrderComplete]) -> dict[str, tuple[str, int, int]]:
    """Return of each order the fact that counts, and the number of its facts."""
    facts: dict[str, set[tuple[int, str]]] = {}
    for each in sent:
        facts.setdefault(each.order_id, set()).add((each.updated_at_ms, each.status))
    winners = {order_id: max(its, key=lambda fact: rank(*fact)) for order_id, its in facts.items()}
    return {order_id: (status, at_ms, len(facts[order_id])) for order_id, (at_ms, status) in winners.items()}


def of_database(url: str) -> dict[str, Any]:
    return {view.order_id: (view.status, view.updated_at_ms, len(view.facts)) for view in reader.order_views(url)}


# Rebalances


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(6, id="everyday"),
        pytest.param(60, id="a minute", marks=[pytest.mark.faults, pytest.mark.timeout(400)]),
    ],
)
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_row_48_six_static_members_that_leave_and_come_back_skip_nothing(
    *, kafka: KafkaCluster, topic_prefix: str, settings: StateSettings, tmp_path: Path, protocol: str, seconds: int
) -> None:
    """Every two seconds somebody leaves or comes back. In the end all six are there, and have no lag within 30 s."""
    dice = random.Random(seed := random.randrange(2**32))
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=6).make()
    config = {"session.timeout.ms": 6_000} if protocol == "classic" else {"group.protocol": "consumer"}
    streams.kafka = streams.kafka.model_copy(update={"config": config})
    sent = some_orders(seconds * 200, dice)
    members: dict[str, RunningLoop] = {}
    acts: list[str] = []

    def come(name: str) -> None:
        acts.append(f"+{name}")
        members[name] = RunningLoop(streams, tmp_path, state=settings, instance_id=name, batch_records=50)

    def go(name: str) -> None:
        acts.append(f"-{name}")
        members.pop(name).stop()

    names = [f"member-{number}" for number in range(6)]
    try:
        for name in names:
            come(name)
        began_s = time.monotonic()
        chunks = [sent[start : start + 100] for start in range(0, len(sent), 100)]
        next_act_s = began_s
        for number, chunk in enumerate(chunks):
            streams.write(*chunk)
            if time.monotonic() >= next_act_s:
                next_act_s += 2.0
                name = dice.choice(names)
                if name not in members:
                    come(name)
                elif len(members) > 2:
                    go(name)
            time.sleep(max(0.0, began_s + seconds * (number + 1) / len(chunks) - time.monotonic()))
        for name in names:
            if name not in members:
                come(name)
        calm_s = time.monotonic()
        ends = streams.ends(*ORDER_TOPICS)
        wait_until(
            lambda: reader.stored_offsets(settings.url, "order-state") == ends, f"no lag, seed {seed}, {acts}", 30
        )
        assert time.monotonic() - calm_s < 30
        failures = [str(member.failure) for member in members.values() if member.failure is not None]
        assert failures == [], (seed, acts)
    finally:
        for name in list(members):
            go(name)
    assert of_database(settings.url) == of_facts(sent), (seed, acts)


# Crashes


class Count(msgspec.Struct, frozen=True):
    deliveries: int


COUNTING = FoldProjection(
    name="counting", version=1, events=ORDER_STATE.events, state_type=Count, key=order_key,
    fold=lambda state, _received: Count((state.deliveries if state else 0) + 1),
)  # fmt: skip


def test_row_50_a_crash_between_reading_and_storing_at_100_random_points_loses_and_repeats_nothing(
    settings: StateSettings,
) -> None:
    """A fold that counts deliveries: one that is lost, or takes effect twice, is a wrong number."""
    dice = random.Random(seed := random.randrange(2**32))
    sent: Counter[str] = Counter()
    with ProjectionDriver(COUNTING, database=settings) as driver:
        for crash in range(100):
            some = [
                events.order_status(
                    order_id=f"O{dice.randrange(20)}", status="processing", updated_at=events.minutes(n)
                )
                for n in range(dice.randrange(1, 9))
            ]
            driver.send(*some)
            sent.update(each.order_id for each in some)
            if dice.random() < 0.5:
                driver.run(at_most=dice.randrange(1, 4))
            if driver.waiting:
                die = driver.crash_before_commit if crash % 2 else driver.crash_after_commit
                die(at_most=dice.randrange(1, 9))
            else:
                driver.send(*some)
                sent.update(each.order_id for each in some)
                driver.crash_before_commit()
        driver.run()
        assert driver.restarts == 100
        assert {key.id: state.deliveries for key, state in driver.states().items()} == sent, f"seed {seed}"


# Ties


def test_row_53_of_four_statuses_with_one_updated_at_one_wins_in_every_order_and_after_a_replay(
    orders: StateStore, settings: StateSettings
) -> None:
    batch: list[Received[Any]] = []
    for number, statuses in enumerate(permutations(STATUSES)):
        batch += [received(order_status(status, order_id=f"O{number}"), 0) for status in statuses]
    place = None
    for each in range(0, len(batch), 7):  # no order has all its facts in one batch
        some = batch[each : each + 7]
        orders.apply(some, [advance(STATUS_TOPIC, place, each + 7)])
        place = each + 7
    views = list(reader.order_views(settings.url))
    assert len(views) == 24
    assert {(view.status, len(view.facts)) for view in views} == {("refunded", 4)}
    assert len({msgspec.json.encode(msgspec.structs.replace(view, order_id="")) for view in views}) == 1
    orders.apply(list(reversed(batch)), [advance(STATUS_TOPIC, place, 1_000)])
    assert list(reader.order_views(settings.url)) == views


# Keys


def set_topic(streams: Streams, record: RecordName, **config: object) -> None:
    entries = [
        ConfigEntry(name.replace("_", "."), str(value), incremental_operation=AlterConfigOpType.SET)
        for name, value in config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, streams.name(record), incremental_configs=entries)
    streams.admin.incremental_alter_configs([resource])[resource].result()


def produce(streams: Streams, topic: str, key: bytes | None, value: bytes | None) -> str | None:
    """Return why the broker, or the client, has refused it; None if it is there."""
    producer = Producer(producer_config(streams.kafka, client_id="stranger"), logger=CLIENT_LOGGER)
    said: list[str | None] = []
    try:
        producer.produce(
            topic,
            key=key,
            value=value,
            on_delivery=lambda error, _: said.append(None if error is None else str(error.name())),
        )
    except KafkaException as error:
        return str(error.args[0].name())
    assert producer.flush(30) == 0
    return said[0]


def test_row_55_odd_keys_reach_no_compacted_topic_and_compaction_leaves_what_the_database_holds(
    *,
    kafka_factory: StartBroker,
    topic_prefix: str,
    settings: StateSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = local_config.server_properties
    monkeypatch.setattr(
        local_config, "server_properties", lambda **settings: plain(**settings) + "log.cleaner.backoff.ms=300\n"
    )
    broker = kafka_factory(tmp_path / "broker")
    streams = Streams(broker.bootstrap_servers, topic_prefix).make()
    value = Encoder().encode
    source = streams.name("order.status")
    for number, key in enumerate((None, b"", b"\xff\xfe not UTF-8", b"k" * 200_000)):
        assert produce(streams, source, key, value(order_status("completed", order_id=f"odd-{number}"))) is None
    assert produce(streams, source, b"k" * 1_000_000, value(order_status("completed"))) == "MSG_SIZE_TOO_LARGE"
    assert produce(streams, streams.name("order.state"), None, b"x") == "INVALID_RECORD"
    set_topic(
        streams, "order.state", segment_ms=500, min_cleanable_dirty_ratio=0.001, max_compaction_lag_ms=500,
        min_compaction_lag_ms=0, delete_retention_ms=0,
    )  # fmt: skip

    def held() -> list[Any]:
        with topic_reader(streams) as made:
            return list(made.read({}, made.end_offsets([streams.name("order.state")])))

    with running_loop(streams, tmp_path, state=settings) as running, relaying(streams, settings):
        for round_ in range(5):
            streams.write(*(order_status(f"s{round_}", round_, order_id=f"O{number}") for number in range(20)))
            running.catch_up(streams.ends("order.status"))
            wait_until(lambda: verified(streams, settings).waiting == 0, "all told")
        keys = {message.key() for message in held()}
        assert keys == {f"default:{name}".encode() for name in (*(f"O{n}" for n in range(20)), *(f"odd-{n}" for n in range(4)))}  # fmt: skip
        before = len(held())
        assert before > len(keys)

        probes = [f"O{number}" for number in range(6)]

        def is_compacted() -> bool:
            # A record more in each partition closes its segment; only closed ones are compacted.
            streams.write(*(order_status("completed", time.monotonic() % 1_000, order_id=name) for name in probes))
            running.catch_up(streams.ends("order.status"))
            time.sleep(0.6)
            counted = Counter(message.key() for message in held())
            return all(
                number == 1
                for key, number in counted.items()
                if key.decode() not in {f"default:{name}" for name in probes}
            )

        wait_until(is_compacted, "the cleaner to have gone over all closed segments", 90)
        wait_until(lambda: verified(streams, settings).waiting == 0, "all told")
    assert verified(streams, settings) == derived.Comparison(24, 0, ())
    with topic_reader(streams) as made:
        rebuilt = derived.read_derived(made, streams.name("order.state"), Decoder())
    assert {key: state.status for key, state in rebuilt.items()} == {  # type: ignore[union-attr]
        f"default:{view.order_id}": view.status for view in reader.order_views(settings.url)
    }


# A broker that does not answer


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_broker_that_says_nothing_keeps_no_consumer_from_ending(
    kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """The client's close waits for the commit that is under way, and that for ever."""
    monkeypatch.setattr(membership, "LEAVE_WAIT_S", 2.0)
    broker = kafka_factory(tmp_path / "broker")
    streams = Streams(broker.bootstrap_servers, topic_prefix).make()
    streams.kafka = streams.kafka.model_copy(update={"config": {"group.protocol": protocol}})
    streams.write(*some_orders(100, random.Random(1)))
    with running_loop(streams, tmp_path) as running:
        running.catch_up(streams.ends(*ORDER_TOPICS))
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            running.stop()
            assert time.monotonic() - began_s < 10
            assert running.failure is None
        finally:
            os.kill(broker.pid, signal.SIGCONT)


# Databases that do not answer


@pytest.mark.parametrize(
    "away_s",
    [
        pytest.param(3.0, id="for a moment"),
        pytest.param(30.0, id="for half a minute", marks=pytest.mark.faults),
    ],
)
def test_row_59_while_the_database_is_down_no_offset_is_committed_and_then_nothing_is_missing(
    streams: Streams, tmp_path: Path, own_postgres: PostgresServer, away_s: float
) -> None:
    state = StateSettings(url=own_postgres.new_database(), busy_timeout_s=5.0)
    sent = some_orders(5_000, random.Random(seed := random.randrange(2**32)))
    with running_loop(streams, tmp_path, state=state, batch_records=100, **QUICK) as running:
        streams.write(*sent[:2_000])
        wait_until(lambda: running.loop.applied > 500, "a part to be applied")
        own_postgres.stop("immediate")
        wait_until(lambda: running.loop.waits_for == "database", "the loop to notice")
        parts = [(streams.name(record), number) for record in ORDER_TOPICS for number in range(2)]
        time.sleep(1.5)  # a commit that was sent before has arrived
        applied, said = running.loop.applied, committed(streams, "order-state", *parts)
        back_s = time.monotonic() + away_s
        streams.write(*sent[2_000:])
        while time.monotonic() < back_s:
            assert committed(streams, "order-state", *parts) == said
            time.sleep(0.5)
        assert (running.loop.applied, running.failure) == (applied, None)
        own_postgres.start()
        running.catch_up(streams.ends(*ORDER_TOPICS))
        assert running.loop.applied in (5_000, 5_000 - 100), (
            "at most the batch whose commit was not heard of is missing"
        )
        wait_until(
            lambda: committed(streams, "order-state", *parts) == streams.ends(*ORDER_TOPICS), "Kafka to know of it"
        )
    assert of_database(state.url) == of_facts(sent), f"seed {seed}"


@pytest.mark.parametrize(
    "locked_s", [pytest.param(2.0, id="2 s"), pytest.param(10.0, id="10 s", marks=pytest.mark.faults)]
)
def test_row_60_a_sqlite_file_that_is_busy_is_waited_for_and_one_that_is_read_only_stops_the_consumer(
    streams: Streams, tmp_path: Path, locked_s: float
) -> None:
    state = state_settings(tmp_path, busy_timeout_s=0.5)
    sent = some_orders(2_000, random.Random(seed := random.randrange(2**32)))
    with running_loop(streams, tmp_path, state=state, batch_records=100, **QUICK) as running:
        streams.write(*sent[:500])
        running.catch_up(streams.ends(*ORDER_TOPICS))
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        until_s = time.monotonic() + locked_s
        streams.write(*sent[500:1_000])
        wait_until(lambda: running.loop.waits_for == "database", "the loop to notice")
        time.sleep(max(0.0, until_s - time.monotonic()))
        assert running.loop.applied == 500
        other.execute("COMMIT")
        other.close()
        running.catch_up(streams.ends(*ORDER_TOPICS))
        assert running.loop.applied == 1_000

        def become_read_only(connection: Any) -> None:
            connection.exec_driver_sql("PRAGMA query_only=ON")  # as chmod would, also for root

        event.listen(running.store.engine, "begin", become_read_only)
        stored = running.stored()
        streams.write(*sent[1_000:])
        failure = running.wait_for_failure()
        assert isinstance(failure, OperatorError)
        assert failure.code == "state_not_writable"
        assert running.stored() == stored
    with running_loop(streams, tmp_path, state=state, **QUICK) as again:
        again.catch_up(streams.ends(*ORDER_TOPICS))
        assert again.loop.applied == 1_000
    assert of_database(state.url) == of_facts(sent), f"seed {seed}"


# Handlers


def test_row_51_a_dead_letter_that_the_broker_refuses_stops_the_handlers_and_nothing_is_skipped(
    streams: Streams,
) -> None:
    handled: list[str] = []
    app = App("notes")

    @app.on(OrderStatus)
    def handle(event: OrderStatus, _context: Context) -> None:
        if event.order_id == "poison":
            raise Reject("unknown_customer", "nobody is called so")
        handled.append(event.order_id)

    before, after = [[order_status("processing", order_id=f"{part}{n}") for n in range(50)] for part in "AB"]
    streams.write(*before, order_status("processing", order_id="poison"), *after)
    ends = streams.ends("order.status")
    set_topic(streams, "dead-letter", max_message_bytes=100)
    with running_app(streams, app) as running:
        failure = running.wait_for_failure()
    assert isinstance(failure, OperatorError)
    assert failure.code == "dead_letter_refused"
    assert "order.status" in failure.what
    assert "poison" not in handled
    assert committed(streams, "notes", *ends) != ends
    set_topic(streams, "dead-letter", max_message_bytes=262_144)
    with running_app(streams, app) as running:
        running.catch_up(ends)
    assert set(handled) == {event.order_id for event in (*before, *after)}
    assert [letter.reason for letter in streams.dead_letters()] == ["unknown_customer"]
    # In order, nobody behind the refused record of its partition was called before it was dead-lettered.
    assert Counter(handled).most_common(1)[0][1] <= 2


def test_a_broker_that_restarts_while_handlers_work_costs_repetitions_at_most(
    kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path
) -> None:
    broker = kafka_factory(tmp_path / "broker")
    streams = Streams(broker.bootstrap_servers, topic_prefix).make()
    handled: list[str] = []
    in_the_middle, broker_is_away = threading.Event(), threading.Event()
    app = App("notes")

    @app.on(OrderStatus)
    def handle(event: OrderStatus, _context: Context) -> None:
        handled.append(event.order_id)
        if len(handled) == 100:
            in_the_middle.set()
            assert broker_is_away.wait(PATIENCE_S)

    streams.write(*(order_status("processing", order_id=f"O{number}") for number in range(500)))
    ends = streams.ends("order.status")
    with running_app(streams, app) as running:
        assert in_the_middle.wait(PATIENCE_S)
        broker.stop()
        broker_is_away.set()
        wait_until(lambda: len(handled) > 100, "the handler to go on without the broker")
        time.sleep(1.0)  # commits fail meanwhile
        kafka_factory(tmp_path / "broker")
        # Nothing new arrives: what was done without the broker is told to it all the same.
        running.catch_up(ends)
        streams.write(*(order_status("processing", order_id=f"P{number}") for number in range(500)))
        running.catch_up(streams.ends("order.status"))
    counted = Counter(handled)
    assert set(counted) == {f"{which}{number}" for which in "OP" for number in range(500)}
    assert sum(counted.values()) < 2_000, "what was done since the last commit is all that may come again"
