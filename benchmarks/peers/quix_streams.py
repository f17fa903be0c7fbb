"""The order state of consumers/order_state.py with Quix Streams, in RocksDB with a changelog topic; its default guarantee.

Arguments: bootstrap servers, topic, schema file, records, limit in seconds, folder. Prints one line of JSON. Needs
quixstreams and fastavro.
"""

import io
import json
import resource
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from fastavro import parse_schema, schemaless_reader
from quixstreams import Application, message_context

HEADER_BYTES, MAX_FACTS = 10, 64
RANKS = {"pending": 0, "processing": 0, "out_of_stock": 2, "error": 2, "completed": 3, "canceled": 4, "refunded": 5}

bootstrap_servers, topic, schema_file, records, limit_s, folder = sys.argv[1:]
# Without logical types: times stay integers, which is the quickest that fastavro can be.
schema = parse_schema(json.loads(Path(schema_file).read_text()))
app = Application(
    broker_address=bootstrap_servers,
    consumer_group=f"quix-{uuid.uuid4().hex[:8]}",
    state_dir=folder,
    auto_offset_reset="earliest",
    loglevel="ERROR",
)
applied, started_s, started_cpu_s = 0, 0.0, 0.0


def rank(fact: list[Any]) -> tuple[int, int, str]:
    """Return what facts are compared by."""
    return fact[0], RANKS.get(fact[1], 1), fact[1]


def fold(value: bytes, state: Any) -> None:
    """Keep one more fact: [updatedAt, status, [topic, partition, offset, receivedAt]], the one that counts first."""
    global applied, started_s, started_cpu_s  # noqa: PLW0603 - one stream, one thread
    if not applied:
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
    event: Any = schemaless_reader(io.BytesIO(value[HEADER_BYTES:]), schema, None)
    here = message_context()
    fact = [
        event["updatedAt"],
        event["status"],
        [here.topic, here.partition, here.offset, event["receivedAt"]],
    ]
    kept = state.get("order") or {"facts": [], "external_id": None}
    facts, changes, place = kept["facts"], False, 0
    while place < len(facts) and rank(facts[place]) > rank(fact):
        place += 1
    if place < len(facts) and facts[place][:2] == fact[:2]:
        if fact[2] < facts[place][2]:
            facts[place], changes = fact, True
    elif place < MAX_FACTS:
        facts.insert(place, fact)
        del facts[MAX_FACTS:]
        changes = True
    if event["orderExternalId"] is not None:
        carried = [event["updatedAt"], event["orderExternalId"]]
        if kept["external_id"] is None or carried > kept["external_id"]:
            kept["external_id"], changes = carried, True
    if changes:
        state.set("order", kept)
    applied += 1
    if applied >= int(records) or (applied % 1000 == 0 and time.perf_counter() - started_s > float(limit_s)):
        app.stop()


stream = app.dataframe(app.topic(topic, value_deserializer="bytes", key_deserializer="bytes"))
stream.update(fold, stateful=True)
app.run()
seconds = time.perf_counter() - started_s
print(
    json.dumps(
        {
            "records": applied,
            "seconds": seconds,
            "cpu_us_per_record": (time.process_time() - started_cpu_s) / applied * 1e6,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )
)
