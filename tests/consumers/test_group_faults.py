"""Groups of processes under everything at once: kills, comings and goings, a broker and a database that stop.

The final state is compared with a recomputation from the topics by another program (recomputation.py), and so are the
derived topics.
"""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from confluent_kafka import Producer
from sqlalchemy import make_url

from kinguin_streams.cluster import local_config
from kinguin_streams.cluster.connection import CLIENT_LOGGER, producer_config
from kinguin_streams.consumers import reader
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.events import Event, RecordName, StoreName
from kinguin_streams.schemas.instants import to_rfc3339
from kinguin_streams.schemas.outgoing import outgoing
from tests.conftest import StartBroker
from tests.consumers.deliveries import at, order_complete, order_status, product_update
from tests.consumers.fleet import Fleet
from tests.consumers.kafka_streams import Streams, wait_until
from tests.consumers.running_handlers import committed
from tests.consumers.test_consumer_kill import environment
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.kafka

HERE = Path(__file__).parent
SCHEMAS = HERE.parents[1] / "schemas" / "avro"
READS: Mapping[str, tuple[RecordName, ...]] = {
    "order-state": ("order.status", "order.complete"),
    "product-changes": ("product.update",),
}
STORES = tuple(map(StoreName, ("default", "shop-2", "shop-3")))
STATUSES = ("pending", "processing", "completed", "canceled", "refunded", "on_the_moon")
LAG_GONE_WITHIN_S = 30.0
DAY_MS = 86_400_000


class Storm(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything."""

    events: int
    seconds: float
    kills: int
    come_or_go_every_s: float = 2.0
    database_away_s: float
    broker_restarts: int


EVERYDAY = Storm(events=2_000, seconds=9.0, kills=2, database_away_s=2.0, broker_restarts=0)
LONG = Storm(events=100_000, seconds=120.0, kills=20, database_away_s=30.0, broker_restarts=1)


def deliveries(count: int, dice: random.Random) -> list[Event]:
    """Return events in the order of their arrival: 10 % come again, 20 % come late, one in 500 has an absurd updatedAt."""
    # Of this month: product updates that are older than their retention would be deleted while the test runs.
    shift_ms = round(time.time()) * 1_000 - 30 * DAY_MS - at(0)
    found: list[Event] = []
    orders, products = count // 10, count // 100
    for number in range(count):
        if found and dice.random() < 0.1:
            again = dice.choice(found[-2_000:])
            found.append(msgspec.structs.replace(again, received_at_ms=again.received_at_ms + dice.randrange(60_000)))
            continue
        minute = number / 10 - (dice.randrange(1, 500) if dice.random() < 0.2 else 0)
        kind = dice.random()
        event: Event
        if kind < 0.3:
            some = {"qty": dice.randrange(99), "text_qty": dice.randrange(99) if dice.random() < 0.5 else None}
            event = product_update(minute, kinguin_id=1 + dice.randrange(products), **some)  # type: ignore[arg-type]
        else:
            order = {"order_id": f"O{dice.randrange(orders)}", "external_id": f"E{number}" if number % 3 else None}
            event = (
                order_complete(minute, **order)  # type: ignore[arg-type]
                if kind < 0.4
                else order_status(dice.choice(STATUSES), minute, **order)  # type: ignore[arg-type]
            )
        if dice.random() < 0.002:
            event = msgspec.structs.replace(event, updated_at_ms=at(60 * 24 * 365 * 900), event_id=f"absurd-{number}")
        times = {"updated_at_ms": event.updated_at_ms + shift_ms, "received_at_ms": event.received_at_ms + shift_ms}
        found.append(msgspec.structs.replace(event, store=STORES[number % len(STORES)], **times))
    return found


class SteadySender(threading.Thread):
    """Writes the events at an even pace, also while the broker is away for a moment."""

    def __init__(self, streams: Streams, events: list[Event], seconds: float) -> None:
        super().__init__()
        self._streams = streams
        self._events = events
        self._seconds = seconds
        self.failures: list[str] = []

    def run(self) -> None:
        config = producer_config(self._streams.kafka, client_id="steady", delivery_timeout_s=120, queue_records=200_000)
        producer, encoder = Producer(config, logger=CLIENT_LOGGER), Encoder()
        began_s = time.monotonic()

        def settle(error: Any, _message: Any) -> None:
            if error is not None:
                self.failures.append(error.str())

        for number, event in enumerate(self._events):
            if number % 50 == 0:
                producer.poll(max(0.0, began_s + self._seconds * number / len(self._events) - time.monotonic()))
            out = outgoing(event, self._streams.topics, encoder)
            producer.produce(
                out.topic, key=out.key, value=out.value, headers=list(out.headers), timestamp=out.timestamp_ms,
                on_delivery=settle,
            )  # fmt: skip
        if left := producer.flush(120):
            self.failures.append(f"{left} not reported")


def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the broker give up a dead member of the `consumer` protocol after 6 s: there it is the broker that decides."""
    plain = local_config.server_properties

    def with_short_sessions(**settings: Any) -> str:
        return plain(**settings) + (
            "group.consumer.min.session.timeout.ms=6000\ngroup.consumer.session.timeout.ms=6000\n"
            "group.consumer.min.heartbeat.interval.ms=1000\ngroup.consumer.heartbeat.interval.ms=1000\n"
        )

    monkeypatch.setattr(local_config, "server_properties", with_short_sessions)


def rage(fleet: Fleet, storm: Storm, postgres: PostgresServer, restart_broker: Any) -> None:
    """Do all of it, spread over the time."""
    began_s = time.monotonic()
    consumers = list(READS)

    def due(times: int, first: float = 0.0, last: float = 1.0) -> list[float]:
        return [began_s + storm.seconds * (first + (last - first) * (n + 1) / (times + 1)) for n in range(times)]

    kills = due(storm.kills)
    restarts = due(storm.broker_restarts, 0.1, 0.5)
    away = began_s + storm.seconds * 0.55
    back = away + storm.database_away_s
    turn = 0
    next_move = began_s
    while (now_s := time.monotonic()) < began_s + storm.seconds:
        fleet.tend()
        if kills and now_s >= kills[0]:
            kills.pop(0)
            fleet.kill(consumers[len(kills) % 2])
        if now_s >= next_move:
            next_move = now_s + storm.come_or_go_every_s
            turn += 1
            fleet.come_or_go(consumers[turn % 2])
        if restarts and now_s >= restarts[0]:
            restarts.pop(0)
            fleet.note("broker stops")
            restart_broker()
            fleet.note("broker is back")
        if away and now_s >= away:
            away = 0.0
            postgres.stop("immediate")
            fleet.note("database stops")
        if not away and back and now_s >= back:
            back = 0.0
            postgres.start()
            fleet.note("database is back")
        time.sleep(0.1)
    if back:
        postgres.start()
    assert kills == restarts == []


def run(arguments: list[str], env: dict[str, str], folder: Path) -> str:
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=240, check=False, cwd=folder)
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2_000:]}"
    return done.stdout


def differing(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return what differs, the first few keys of it."""
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return {"number": len(keys), **{key: (one.get(key), other.get(key)) for key in keys[:3]}} if keys else {}


def instant(ms: int | None) -> str | None:
    return None if ms is None else to_rfc3339(ms)


@pytest.mark.parametrize(
    ("storm", "protocol"),
    [
        pytest.param(EVERYDAY, "classic", id="everyday"),
        pytest.param(LONG, "classic", id="long-classic", marks=[pytest.mark.faults, pytest.mark.timeout(900)]),
        pytest.param(LONG, "consumer", id="long-consumer", marks=[pytest.mark.faults, pytest.mark.timeout(900)]),
    ],
)
def test_rows_47_48_and_59_groups_that_come_go_and_die_make_the_state_that_another_program_makes(
    *,
    storm: Storm,
    protocol: str,
    kafka_factory: StartBroker,
    own_postgres: PostgresServer,
    topic_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    lowered(monkeypatch)
    broker = kafka_factory(tmp_path / "broker")
    streams = Streams(broker.bootstrap_servers, topic_prefix, partitions=6).make()
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    config = {"session.timeout.ms": 6_000} if protocol == "classic" else {"group.protocol": "consumer"}
    url = own_postgres.new_database()
    env = environment(
        streams, tmp_path, STATE__URL=url, KAFKA__CONFIG=json.dumps(config), CONSUMER__STATE_RETRY_MAX_S=2.0
    )
    fleet = Fleet(env, tmp_path, dice, most=6)

    def restart_broker() -> None:
        broker.stop()
        kafka_factory(tmp_path / "broker")

    sender = SteadySender(streams, deliveries(storm.events, dice), storm.seconds)
    began_s = time.monotonic()
    try:
        for consumer in READS:
            fleet.settle(consumer, 3)
        sender.start()
        wait_until(
            lambda: all(reader.stored_offsets(url, consumer) for consumer in READS), f"all to work: {fleet}", 150
        )
        rage(fleet, storm, own_postgres, restart_broker)
        sender.join(150)
        assert not sender.is_alive()
        assert sender.failures == []
        for consumer in READS:
            fleet.settle(consumer, 3)
        fleet.note("the storm is over")

        def all_work() -> bool:
            fleet.tend()
            return all(member.works for consumer in READS for member in fleet.of(consumer))

        wait_until(all_work, f"the last ones to be given partitions, seed {seed}: {fleet}", 150)
        fleet.note("all have partitions")
        calm_s = time.monotonic()
        ends = {consumer: streams.ends(*topics) for consumer, topics in READS.items()}

        def caught_up() -> bool:
            fleet.tend()
            return all(reader.stored_offsets(url, consumer) == ends[consumer] for consumer in READS)

        try:
            wait_until(caught_up, "lag 0", LAG_GONE_WITHIN_S)
        except AssertionError:
            left = {consumer: differing(reader.stored_offsets(url, consumer), its) for consumer, its in ends.items()}
            pytest.fail(f"lag after {LAG_GONE_WITHIN_S:g} s: {left}, seed {seed}: {fleet}")
        lag_s = time.monotonic() - calm_s

        def told_kafka() -> bool:
            return all(committed(streams, consumer, *its) == its for consumer, its in ends.items())

        wait_until(told_kafka, f"committed offsets, seed {seed}: {fleet}", LAG_GONE_WITHIN_S)
        where = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(where, autocommit=True) as database:

            def all_told() -> bool:
                row = database.execute("SELECT count(*) FROM projection_outbox").fetchone()
                return row == (0,)

            wait_until(all_told, f"an empty outbox, seed {seed}: {fleet}", 60)
        fleet.end()
    finally:
        fleet.kill_all()
    assert fleet.tracebacks() == [], str(fleet)
    assert fleet.counts["kill -9 at work"] + fleet.counts["kill -9 at its start"] == storm.kills
    assert fleet.counts["kill -9 at work"] > 0

    command = [sys.executable, "-m", "kinguin_streams", "state"]
    orders = [json.loads(line) for line in run([*command, "dump", "orders", "--format", "json"], env, tmp_path).splitlines()]  # fmt: skip
    products = [json.loads(line) for line in run([*command, "dump", "products", "--format", "json"], env, tmp_path).splitlines()]  # fmt: skip
    program = [sys.executable, str(HERE / "recomputation.py"), broker.bootstrap_servers, topic_prefix, str(SCHEMAS)]
    expected = json.loads(run(program, env, tmp_path))
    said = f"seed {seed}, {fleet}"

    assert len(expected["orders"]) > storm.events / 20
    assert not differing(
        {f"{order['store']}:{order['orderId']}": order for order in orders},
        {
            key: {
                "store": key.partition(":")[0],
                "orderId": key.partition(":")[2],
                "orderExternalId": order["orderExternalId"],
                "status": order["status"],
                "updatedAt": instant(order["updatedAt"]),
                "completedAt": instant(order["completedAt"]),
                "facts": len(order["facts"]),
                "contradictions": sorted({code for code, *_ in order["contradictions"]}),
                "setAside": order["setAside"],
                "truncated": False,
            }
            for key, order in expected["orders"].items()
        },
    ), said
    counted = {f"{each['store']}:{each['kinguinId']}": (each["changes"], each["setAside"], each["qty"], each["updatedAt"]) for each in products}  # fmt: skip
    assert not differing(
        counted,
        {
            key: (each["changes"], each["setAside"], each["qty"], instant(each["updatedAt"]))
            for key, each in expected["products"].items()
        },
    ), said
    assert not differing(expected["told_orders"], expected["orders"]), said
    assert not differing(expected["told_products"], expected["products"]), said
    run([*command, "verify", "--derived"], env, tmp_path)
    figures = {
        "protocol": protocol,
        "events": storm.events,
        "orders": len(orders),
        "products": len(products),
        "lag_gone_s": round(lag_s, 1),
        "seconds": round(time.monotonic() - began_s),
        **fleet.counts,
    }
    record_property("figures", json.dumps(figures))
    print(json.dumps(figures))  # noqa: T201 - what a long run did, for the page of fault runs
