"""What a plan says, and which targets it refuses."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kinguin_streams.replay import topic_target
from kinguin_streams.replay.checksum import Tally, tally
from kinguin_streams.replay.file_names import FileName
from kinguin_streams.replay.file_source import SourceFile
from kinguin_streams.replay.landed_offsets import LandedOffsets
from kinguin_streams.replay.plan import (
    Destination,
    PaceLimit,
    Plan,
    Selection,
    Window,
    amount,
    as_json,
    described,
    duration,
    estimated_duration_s,
    sentences,
)
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import unchanged
from kinguin_streams.replay.survey import TopicFacts
from kinguin_streams.replay.topic_plan import files_of, refuse_mixed
from kinguin_streams.telemetry.operator_error import OperatorError

DAY_MS = 86_400_000
NOW_MS = 1_767_225_600_000


def facts(name: str = "target", topic_id: str = "1", partitions: int = 3, **config: str) -> TopicFacts:
    settings = {key.replace("_", "."): value for key, value in config.items()}
    return TopicFacts(name=name, topic_id=topic_id, partitions=partitions, config=settings)


@pytest.mark.parametrize(
    ("config", "limit_ms"),
    [
        pytest.param({"retention_ms": "-1"}, None, id="kept for ever"),
        pytest.param({"retention_ms": "5000"}, 5_000, id="retention by time"),
        pytest.param(
            {"retention_ms": "5000", "cleanup_policy": "compact"}, None, id="compaction alone deletes by no time"
        ),
        pytest.param({"retention_ms": "5000", "cleanup_policy": "compact,delete"}, 5_000, id="both"),
        pytest.param(
            {"retention_ms": "-1", "message_timestamp_before_max_ms": str(2**63 - 1)}, None, id="Kafka's default"
        ),
        pytest.param(
            {"retention_ms": "5000", "message_timestamp_before_max_ms": "70"}, 70, id="older ones are refused"
        ),
    ],
)
def test_the_age_at_which_a_target_lets_go_of_a_record(config: dict[str, Any], limit_ms: int | None) -> None:
    assert topic_target.time_limit_ms(facts(**config)) == limit_ms


def test_a_record_as_old_as_that_is_refused_and_a_younger_one_is_not() -> None:
    week = facts(retention_ms=str(7 * DAY_MS))
    topic_target.refuse_too_old(week, NOW_MS - 7 * DAY_MS + 1, NOW_MS)
    topic_target.refuse_too_old(week, None, NOW_MS)
    with pytest.raises(OperatorError, match=r"7\.0 days, .* 7\.0 days old"):
        topic_target.refuse_too_old(week, NOW_MS - 7 * DAY_MS, NOW_MS)


def test_a_source_is_no_target_under_whatever_name() -> None:
    with pytest.raises(OperatorError) as refused:
        topic_target.refuse(facts(topic_id="7"), {"other": "7"}, "keep", force=False)
    assert refused.value.code == "same_topic"
    topic_target.refuse(facts(topic_id="7"), {"other": "7"}, "keep", force=True)


def test_warnings_say_what_a_target_may_do_to_a_copy() -> None:
    target = facts(cleanup_policy="compact", retention_bytes="100", max_message_bytes="50")
    said = topic_target.warnings(target, [facts("source", partitions=4, max_message_bytes="60")])
    assert [next(word for word in ("compacted", "size", "at most 50", "murmur2") if word in one) for one in said] == [
        "compacted",
        "size",
        "at most 50",
        "murmur2",
    ]
    assert topic_target.warnings(facts(), [facts("source")]) == []


def of(topic: str) -> SourceFile:
    name = FileName(topic, 0, 0, "avro")
    return SourceFile(path=Path(f"{topic}.0.0.avro"), name=name, next_offset=9, partitions=1, identity="")


def test_files_of_several_topics_go_nowhere_until_somebody_says_which() -> None:
    files = [of("a"), of("b")]
    with pytest.raises(OperatorError) as mixed:
        refuse_mixed(files, "b")
    assert (mixed.value.code, "replay topic b b --source" in mixed.value.hint) == ("source_mixed", True)
    refuse_mixed(files[:1], "b")  # a copy may have another name
    assert files_of(files, ()) == tuple(files)
    assert files_of(files, ["b"]) == (files[1],)
    with pytest.raises(OperatorError, match="hold nothing of c; they hold a, b"):
        files_of(files, ["a", "c"])


def test_what_was_made_anew_is_not_what_was_planned() -> None:
    unchanged({"topic t": "1"}, {"topic t": "1", "cluster": "c"}, "source")
    with pytest.raises(OperatorError) as changed:
        unchanged({"topic t": "1"}, {"topic t": "2"}, "source")
    assert changed.value.code == "identity_changed"


def record(value: bytes) -> Record:
    return Record("target", 0, 0, NOW_MS, None, value, ())


def test_what_has_landed_is_taken_once_and_what_was_not_is_counted() -> None:
    landed = LandedOffsets()
    for source in (b"kinguin.order.status/3/5", b"kinguin.order.status/3/5", b"a/0/1"):
        landed.add(source, record(source))
    assert len(landed) == 2
    taken = [landed.take(("kinguin.order.status", 3, 5)) for _ in range(2)]
    assert taken == [tally([record(b"kinguin.order.status/3/5")]), None]
    assert not landed.take(("a", 0, 2))
    assert len(landed) == 1
    assert landed.leave() == tally([record(b"a/0/1")])
    assert (len(landed), landed.take(("a", 0, 1)), landed.leave()) == (0, None, Tally())


def test_what_the_run_has_passed_is_not_waited_for() -> None:
    landed = LandedOffsets()
    for source in (b"a/0/1", b"a/0/2", b"a/1/1"):
        landed.add(source, record(source))
    assert landed.leave({("a", 0): 2, ("b", 0): 9}) == tally([record(b"a/0/1")])
    assert len(landed) == 2
    assert [landed.take(("a", 0, offset)) for offset in (1, 2)] == [None, tally([record(b"a/0/2")])]
    assert landed.leave() == tally([record(b"a/1/1")])


def plan(**more: Any) -> Plan:
    windows = (
        Window(topic="t", partition=0, start=5, end=15, earliest=5, latest=20, gone=5, bytes=1_500, from_ms=NOW_MS),
        Window(topic="t", partition=1, start=0, end=30, earliest=0, latest=30, bytes=3_000, from_ms=NOW_MS),
    )
    return Plan(
        replay_id="r", made_at_ms=NOW_MS, windows=windows, destination=Destination(kind="topic", name="copy"), **more
    )


def test_a_plan_is_a_sentence_and_one_object() -> None:
    selection = Selection(events=("order.status",), headers=(("a", "b"),), where=("status == 1",), distinct=1_000)
    planned = plan(selection=selection)
    first, times, filters = sentences(planned)
    assert first.startswith(
        "topic copy: at most 40 records, about 4.5 kB, about 1 s, ends fixed at 2026-01-01T00:00:00.000Z"
    )
    assert times == "only record time from 2026-01-01T00:00:00.000Z until the end"
    assert filters == (
        "only event order.status, header a=b, status == 1, the first of each eventId among the last 1,000"
    )
    said = as_json(planned, executed=False)
    assert (said["records_at_most"], said["records"], said["bytes_estimated"], said["gone"]) == (40, None, 4_500, 5)
    assert said["windows"][0]["from"] == "2026-01-01T00:00:00.000Z"


def test_a_plan_comes_back_from_its_receipt_as_it_was() -> None:
    planned = plan(pace=PaceLimit(max_records_per_s=5), selection=Selection(keys=("k",), event_time=True))
    assert msgspec.json.decode(msgspec.json.encode(planned), type=Plan) == planned


def test_exact_counts_are_said_where_there_are_any() -> None:
    counted = msgspec.structs.replace(plan().windows[0], exact_records=7)
    assert "7 of at most 10 records" in sentences(msgspec.structs.replace(plan(), windows=(counted,)))[0]


def test_the_estimate_is_the_pace_where_that_is_slower() -> None:
    assert estimated_duration_s(600_000, 0, PaceLimit()) == 10
    assert estimated_duration_s(600, 0, PaceLimit(max_records_per_s=10)) == 60
    assert estimated_duration_s(1, 5_000, PaceLimit(max_bytes_per_s=100)) == 50


def test_numbers_are_for_people() -> None:
    assert [amount(size) for size in (0, 999, 1_000, 1_234_567, 5 * 10**9, 7 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "5.0 GB",
        "7.0 TB",
    ]
    assert [duration(seconds) for seconds in (0.01, 89, 120, 7_200)] == ["1 s", "89 s", "2 min", "2.0 h"]
    assert described(Selection()) == ""
