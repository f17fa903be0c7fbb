"""A copy is the original, to the byte, and is refused where it could not stay so. On a real Kafka."""

import json
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from tests.conftest import OwnKafka
from tests.replay.replay_topics import ORIGIN_MS, Bench, numbered, sources, without_replay

pytestmark = pytest.mark.kafka
RECORDS = 5_000


def test_a_copy_is_the_original_to_the_byte(bench: Bench) -> None:
    """Keys, values, headers, times and partitions; tombstones, records without key, names that come twice."""
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(RECORDS))
    said = bench.done("topic", target, source, "--execute")
    original, copy = bench.raw(source), bench.raw(target)
    assert without_replay(copy) == original
    assert len(original) == RECORDS
    assert (said["state"], said["proof"]["holds"]) == ("done", True)
    assert said["written"] == said["read"] == said["proof"]["found"]
    assert said["written"]["records"] == RECORDS
    added = {name: value for name, value in copy[0][4] if name.startswith("replay-")}
    assert added == {"replay-id": said["replay_id"].encode(), "replay-source": f"{source}/0/0".encode()}
    assert set(sources(copy).values()) == {1}


def test_a_partition_that_begins_to_be_led_between_two_batches_gets_both(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """The client would confirm the first batch, which the broker refused, by the success of the second one."""
    bench = Bench(own_kafka.slow_bootstrap_servers, topic_prefix, tmp_path)
    source, target = bench.topic("source", 1), bench.topic("target", 1)
    bench.produce(source, numbered(20))
    settings = {"KINGUIN_KAFKA__CONFIG": json.dumps({"batch.num.messages": 1, "max.in.flight": 5})}
    with own_kafka.line.first_refused(target) as refusing:
        done = bench.replay("topic", target, source, "--execute", settings=settings)
    assert refusing.held.is_set()
    assert done.returncode == 0, done.stderr
    assert without_replay(bench.raw(target)) == bench.raw(source)


def test_a_plan_writes_nothing(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(1_000))
    said = bench.done("topic", target, source)
    assert (said["executed"], said["records_at_most"], said["records"]) == (False, 1_000, None)
    assert said["bytes_estimated"] > 0
    assert {window["partition"] for window in said["windows"]} == {0, 1, 2}
    assert bench.raw(target) == []
    assert bench.receipts == []
    shown = bench.replay("topic", target, source, "--exact")
    assert "1,000 of at most 1,000 records" in shown.stdout
    assert "--execute" in shown.stderr


def test_with_another_number_of_partitions_the_key_decides_as_for_any_publisher(bench: Bench) -> None:
    source, target, published = bench.topic("source", 3), bench.topic("target", 5), bench.topic("published", 5)
    records = [record for record in numbered(2_000) if record["key"] is not None]
    bench.produce(source, records)
    bench.produce(published, records)
    said = bench.replay("topic", target, source, "--execute")
    assert said.returncode == 0, said.stderr
    assert "3 partitions" in said.stderr
    assert sorted(map(repr, without_replay(bench.raw(target)))) == sorted(map(repr, bench.raw(published)))


def test_several_topics_go_into_one_and_traces_stay_behind(bench: Bench) -> None:
    one, other, target = bench.topic("one"), bench.topic("other"), bench.topic("target")
    traced = [("traceparent", b"00-1"), ("a", b"1"), ("tracestate", b"x"), ("B3", b"y"), ("replay-id", b"older")]
    bench.produce(one, [{"key": b"k", "value": b"1", "headers": traced, "timestamp": ORIGIN_MS}])
    bench.produce(other, [{"key": b"k", "value": b"2", "timestamp": ORIGIN_MS}])
    assert bench.done("topic", target, one, other, "--execute")["proof"]["holds"]
    copy = bench.raw(target)
    assert {record[3] for record in copy} == {b"1", b"2"}
    headers = next(record[4] for record in copy if record[3] == b"1")
    assert [name for name, _ in headers] == ["a", "replay-id", "replay-source"]


def test_retention_in_the_middle_of_the_window_is_told_for_each_partition(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    for partition in range(3):
        bench.produce(
            source, [{"value": b"%d" % number, "partition": partition, "timestamp": ORIGIN_MS} for number in range(100)]
        )
    bench.delete_before(source, {0: 30, 2: 80})
    plan = bench.done("topic", target, source, "--from", "offset:10", "--until", "offset:90")
    windows = [(w["start"], w["end"], w["gone"], w["records_at_most"]) for w in plan["windows"]]
    assert windows == [(30, 90, 20, 60), (10, 90, 0, 80), (80, 90, 70, 10)]
    assert len(plan["warnings"]) == 2
    assert "offsets 10 to 29" in plan["warnings"][0]
    by_time = bench.done("topic", target, source, "--from", "2020-01-01")
    assert [window["gone"] for window in by_time["windows"]] == [30, 0, 80]
    said = bench.done("topic", target, source, "--from", "offset:10", "--until", "offset:90", "--execute")
    assert (said["written"]["records"], said["proof"]["holds"]) == (150, True)


def test_until_is_a_filter_and_loses_no_record_that_lies_behind_a_later_one(bench: Bench) -> None:
    source, target = bench.topic("source", 1), bench.topic("target", 1)
    times = [1, 5, 9, 2, 12, 3, 7, 20, 4, 6]  # the fourth, sixth and ninth lie behind later ones
    bench.produce(source, [{"value": b"%d" % at, "timestamp": ORIGIN_MS + at * 1_000} for at in times])
    begin, end = "2023-11-14T22:13:22Z", "2023-11-14T22:13:27Z"  # ORIGIN_MS + 2 s, + 7 s
    said = bench.done("topic", target, source, "--from", begin, "--until", end, "--execute")
    assert [record[3] for record in bench.raw(target)] == [b"5", b"2", b"3", b"4", b"6"]
    assert (said["written"]["records"], said["filtered"]["records"]) == (5, 4)  # the first was before the start


def test_the_end_is_fixed_by_the_plan(bench: Bench) -> None:
    """What arrives while it runs is not copied: into its own topic, it would never end."""
    topic = bench.topic("source")
    bench.produce(topic, numbered(500))
    refused = bench.replay("topic", topic, topic, "--execute")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "both the source and the target" in refused.stderr
    said = bench.done("topic", topic, topic, "--execute", "--force")
    assert (said["written"]["records"], said["proof"]["holds"]) == (500, True)
    assert len(bench.raw(topic)) == 1_000


def test_a_copy_that_would_delete_itself_is_refused_before_the_first_write(bench: Bench) -> None:
    source, target = bench.topic("source", 1), bench.topic("target", 1, retention_ms=str(7 * 86_400_000))
    now_ms = round(time.time() * 1000)
    bench.produce(source, [{"value": b"new", "timestamp": now_ms - number} for number in range(500)])
    bench.produce(source, [{"value": b"old", "timestamp": now_ms - 8 * 86_400_000}])
    bench.produce(source, [{"value": b"new", "timestamp": now_ms}] * 400)
    refused = bench.replay("topic", target, source, "--execute")
    assert (refused.returncode, bench.raw(target)) == (1, [])
    assert "the copy would delete itself" in refused.stderr
    # A window or a filter that leaves the old one out is fine; so is the time of now, with the old one kept beside it.
    assert bench.done("topic", target, source, "--from", "-7d", "--execute")["written"]["records"] == 900
    assert bench.done("topic", target, source, "--from", "offset:501", "--execute")["written"]["records"] == 400
    said = bench.done("topic", target, source, "--timestamp", "now", "--execute")
    assert (said["written"]["records"], said["proof"]["holds"]) == (901, True)
    (old,) = [record for record in bench.raw(target) if record[3] == b"old"]
    assert old[1] >= now_ms
    assert dict(old[4])["replay-timestamp"] == b"%d" % (now_ms - 8 * 86_400_000)


def test_a_target_that_sets_times_is_refused(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target", message_timestamp_type="LogAppendTime")
    bench.produce(source, numbered(10))
    refused = bench.replay("topic", target, source, "--execute")
    assert refused.returncode == 1
    assert "LogAppendTime" in refused.stderr


def test_a_topic_that_is_not_there_is_named_and_not_made(bench: Bench) -> None:
    source = bench.topic("source")
    for arguments in ((f"{bench.prefix}.missing", source), (source, f"{bench.prefix}.missing")):
        refused = bench.replay("topic", *arguments, "--execute")
        assert refused.returncode == 1
        assert f"no topic {bench.prefix}.missing" in refused.stderr
    assert f"{bench.prefix}.missing" not in bench.admin.list_topics(timeout=10).topics


def test_aborted_transactions_are_not_copied_and_open_ones_not_waited_for(bench: Bench) -> None:
    source, target = bench.topic("source", 1), bench.topic("target", 1)

    def transactional(name: str) -> Producer:
        producer = Producer(
            {"bootstrap.servers": bench.bootstrap_servers, "transactional.id": f"{bench.prefix}.{name}"},
            logger=CLIENT_LOGGER,
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        return producer

    for number in range(10):
        producer = transactional("t")
        producer.produce(source, b"%d" % number, timestamp=ORIGIN_MS)
        producer.flush(30)
        if number % 2:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    open_one = transactional("open")
    open_one.produce(source, b"open", timestamp=ORIGIN_MS)
    open_one.flush(30)
    said = bench.done("topic", target, source, "--execute")
    assert [record[3] for record in bench.raw(target)] == [b"1", b"3", b"5", b"7", b"9"]
    assert (said["written"]["records"], said["proof"]["holds"]) == (5, True)
    open_one.abort_transaction(30)


def test_another_ones_open_transaction_in_the_target_hides_nothing(bench: Bench) -> None:
    source, target = bench.topic("source", 1), bench.topic("target", 1)
    bench.produce(source, numbered(100))
    producer = Producer(
        {"bootstrap.servers": bench.bootstrap_servers, "transactional.id": bench.prefix}, logger=CLIENT_LOGGER
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(target, b"open")
    producer.flush(30)
    assert bench.done("topic", target, source, "--execute")["proof"]["found"]["records"] == 100
    producer.abort_transaction(30)


def test_a_compacted_topic_is_read_right(bench: Bench) -> None:
    """Its offsets have gaps, at the end too; the upper bound says more than there is."""
    bench.clean_often()
    source = bench.topic(
        "source",
        1,
        cleanup_policy="compact",
        segment_ms="50",
        min_cleanable_dirty_ratio="0.001",
        max_compaction_lag_ms="50",
        delete_retention_ms="50",
    )
    target = bench.topic("target", 1)
    for turn in range(3):
        bench.produce(source, [{"key": b"k%d" % number, "value": b"%d.%d" % (turn, number)} for number in range(50)])
        time.sleep(0.1)
    deadline_s = time.monotonic() + 60
    while len(bench.raw(source)) > 100 and time.monotonic() < deadline_s:
        bench.produce(source, [{"key": b"roll", "value": b"."}])
        time.sleep(0.5)
    said = bench.done("topic", target, source, "--execute")
    copy = without_replay(bench.raw(target))
    newest = {record[2]: record[3] for record in copy}
    assert newest.keys() >= {b"k%d" % number for number in range(50)}
    assert {newest[b"k%d" % number] for number in range(50)} == {b"2.%d" % number for number in range(50)}
    assert said["proof"]["holds"]
    assert said["written"]["records"] == len(copy) < 150
    assert bench.done("topic", target, source)["records_at_most"] > len(bench.raw(source))


def test_filters_and_pace_are_part_of_the_plan_and_of_the_receipt(bench: Bench) -> None:
    source, target = bench.topic("source"), bench.topic("target")
    bench.produce(source, numbered(2_000))
    began_s = time.monotonic()
    options = ("--key", "key-1", "--key", "key-2", "--header", "none=", "--max-records-per-s", "10000")
    assert bench.done("topic", target, source, *options, "--exact")["records"] == 0
    said = bench.done(
        "topic", target, source, "--key", "key-1", "--key", "key-2", "--max-bytes-per-s", "300", "--execute"
    )
    written = sum(record["key"] in (b"key-1", b"key-2") for record in numbered(2_000))
    assert (said["written"]["records"], said["filtered"]["records"]) == (written, 2_000 - written)
    assert time.monotonic() - began_s > 1
    plan = json.loads(bench.receipts[0].read_bytes().splitlines()[0])["plan"]
    assert plan["selection"]["keys"] == ["key-1", "key-2"]
    assert plan["pace"]["max_bytes_per_s"] == 300
    shown = bench.done("show", said["replay_id"][:20])
    assert shown["proof"]["holds"]


def test_wrong_words_are_usage_errors_before_kafka_is_asked(bench: Bench) -> None:
    for arguments in (
        ("--from", "yesterday"),
        ("--until", "1=x"),
        ("--event", "order"),
        ("--header", "x"),
        ("--where", "x"),
    ):
        refused = bench.replay(
            "topic", "t", "s", *arguments, settings={"KINGUIN_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
        )
        assert refused.returncode == 2, refused.stderr
        assert arguments[0] in refused.stderr
