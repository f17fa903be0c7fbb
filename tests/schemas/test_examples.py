"""Every example through every reader: our validator and codec, Apache Avro, fastavro. See schemas/examples/README.md."""

import io
import json
import runpy
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import avro.io
import avro.schema
import fastavro
import pytest
from msgspec.structs import replace

from kinguin_streams.ingress.payloads import InvalidWebhook, read_event, reasons
from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, SINGLE_OBJECT_MARKER, Decoder, Encoder
from kinguin_streams.schemas.events import DERIVED_NAMES, EVENT_NAMES, Event, EventName, ProductUpdate, StoreName
from kinguin_streams.schemas.instants import EPOCH
from kinguin_streams.schemas.versions import SchemaVersion, shipped

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
STORE = StoreName("default")
RECEIVED_AT_MS = 1_615_204_800_123  # 2021-03-08T12:00:00.123Z


@dataclass(frozen=True)
class Example:
    """A body, the event it is sent as, and the schema version that its golden bytes are of."""

    event: EventName
    version: int
    body_file: Path

    @property
    def body(self) -> bytes:
        return self.body_file.read_bytes()

    @property
    def golden(self) -> bytes:
        return self.body_file.with_suffix(".avro").read_bytes()

    @property
    def schema(self) -> SchemaVersion:
        return shipped().get(self.event, self.version)

    @property
    def record(self) -> Event:
        return read_event(STORE, self.event, self.body, RECEIVED_AT_MS)


CASES = [
    pytest.param(Example(event, schema.version, file), id=f"{event}/{schema.version}/{file.stem}")
    for event in EVENT_NAMES
    for schema in shipped().versions(event)
    for file in sorted((EXAMPLES / event / str(schema.version)).glob("*.json"))
]
REFUSED = [
    pytest.param(entry["event"], EXAMPLES / "refused" / entry["file"], entry["reason"], id=Path(entry["file"]).stem)
    for entry in json.loads((EXAMPLES / "refused.json").read_text("utf-8"))
]


@pytest.mark.parametrize("example", CASES)
def test_a_body_becomes_its_golden_bytes(example: Example) -> None:
    assert Encoder({example.event: example.version}).encode(example.record) == example.golden


@pytest.mark.parametrize("example", CASES)
def test_golden_bytes_are_read_and_become_themselves_again(example: Example) -> None:
    record = Decoder().decode(example.golden)
    assert Encoder({example.event: example.version}).encode(record) == example.golden
    assert record == _as_carried(example.record, example.version)


@pytest.mark.parametrize("example", CASES)
def test_golden_bytes_name_their_schema_and_hold_the_body(example: Example) -> None:
    assert example.golden[:2] == SINGLE_OBJECT_MARKER
    assert example.golden[2:SINGLE_OBJECT_HEADER_BYTES] == example.schema.fingerprint
    record = Decoder().decode(example.golden)
    assert isinstance(record, Event)
    assert record.raw == example.body


@pytest.mark.parametrize("example", CASES)
def test_apache_avro_reads_golden_bytes_to_the_same_values(example: Example) -> None:
    source = io.BytesIO(example.golden[SINGLE_OBJECT_HEADER_BYTES:])
    reader = avro.io.DatumReader(avro.schema.parse(example.schema.text))
    fields = reader.read(avro.io.BinaryDecoder(source))
    assert source.read() == b""
    assert fields == _as_logical_types(example.record, example.schema)


@pytest.mark.parametrize("example", CASES)
def test_fastavro_reads_golden_bytes_with_the_schema_as_shipped(example: Example) -> None:
    source = io.BytesIO(example.golden[SINGLE_OBJECT_HEADER_BYTES:])
    fields = fastavro.schemaless_reader(source, fastavro.parse_schema(json.loads(example.schema.text)), None)
    assert source.read() == b""
    assert fields == _as_logical_types(example.record, example.schema)


@pytest.mark.parametrize("example", CASES)
def test_every_newer_and_older_reader_reads_golden_bytes(example: Example) -> None:
    """What FULL_TRANSITIVE promises to consumers in any language, by Avro's own schema resolution."""
    for reader_schema in shipped().versions(example.event):
        body = io.BytesIO(example.golden[SINGLE_OBJECT_HEADER_BYTES:])
        writer, reader = avro.schema.parse(example.schema.text), avro.schema.parse(reader_schema.text)
        fields = avro.io.DatumReader(writer, reader).read(avro.io.BinaryDecoder(body))
        names = [field["name"] for field in json.loads(reader_schema.text)["fields"]]
        written = _as_logical_types(example.record, example.schema)
        absent = {"priceRounded": False}
        assert fields == {name: written.get(name, absent.get(name)) for name in names}


@pytest.mark.parametrize(("event", "file", "reason"), REFUSED)
def test_a_refused_body_gets_its_reason(event: EventName, file: Path, reason: str) -> None:
    with pytest.raises(InvalidWebhook) as refused:
        read_event(STORE, event, file.read_bytes(), RECEIVED_AT_MS)
    assert refused.value.code == reason


def test_every_reason_has_a_refused_body_and_every_refused_file_is_in_the_index() -> None:
    index = json.loads((EXAMPLES / "refused.json").read_text("utf-8"))
    assert {entry["reason"] for entry in index} == set(reasons())
    assert sorted(entry["file"] for entry in index) == sorted(f.name for f in (EXAMPLES / "refused").iterdir())


def test_every_version_has_examples_and_no_file_is_left_over() -> None:
    known = {f"{event}/{schema.version}" for event in EVENT_NAMES for schema in shipped().versions(event)}
    # Those of derived records: test_derived_examples.py.
    files = {file.relative_to(EXAMPLES) for file in EXAMPLES.glob("*/*/*") if file.parts[-3] not in DERIVED_NAMES}
    assert {f"{file.parent}" for file in files} == known
    assert {file.with_suffix("") for file in files if file.suffix == ".json"} == {
        file.with_suffix("") for file in files if file.suffix == ".avro"
    }
    assert {file.suffix for file in files} == {".json", ".avro"}
    for name in known:
        assert len(list((EXAMPLES / name).glob("*.json"))) >= 8, f"{name} has few examples"


def test_the_published_examples_of_2021_mean_what_their_page_says() -> None:
    def read(event: EventName) -> Event:
        return read_event(STORE, event, (EXAMPLES / event / "1" / "documented.json").read_bytes(), RECEIVED_AT_MS)

    at_ms = 1_602_847_448_000  # date -u -d 2020-10-16T11:24:08Z +%s
    product, status, complete = read("product.update"), read("order.status"), read("order.complete")
    assert (product.key, product.updated_at_ms) == ("1949", at_ms)
    assert (status.key, status.updated_at_ms) == ("PHS84FJAG5U", at_ms)
    assert (complete.key, complete.updated_at_ms) == ("PHS84FJAG5U", at_ms)
    assert not isinstance(status, ProductUpdate)
    assert status.status == "canceled"
    assert status.order_external_id == "AL2FEEHOO2OHF"


def test_a_golden_file_is_never_overwritten(tmp_path: Path) -> None:
    write_golden = runpy.run_path(str(Path(__file__).with_name("write_golden.py")))["write_golden"]
    folder = tmp_path / "order.status" / "1"
    folder.mkdir(parents=True)
    shutil.copy(EXAMPLES / "order.status" / "1" / "documented.json", folder / "new.json")

    assert write_golden("order.status/1/new", tmp_path) == ""
    assert (folder / "new.avro").read_bytes() == (EXAMPLES / "order.status" / "1" / "documented.avro").read_bytes()

    (folder / "new.avro").write_bytes(b"as encoded for ever")
    assert "File exists" in write_golden("order.status/1/new", tmp_path)
    assert (folder / "new.avro").read_bytes() == b"as encoded for ever"
    assert write_golden("order.status/2/new", tmp_path) == "order.status has no version 2"
    assert write_golden("dead-letter/1/new", tmp_path) == "dead-letter/1/new is not <event>/<version>/<name>"


def _as_carried(record: Event, version: int) -> Event:
    """Return the record without what this version has no field for; `raw` still has it."""
    match record, version:
        case ProductUpdate(), 1:
            return replace(record, qty=None, text_qty=None, price=None, price_rounded=False, cheapest_offer_ids=None)
        case ProductUpdate(), 3:
            return replace(record, price=None, price_rounded=False)
        case _:
            return record


def _as_logical_types(record: Event, schema: SchemaVersion) -> dict[str, Any]:
    """Return what a reader that knows logical types makes of a record, worked out from our values and the .avsc's names."""
    values: dict[str, Any] = {
        "eventId": record.event_id,
        "store": record.store,
        "receivedAt": datetime(2021, 3, 8, 12, 0, 0, 123_000, UTC),
        "updatedAt": EPOCH + timedelta(milliseconds=record.updated_at_ms),
        "raw": record.raw,
    }
    if isinstance(record, ProductUpdate):
        values |= {
            "kinguinId": record.kinguin_id,
            "productId": record.product_id,
            "qty": record.qty,
            "textQty": record.text_qty,
            "price": record.price,
            "priceRounded": record.price_rounded,
            "cheapestOfferId": None if record.cheapest_offer_ids is None else list(record.cheapest_offer_ids),
        }
    else:
        values |= {
            "orderId": record.order_id,
            "orderExternalId": record.order_external_id,
            "status": record.status,
        }
    return {field["name"]: values[field["name"]] for field in json.loads(schema.text)["fields"]}
