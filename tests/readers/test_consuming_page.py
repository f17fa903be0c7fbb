"""The programs in docs/consuming.md do what the page says: taken from the page, run against a real Kafka and a real registry."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.schemas.topics import DAY_MS, UNLIMITED_MS, topics
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped
from tests import commands
from tests.conftest import KafkaCluster
from tests.readers import programs, toolchains, witness
from tests.readers.corpus import TRACEPARENT, Webhook
from tests.readers.published import publish, records, registered_ids

PAGE = (programs.ROOT / "docs" / "consuming.md").read_text("utf-8")
EXAMPLES = programs.ROOT / "schemas" / "examples"
PATIENCE_S = 60
BLOCK = re.compile(r"<!-- (run|not run): ([^\n]+) -->\n```(\w+)\n(.*?)```", re.DOTALL)
RUN = {name: (language, text) for verb, name, language, text in BLOCK.findall(PAGE) if verb == "run"}

ORDER_LINES = ("python-toolkit", "python-fastavro", "go-single-object")
ORDER_LINES_WITH_REGISTRY = ("python-toolkit-registry", "python-confluent", "java-registry", "go-registry")
PRODUCT_LINES = ("java-single-object", "python-evolution")
OTHERS = ("kcat", "python-sqlite", "sql-newest-status", "flink-sql", "schemas-export")

Line = tuple[str, str | None, datetime]


def webhook(event: str, version: int, body: dict[str, Any]) -> Webhook:
    return Webhook(
        store="default",
        event=event,
        version=version,
        body=json.dumps(body).encode(),
        received_after_ms=0,
        traceparent=None,
    )


def order(order_id: str, status: str, updated_at: str) -> Webhook:
    return webhook("order.status", 1, {"orderId": order_id, "status": status, "updatedAt": updated_at})


COMPLETED = order("PHS84FJAG5U", "completed", "2020-10-16T11:24:08+00:00")
SENT = (
    order("PHS84FJAG5U", "processing", "2020-10-16T11:24:08+00:00"),
    COMPLETED,
    COMPLETED,
    order("PHS84FJAG5V", "refunded", "2024-05-27T00:00:00.001+00:00"),
    order("PHS84FJAG5V", "completed", "2024-05-26T23:59:59.999+00:00"),
    order("заказ-😀", "возврат", "9999-12-31T23:59:59.999+00:00"),
    webhook("product.update", 1, {"kinguinId": 1, "productId": "a", "updatedAt": "0001-01-01T00:00:00Z"}),
    webhook(
        "product.update",
        2,
        {"kinguinId": 2, "productId": "b", "updatedAt": "2022-02-14T10:00:00.500+00:00", "qty": 7, "price": 5.99},
    ),
    webhook(
        "product.update",
        3,
        {"kinguinId": 2**63 - 1, "productId": "c", "updatedAt": "2024-05-27T10:00:00+00:00", "qty": -(2**63)},
    ),
    webhook(
        "product.update", 3, {"kinguinId": 3, "productId": "d", "updatedAt": "2024-05-27T10:00:00+00:00", "qty": None}
    ),
)


@dataclass(frozen=True)
class Place:
    """Where the page's programs are run, and what the page's addresses and topics are there."""

    folder: Path
    prefix: str
    bootstrap_servers: str
    registry_url: str | None = None

    def program(self, name: str) -> list[str]:
        """Return the command of a program of the page."""
        language, text = RUN[name]
        text = text.replace("localhost:9092", self.bootstrap_servers)
        text = re.sub(r"\bkinguin\.(?=order|product|dead)", f"{self.prefix}.", text)
        text = text.replace("my-shop", f"{self.prefix}-{name}").replace('topics("kinguin")', f'topics("{self.prefix}")')
        if self.registry_url is not None:
            text = text.replace("http://localhost:8080", self.registry_url.removesuffix("/apis/ccompat/v7"))
        assert "localhost" not in text
        folder = self.folder / name
        folder.mkdir()
        name_of_class = re.search(r"public final class (\w+)", text)
        source = folder / (f"{name_of_class[1]}.java" if name_of_class else "program")
        source.write_text(text)
        match language:
            case "java":
                return toolchains.java(source, once=True)
            case "go":
                return toolchains.go(source, once=True)
            case "sh":
                return ["sh", str(source)]
            case "sql":
                return [*toolchains.flink_sql(), str(source)]
        return [sys.executable, str(source)]


@pytest.fixture(scope="module")
def place(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Topics in single-object encoding, and a folder with the schemas."""
    return _place(kafka, tmp_path_factory.mktemp("single-object"), None)


@pytest.fixture(scope="module")
def place_with_registry(kafka: KafkaCluster, apicurio: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Topics in the Confluent wire format, and a registry."""
    return _place(kafka, tmp_path_factory.mktemp("registry"), apicurio)


def _place(kafka: KafkaCluster, folder: Path, registry_url: str | None) -> Place:
    prefix = programs.new_prefix()
    ids = None if registry_url is None else registered_ids(registry_url, prefix)
    publish(kafka.bootstrap_servers, prefix, records(SENT, prefix, programs.an_hour_ago_ms(), ids))
    place = Place(folder, prefix, kafka.bootstrap_servers, registry_url)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    export = place.program("schemas-export")
    subprocess.run(export, cwd=folder, env={**commands.clean_environment({}), "PATH": path}, check=True, timeout=60)
    return place


@contextmanager
def running(command: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A program of the page, which runs until it is ended."""
    environment = {**commands.clean_environment({}), "PYTHONUNBUFFERED": "1"}
    with (
        (folder / "stderr").open("w") as errors,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        ) as process,
    ):
        too_long = threading.Timer(PATIENCE_S, process.kill)
        too_long.start()
        try:
            yield process
        finally:
            too_long.cancel()
            process.kill()


def lines(name: str, place: Place, count: int) -> list[str]:
    """Return the first lines that a program of the page prints."""
    with running(place.program(name), place.folder) as process:
        assert process.stdout is not None
        found = [line.rstrip("\n") for line in islice(process.stdout, count)]
    assert len(found) == count, (place.folder / "stderr").read_text()[-4_000:]
    return found


def parsed(line: str) -> Line:
    name, value, instant = line.split(" ")
    return name, None if value in ("None", "null") else value, datetime.fromisoformat(instant)


def sent_lines(event: str, value: str) -> list[Line]:
    """Return what a program that prints id, value and updatedAt must print, in any order."""
    return sorted(
        (
            (record["key"], record["value"].get(value), datetime.fromisoformat(dict(record["headers"])["ce_time"]))
            for record in witness.expected(SENT, "any", 0).values()
            if record["topic"] == f"any.{event}"
        ),
        key=str,
    )


def without_quantities(lines: list[Line]) -> list[Line]:
    return [(name, None, instant) for name, _, instant in lines]


@pytest.mark.kafka
@pytest.mark.parametrize("name", ORDER_LINES)
def test_programs_read_orders_in_single_object_encoding(name: str, place: Place) -> None:
    expected = sent_lines("order.status", "status")
    assert sorted(map(parsed, lines(name, place, len(expected))), key=str) == expected


@pytest.mark.kafka
@pytest.mark.parametrize("name", ORDER_LINES_WITH_REGISTRY)
def test_programs_read_orders_in_the_confluent_wire_format(name: str, place_with_registry: Place) -> None:
    expected = sent_lines("order.status", "status")
    assert sorted(map(parsed, lines(name, place_with_registry, len(expected))), key=str) == expected


@pytest.mark.kafka
@pytest.mark.parametrize("name", PRODUCT_LINES)
def test_programs_read_products_of_every_version(name: str, place: Place) -> None:
    expected = sent_lines("product.update", "qty")
    if name == "python-evolution":  # it was built against version 1, which has no quantity
        expected = sorted(without_quantities(expected), key=str)
    assert sorted(map(parsed, lines(name, place, len(expected))), key=str) == expected


@pytest.mark.kafka
def test_kcat_prints_keys_and_headers(place: Place) -> None:
    toolchains.kcat()
    records = [r for r in witness.expected(SENT, "any", 0).values() if r["topic"] == "any.order.status"]
    found = lines("kcat", place, len(records))
    wanted = [f"{r['key']} {','.join(f'{name}={value}' for name, value in r['headers'])}" for r in records]
    assert sorted(line.split(" ", 2)[2] for line in found) == sorted(wanted)


@pytest.mark.kafka
def test_the_sql_gives_each_order_its_newest_status_and_counts_duplicates_once(place: Place) -> None:
    with running(place.program("python-sqlite"), place.folder) as process:
        file = place.folder / "orders.db"
        deadline_s = time.monotonic() + PATIENCE_S
        while not (file.exists() and _count(file) == len(SENT) - 4 - 1):  # but the products and the duplicate
            assert process.poll() is None, (place.folder / "stderr").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    with sqlite3.connect(place.folder / "orders.db") as database:
        newest = database.execute(RUN["sql-newest-status"][1]).fetchall()
    database.close()
    assert newest == [
        ("PHS84FJAG5U", "completed", "2020-10-16T11:24:08.000Z"),
        ("PHS84FJAG5V", "refunded", "2024-05-27T00:00:00.001Z"),
        ("заказ-😀", "возврат", "9999-12-31T23:59:59.999Z"),
    ]


@pytest.mark.kafka
def test_flink_counts_the_orders_by_status(place_with_registry: Place) -> None:
    statuses = Counter(json.loads(sent.body)["status"] for sent in set(SENT) if sent.event == "order.status")
    expected = [f"{status}|{count}" for status, count in statuses.items()]
    found = lines("flink-sql", place_with_registry, len(expected) + 1)
    assert sorted(found) == sorted(["OK", *expected])  # the table was made


def _count(file: Path) -> int:
    database = sqlite3.connect(file)
    try:
        return int(database.execute("SELECT COUNT(*) FROM order_status").fetchone()[0])
    except sqlite3.OperationalError:  # the table is not there yet
        return 0
    finally:
        database.close()


def test_every_program_of_the_page_says_whether_it_is_run_and_every_one_that_says_so_is() -> None:
    assert PAGE.count("\n```") == 2 * len(BLOCK.findall(PAGE))
    assert set(RUN) == {*ORDER_LINES, *ORDER_LINES_WITH_REGISTRY, *PRODUCT_LINES, *OTHERS}


def first_column(section: str) -> list[str]:
    """Return what stands in code in the first column of the tables under a heading."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def test_the_topics_retention_and_headers_of_the_page_are_those_of_the_code() -> None:
    example = EXAMPLES / "order.status" / "1" / "documented.json"
    sent = replace(COMPLETED, body=example.read_bytes(), traceparent=TRACEPARENT)
    (record,) = records([sent], "kinguin", 0)
    headers = {name: value.decode() for name, value in record.headers}
    specs = topics("kinguin").specs
    named = [*(spec.name for spec in specs), *headers]
    assert first_column("What is in a topic")[: len(named)] == named
    for spec in specs:
        row = next(row for row in PAGE.splitlines() if row.startswith(f"| `{spec.name}` |"))
        assert ("for ever" if spec.retention_ms == UNLIMITED_MS else f"{spec.retention_ms // DAY_MS} days") in row
    for name in ("ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_subject", "content-type"):
        assert f"| `{name}` | `{headers[name]}` |" in PAGE


def test_the_fingerprints_of_the_page_are_those_of_the_shipped_schemas() -> None:
    rows = re.findall(r"^\| ([a-z.-]+) \| ([0-9]+) \| `([0-9a-f]{16})` \|$", PAGE, re.MULTILINE)
    shipped_versions = [schema for name in RECORD_NAMES for schema in shipped().versions(name)]
    assert sorted(rows) == sorted((s.record, str(s.version), s.fingerprint.hex()) for s in shipped_versions)
