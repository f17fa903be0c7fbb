"""Records a second of the order-state consumer, beside what else reads the same topic and keeps the same state.

uv run python benchmarks/consumers.py [--records 1000000] [--orders 100000] [--repetitions 3] [--rows FILE]

A topic of six partitions is filled once with order.status records as the ingress writes them, 5 % of them late. Then each
program reads all of it from the start, in a process of its own, the programs in another order in each repetition:
  consume         confluent_kafka's consume(), nothing else
  decode          the same and fastavro's schemaless_reader, times as integers: the reference
  sqlite          the real loop: strict decoding, facts with their evidence, outbox and offsets in SQLite (WAL, FULL)
  postgres        the same in PostgreSQL, whose own CPU time is a column of its own
  postgres-2      the same by two processes of one consumer, whose memory is added up
  kafka-streams   the same facts with their evidence, in RocksDB with a changelog topic, two threads (Java; Maven)
  quix            the same with Quix Streams (uv)
The clock of each starts when it has its partitions, that of quix with its first record. `--limit` ends what is slower: its
figure is of the records done, whose states were smaller. One that cannot be had here is skipped, and said so. A measurement
beside too much other work is repeated. Quote the ratios.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from confluent_kafka import Consumer, KafkaError, Message, Producer
from fastavro import parse_schema, schemaless_reader
from measuring import broker, cpu_s_of_machine, cpu_s_of_sessions, median, say, without_logical_types
from postgres import NoPostgres, Postgres, postgres

from kinguin_streams.cluster.connection import consumer_config, producer_config
from kinguin_streams.cluster.local_broker import LocalBroker
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Decoder, Encoder
from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import OrderStatus, StoreName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import topics
from kinguin_streams.schemas.versions import shipped
from kinguin_streams.telemetry.traces import PassedOn

HERE = Path(__file__).parent
PEERS_FOLDER = HERE / "peers"
TOPIC = "kinguin.order.status"
PARTITIONS = 6
OURS = {"sqlite": 1, "postgres": 1, "postgres-2": 2}
"""Processes of each."""
PEERS = ("consume", "decode", *OURS, "kafka-streams", "quix")
STATUSES = ("processing", "completed", "canceled", "refunded")
START_MS = 1_790_000_000_000
BATCH_RECORDS = 10_000
FOREIGN_CORES_ALLOWED = 0.2
GIVE_UP_S = 900


class Unavailable(Exception):
    """This peer cannot be had here, and why."""


def fill(bootstrap_servers: str, records: int, orders: int) -> int:
    """Write the records into the topic, and return how many orders they are of."""
    config = producer_config(
        KafkaSettings(bootstrap_servers=bootstrap_servers), client_id="bench", queue_records=1_000_000
    )
    producer = Producer({**config, "linger.ms": 20})
    refused: list[str] = []

    def reported(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            refused.append(error.str())

    encoder, declared, store = Encoder(), topics(), StoreName("default")
    chance = random.Random(1)
    drawn: set[str] = set()
    for number in range(records):
        order, status = f"PHS{chance.randrange(orders):08d}", STATUSES[chance.randrange(4)]
        drawn.add(order)
        late_ms = chance.randrange(600_000) if chance.random() < 0.05 else 0
        at_ms = START_MS + number * 10 - late_ms
        body = (
            b'{"orderId":"%s","orderExternalId":"AL%09d","status":"%s","updatedAt":"2026-09-21T13:46:40.000+00:00"}'
            % (
                order.encode(),
                number,
                status.encode(),
            )
        )
        event = OrderStatus(
            event_id=event_id(store, "order.status", body),
            store=store,
            received_at_ms=START_MS + number * 10 + 5,
            order_id=order,
            order_external_id=f"AL{number:09d}",
            status=status,
            updated_at_ms=at_ms,
            raw=body,
        )
        record = outgoing(event, declared, encoder)
        producer.produce(
            record.topic,
            record.value,
            record.key,
            headers=list(record.headers),
            timestamp=record.timestamp_ms,
            on_delivery=reported,
        )
        if number % 1_000 == 0:
            producer.poll(0)
    producer.flush()
    if refused:
        raise SystemExit(f"{len(refused)} records could not be written: {refused[0]}")
    return len(drawn)


# What runs in the process of a peer


class Clock:
    """Time and CPU time since the partitions were there."""

    def __init__(self) -> None:
        self.start()

    def start(self, *_: Any) -> None:
        """Start it; a callback of the client, too."""
        self._s, self._cpu_s = time.perf_counter(), time.process_time()

    def row(self, records: int) -> dict[str, float]:
        """Return what was measured until now."""
        return {
            "records": records,
            "seconds": time.perf_counter() - self._s,
            "cpu_us_per_record": (time.process_time() - self._cpu_s) / records * 1e6,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def run_reference(bootstrap_servers: str, records: int, *, decode: bool) -> dict[str, float]:
    """Consume, and perhaps decode."""
    config = consumer_config(
        KafkaSettings(bootstrap_servers=bootstrap_servers), group_id=f"bench-{time.time_ns()}", client_id="bench"
    )
    schema = parse_schema(json.loads(_schema()))
    consumer, clock, done = Consumer({**config, "auto.offset.reset": "earliest"}), Clock(), 0
    consumer.subscribe([TOPIC], on_assign=clock.start)
    while done < records:
        messages = consumer.consume(BATCH_RECORDS, 0.2)
        if decode:
            for message in messages:
                value = message.value() or b""
                schemaless_reader(io.BytesIO(value[SINGLE_OBJECT_HEADER_BYTES:]), schema, None)
        done += len(messages)
    row = clock.row(done)
    consumer.close()
    return row


def _schema() -> str:
    return json.dumps(without_logical_types(json.loads(shipped().newest("order.status").text)))


class Told:
    """What the processes of a consumer and the one that measures them tell each other."""

    def __init__(self, processes: int) -> None:
        self.assigned = multiprocessing.Array("q", processes)
        """Partitions of the topic that each process has."""
        self.applied = multiprocessing.Array("q", processes)
        """Records of each that have taken effect."""
        self.begun, self.done = multiprocessing.Event(), multiprocessing.Event()
        self.cpu_s = multiprocessing.Array("d", processes)
        """CPU time of each between the two."""
        self.peak_mib = multiprocessing.Array("d", processes)


def consume_order_state(told: Told, number: int, bootstrap_servers: str, state_url: str, group: str) -> None:
    """Run the real loop until it is told that it is done."""
    from kinguin_streams.consumers.effect import AHEAD_FROM_RECORDS, StateEffect
    from kinguin_streams.consumers.loop import ConsumeLoop
    from kinguin_streams.consumers.order_state import ORDER_STATE
    from kinguin_streams.consumers.settings import ConsumerSettings, StateSettings
    from kinguin_streams.consumers.store import StateStore

    store = StateStore(StateSettings(url=state_url), ORDER_STATE)
    loop = ConsumeLoop(
        StateEffect(ORDER_STATE, store, ahead_from=AHEAD_FROM_RECORDS),
        kafka=KafkaSettings(bootstrap_servers=bootstrap_servers),
        topics=topics(),
        settings=ConsumerSettings(group_prefix=group),
        decoder=Decoder(),
        encoder=Encoder(),
        publisher=Mock(),  # for dead letters, of which there are none
        traces=PassedOn(),
    )

    def watch() -> None:
        while not told.begun.is_set():
            told.assigned[number] = sum(part.topic == TOPIC for part in loop.assigned)
            told.applied[number] = loop.applied
            time.sleep(0.005)
        clock = Clock()
        while not told.done.is_set():
            told.applied[number] = loop.applied
            time.sleep(0.005)
        row = clock.row(1)
        told.cpu_s[number], told.peak_mib[number] = row["cpu_us_per_record"] / 1e6, row["peak_mib"]
        loop.stop()

    watching = threading.Thread(target=watch)
    watching.start()
    loop.run()
    watching.join()
    store.close()


def run_order_state(bootstrap_servers: str, records: int, state_url: str, processes: int) -> dict[str, float]:
    """Run so many processes of one consumer until everything has taken effect.

    The clock starts when each has partitions. What the first one has done until then is not counted.
    """
    from kinguin_streams.consumers import reader

    told, group = Told(processes), f"bench-{time.time_ns()}"
    running = [
        multiprocessing.Process(target=consume_order_state, args=(told, number, bootstrap_servers, state_url, group))
        for number in range(processes)
    ]
    for each in running:
        each.start()
    while not (all(told.assigned[:]) and sum(told.assigned[:]) == PARTITIONS):
        time.sleep(0.005)
    before, clock = sum(told.applied[:]), Clock()
    told.begun.set()
    while sum(told.applied[:]) < records:
        time.sleep(0.005)
    row = clock.row(records - before)
    told.done.set()
    for each in running:
        each.join()
    row["cpu_us_per_record"] = sum(told.cpu_s[:]) / row["records"] * 1e6
    row["peak_mib"] = sum(told.peak_mib[:])
    return {**row, "orders": sum(reader.orders_by_status(state_url).values())}


# What runs them


@contextmanager
def commands(name: str, kafka: LocalBroker, server: Postgres | None, records: int, limit_s: int) -> Iterator[list[str]]:
    """Yield the command of a peer; its folder is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "kafka-streams":
            classes = _kafka_streams()
            memory = ["-Xmx1g", "-cp", f"{classes}:{classes.parent}/lib/*", "OrderState"]
            yield ["java", *memory, kafka.bootstrap_servers, TOPIC, str(records), str(limit_s), folder]
        elif name == "quix":
            schema = Path(folder) / "schema.json"
            schema.write_text(_schema())
            command = [*_quix(), str(PEERS_FOLDER / "quix_streams.py"), kafka.bootstrap_servers, TOPIC, str(schema)]
            yield [*command, str(records), str(limit_s), str(Path(folder) / "state")]
        else:
            command = [sys.executable, __file__, "--peer", name, "--records", str(records)]
            url = f"sqlite:///{folder}/state.db" if name == "sqlite" else _new_database(server)
            yield [*command, "--bootstrap-servers", kafka.bootstrap_servers, "--state-url", url]


def _new_database(server: Postgres | None) -> str:
    if server is None:
        return ""
    import psycopg

    name = f"bench{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # of our own words
    return server.url.rpartition("/")[0] + f"/{name}"


def _kafka_streams() -> Path:
    """Return the folder of the compiled peer, made if need be. Raises Unavailable."""
    source, built = PEERS_FOLDER / "kafka_streams", HERE.parent / ".data" / "benchmarks" / "kafka_streams"
    for tool in ("java", "javac", "mvn"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    if not (built / "lib").exists():
        _built(
            "mvn", "-q", "-B", "-f", str(source), "dependency:copy-dependencies", f"-DoutputDirectory={built / 'lib'}"
        )
    classes = built / "classes"
    _built("javac", "-cp", f"{built / 'lib'}/*", "-d", str(classes), str(source / "OrderState.java"))
    return classes


def _built(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")


def _quix() -> list[str]:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise Unavailable("uv is not installed")
    return [uv, "run", "--no-project", "--quiet", "--with", "quixstreams", "--with", "fastavro", "python"]


def measure(
    name: str, kafka: LocalBroker, server: Postgres | None, records: int, *, limit_s: int, tries: int
) -> dict[str, float]:
    """Return the measurement of a peer with the least other work beside it, of at most so many."""
    best: dict[str, float] | None = None
    for _ in range(tries):
        with commands(name, kafka, server, records, limit_s) as command:
            known: list[Callable[[], float]] = [
                cpu_s_of_machine,
                partial(cpu_s_of_sessions, [os.getsid(kafka.pid)]),
                _children_cpu_s,
            ]
            if server is not None:
                known.append(server.cpu_s)
            before, began_s = [cpu_s() for cpu_s in known], time.monotonic()
            done = subprocess.run(
                command, stdout=subprocess.PIPE, timeout=GIVE_UP_S, check=True, start_new_session=True
            )
            used = [cpu_s() - was for cpu_s, was in zip(known, before, strict=True)]
            took_s = time.monotonic() - began_s
        row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        row["records_per_s"] = row["records"] / row["seconds"]
        row["kafka_us_per_record"] = used[1] / row["records"] * 1e6
        row["database_us_per_record"] = used[3] / row["records"] * 1e6 if name.startswith("postgres") else 0.0
        row["foreign_cores"] = (used[0] - sum(used[1:])) / took_s
        if best is None or row["foreign_cores"] < best["foreign_cores"]:
            best = row
        if row["foreign_cores"] <= FOREIGN_CORES_ALLOWED:
            break
    assert best is not None
    return best


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def available(names: Sequence[str], server: Postgres | None) -> list[str]:
    """Return those that can be had here; say why others cannot."""
    checks: Mapping[str, Callable[[], Any]] = {"kafka-streams": _kafka_streams, "quix": _quix}
    found = []
    for name in names:
        try:
            if name in checks:
                checks[name]()
            if name.startswith("postgres") and server is None:
                continue
        except Unavailable as why:
            say(f"skipped {name}: {why}")
        else:
            found.append(name)
    return found


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Print medians."""
    print("| program | records/s | of kafka-streams | of decode | µs CPU a record | of its database | peak MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def of(name: str, key: str) -> float:
        values = [float(row[key]) for row in rows if row["peer"] == name]
        return median(values) if values else float("nan")

    for name in names:
        speed = of(name, "records_per_s")
        ratios = [speed / of(reference, "records_per_s") for reference in ("kafka-streams", "decode")]
        cells = [f"{speed:.0f}", *(f"{ratio:.2f}" for ratio in ratios), f"{of(name, 'cpu_us_per_record'):.1f}"]
        cells += [f"{of(name, 'database_us_per_record'):.1f}", f"{of(name, 'peak_mib'):.0f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--records", type=int, default=1_000_000)
    arguments.add_argument("--orders", type=int, default=100_000)
    arguments.add_argument("--repetitions", type=int, default=3)
    arguments.add_argument("--limit", type=int, default=60, help="seconds after which kafka-streams and quix end")
    arguments.add_argument("--tries", type=int, default=3, help="measurements at most, beside too much other work")
    arguments.add_argument("--peers", default=",".join(PEERS))
    arguments.add_argument("--rows", type=Path, help="append every measurement here, a JSON object a line")
    for hidden in ("--peer", "--bootstrap-servers", "--state-url"):
        arguments.add_argument(hidden, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.peer:
        row: dict[str, Any]
        if options.peer in OURS:
            row = run_order_state(options.bootstrap_servers, options.records, options.state_url, OURS[options.peer])
        else:
            row = run_reference(options.bootstrap_servers, options.records, decode=options.peer == "decode")
        print(json.dumps(row))
        return
    names = options.peers.split(",")
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        kafka = stack.enter_context(broker())
        server = None
        if any(name.startswith("postgres") for name in names):
            try:
                server = stack.enter_context(postgres())
            except NoPostgres as why:
                say(f"skipped postgres: {why}")
        names = available(names, server)
        say(f"filling {TOPIC} with {options.records} records")
        orders = fill(kafka.bootstrap_servers, options.records, options.orders)
        for repetition in range(options.repetitions):
            for name in random.Random(repetition).sample(names, len(names)):
                row = {
                    "peer": name,
                    **measure(name, kafka, server, options.records, limit_s=options.limit, tries=options.tries),
                }
                if name in OURS and row["orders"] != orders:
                    raise SystemExit(f"{name} has the state of {row['orders']} orders, and there are {orders}")
                rows.append({**row, "repetition": repetition})
                say(f"{name}: {row['records_per_s']:.0f}/s, {row['cpu_us_per_record']:.1f} us of CPU a record")
                if options.rows:
                    with options.rows.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    table(rows, names)
    worst = max(row["foreign_cores"] for row in rows)
    print(f"\nOthers used at most {worst:.2f} cores meanwhile; load average at the end: {os.getloadavg()[0]:.2f}.")


if __name__ == "__main__":
    main()
