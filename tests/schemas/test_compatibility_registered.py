"""Our versions against a registry's: what is there, what is not, and what others have put there."""

import json
from typing import Any

from kinguin_streams.schemas.compatibility import CandidateVersion
from kinguin_streams.schemas.registered import Registered, RegistryReport, compare
from kinguin_streams.schemas.versions import shipped

STRONG: dict[str, str | None] = {"product.update": "FULL_TRANSITIVE"}
OURS = [
    CandidateVersion(record="product.update", version=schema.version, text=schema.text)
    for schema in shipped().versions("product.update")
]


def registered(text: str, version: int = 1, schema_id: int = 17) -> Registered:
    return Registered(record="product.update", version=version, schema_id=schema_id, text=text)


def edited(version: int, **field: Any) -> str:
    """Return a shipped version with one field more."""
    schema = json.loads(OURS[version - 1].text)
    schema["fields"].append({"name": "shop", "doc": "A shop.", **field})
    return json.dumps(schema)


def ids(report: RegistryReport) -> dict[int, tuple[int, ...]]:
    return {each.version: each.schema_ids for each in report.versions}


def test_what_is_registered_has_its_ids_and_what_is_not_is_no_finding() -> None:
    respelled = json.dumps(json.loads(OURS[0].text), separators=(",", ":"))
    report = compare(OURS, [registered(respelled), registered(OURS[2].text, 2, 18)], STRONG)
    assert report.findings == ()
    assert ids(report) == {1: (17,), 2: (), 3: (18,)}


def test_a_compatible_version_that_nobody_ships_is_a_warning() -> None:
    report = compare(OURS, [registered(edited(3, type=["null", "string"], default=None), 4)], STRONG)
    [finding] = report.findings
    assert (finding.severity, finding.against, finding.source) == ("warning", 4, "registry")
    assert "registered version 4 (id 17) is none of these versions" in finding.message


def test_a_registered_version_is_held_against_every_one_of_ours_both_ways() -> None:
    report = compare(OURS, [registered(edited(3, type="string"), 4)], STRONG)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert [(finding.version, finding.field, finding.reader) for finding in errors] == [
        (version, "shop", "registered version 4 (id 17)") for version in (1, 2, 3)
    ]
    wants_more = CandidateVersion(record="product.update", version=4, text=edited(3, type="string"))
    errors = list(compare([*OURS, wants_more], [registered(OURS[0].text)], STRONG).findings)
    assert errors == [], "a registered version that we have too is checked in files"
    strange = edited(3, type=["null", "string"], default=None)
    errors = [f for f in compare([wants_more], [registered(strange)], STRONG).findings if f.severity == "error"]
    assert [finding.message for finding in errors] == [
        "field shop: a reader of version 4 cannot read what registered version 1 (id 17) writes: null where it wants string"
    ]


def test_the_same_fingerprint_with_another_unit_of_time_is_not_ours() -> None:
    report = compare(OURS, [registered(OURS[0].text.replace("timestamp-millis", "timestamp-micros"))], STRONG)
    assert ids(report)[1] == ()
    assert "field receivedAt: a reader of registered version 1 (id 17) misreads what version 1 writes" in [
        finding.message.rpartition(": ")[0] for finding in report.findings
    ]


def test_a_registered_version_that_lost_its_defaults_reads_no_old_records() -> None:
    """A fingerprint leaves defaults out; whoever reads with the registry's schema needs them."""
    schema = json.loads(OURS[1].text)
    for field in schema["fields"]:
        field.pop("default", None)
    report = compare(OURS, [registered(json.dumps(schema), 2)], STRONG)
    assert ids(report)[2] == (17,)
    assert {(finding.field, finding.version) for finding in report.findings if finding.kind == "incompatible"} >= {
        ("qty", 1),
        ("price", 1),
        ("price", 3),
    }


def test_what_is_no_avro_schema_of_a_record_is_named() -> None:
    [finding] = compare(OURS, [registered('syntax = "proto3";')], STRONG).findings
    assert (finding.severity, finding.kind) == ("error", "registry")
    assert finding.message.startswith("registered version 1 (id 17) is no Avro schema of a record: not a schema")


def test_a_level_weaker_than_full_transitive_is_a_warning_and_an_unknown_one_is_not() -> None:
    levels = {"product.update": "BACKWARD", "order.status": None, "order.complete": "FULL_TRANSITIVE"}
    findings = compare(OURS, [], levels).findings
    assert [(finding.record, finding.severity) for finding in findings] == [
        ("product.update", "warning"),
        ("order.status", "warning"),
    ]
    assert "the compatibility level BACKWARD" in findings[0].message
    assert "no compatibility level of its own" in findings[1].message


def test_a_candidate_that_is_no_schema_is_left_to_the_check_of_the_files() -> None:
    broken = CandidateVersion(record="product.update", version=4, text="{")
    report = compare([*OURS, broken], [registered(OURS[0].text)], STRONG)
    assert report.findings == ()
    assert sorted(ids(report)) == [1, 2, 3]
