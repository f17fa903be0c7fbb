"""States worked out from the topics by another program: confluent-kafka, fastavro and plain Python, none of our code.

    python recomputation.py BOOTSTRAP_SERVERS PREFIX FOLDER_OF_AVSC

Prints one JSON object: "orders" and "products", recomputed from the events, and "told_orders" and "told_products", what the
derived topics say, the greatest (generation, revision) of each key. Keys are <store>:<id>; times are milliseconds. Written
from the contract: the .avsc files, Avro single-object encoding, and the rules of README.md and docs/consuming.md.
"""

import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, TopicPartition
from fastavro.schema import fingerprint, to_parsing_canonical_form

EARLIEST_MS = 1_514_764_800_000
DAY_MS = 86_400_000
RANKS = {
    "pending": 0,
    "processing": 0,
    "out_of_stock": 2,
    "error": 2,
    "completed": 3,
    "canceled": 4,
    "refunded": 5,
}


def plain(schema: Any) -> Any:
    """Return the schema without logical types: times are then numbers, prices bytes."""
    if isinstance(schema, dict):
        return {name: plain(value) for name, value in schema.items() if name != "logicalType"}
    return [plain(each) for each in schema] if isinstance(schema, list) else schema


def schemas(folder: Path) -> dict[bytes, Any]:
    found = {}
    for file in folder.glob("*/*.avsc"):
        schema = json.loads(file.read_text())
        frame = b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
        found[frame] = fastavro.parse_schema(plain(schema))
    return found


def messages(servers: str, topic: str) -> Iterator[Any]:
    """Yield every record that the topic has now."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "recomputation", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        for number in partitions:
            start, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
            if start == end:
                continue
            consumer.assign([TopicPartition(topic, number, start)])
            position = start
            while position < end:
                for message in consumer.consume(10_000, 1.0):
                    if message.error() is not None:
                        raise RuntimeError(str(message.error()))
                    position = message.offset() + 1  # type: ignore[operator]
                    if position <= end:
                        yield message
                # Of a compacted topic the last offsets may hold nothing.
                [now] = consumer.position([TopicPartition(topic, number)])
                position = max(position, now.offset)
    finally:
        consumer.close()


def is_believed(event: dict[str, Any]) -> bool:
    return bool(EARLIEST_MS <= event["updatedAt"] <= event["receivedAt"] + DAY_MS)


def rank(fact: tuple[int, str]) -> tuple[int, int, str]:
    return fact[0], RANKS.get(fact[1], 1), fact[1]


def order(events: list[tuple[str, int, int, dict[str, Any]]]) -> dict[str, Any]:
    """Return what derives from all deliveries of one order."""
    facts: dict[tuple[int, str], tuple[str, int, int, int]] = {}
    aside: dict[tuple[int, str], tuple[str, int, int, int]] = {}
    external: tuple[int, str] | None = None
    for topic, partition, offset, event in events:
        fact = event["updatedAt"], event.get("status", "completed")
        place = topic, partition, offset, event["receivedAt"]
        kept = facts if is_believed(event) else aside
        kept[fact] = min(kept.get(fact, place), place)
        if kept is facts and event["orderExternalId"] is not None:
            carried = event["updatedAt"], event["orderExternalId"]
            external = carried if external is None else max(external, carried)
    ordered = sorted(facts, key=rank)
    transitions: list[list[Any]] = []
    for at, status in ordered:
        before = transitions[-1][2] if transitions else None
        if status != before:
            transitions.append([at, before, status])
    contradictions = set()
    for at, status in ordered:
        for earlier_at, earlier in ordered:
            if RANKS.get(earlier, 1) < 3 or (earlier_at, earlier) == (at, status):
                continue
            if earlier_at == at and RANKS.get(status, 1) > RANKS[earlier]:
                contradictions.add(("two_outcomes_at_once", at, status))
            if earlier_at < at and RANKS.get(status, 1) == 0:
                contradictions.add(("open_after_outcome", at, status))
    return {
        "orderExternalId": external[1] if external else None,
        "status": ordered[-1][1] if ordered else None,
        "updatedAt": ordered[-1][0] if ordered else None,
        "completedAt": min((at for at, status in ordered if status == "completed"), default=None),
        "facts": [[*fact, *facts[fact]] for fact in ordered],
        "transitions": transitions,
        "contradictions": sorted(contradictions),
        "setAside": len(aside.keys() - facts.keys()),
        "receivedAt": max(place[3] for place in (*facts.values(), *aside.values())),
    }


def told_order(record: dict[str, Any]) -> dict[str, Any]:
    names = ("orderExternalId", "status", "updatedAt", "completedAt", "setAside", "receivedAt")
    return {
        **{name: record[name] for name in names},
        "facts": [
            [fact[name] for name in ("updatedAt", "status", "topic", "partition", "offset", "receivedAt")]
            for fact in record["facts"]
        ],
        "transitions": [[change["at"], change["before"], change["after"]] for change in record["transitions"]],
        "contradictions": sorted(
            (pair["code"], pair["laterAt"], pair["laterStatus"]) for pair in record["contradictions"]
        ),
    }


FIELDS = ("productId", "qty", "textQty", "price", "cheapestOfferId")


def product(events: list[tuple[str, int, int, dict[str, Any]]]) -> dict[str, Any]:
    """Return what derives from all deliveries of one product."""
    firsts: dict[str, tuple[str, int, int, dict[str, Any]]] = {}
    for each in events:
        event_id = each[3]["eventId"]
        firsts[event_id] = min(firsts.get(event_id, each), each, key=lambda its: its[:3])
    changes = sorted(
        (each[3] for each in firsts.values() if is_believed(each[3])),
        key=lambda event: (event["updatedAt"], event["eventId"]),
    )
    known: dict[str, Any] = {}
    for name in FIELDS:
        values = [(event["updatedAt"], event[name]) for event in changes if event.get(name) is not None]
        known[f"{name}AsOf"], known[name] = values[-1] if values else (None, None)
    return {
        "updatedAt": changes[-1]["updatedAt"] if changes else None,
        "lastEventId": changes[-1]["eventId"] if changes else None,
        "changes": len(changes),
        "setAside": len(firsts) - len(changes),
        "receivedAt": max(each[3]["receivedAt"] for each in firsts.values()),
        **known,
    }


def told_product(record: dict[str, Any]) -> dict[str, Any]:
    names = ("updatedAt", "lastEventId", "changes", "setAside", "receivedAt")
    return {name: record[name] for name in (*names, *FIELDS, *(f"{name}AsOf" for name in FIELDS))}


def main(servers: str, prefix: str, folder: str) -> None:
    known = schemas(Path(folder))

    def decode(message: Any) -> dict[str, Any]:
        value = message.value()
        record: Any = fastavro.schemaless_reader(io.BytesIO(value[10:]), known[value[:10]], None)
        if record.get("price") is not None:
            record["price"] = int.from_bytes(record["price"], "big", signed=True)
        return dict(record)

    def recomputed(events: tuple[str, ...], id_: str, fold: Any) -> dict[str, Any]:
        by_key = defaultdict(list)
        for event in events:
            for message in messages(servers, f"{prefix}.{event}"):
                record = decode(message)
                place = message.topic(), message.partition(), message.offset()
                by_key[f"{record['store']}:{record[id_]}"].append((*place, record))
        return {key: fold(deliveries) for key, deliveries in by_key.items()}

    def told(name: str, shown: Any) -> dict[str, Any]:
        newest: dict[str, Any] = {}
        for message in messages(servers, f"{prefix}.{name}"):
            key, record = message.key().decode(), decode(message)
            if key not in newest or (record["generation"], record["revision"]) > newest[key][0]:
                newest[key] = (record["generation"], record["revision"]), shown(record)
        return {key: state for key, (_, state) in newest.items()}

    json.dump(
        {
            "orders": recomputed(("order.status", "order.complete"), "orderId", order),
            "products": recomputed(("product.update",), "kinguinId", product),
            "told_orders": told("order.state", told_order),
            "told_products": told("product.state", told_product),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
