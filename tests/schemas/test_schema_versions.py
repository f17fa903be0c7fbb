"""What is in a topic cannot be changed: released schemas and their fingerprints are pinned here."""

import hashlib
import json
from typing import Any

import pytest
from fastavro.schema import SchemaParseException

from kinguin_streams.schemas.events import RecordName
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaCatalogue, fingerprint_of, read_version, shipped

RELEASED: dict[tuple[RecordName, int], tuple[str, str]] = {
    # (record, version): (fingerprint on the wire, SHA-256 of the file). A line is added, never changed.
    ("product.update", 1): ("14c39620298241ba", "54078fc392013b70fe7b043835abe23019056082506a0e7fe990b1353b05acca"),
    ("product.update", 2): ("2c91b0ea12a7b98e", "93b2deaf452b3ff24faae7959f8f0aa40a28af63128077950640e611430e186e"),
    ("product.update", 3): ("65fecfce38cd91c1", "294c17eb3f0350127eea49af6b98a4a75644e3056c814b680098836da735217a"),
    ("order.status", 1): ("4c00e55963d55d92", "4905c36154591da99edf4209c7705102bf39a2acac83bec61c481537b4c7b7de"),
    ("order.complete", 1): ("9be703ae7c5b21ab", "b9474ce498cbe3dfd01b49163ece325316807f501d2a0dc161230cd3cbaa5136"),
    ("dead-letter", 1): ("834ca746dc313749", "c15f1b08e278530d7d7b25eb380085783bf650d005657afc5bc469c588969410"),
    (
        "dead-letter.trail",
        1,
    ): ("0f0192ef760d1060", "ef97a89c7bc36f53c714dedc8e2ca3ca39a4fb8e1cb16f8d1b08583deeaa6c08"),
    ("order.state", 1): ("d4c30f34fc6a23f3", "11a7f02c3e58ebfe8b9ea2d6cb74c7f52970189c246002173d98216676f2c7f1"),
    ("product.state", 1): ("73cad47c90d173a8", "20260bd25b5efbe3e828569a7a81b63eac3ef41043431ad086ca51cd5836e5aa"),
}
EMPTY_CRC_64_AVRO = 0xC15D213AA4D7A795


def test_every_shipped_version_is_pinned_and_every_pinned_one_is_shipped() -> None:
    assert set(RELEASED) == {
        (record, schema.version) for record in RECORD_NAMES for schema in shipped().versions(record)
    }


@pytest.mark.parametrize(("record", "version"), RELEASED)
def test_a_released_schema_is_never_edited(record: RecordName, version: int) -> None:
    schema = shipped().get(record, version)
    fingerprint, file_sha256 = RELEASED[record, version]
    assert schema.fingerprint.hex() == fingerprint
    assert hashlib.sha256(schema.text.encode()).hexdigest() == file_sha256


@pytest.mark.parametrize(("record", "version"), RELEASED)
def test_fingerprints_follow_the_avro_specification(record: RecordName, version: int) -> None:
    """Worked out without fastavro: the specification's canonical form and its CRC, little-endian."""
    schema = shipped().get(record, version)
    canonical = _canonical_form(json.loads(schema.text), "")
    assert schema.fingerprint == _crc_64_avro(canonical.encode()).to_bytes(8, "little")


def test_documentation_defaults_and_logical_types_do_not_change_a_fingerprint() -> None:
    """So a change of these alone cannot be a version: two of them would be one on the wire."""
    schema = json.loads(shipped().get("product.update", 2).text)
    before = fingerprint_of(json.dumps(schema))
    schema["doc"] = "other words"
    schema["fields"][2]["type"] = "long"
    schema["fields"][8]["type"][1]["scale"] = 2
    schema["fields"][9]["default"] = True
    assert fingerprint_of(json.dumps(schema)) == before


def test_versions_are_found_by_number_and_by_fingerprint_and_the_newest_is_the_last() -> None:
    catalogue = shipped()
    assert [schema.version for schema in catalogue.versions("product.update")] == [1, 2, 3]
    for record in RECORD_NAMES:
        assert catalogue.newest(record) is catalogue.versions(record)[-1]
        for schema in catalogue.versions(record):
            assert catalogue.get(record, schema.version) is schema
            assert catalogue.by_fingerprint(schema.fingerprint) is schema
    assert catalogue.by_fingerprint(b"\0" * 8) is None
    with pytest.raises(KeyError):
        catalogue.get("product.update", 4)


def test_versions_count_as_numbers_not_as_text() -> None:
    text = shipped().get("order.status", 1).text
    catalogue = SchemaCatalogue(tuple(read_version("order.status", number, text) for number in (10, 9, 1)))
    assert [schema.version for schema in catalogue.versions("order.status")] == [1, 9, 10]


def test_what_is_no_schema_is_not_read() -> None:
    with pytest.raises(SchemaParseException):
        read_version("order.status", 1, '{"type": "record", "fields": []}')


def test_every_field_is_documented_and_every_record_names_its_event() -> None:
    for record in RECORD_NAMES:
        for schema in shipped().versions(record):
            parsed = json.loads(schema.text)
            assert parsed["name"] == "".join(part.capitalize() for part in record.replace("-", ".").split("."))
            assert parsed["namespace"] == "kinguin.v1"
            assert all(field["doc"].endswith(".") for field in parsed["fields"])


def _canonical_form(kind: Any, namespace: str) -> str:
    match kind:
        case str():
            return json.dumps(kind)
        case list():
            return f"[{','.join(_canonical_form(branch, namespace) for branch in kind)}]"
        case {"type": "record"}:
            namespace = kind.get("namespace", namespace)
            fields = ",".join(
                f'{{"name":"{field["name"]}","type":{_canonical_form(field["type"], namespace)}}}'
                for field in kind["fields"]
            )
            return f'{{"name":"{namespace}.{kind["name"]}","type":"record","fields":[{fields}]}}'
        case {"type": "array"}:
            return f'{{"type":"array","items":{_canonical_form(kind["items"], namespace)}}}'
        case _:
            return _canonical_form(kind["type"], namespace)


def _crc_64_avro(data: bytes) -> int:
    crc = EMPTY_CRC_64_AVRO
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (EMPTY_CRC_64_AVRO if crc & 1 else 0)
    return crc
