"""1,000 webhooks of all events and schema versions, read back by programs that share no code with us: see README.md."""

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KafkaCluster
from tests.readers import corpus, programs, toolchains, witness
from tests.readers.published import Published, publish_corpus, registered_ids

HERE = Path(__file__).parent
PYTHON_READERS = ("apache_avro_reader", "confluent_reader", "kcat_reader")


def kcat() -> list[str]:
    toolchains.kcat()
    return programs.python("kcat_reader")


SINGLE_OBJECT_READERS: dict[str, Callable[[], list[str]]] = {
    "apache-avro": lambda: programs.python("apache_avro_reader"),
    "kcat": kcat,
    "java": lambda: toolchains.java(HERE / "java" / "Reader.java"),
    "go": lambda: toolchains.go(HERE / "go" / "main.go"),
}
CONFLUENT_READERS: dict[str, Callable[[], list[str]]] = {
    **SINGLE_OBJECT_READERS,
    "confluent-kafka": lambda: programs.python("confluent_reader"),
}


@pytest.fixture(scope="module")
def single_object(kafka: KafkaCluster) -> Published:
    """The corpus in single-object encoding."""
    return publish_corpus(kafka.bootstrap_servers, programs.new_prefix(), programs.an_hour_ago_ms())


@pytest.fixture(scope="module")
def confluent(kafka: KafkaCluster, apicurio: str) -> Published:
    """The corpus in the Confluent wire format."""
    prefix = programs.new_prefix()
    ids = registered_ids(apicurio, prefix)
    return publish_corpus(kafka.bootstrap_servers, prefix, programs.an_hour_ago_ms(), ids)


@pytest.mark.kafka
@pytest.mark.parametrize("reader", SINGLE_OBJECT_READERS)
def test_every_field_of_every_record_in_single_object_encoding_is_what_was_sent(
    reader: str, kafka: KafkaCluster, single_object: Published
) -> None:
    command = SINGLE_OBJECT_READERS[reader]()
    arguments = [kafka.bootstrap_servers, "single-object", str(programs.SCHEMAS)]
    check(programs.read([*command, *arguments], single_object.topics), single_object)


@pytest.mark.kafka
@pytest.mark.parametrize("reader", CONFLUENT_READERS)
def test_every_field_of_every_record_in_the_confluent_wire_format_is_what_was_sent(
    reader: str, kafka: KafkaCluster, apicurio: str, confluent: Published
) -> None:
    command = CONFLUENT_READERS[reader]()
    check(programs.read([*command, kafka.bootstrap_servers, "confluent", apicurio], confluent.topics), confluent)


def check(found: dict[programs.Position, dict[str, Any]], published: Published) -> None:
    expected = witness.expected(published.sent, published.prefix, published.base_ms)
    assert found.keys() == expected.keys()
    differences = [
        difference
        for position in expected
        for difference in differing_fields(position, expected[position], found[position])
    ]
    assert not differences, f"{len(differences)} fields differ, the first of them: {differences[:5]}"


def differing_fields(
    position: programs.Position, expected: dict[str, Any], found: dict[str, Any]
) -> Iterator[tuple[programs.Position, str, object, object]]:
    """Yield (position, field, expected, found), for the record's own fields and for those of its value."""
    for part, (wanted, got) in {"": (expected, found), "value.": (expected["value"], found["value"])}.items():
        for name in wanted.keys() | got.keys():
            pair = wanted.get(name, "no such field"), got.get(name, "no such field")
            if (part + name) != "value" and pair[0] != pair[1]:
                yield position, part + name, *pair


def test_the_corpus_is_the_same_for_the_same_seed_and_needs_nothing_but_python() -> None:
    bare = [sys.executable, "-I", "-S", str(HERE / "corpus.py")]
    first = subprocess.run(bare, capture_output=True, check=True, timeout=60).stdout
    made = [[sent.store, sent.event, sent.version, sent.body.decode()] for sent in corpus.webhooks()]
    assert [json.loads(line) for line in first.splitlines()] == made


def test_the_corpus_has_1000_webhooks_of_every_event_and_shipped_version() -> None:
    counts = Counter((sent.event, sent.version) for sent in corpus.webhooks())
    shipped = {(file.parent.name, int(file.stem)) for file in programs.SCHEMAS.glob("*/*.avsc")}
    assert counts.total() == 1_000
    assert (
        counts.keys() | {("dead-letter", 1), ("dead-letter.trail", 1), ("order.state", 1), ("product.state", 1)}
        == shipped
    )
    assert min(counts.values()) >= 100


def test_the_corpus_reaches_the_edges_of_every_field() -> None:
    bodies = [(sent, json.loads(sent.body, parse_float=str)) for sent in corpus.webhooks()]

    def values(field: str, *versions: int) -> list[Any]:
        return [body.get(field, "absent") for sent, body in bodies if not versions or sent.version in versions]

    assert {0, 2**53 + 1, 2**63 - 1} <= set(values("kinguinId"))
    for version in (2, 3):
        for field in ("qty", "textQty"):
            edges = {0, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), None, "absent"}
            assert edges <= set(values(field, version))
    assert {"999999999999.999999", "-999999999999.999999", "0.0000015", None, "absent"} <= set(values("price", 2))
    assert set(corpus.INSTANTS) <= set(values("updatedAt"))
    assert {"", None, "absent", corpus.LONGEST_TEXT} <= set(values("orderExternalId"))
    offers = values("cheapestOfferId", 2, 3)
    assert None in offers
    assert "absent" in offers
    assert {0, 1, 2, 64, 800} <= {len(ids) for ids in offers if isinstance(ids, list)}
    assert {len(text.encode()) for text in values("orderId") if text != "absent"} >= {1, 63, 64, 1024}


@pytest.mark.parametrize(
    "name", ["corpus", "witness", "fingerprints", "canonical", "topic_contents", "apache_avro", *PYTHON_READERS]
)
def test_no_reader_and_no_witness_imports_this_project(name: str) -> None:
    tree = ast.parse((HERE / f"{name}.py").read_text("utf-8"))
    imported = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not {module for module in imported if module.startswith("kinguin_streams")}
    if name in ("corpus", "witness", "fingerprints", "canonical"):
        assert {module.partition(".")[0] for module in imported} <= {*sys.stdlib_module_names, "tests"}
