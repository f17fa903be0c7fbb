"""What the headers in the topics say: versions in use, and what a reader with the candidates could not read."""

import json

import pytest

from kinguin_streams.schemas.compatibility import CandidateVersion
from kinguin_streams.schemas.in_use import NO_HEADER, InUse, Seen, header_of, schema_id_of, shown_time, versions_in_use
from kinguin_streams.schemas.topics import topics
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaVersion, fingerprint_of, shipped

TOPICS = topics("kinguin")
PRODUCTS = TOPICS.name("product.update")
ALL = [
    CandidateVersion(record=record, version=schema.version, text=schema.text)
    for record in RECORD_NAMES
    for schema in shipped().versions(record)
]
AT_MS = 1_772_366_400_000  # 2026-03-01 12:00


def single_object(schema: SchemaVersion) -> bytes:
    return b"\xc3\x01" + schema.fingerprint


def confluent(schema_id: int) -> bytes:
    return b"\x00" + schema_id.to_bytes(4, "big")


def seen(header: bytes, records: int = 5, topic: str = PRODUCTS, at_ms: int = AT_MS) -> Seen:
    return Seen(
        topic=topic,
        header=header,
        records=records,
        first_at_ms=at_ms,
        last_at_ms=at_ms + 60_000,
        partition=3,
        offset=70,
    )


def look(*found: Seen, candidates: list[CandidateVersion] = ALL, texts: dict[int, str | None] | None = None) -> InUse:
    return versions_in_use(found, TOPICS, shipped(), candidates, texts)


@pytest.mark.parametrize(
    ("value", "header"),
    [
        pytest.param(None, NO_HEADER, id="no value"),
        pytest.param(b"", NO_HEADER, id="nothing in it"),
        pytest.param(b"{}", NO_HEADER, id="JSON"),
        pytest.param(b"\xc3\x01" + b"12345678" + b"body", b"\xc3\x0112345678", id="single-object"),
        pytest.param(b"\xc3\x01" + b"1234567", NO_HEADER, id="a fingerprint cut off"),
        pytest.param(b"\xc3\x02" + b"12345678" + b"body", NO_HEADER, id="another version of the marker"),
        pytest.param(b"\x00\x00\x00\x00\x07body", b"\x00\x00\x00\x00\x07", id="Confluent"),
        pytest.param(b"\x00\x00\x00\x07", NO_HEADER, id="an id cut off"),
    ],
)
def test_a_header_is_the_marker_and_what_follows_it(value: bytes | None, header: bytes) -> None:
    assert header_of(value) == header


def test_an_id_is_read_from_a_confluent_header_and_from_no_other() -> None:
    assert schema_id_of(confluent(2**31 + 7)) == 2**31 + 7
    assert schema_id_of(single_object(shipped().newest("order.status"))) is None
    assert schema_id_of(NO_HEADER) is None


def test_both_ways_of_naming_a_version_count_as_that_version() -> None:
    second = shipped().get("product.update", 2)
    found = look(
        seen(single_object(second), 5),
        seen(confluent(9), 2, at_ms=AT_MS - 1_000),
        texts={9: json.dumps(json.loads(second.text))},
    )
    assert found.findings == ()
    by_version = {(usage.record, usage.version): usage for usage in found.versions}
    assert len(by_version) == len(ALL), "a version that no record has is listed too"
    used = by_version["product.update", 2]
    assert (used.records, used.single_object) == (7, 5)
    assert (used.first_at_ms, used.last_at_ms) == (AT_MS - 1_000, AT_MS + 60_000)
    unused = by_version["product.update", 1]
    assert (unused.records, unused.first_at_ms, unused.last_at_ms) == (0, None, None)


def test_a_candidate_set_that_lacks_a_version_in_use_is_refused() -> None:
    fewer = [each for each in ALL if (each.record, each.version) != ("product.update", 1)]
    [finding] = look(seen(single_object(shipped().get("product.update", 1)), 12), candidates=fewer).findings
    assert finding.severity == "error"
    assert finding.message == (
        "records of version 1 are still in kinguin.product.update, 12 of them until 2026-03-01T12:01:00Z; "
        "a reader without it, as it was released, would stop or misread them"
    )
    assert look(seen(single_object(shipped().get("product.update", 2))), candidates=fewer).findings == ()


def test_a_released_version_that_was_edited_is_lacking_too() -> None:
    edited = json.loads(shipped().get("product.update", 1).text)
    edited["fields"].append({"name": "x", "type": ["null", "string"], "default": None, "doc": "x"})
    candidates = [
        CandidateVersion(record=each.record, version=each.version, text=json.dumps(edited))
        if (each.record, each.version) == ("product.update", 1)
        else each
        for each in ALL
    ]
    [finding] = look(seen(single_object(shipped().get("product.update", 1))), candidates=candidates).findings
    assert "as it was released" in finding.message


def test_a_released_version_that_means_something_else_under_its_own_fingerprint_is_lacking_too() -> None:
    """A fingerprint leaves out the unit of a time, so that the records look as if they could be read."""
    edited = [
        CandidateVersion(
            record=each.record, version=each.version, text=each.text.replace('"timestamp-millis"', '"date"')
        )
        for each in ALL
    ]
    [finding] = look(seen(single_object(shipped().get("product.update", 1))), candidates=edited).findings
    assert "records of version 1 are still in" in finding.message
    assert "would stop or misread them" in finding.message


def test_a_candidate_that_is_not_shipped_yet_is_known_in_the_topics() -> None:
    """Another process of the new release writes already."""
    text = json.loads(shipped().newest("product.update").text)
    text["fields"].append({"name": "x", "type": ["null", "string"], "default": None, "doc": "x"})
    fourth = CandidateVersion(record="product.update", version=4, text=json.dumps(text))
    header = b"\xc3\x01" + fingerprint_of(fourth.text)
    found = look(seen(header), candidates=[*ALL, fourth])
    assert found.findings == ()
    assert [usage.version for usage in found.versions if usage.records] == [4]
    [finding] = look(seen(header)).findings
    assert f"have the fingerprint {header[2:].hex()}, which no known schema has" in finding.message


@pytest.mark.parametrize(
    ("header", "texts", "severity", "says"),
    [
        pytest.param(
            b"\xc3\x0112345678", None, "error", "the fingerprint 3132333435363738, which no", id="fingerprint"
        ),
        pytest.param(confluent(7), None, "error", "id 7 of a registry: set KINGUIN_REGISTRY__URL", id="no registry"),
        pytest.param(confluent(7), {7: None}, "error", "id 7, for which the registry has no Avro", id="unknown id"),
        pytest.param(confluent(7), {7: "message X {}"}, "error", "id 7, for which the registry has no", id="Protobuf"),
        pytest.param(
            confluent(7),
            {7: '{"type": "record", "name": "X", "fields": []}'},
            "error",
            "id 7, which is no known schema",
            id="a stranger's schema",
        ),
        pytest.param(
            confluent(7),
            {7: shipped().get("product.update", 1).text.replace("timestamp-millis", "timestamp-micros")},
            "error",
            "id 7: field receivedAt: a reader of version 1 misreads what schema id 7 writes",
            id="ours but for its unit of time",
        ),
        pytest.param(
            single_object(shipped().newest("order.status")),
            None,
            "error",
            "which is order.status version 1",
            id="of another topic",
        ),
        pytest.param(
            confluent(7),
            {7: shipped().newest("order.status").text},
            "error",
            "the schema id 7, which is order.status version 1",
            id="the id of another topic",
        ),
        pytest.param(NO_HEADER, None, "warning", "no schema in front of the value", id="no schema at all"),
    ],
)
def test_what_a_reader_cannot_read_is_named_with_its_count_and_its_first_position(
    header: bytes, texts: dict[int, str | None] | None, severity: str, says: str
) -> None:
    [finding] = look(seen(header, 31), texts=texts).findings
    assert (finding.kind, finding.source, finding.severity) == ("in_use", "topics", severity)
    assert says in finding.message
    assert finding.message.startswith(
        "31 records in kinguin.product.update, the first at kinguin.product.update/3/70 of 2026-03-01T12:00:00Z, have "
    )


def test_a_time_that_no_calendar_has_is_shown_as_it_is() -> None:
    assert shown_time(2**62) == f"{2**62} ms"
    assert shown_time(0) == "1970-01-01T00:00:00Z"
