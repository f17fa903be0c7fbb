"""A line of old webhooks is what today's validator says, or a fault that a person has to look at."""

import base64
import json
from pathlib import Path

import pytest

from kinguin_streams.replay.import_history import MOST_NOTES, survey
from kinguin_streams.replay.import_lines import LineFault, marked, read_line
from kinguin_streams.replay.run import Watch
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import DeadLetter, OrderStatus, StoreName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import topics
from tests.commands import run

NOW_MS = 1_790_000_000_000
BODY = (
    '{"orderId":"PHS84FJAG5U","orderExternalId":"A","status":"completed","updatedAt":"2020-10-16T11:24:08.000+00:00"}'
)


def line(**fields: object) -> bytes:
    return json.dumps({"store": "default", "event": "order.status", "body": BODY} | fields).encode()


def test_an_event_has_the_id_that_it_would_have_if_it_had_just_arrived() -> None:
    imported = read_line(line(), NOW_MS)
    assert isinstance(imported.record, OrderStatus)
    assert imported.record.event_id == event_id(StoreName("default"), "order.status", BODY.encode())
    assert (imported.record.raw, imported.record.received_at_ms) == (BODY.encode(), NOW_MS)
    encoded = base64.b64encode(BODY.encode()).decode()
    assert read_line(line(body=None, body_base64=encoded), NOW_MS) == imported


def test_the_record_says_where_it_came_from() -> None:
    imported = read_line(line(received_at="2020-10-16T11:24:09Z"), NOW_MS)
    encoded = outgoing(imported.record, topics(), Encoder())
    record = marked(encoded, imported.origin_time_ms, "the-replay", "webhooks.jsonl/0/7")
    assert record.timestamp_ms == NOW_MS
    assert dict(record.headers)["origin"] == b"import"
    assert dict(record.headers)["origin-time"] == b"2020-10-16T11:24:09.000Z"
    assert dict(record.headers)["replay-id"] == b"the-replay"
    assert dict(record.headers)["replay-source"] == b"webhooks.jsonl/0/7"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"body": "{"}, "malformed_json"),
        ({"body": "{}"}, "invalid_field"),
        ({"event": "order.shipped"}, "unknown_event"),
        ({"body": None, "body_base64": base64.b64encode(b"\xff").decode()}, "invalid_utf8"),
    ],
)
def test_what_is_no_valid_webhook_becomes_the_dead_letter_of_the_ingress(
    fields: dict[str, object], reason: str
) -> None:
    imported = read_line(line(**fields), NOW_MS)
    assert isinstance(imported.record, DeadLetter)
    assert (imported.record.reason, imported.record.origin) == (reason, "ingress")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"not json", "it is not"),
        (b"[]", "it is not"),
        (line(more=1), "more"),
        (line(store="Not A Store"), "cannot be the name of a store"),
        (line(body=None), "one of them"),
        (line(body_base64="e30="), "one of them"),
        (line(body=None, body_base64="*"), "not base64"),
        (line(body=" " * 65_537), "65,537 bytes"),
        (line(body={"orderId": "x"}), "it is not"),
        (line(received_at="yesterday"), "is not a time"),
        (line(received_at="0001-01-01T00:00:00+14:00"), "years 1 to 9999"),
        (line(received_at="9999-12-31T23:59:59-00:01"), "years 1 to 9999"),
    ],
)
def test_a_line_that_says_nothing_that_could_be_kept_is_a_fault(raw: bytes, says: str) -> None:
    with pytest.raises(LineFault, match=says):
        read_line(raw, NOW_MS)


@pytest.mark.parametrize("received_at", ["0001-01-01T14:00:00+14:00", "9999-12-31T09:59:59.999-14:00"])
def test_the_first_and_the_last_instant_that_a_line_may_name_can_be_written(received_at: str) -> None:
    imported = read_line(line(received_at=received_at), NOW_MS)
    record = marked(outgoing(imported.record, topics(), Encoder()), imported.origin_time_ms, "the-replay", "f/0/1")
    assert dict(record.headers)["origin-time"] in (b"0001-01-01T00:00:00.000Z", b"9999-12-31T23:59:59.999Z")


@pytest.mark.parametrize(
    ("body", "is_reserialised"),
    [
        (BODY, False),
        (BODY.replace('"A"', r'"a \" b : c"'), False),
        (BODY.replace(":", ": ", 1), True),
        (BODY.replace(",", ",\n"), True),
    ],
)
def test_a_body_that_was_parsed_and_written_again_is_noticed_by_its_white_space(
    body: str, is_reserialised: bool
) -> None:
    assert read_line(line(body=body), NOW_MS).is_reserialised is is_reserialised


def test_a_plan_says_how_many_more_lines_it_does_not_name_and_its_json_names_them(tmp_path: Path) -> None:
    file = tmp_path / "webhooks.jsonl"
    file.write_bytes(b"\n".join([line(body="{}"), b"nonsense"] * 30 + [line()]))
    plan = run({}, "replay", "import", str(file))
    assert plan.returncode == 0, plan.stderr
    assert plan.stderr.count("becomes a dead letter") == plan.stderr.count("cannot be read: ") == 20
    assert plan.stderr.count("and 10 more") == 2
    assert "about 1 s" in plan.stdout
    said = json.loads(run({}, "replay", "import", str(file), "--json", "--max-records-per-s", "10").stdout)
    assert [note["line"] for note in said["letters"]] == list(range(1, 61, 2))
    assert [note["line"] for note in said["faults"]] == list(range(2, 61, 2))
    assert (said["fault_count"], said["seconds_estimated"], said["warnings"]) == (30, 3.1, [])


def test_of_a_file_that_is_all_wrong_so_many_lines_are_named_as_memory_has_room_for(tmp_path: Path) -> None:
    file = tmp_path / "webhooks.jsonl"
    file.write_bytes(line(body="{}") + b"\n" + b"nonsense\n" * (MOST_NOTES + 7))
    found = survey(file, NOW_MS, Watch())
    assert (len(found.faults), found.fault_count, found.letter_count) == (MOST_NOTES, MOST_NOTES + 7, 1)
