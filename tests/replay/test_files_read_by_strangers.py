"""Container files are read without our code: by fastavro, by Apache's avro for Python, and each value by what the file says."""

import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fastavro
import pytest
from avro.datafile import DataFileReader
from avro.io import DatumReader
from hypothesis import given, settings

from kinguin_streams.replay import file_source
from kinguin_streams.replay.container_files import ContainerWriter
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.record_files import read_records
from kinguin_streams.replay.value_schemas import ValueSchemas, of_topic
from kinguin_streams.schemas.topics import topics
from tests.replay.file_records import PARTITION, TOPIC, made, partitions, write_all

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CALENDAR_MS = range(-62_135_596_800_000, 253_402_300_799_999)
"""Times that Python's datetime has. Both readers turn milliseconds into one, and know no other."""


def as_a_stranger_sees_it(record: Record) -> dict[str, Any]:
    time = None if record.timestamp_ms is None else EPOCH + timedelta(milliseconds=record.timestamp_ms)
    headers = [{"name": name, "value": value} for name, value in record.headers]
    return {**record._asdict(), "timestamp": time, "headers": headers}


def read_by_fastavro(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return list(fastavro.reader(file))


def read_by_apache_avro(path: Path) -> list[Any]:
    with DataFileReader(path.open("rb"), DatumReader()) as reader:
        return list(reader)


def expected(records: list[Record]) -> list[dict[str, Any]]:
    seen = [as_a_stranger_sees_it(record) for record in records]
    for one in seen:
        del one["timestamp_ms"]
    return seen


@pytest.mark.parametrize("read", [read_by_fastavro, read_by_apache_avro])
def test_a_stranger_reads_the_same_records(read: Any, tmp_path: Path) -> None:
    records = made(3_000)
    (path,) = write_all(ContainerWriter, tmp_path, records, block_bytes=50_000)
    assert read(path) == expected(records)


@pytest.mark.parametrize("read", [read_by_fastavro, read_by_apache_avro])
@settings(deadline=None, max_examples=50)
@given(records=partitions())
def test_a_stranger_reads_whatever_kafka_takes(
    read: Any, records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> None:
    known = [record for record in records if record.timestamp_ms is None or record.timestamp_ms in CALENDAR_MS]
    for path in write_all(ContainerWriter, tmp_path_factory.mktemp("files"), known):
        assert read(path) == expected(known)


EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"


@pytest.mark.parametrize(
    "of", ["order.status", "order.complete", "product.update", "order.state", "product.state", None]
)
def test_the_file_says_how_each_value_is_decoded(of: str | None, tmp_path: Path) -> None:
    # Golden bytes of every version; None: a copy in a topic that is not ours holds any of them.
    paths = sorted(EXAMPLES.rglob("*.avro") if of is None else (EXAMPLES / of).rglob("*.avro"))
    values = [path.read_bytes() for path in paths]
    records = [Record(TOPIC, PARTITION, offset, None, b"k", value, ()) for offset, value in enumerate(values)]
    schemas = of_topic("backfill" if of is None else f"kinguin.{of}", topics())
    (path,) = write_all(ContainerWriter, tmp_path, records, schemas=schemas)

    with path.open("rb") as file:
        reader = fastavro.reader(file)
        said: dict[str, Any] = json.loads(reader.metadata["kinguin.schemas"])
        parsed = {name: fastavro.parse_schema(schema) for name, schema in said.items()}
        read: list[Any] = list(reader)
        for value in [record["value"] for record in read]:
            assert value[:2] == b"\xc3\x01"
            body = io.BytesIO(value[10:])
            assert fastavro.schemaless_reader(body, parsed[value[2:10].hex()], None)
            assert not body.read()


def test_a_registrys_schema_that_turns_up_later_is_in_the_next_files_metadata(tmp_path: Path) -> None:
    texts = {1: '"string"', 2: '"long"'}
    asked: list[int] = []

    def text_of_id(schema_id: int) -> str | None:
        asked.append(schema_id)
        return texts.get(schema_id)

    def framed(schema_id: int) -> bytes:
        return b"\x00" + schema_id.to_bytes(4, "big") + b"\x02"

    ids = [1, 1, 3, 2, 1, 2]
    writer = ContainerWriter(tmp_path, TOPIC, PARTITION, schemas=ValueSchemas({}, text_of_id))
    for offset, schema_id in enumerate(ids):
        writer.write([Record(TOPIC, PARTITION, offset, None, None, framed(schema_id), ())])
    first, second = writer.close()

    assert asked == [1, 3, 2]
    said = []
    for path in (first, second):
        with path.open("rb") as file:
            said.append(json.loads(fastavro.reader(file).metadata["kinguin.schemas"]))
    assert said == [{"id:1": "string"}, {"id:1": "string", "id:2": "long"}]
    assert [record.offset for path in (first, second) for record in read_records(path)] == list(range(6))
    assert [record.offset for record in read_records(first)] == [0, 1, 2]


def test_files_say_which_schema_an_id_was_where_they_agree(tmp_path: Path) -> None:
    for partition, texts in enumerate(({1: '"string"', 2: '"long"'}, {1: '"string"', 2: '"int"'})):
        writer = ContainerWriter(tmp_path, TOPIC, partition, schemas=ValueSchemas({}, texts.get))
        values = [b"\x00" + schema_id.to_bytes(4, "big") for schema_id in texts]
        writer.write([Record(TOPIC, partition, offset, None, None, value, ()) for offset, value in enumerate(values)])
        writer.close()
    files = file_source.find([tmp_path])
    assert file_source.texts_of_ids(files[:1]) == {1: '"string"', 2: '"long"'}
    assert file_source.texts_of_ids(files) == {1: '"string"'}


def test_what_is_said_of_a_complete_file_can_be_read_without_its_records(tmp_path: Path) -> None:
    (path,) = write_all(ContainerWriter, tmp_path, made(1_234, start=100), replay_id="0198-a")
    with path.open("rb") as file:
        metadata = fastavro.reader(file).metadata
    assert int(metadata["kinguin.records"]) == 1_234
    assert int(metadata["kinguin.next_offset"]) == 1_334
    assert metadata["kinguin.replay_id"] == "0198-a"
    assert metadata["avro.codec"] == "zstandard"


def test_the_documented_program_decodes_a_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text("utf-8")
    (program,) = [block.partition("```")[0] for block in page.split("```python\n")[1:] if "kinguin.schemas" in block]
    values = [path.read_bytes() for path in sorted((EXAMPLES / "order.status").rglob("*.avro"))]
    records = [Record(TOPIC, 0, offset, None, b"k", value, ()) for offset, value in enumerate([*values, None])]
    writer = ContainerWriter(tmp_path, TOPIC, 0, schemas=of_topic(TOPIC, topics()))
    writer.write(records)
    writer.close()
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(values)
    assert "'orderId'" in done.stdout
