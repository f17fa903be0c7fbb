"""Golden bytes of the derived records: what a topic holds stays readable, by us and by libraries of others."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import avro.io
import avro.schema
import fastavro
import msgspec
import pytest

from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Decoder, Encoder
from kinguin_streams.schemas.events import DERIVED_NAMES, Derived, OrderStateRecord, ProductStateRecord
from kinguin_streams.schemas.versions import shipped

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
CASES = [
    pytest.param(file, id=str(file.relative_to(EXAMPLES).with_suffix("")))
    for name in DERIVED_NAMES
    for file in sorted((EXAMPLES / name / "1").glob("*.avro"))
]
CLASSES: dict[str, type[Derived]] = {"order.state": OrderStateRecord, "product.state": ProductStateRecord}


def record(golden: Path) -> Derived:
    """Return what the JSON file beside the golden bytes says."""
    return msgspec.json.decode(golden.with_suffix(".json").read_bytes(), type=CLASSES[golden.parts[-3]])


@pytest.mark.parametrize("golden", CASES)
def test_golden_bytes_are_written_and_read(golden: Path) -> None:
    assert Encoder().encode(record(golden)) == golden.read_bytes()
    assert Decoder().decode(golden.read_bytes()) == record(golden)


@pytest.mark.parametrize("golden", CASES)
def test_apache_avro_and_fastavro_read_golden_bytes_to_the_same_values(golden: Path) -> None:
    name, version = golden.parts[-3], int(golden.parts[-2])
    schema = next(s for n in DERIVED_NAMES if n == name for s in shipped().versions(n) if s.version == version)
    body = golden.read_bytes()[SINGLE_OBJECT_HEADER_BYTES:]
    theirs = fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(json.loads(schema.text)), None)
    apaches = avro.io.DatumReader(avro.schema.parse(schema.text)).read(avro.io.BinaryDecoder(io.BytesIO(body)))
    assert theirs == apaches
    ours = [getattr(record(golden), field.name) for field in msgspec.structs.fields(CLASSES[name])]
    assert isinstance(theirs, dict)
    assert [_plain(value) for value in theirs.values()] == [_plain(value) for value in ours]


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return round((value - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
        case dict():
            return [_plain(part) for part in value.values()]
        case list() | tuple():
            return [_plain(part) for part in value]
    return value
