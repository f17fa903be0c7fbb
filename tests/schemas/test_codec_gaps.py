"""What `schemas check` warns of: a version that may be released, and that this package could not write."""

import json
from typing import Any

import pytest

from kinguin_streams.schemas.codec_gaps import codec_gaps
from kinguin_streams.schemas.compatibility import CandidateVersion
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped


def version(number: int, *fields: tuple[str, Any]) -> CandidateVersion:
    schema = {"type": "record", "name": "X", "fields": [{"name": name, "type": kind} for name, kind in fields]}
    return CandidateVersion(record="x", version=number, text=json.dumps(schema))


def test_this_package_can_do_what_is_shipped() -> None:
    shipped_versions = [
        CandidateVersion(record=record, version=schema.version, text=schema.text)
        for record in RECORD_NAMES
        for schema in shipped().versions(record)
    ]
    assert codec_gaps(shipped_versions) == ()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"type": "enum", "name": "E", "symbols": ["A"], "default": "A"}, id="enum"),
        pytest.param({"type": "map", "values": "long"}, id="map"),
        pytest.param(["null", {"type": "fixed", "name": "F", "size": 2}], id="nullable fixed"),
        pytest.param({"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}, id="another decimal"),
        pytest.param({"type": "array", "items": {"type": "map", "values": "long"}}, id="deep within"),
        pytest.param({"type": "record", "name": "Nothing", "fields": []}, id="a record of nothing"),
    ],
)
def test_a_type_that_the_codec_does_not_know_is_a_warning(kind: Any) -> None:
    [finding] = codec_gaps([version(1, ("id", "string"), ("it", kind))])
    assert (finding.kind, finding.severity, finding.version, finding.field) == ("codec", "warning", 1, "it")
    assert finding.message.startswith("field it: no reader and writer for ")


@pytest.mark.parametrize(
    "versions",
    [
        pytest.param([version(1, ("orderId", "string"), ("order_id", "string"))], id="in one version"),
        pytest.param([version(2, ("order_id", "string")), version(1, ("orderId", "string"))], id="over two"),
    ],
)
def test_two_fields_that_are_one_attribute_are_a_warning(versions: list[CandidateVersion]) -> None:
    [finding] = codec_gaps(versions)
    assert finding.message == "field order_id: in Python it would be order_id, as the field orderId is"


def test_one_field_in_several_versions_and_records_is_no_clash_and_what_is_no_schema_is_left_alone() -> None:
    first, second = version(1, ("orderId", "string")), version(2, ("orderId", "string"))
    other = CandidateVersion(record="y", version=1, text=version(1, ("order_id", "string")).text)
    assert codec_gaps([first, second, other, CandidateVersion(record="z", version=1, text="{")]) == ()
