"""`schemas check` against a real Kafka and a real registry, and `schemas diff`, run as commands."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.cli import main
from kinguin_streams.cluster.connection import admin_config, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.cluster.registry_client import RegistryClient
from kinguin_streams.cluster.settings import KafkaSettings, RegistrySettings
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import Topics, topics
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped
from tests.commands import run
from tests.conftest import free_port

AT_MS = 1_772_366_400_000
Put = Callable[[bytes, int], None]


def write_shipped(folder: Path) -> Path:
    """Write what is shipped, as somebody does who is about to add a version."""
    for record in RECORD_NAMES:
        (folder / record).mkdir(parents=True)
        for schema in shipped().versions(record):
            (folder / record / f"{schema.version}.avsc").write_text(schema.text, "utf-8")
    return folder


def with_field(record: Any, version: int, **field: Any) -> str:
    """Return a shipped schema with one field more."""
    schema = json.loads(shipped().get(record, version).text)
    schema["fields"].append({"name": "shop", "doc": "A shop.", **field})
    return json.dumps(schema)


# Against the topics


@pytest.fixture
def declared(topic_prefix: str) -> Topics:
    return topics(topic_prefix, partitions=2)


@pytest.fixture
def environment(kafka: Any, topic_prefix: str) -> dict[str, str]:
    return {"KINGUIN_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "KINGUIN_TOPICS__PREFIX": topic_prefix}


@pytest.fixture
def put(kafka: Any, declared: Topics) -> Iterator[Put]:
    """Put one value at a time into the topic of product updates, one partition."""
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    admin = TopicAdmin(admin_config(settings))
    admin.apply(plan(declared, admin.describe(declared)))
    with KafkaPublisher(producer_config(settings, client_id="test"), ack_wait_s=20) as publisher:

        def put_one(value: bytes, at_ms: int) -> None:
            publisher.publish(OutgoingRecord(declared.name("product.update"), b"1949", value, (), at_ms))

        yield put_one


def single_object(version: int) -> bytes:
    return b"\xc3\x01" + shipped().get("product.update", version).fingerprint + b"body"


@pytest.mark.kafka
def test_the_versions_in_the_topics_are_counted_and_the_unused_ones_named(
    put: Put, environment: dict[str, str], declared: Topics
) -> None:
    for version, minutes in ((2, 0), (2, 1), (3, 2)):
        put(single_object(version), AT_MS + minutes * 60_000)
    checked = run(environment, "schemas", "check", "--against-topics", "--json")
    assert checked.returncode == 0, checked.stderr
    answer = json.loads(checked.stdout)
    assert answer["findings"] == []
    assert (answer["topics"]["since"], answer["topics"]["records"], answer["topics"]["missing"]) == (None, 3, [])
    topic = declared.name("product.update")
    second = {"topic": topic, "record": "product.update", "version": 2, "records": 2, "single_object": 2}
    assert {**second, "first": "2026-03-01T12:00:00Z", "last": "2026-03-01T12:01:00Z"} in answer["topics"]["versions"]

    told = run(environment, "schemas", "check", "--against-topics")
    assert told.returncode == 0
    assert f"{topic}: nothing uses version 1" in told.stdout
    assert "3/3 records" in told.stderr

    recent = run(environment, "schemas", "check", "--against-topics", "--since", "3d")
    assert recent.returncode == 0
    assert f"{topic}: nothing in the last 3 days uses version 2" in recent.stdout

    before_1970 = run(environment, "schemas", "check", "--against-topics", "--since", "30000d", "--json")
    assert before_1970.returncode == 0, before_1970.stderr
    in_topics = json.loads(before_1970.stdout)["topics"]
    assert (in_topics["since"], in_topics["records"]) == ("1970-01-01T00:00:00Z", 3)


@pytest.mark.kafka
def test_a_release_without_a_version_that_is_in_a_topic_is_refused(
    put: Put, environment: dict[str, str], declared: Topics, tmp_path: Path
) -> None:
    folder = write_shipped(tmp_path)
    put(single_object(3), AT_MS)
    (folder / "product.update" / "3.avsc").unlink()
    refused = run(environment, "schemas", "check", "--path", str(folder), "--against-topics")
    assert refused.returncode == 1
    assert (
        f"product.update version 3: in_use: records of version 3 are still in {declared.name('product.update')}, 1 of "
        "them until 2026-03-01T12:00:00Z; a reader without it, as it was released, would stop or misread them"
        in refused.stdout
    )


@pytest.mark.kafka
def test_what_no_reader_knows_fails_with_count_and_position_and_what_is_no_record_warns(
    put: Put, environment: dict[str, str], declared: Topics
) -> None:
    put(b"\xc3\x0112345678body", AT_MS)
    put(b"\xc3\x0112345678body", AT_MS + 1)
    put(b"\x00\x00\x00\x00\x07body", AT_MS)
    checked = run(environment, "schemas", "check", "--against-topics", "--json")
    assert checked.returncode == 1
    messages = [finding["message"] for finding in json.loads(checked.stdout)["findings"]]
    assert len(messages) == 2
    topic = declared.name("product.update")
    assert any(said.startswith(f"2 records in {topic}, the first at {topic}/") for said in messages)
    assert any("schema id 7 of a registry: set KINGUIN_REGISTRY__URL" in said for said in messages)


@pytest.mark.kafka
def test_values_that_begin_with_no_schema_are_a_warning_which_does_not_fail(
    put: Put, environment: dict[str, str]
) -> None:
    put(b"{}", AT_MS)
    checked = run(environment, "schemas", "check", "--against-topics")
    assert checked.returncode == 0
    assert "warning: product.update: in_use: 1 records in" in checked.stdout


@pytest.mark.kafka
def test_a_cluster_without_our_topics_is_not_a_clean_bill(environment: dict[str, str]) -> None:
    checked = run(environment, "schemas", "check", "--against-topics")
    assert checked.returncode == 1
    assert "None of our topics is on this cluster" in checked.stderr
    assert "Traceback" not in checked.stderr


@pytest.mark.kafka
def test_a_released_version_edited_under_its_own_fingerprint_is_refused(
    put: Put, environment: dict[str, str], declared: Topics, tmp_path: Path
) -> None:
    folder = write_shipped(tmp_path)
    put(single_object(1), AT_MS)
    file = folder / "product.update" / "1.avsc"
    file.write_text(file.read_text("utf-8").replace('"timestamp-millis"', '"timestamp-micros"'), "utf-8")
    refused = run(environment, "schemas", "check", "--path", str(folder), "--against-topics")
    assert refused.returncode == 1
    assert (
        "product.update version 1 against released version 1: meaning: field updatedAt: a reader of" in refused.stdout
    )
    assert f"in_use: records of version 1 are still in {declared.name('product.update')}" in refused.stdout


# Against a registry


@pytest.fixture
def with_registry(topic_prefix: str, apicurio: str) -> dict[str, str]:
    return {
        "KINGUIN_REGISTRY__URL": apicurio,
        "KINGUIN_REGISTRY__TIMEOUT_S": "20",
        "KINGUIN_TOPICS__PREFIX": topic_prefix,
    }


def test_before_registering_all_is_missing_and_after_it_all_is_well(with_registry: dict[str, str]) -> None:
    before = run(with_registry, "schemas", "check", "--against-registry")
    assert before.returncode == 0, "what is not registered yet is no fault, and a weak level is a warning"
    assert before.stdout.count("not registered yet") == 9
    assert "warning: product.update: registry: its subject has" in before.stdout

    assert run(with_registry, "schemas", "register").returncode == 0
    after = run(with_registry, "schemas", "check", "--against-registry", "--json")
    assert after.returncode == 0, after.stdout
    answer = json.loads(after.stdout)
    assert answer["findings"] == []
    assert [len(version["schema_ids"]) for version in answer["registry"]["versions"]] == [1] * 9


def test_what_others_have_registered_is_named_and_what_would_break_a_reader_fails(
    with_registry: dict[str, str], topic_prefix: str, apicurio: str
) -> None:
    client = RegistryClient(RegistrySettings(url=apicurio, timeout_s=20))
    subject = f"{topics(topic_prefix).name('order.status')}-value"
    schema_id = client.register(subject, with_field("order.status", 1, type=["null", "string"], default=None))
    warned = run(with_registry, "schemas", "check", "--against-registry")
    assert warned.returncode == 0
    assert f"registered version 1 (id {schema_id}) is none of these versions" in warned.stdout

    client.set_level(subject, "NONE")
    schema_id = client.register(subject, with_field("order.status", 1, type="string"))
    refused = run(with_registry, "schemas", "check", "--against-registry")
    assert refused.returncode == 1
    assert (
        f"order.status version 1 against registered version 2: incompatible: field shop: a reader of registered version 2 "
        f"(id {schema_id}) cannot read what version 1 writes" in refused.stdout
    )
    assert "warning: order.status: registry: its subject has the compatibility level NONE" in refused.stdout


@pytest.mark.kafka
def test_ids_in_the_topics_are_resolved_by_the_registry(
    put: Put, environment: dict[str, str], with_registry: dict[str, str], declared: Topics, apicurio: str
) -> None:
    client = RegistryClient(RegistrySettings(url=apicurio, timeout_s=20))
    schema_id = client.register(f"{declared.name('product.update')}-value", shipped().get("product.update", 2).text)
    put(b"\x00" + schema_id.to_bytes(4, "big") + b"body", AT_MS)
    put(single_object(2), AT_MS)
    checked = run({**environment, **with_registry}, "schemas", "check", "--against-topics", "--json")
    assert checked.returncode == 0, checked.stdout
    assert '"records":2' in checked.stdout, checked.stdout + checked.stderr
    [used] = [each for each in json.loads(checked.stdout)["topics"]["versions"] if each["records"]]
    assert (used["version"], used["records"], used["single_object"]) == (2, 2, 1)

    put(b"\x00" + (2**31 - 1).to_bytes(4, "big") + b"body", AT_MS)
    refused = run({**environment, **with_registry}, "schemas", "check", "--against-topics")
    assert refused.returncode == 1
    assert "schema id 2147483647, for which the registry has no Avro schema" in refused.stdout


# Mistakes


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        pytest.param({}, ["check", "--against-registry"], "Set KINGUIN_REGISTRY__URL", id="no registry"),
        pytest.param(
            {"KINGUIN_REGISTRY__URL": "http://127.0.0.1:1"},
            ["check", "--against-registry"],
            "The registry cannot be asked",
            id="a registry that is away",
        ),
        pytest.param({}, ["check", "--path", "/nowhere"], "There is no schema in /nowhere", id="no folder"),
        pytest.param({}, ["diff", "order.lost"], "There is no record order.lost", id="no such record"),
        pytest.param({}, ["diff", "product.update", "1", "9"], "has no version 9", id="no such version"),
        pytest.param({}, ["diff", "order.status"], "nothing to compare version 1", id="a record with one version"),
        pytest.param({}, ["diff", "product.update", "2", "2"], "nothing to compare version 2", id="with itself"),
    ],
)
def test_a_mistake_is_a_sentence_with_a_hint_and_exit_1(
    settings: dict[str, str], arguments: list[str], says: str
) -> None:
    refused = run(settings, "schemas", *arguments)
    assert refused.returncode == 1
    assert says in refused.stderr
    assert refused.stderr.startswith("error: ")
    assert refused.stdout == ""
    assert "Traceback" not in refused.stderr


def test_kafka_that_is_away_is_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kinguin_streams.cluster.topic_reader.REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setenv("KINGUIN_KAFKA__BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    assert main.run(["schemas", "check", "--against-topics"]) == 1
    assert "Kafka does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--since", "30d"], id="a window of nothing"),
        pytest.param(["--against-topics", "--since", "a month"], id="no duration"),
        pytest.param(["--against-topics", "--since", "999999999999d"], id="longer than a clock can tell"),
    ],
)
def test_a_window_that_cannot_be_is_a_usage_error(arguments: list[str]) -> None:
    assert run({}, "schemas", "check", *arguments).returncode == 2


def test_a_record_without_a_topic_is_checked_in_files_and_said(
    tmp_path: Path, apicurio: str, topic_prefix: str
) -> None:
    folder = write_shipped(tmp_path)
    (folder / "purchase").mkdir()
    text = shipped().newest("order.status").text.replace("OrderStatus", "Purchase")
    (folder / "purchase" / "1.avsc").write_text(text)
    settings = {"KINGUIN_REGISTRY__URL": apicurio, "KINGUIN_TOPICS__PREFIX": topic_prefix}
    checked = run(settings, "schemas", "check", "--path", str(folder), "--against-registry")
    assert checked.returncode == 0
    assert "note: no topic holds purchase" in checked.stderr


# Diff


def test_diff_says_what_changed_and_what_either_reader_sees() -> None:
    told = run({}, "schemas", "diff", "product.update")
    assert (told.returncode, told.stderr) == (0, "")
    lines = told.stdout.splitlines()
    assert lines[0] == "product.update version 2 -> 3"
    assert "  - price: null or decimal(18,6), default null" in lines
    assert "  ~ qty doc: Quantity. -> Total quantity from the cheapest offers; not the total stock." in lines
    old, new = (
        lines.index("a reader of version 2, of records of version 3:"),
        lines.index("a reader of version 3, of records of version 2:"),
    )
    assert lines[old + 1 : new] == ["  price: always null", "  priceRounded: always false"]
    assert lines[new + 1 :] == ["  price: not seen", "  priceRounded: not seen"]


def test_diff_reads_a_folder_and_prints_one_object_for_machines(tmp_path: Path) -> None:
    folder = write_shipped(tmp_path)
    (folder / "order.status" / "2.avsc").write_text(with_field("order.status", 1, type=["null", "long"], default=None))
    told = run({}, "schemas", "diff", "order.status", "--path", str(folder), "--json")
    assert json.loads(told.stdout) == {
        "record": "order.status",
        "old": 1,
        "new": 2,
        "changes": [
            {"change": "added", "field": "shop", "before": None, "after": "null or long, default null"},
        ],
        "old_reader": ["shop: not seen"],
        "new_reader": ["shop: always null"],
    }
    (folder / "order.status" / "2.avsc").write_text("{")
    assert (
        "order.status version 2 is not a schema"
        in run({}, "schemas", "diff", "order.status", "--path", str(folder)).stderr
    )
