"""Records a second of the order-state consumer, beside a loop that only consumes and decodes.

uv run python benchmarks/consumers.py [--records 200000] [--orders 20000] [--repetitions 3] [--json]

A topic is filled once with order.status records as the ingress writes them, 5 % of them late. Then each program reads all
of it in a process of its own, in alternating order:
  decode       confluent_kafka's consume() and fastavro's schemaless_reader, nothing else: the reference
  order-state  the real loop: strict decoding, fold, state and offsets in SQLite (WAL, synchronous=FULL)
The clock of each starts with the first batch that has been dealt with and ends with the last. Quote the ratio.
"""

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import Mock

from confluent_kafka import Consumer, KafkaError, Message, Producer
from fastavro import parse_schema, schemaless_reader
from measuring import kafka, median, say, without_logical_types

from kinguin_streams.cluster.connection import consumer_config, producer_config
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Decoder, Encoder
from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import OrderStatus, StoreName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import topics
from kinguin_streams.schemas.versions import shipped
from kinguin_streams.telemetry.traces import PassedOn

TOPIC = "kinguin.order.status"
PEERS = ("decode", "order-state")
STATUSES = ("processing", "completed", "canceled", "refunded")
START_MS = 1_790_000_000_000
BATCH_RECORDS = 10_000


def fill(bootstrap_servers: str, records: int, orders: int) -> None:
    """Write the records into the topic."""
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
    for number in range(records):
        order, status = f"PHS{chance.randrange(orders):08d}", STATUSES[chance.randrange(4)]
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


def run_decode(bootstrap_servers: str, records: int) -> dict[str, float]:
    """Consume and decode."""
    config = consumer_config(
        KafkaSettings(bootstrap_servers=bootstrap_servers), group_id=f"bench-{time.time_ns()}", client_id="bench"
    )
    consumer = Consumer({**config, "auto.offset.reset": "earliest"})
    consumer.subscribe([TOPIC])
    schema = parse_schema(without_logical_types(json.loads(shipped().newest("order.status").text)))
    done, first, started_s = 0, 0, 0.0
    while done < records:
        for message in consumer.consume(BATCH_RECORDS, 0.2):
            value = message.value() or b""
            schemaless_reader(io.BytesIO(value[SINGLE_OBJECT_HEADER_BYTES:]), schema, None)
            done += 1
        if done and not first:
            first, started_s = done, time.perf_counter()
    seconds = time.perf_counter() - started_s
    consumer.close()
    return {"records_per_s": (records - first) / seconds, "cpu_us_per_record": time.process_time() / records * 1e6}


def run_order_state(bootstrap_servers: str, records: int) -> dict[str, float]:
    """Run the real loop until everything has taken effect."""
    from kinguin_streams.consumers.effect import StateEffect
    from kinguin_streams.consumers.loop import ConsumeLoop
    from kinguin_streams.consumers.order_state import ORDER_STATE
    from kinguin_streams.consumers.settings import ConsumerSettings, StateSettings
    from kinguin_streams.consumers.store import StateStore

    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(StateSettings(url=f"sqlite:///{Path(folder) / 'state.db'}"), ORDER_STATE)
        loop = ConsumeLoop(
            StateEffect(ORDER_STATE, store),
            kafka=KafkaSettings(bootstrap_servers=bootstrap_servers),
            topics=topics(),
            settings=ConsumerSettings(),
            decoder=Decoder(),
            encoder=Encoder(),
            publisher=Mock(),  # for dead letters, of which there are none
            traces=PassedOn(),
        )
        measured: dict[str, float] = {}

        def watch() -> None:
            while not (first := loop.applied):
                time.sleep(0.001)
            started_s = time.perf_counter()
            while loop.applied < records:
                time.sleep(0.001)
            measured["records_per_s"] = (records - first) / (time.perf_counter() - started_s)
            loop.stop()

        threading.Thread(target=watch).start()
        loop.run()
        store.close()
        return {**measured, "cpu_us_per_record": time.process_time() / records * 1e6}


def main() -> None:
    """Run and print a table, or JSON."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--records", type=int, default=200_000)
    arguments.add_argument("--orders", type=int, default=20_000)
    arguments.add_argument("--repetitions", type=int, default=3)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments.add_argument("--bootstrap-servers", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.peer:
        run = run_decode if options.peer == "decode" else run_order_state
        print(json.dumps(run(options.bootstrap_servers, options.records)))
        return
    rows: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    with kafka() as bootstrap_servers:
        say(f"filling {TOPIC} with {options.records} records")
        fill(bootstrap_servers, options.records, options.orders)
        for repetition in range(options.repetitions):
            for peer in PEERS if repetition % 2 == 0 else PEERS[::-1]:
                command = [sys.executable, __file__, "--peer", peer, "--records", str(options.records)]
                command += ["--bootstrap-servers", bootstrap_servers]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=600)
                rows[peer].append(json.loads(done.stdout.splitlines()[-1]))
                say(f"{repetition} {peer}: {rows[peer][-1]['records_per_s']:.0f}/s")
    figures = {
        peer: {key: median([row[key] for row in rows[peer]]) for key in ("records_per_s", "cpu_us_per_record")}
        for peer in PEERS
    }
    ratio = figures["order-state"]["records_per_s"] / figures["decode"]["records_per_s"]
    if options.json:
        print(json.dumps({**figures, "ratio": round(ratio, 3)}))
        return
    print("| program | records/s | µs CPU a record | of decode |\n| --- | --- | --- | --- |")
    for peer in PEERS:
        of_decode = figures[peer]["records_per_s"] / figures["decode"]["records_per_s"]
        print(
            f"| {peer} | {figures[peer]['records_per_s']:.0f} | {figures[peer]['cpu_us_per_record']:.1f} | {of_decode:.2f} |"
        )


if __name__ == "__main__":
    main()
