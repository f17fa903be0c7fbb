"""Golden pairs of schemas, good and bad: what we say of each, what Apache's check says, and proof where the two differ.

compatibility_pairs/<pair>/old.avsc and new.avsc are versions 1 and 2 of one record; expected.json has our findings, and
whether Apache's check calls the pair compatible in both directions. A pair that only we refuse has a witness here:
records that a reader which exists cannot read, or takes for something else.
"""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.errors import AvroTypeException, InvalidDefaultException, SchemaResolutionException
from avro.io import BinaryDecoder, BinaryEncoder, DatumReader, DatumWriter
from avro.schema import parse
from fastavro import parse_schema, schemaless_reader, schemaless_writer

from kinguin_streams.schemas.compatibility import CandidateVersion, check
from kinguin_streams.schemas.versions import fingerprint_of

PAIRS = Path(__file__).with_name("compatibility_pairs")
EXPECTED = json.loads((PAIRS / "expected.json").read_text("utf-8"))
EXPECTED_IDS = [row["pair"] for row in EXPECTED]

Datum = dict[str, Any]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _text(pair: str, side: str) -> str:
    return (PAIRS / pair / f"{side}.avsc").read_text("utf-8")


@pytest.mark.parametrize("row", EXPECTED, ids=EXPECTED_IDS)
def test_row_46_each_golden_pair_has_its_verdict_its_field_its_reader_and_its_reason(row: dict[str, Any]) -> None:
    findings = check(
        [
            CandidateVersion(record="purchase", version=version, text=_text(row["pair"], side))
            for version, side in ((1, "old"), (2, "new"))
        ]
    )
    assert [f"{finding.kind}: {finding.message}" for finding in findings] == row["says"]
    assert row["ours"] == ("refused" if findings else "good")
    for finding in findings:
        assert finding.field is None or f"field {finding.field}" in finding.message
        assert finding.reader is None or finding.reader in finding.message
        assert finding.kind not in ("incompatible", "meaning") or finding.reader is not None


@pytest.mark.parametrize("row", EXPECTED, ids=EXPECTED_IDS)
def test_row_46_apaches_own_verdict_is_the_one_in_the_table(row: dict[str, Any]) -> None:
    old, new = (parse(_text(row["pair"], side)) for side in ("old", "new"))
    verdicts = {
        ReaderWriterCompatibilityChecker().get_compatibility(reader, writer).compatibility
        for reader, writer in ((old, new), (new, old))
    }
    assert row["apache"] == ("compatible" if verdicts == {SchemaCompatibilityType.compatible} else "incompatible")
    assert row["apache"] == "compatible" or row["ours"] == "refused", "we are never laxer than Apache"


def test_row_46_every_avsc_is_in_the_table_and_there_are_enough_of_both() -> None:
    assert sorted(EXPECTED_IDS) == sorted(folder.name for folder in PAIRS.iterdir() if folder.is_dir())
    assert len([row for row in EXPECTED if row["ours"] == "good"]) >= 10
    assert len([row for row in EXPECTED if row["ours"] == "refused"]) >= 20


# Witnesses


def _written(text: str, datum: Datum) -> bytes:
    buffer = io.BytesIO()
    schemaless_writer(buffer, parse_schema(json.loads(text)), datum, strict_allow_default=True)
    return buffer.getvalue()


def _by_fastavro(body: bytes, writer: str, reader: str | None = None) -> Any:
    read_as = None if reader is None else parse_schema(json.loads(reader))
    return schemaless_reader(io.BytesIO(body), parse_schema(json.loads(writer)), read_as)


def _by_apache(body: bytes, writer: str, reader: str) -> Any:
    return DatumReader(parse(writer), parse(reader)).read(BinaryDecoder(io.BytesIO(body)))


def _apache_stops(written: str, datum: Datum, pair: str) -> None:
    """Apache's Python reader, with the other schema, cannot read it."""
    writer, reader = _text(pair, written), _text(pair, "new" if written == "old" else "old")
    with pytest.raises(SchemaResolutionException):
        _by_apache(_written(writer, datum), writer, reader)


def _readers_differ(datum: Datum, pair: str) -> None:
    """Two readers with the same new schema see two things in one old record."""
    old, new = _text(pair, "old"), _text(pair, "new")
    body = _written(old, datum)
    assert _by_fastavro(body, old, new) != _by_apache(body, old, new)


def _one_reader_stops(datum: Datum, pair: str) -> None:
    """One reader hands out the default, Apache's stops at it."""
    old, new = _text(pair, "old"), _text(pair, "new")
    body = _written(old, datum)
    assert _by_fastavro(body, old, new).items() > datum.items()
    with pytest.raises(InvalidDefaultException):
        _by_apache(body, old, new)


def _cannot_be_written_again(datum: Datum, pair: str) -> None:
    """What readers hand out is no value of the type: a record that was read cannot be written."""
    old, new = _text(pair, "old"), _text(pair, "new")
    read = _by_apache(_written(old, datum), old, new)
    with pytest.raises((AvroTypeException, UnicodeEncodeError)):
        DatumWriter(parse(new)).write(read, BinaryEncoder(io.BytesIO()))


def _is_no_text(bytes_side: str, pair: str) -> None:
    """Bytes that are no UTF-8 cannot be read as a string, whichever side is which; Apache's reader does not even try."""
    writer, reader = _text(pair, bytes_side), _text(pair, "new" if bytes_side == "old" else "old")
    body = _written(writer, {"id": "1", "note": b"\xff"})
    with pytest.raises(UnicodeDecodeError):
        _by_fastavro(body, writer, reader)
    with pytest.raises(SchemaResolutionException):
        _by_apache(body, writer, reader)


def _means_something_else(datum: Datum, pair: str) -> None:
    """The bytes are read without complaint by the old schema alone, and give another value.

    So does a reader that goes by its own logical type, as Java's does, and one that finds the schema by a fingerprint.
    """
    old, new = _text(pair, "old"), _text(pair, "new")
    body = _written(new, datum)
    as_meant, misread = _by_fastavro(body, new), _by_fastavro(body, old)
    assert misread.keys() <= as_meant.keys()
    assert {name: as_meant[name] for name in misread} != misread


def _is_filled_in_differently(written: Callable[[Datum], None], datum: Datum, pair: str) -> None:
    """A record of a third version, which lacks the field or knows one symbol more, gets another value from each reader."""
    third = json.loads(_text(pair, "old"))
    written(third)
    writer = json.dumps(third)
    body = _written(writer, datum)
    assert _by_fastavro(body, writer, _text(pair, "old")).items() > {"id": "1"}.items()
    assert (
        _by_fastavro(body, writer, _text(pair, "old")).items() - _by_fastavro(body, writer, _text(pair, "new")).items()
    )


def _cannot_be_told_apart(pair: str) -> None:
    """Records carry a fingerprint, and it is the same."""
    assert fingerprint_of(_text(pair, "old")) == fingerprint_of(_text(pair, "new"))


def _is_our_own_rule(pair: str) -> None:
    """It could be read; the lint asks for one way of writing it."""
    row = EXPECTED[EXPECTED_IDS.index(pair)]
    assert {said.partition(":")[0] for said in row["says"]} == {"lint"}


WITNESSES: dict[str, Callable[[str], None]] = {
    "nullable-field-renamed-with-alias": partial(_readers_differ, {"id": "1", "note": "a gift"}),
    "string-to-bytes": partial(_is_no_text, "new"),
    "bytes-to-string": partial(_is_no_text, "old"),
    "enum-symbol-added": partial(_apache_stops, "new", {"id": "1", "size": "L"}),
    "enum-symbol-removed": partial(_apache_stops, "old", {"id": "1", "size": "M"}),
    "enum-symbols-reordered": partial(_means_something_else, {"id": "1", "size": "M"}),
    "enum-default-changed": partial(
        _is_filled_in_differently,
        lambda schema: schema["fields"][1]["type"]["symbols"].append("XL"),
        {"id": "1", "size": "XL"},
    ),
    "union-branches-reordered": _is_our_own_rule,
    "namespace-changed": partial(_apache_stops, "new", {"id": "1"}),
    "millis-to-micros": partial(_means_something_else, {"id": "1", "at": NOON.replace(year=1970)}),
    "logical-type-dropped": partial(_means_something_else, {"id": "1", "at": 1_772_366_400_000}),
    "logical-type-added": partial(_means_something_else, {"id": "1", "at": NOON}),
    "nested-logical-type-dropped": partial(
        _means_something_else, {"id": "1", "lines": [{"sku": "a", "at": 1_772_366_400_000}]}
    ),
    "decimal-scale-changed": partial(_means_something_else, {"id": "1", "total": Decimal("19.99")}),
    "decimal-precision-changed": partial(_means_something_else, {"id": "1", "total": Decimal("12345678901234.567891")}),
    "default-changed": partial(_is_filled_in_differently, lambda schema: schema["fields"].pop(), {"id": "1"}),
    "default-alone-changed": partial(_is_filled_in_differently, lambda schema: schema["fields"].pop(), {"id": "1"}),
    "default-of-a-record": partial(_readers_differ, {"id": "1"}),
    "default-of-a-list-of-another-type": partial(_one_reader_stops, {"id": "1"}),
    "default-beyond-an-int": partial(_cannot_be_written_again, {"id": "1"}),
    "default-that-is-no-symbol": partial(_cannot_be_written_again, {"id": "1"}),
    "default-that-is-no-text": partial(_cannot_be_written_again, {"id": "1"}),
    "documentation-alone-changed": _cannot_be_told_apart,
    "millis-to-micros-in-a-union-in-a-list": partial(
        _means_something_else, {"id": "1", "times": [None, NOON.replace(year=1970)]}
    ),
    "decimal-scale-changed-in-a-union-in-a-map": partial(
        _means_something_else, {"id": "1", "totals": {"a": Decimal("19.99")}}
    ),
    "list-of-unions-added": _is_our_own_rule,
    "binary-fraction-in-a-union-in-a-list": _is_our_own_rule,
    "binary-fraction-added": _is_our_own_rule,
}


def test_row_46_whatever_we_alone_refuse_has_a_witness() -> None:
    ours_alone = [row["pair"] for row in EXPECTED if (row["ours"], row["apache"]) == ("refused", "compatible")]
    assert sorted(ours_alone) == sorted(WITNESSES)


@pytest.mark.parametrize("pair", WITNESSES)
def test_row_46_what_apache_calls_compatible_and_we_refuse_breaks_a_reader_or_a_rule(pair: str) -> None:
    WITNESSES[pair](pair)
