"""`schemas export`: the contract as files, for whoever does not use this package."""

import json
from pathlib import Path

import pytest

from kinguin_streams.schemas.versions import fingerprint_of
from tests.commands import run

ROOT = Path(__file__).parents[2]
AVRO = ROOT / "schemas" / "avro"


def test_avsc_files_are_exported_byte_for_byte_with_an_index_that_is_true(tmp_path: Path) -> None:
    settings = {"KINGUIN_TOPICS__PREFIX": "shop", "KINGUIN_SCHEMAS__WRITE": '{"product.update": 2}'}
    done = run(
        settings, "schemas", "export", "--format", "avsc", "--output", str(tmp_path / "new" / "folder"), "--json"
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "new" / "folder"
    shipped = {str(file.relative_to(AVRO)): file.read_bytes() for file in AVRO.glob("*/*.avsc")}
    assert {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("*/*.avsc")} == shipped
    told = json.loads(done.stdout)
    assert set(map(Path, told["files"])) == {file for file in folder.rglob("*") if file.is_file()}

    index = json.loads((folder / "index.json").read_text("utf-8"))
    assert {row["file"] for row in index["schemas"]} == set(shipped)
    for row in index["schemas"]:
        assert row["file"] == f"{row['record']}/{row['version']}.avsc"
        assert row["topic"] == f"shop.{row['record']}"
        assert bytes.fromhex(row["fingerprint"]) == fingerprint_of((folder / row["file"]).read_text("utf-8"))
    assert [row["version"] for row in index["schemas"] if row["record"] == "product.update" and row["written"]] == [2]
    assert {topic["topic"] for topic in index["topics"]} == {row["topic"] for row in index["schemas"]}
    assert all(topic["config"]["retention.ms"] for topic in index["topics"])


@pytest.mark.parametrize("kind", ["asyncapi", "openapi"])
def test_a_document_goes_to_stdout_or_into_a_file_or_a_folder(kind: str, tmp_path: Path) -> None:
    printed = run({}, "schemas", "export", "--format", kind)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert json.loads(printed.stdout)[kind].startswith("3.")
    for output, file in ((tmp_path, tmp_path / f"{kind}.json"), (tmp_path / "mine.json", tmp_path / "mine.json")):
        done = run({}, "schemas", "export", "--format", kind, "--output", str(output))
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"{file} written\n"
        assert file.read_text("utf-8") == printed.stdout


def test_documents_show_the_addresses_that_are_set_and_no_password() -> None:
    settings = {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": "a:9092, b:9093",
        "KINGUIN_KAFKA__CONFIG": '{"security.protocol": "SASL_SSL", "sasl.password": "hunter2"}',
        "KINGUIN_REGISTRY__URL": "https://user:hunter2@registry.example:8443/apis/ccompat/v7?token=hunter2",
        "KINGUIN_CONSUMER__GROUP_PREFIX": "mine",
        "KINGUIN_INGRESS__PORT": "18080",
        "KINGUIN_INGRESS__SECRETS": '{"default": ["hunter2-hunter2"]}',
    }
    topics = run(settings, "schemas", "export", "--format", "asyncapi")
    assert topics.returncode == 0, topics.stderr
    described = json.loads(topics.stdout)
    assert [server["host"] for server in described["servers"].values()] == ["a:9092", "b:9093"]
    assert {server["protocol"] for server in described["servers"].values()} == {"kafka-secure"}
    registry = described["servers"]["kafka-1"]["bindings"]["kafka"]["schemaRegistryUrl"]
    assert registry == "https://registry.example:8443/apis/ccompat/v7"
    assert '"mine.order-state"' in topics.stdout
    ingress = run(settings, "schemas", "export", "--format", "openapi")
    assert json.loads(ingress.stdout)["servers"][0]["url"] == "http://{host}:18080"
    assert "hunter2" not in topics.stdout + ingress.stdout


def test_avsc_without_a_folder_is_a_usage_error() -> None:
    done = run({}, "schemas", "export", "--format", "avsc")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output" in done.stderr


def test_a_folder_that_cannot_be_made_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for kind in ("avsc", "asyncapi"):
        done = run({}, "schemas", "export", "--format", kind, "--output", str(tmp_path / "file" / "x"))
        assert (done.returncode, done.stdout) == (1, "")
        assert "Cannot write" in done.stderr
        assert "Traceback" not in done.stderr
