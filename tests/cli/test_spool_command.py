"""`kinguin-streams spool`: what waits on disk is seen, drained, tried again and exported; looking changes nothing, whoever owns a file."""

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.ingress.payloads import read_event
from kinguin_streams.ingress.settings import SpoolSettings
from kinguin_streams.ingress.spool import Spool
from kinguin_streams.ingress.spool_file import SpoolFile, look
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.events import StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import topics
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import KafkaCluster, OwnKafka, free_port
from tests.ingress.faults import configure, spooled, stalled
from tests.ingress.running_ingress import Log, apply_topics, order_status, running_ingress, wait_until


def record(order_id: str, prefix: str = "kinguin") -> OutgoingRecord:
    event = read_event(StoreName("default"), "order.status", order_status(order_id), 1_700_000_000_000)
    return outgoing(event, topics(prefix), Encoder())


def fill(path: Path, *order_ids: str, prefix: str = "kinguin", refused: str | None = None) -> None:
    with SpoolFile(path) as file:
        for order_id in order_ids:
            spooled = file.append(record(order_id, prefix), 5).result(5)
            if order_id == refused:
                file.refuse(spooled, "refused: MSG_SIZE_TOO_LARGE")


def spool(folder: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return run(settings, "spool", *arguments, "--path", str(folder))


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in the files; an empty log and the index in memory are what SQLite leaves where it has looked."""
    found = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}
    return {name: content for name, content in found.items() if content or not name.endswith("-wal")}


CHILD = """
    import sys
    from pathlib import Path
    from kinguin_streams.ingress.spool_file import SpoolFile
    from tests.cli.test_spool_command import record
    file = SpoolFile(Path(sys.argv[1]))
    for number in range(3):
        file.append(record(f"dead-{number}"), 10).result(10)
    print("spooled", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Have a process of its own that owns the file, with three events."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "spooled\n"
            yield child
        finally:
            child.kill()


def test_status_tells_of_each_file_how_much_how_old_and_whose(tmp_path: Path) -> None:
    fill(tmp_path / "b.spool", "A", "B", "C", refused="B")
    with another_process(tmp_path / "a.spool") as living:
        before = contents(tmp_path)
        told = json.loads(spool(tmp_path, "status", "--json").stdout)
        assert contents(tmp_path) == before
        assert told["events"] == 5
        a, b = told["files"]
        assert (Path(a["file"]).name, a["owned"], a["events"], a["refused"]) == ("a.spool", True, 3, 0)
        assert (Path(b["file"]).name, b["owned"], b["events"], b["refused"]) == ("b.spool", False, 2, 1)
        assert a["bytes"] > 0
        assert a["oldest"].endswith("Z")
        table = spool(tmp_path, "status").stdout
        assert "a.spool" in table
        assert "b.spool" in table
        living.send_signal(signal.SIGKILL)
        living.wait()
    # What kill -9 left is in the write-ahead log only, and is seen all the same.
    a = json.loads(spool(tmp_path, "status", "--json").stdout)["files"][0]
    assert (a["owned"], a["events"]) == (False, 3)


def test_status_of_nothing_is_nothing_and_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    assert json.loads(spool(tmp_path, "status", "--json").stdout) == {"events": 0, "files": []}
    mistaken = spool(tmp_path / "mistyped", "status")
    assert mistaken.returncode == 1
    assert "There is no folder" in mistaken.stderr


def test_export_writes_every_event_refused_ones_too_whoever_owns_it(tmp_path: Path) -> None:
    fill(tmp_path / "b.spool", "A", "B", refused="B")
    with another_process(tmp_path / "a.spool"):
        exported = spool(tmp_path, "export")
    rows = [json.loads(line) for line in exported.stdout.splitlines()]
    expected = [record(order_id) for order_id in ("dead-0", "dead-1", "dead-2", "A", "B")]
    assert [base64.b64decode(row["key"]) for row in rows] == [each.key for each in expected]
    assert [base64.b64decode(row["value"]) for row in rows] == [each.value for each in expected]
    for row, each in zip(rows, expected, strict=True):
        assert row["topic"] == each.topic
        assert row["timestampMs"] == each.timestamp_ms
        assert [(name, base64.b64decode(value)) for name, value in row["headers"]] == list(each.headers)
    assert [row["refused"] for row in rows] == [None] * 4 + ["refused: MSG_SIZE_TOO_LARGE"]


def test_a_file_that_is_no_spool_is_named_and_left(tmp_path: Path) -> None:
    (tmp_path / "a.spool").write_bytes(b"this was never a database" * 100)
    fill(tmp_path / "b.spool", "A")
    before = contents(tmp_path)
    for command in ("status", "export"):
        done = spool(tmp_path, command)
        assert done.returncode == 0
        assert "a.spool cannot be read" in done.stderr
        assert done.stdout != ""
    assert contents(tmp_path) == before


def test_drain_says_what_it_cannot_bring_into_kafka_and_ends_with_1(tmp_path: Path) -> None:
    """Whoever deletes the volume after "0 left" must not delete these."""
    (tmp_path / "a.spool").write_bytes(b"this was never a database" * 100)
    nothing_else = spool(tmp_path, "drain", "--json")
    told = {"drained": 0, "dead_lettered": 0, "left": 0, "refused": 0, "unreadable": 1}
    assert (nothing_else.returncode, json.loads(nothing_else.stdout)) == (1, told)
    fill(tmp_path / "b.spool", "A", refused="A")
    nowhere = f"127.0.0.1:{free_port()}"
    refused = spool(tmp_path, "drain", "--timeout-s", "1", KINGUIN_KAFKA__BOOTSTRAP_SERVERS=nowhere)
    assert refused.stdout == "0 events drained, 0 made dead letters, 0 left, 1 refused by Kafka, 1 files unreadable\n"
    assert refused.returncode == 1


@pytest.mark.parametrize("command", ["status", "drain", "retry", "export"])
def test_a_folder_of_the_settings_that_is_not_there_is_a_mistake_too(tmp_path: Path, command: str) -> None:
    mistaken = run({"KINGUIN_SPOOL__PATH": str(tmp_path / "mistyped")}, "spool", command)
    assert mistaken.returncode == 1
    assert "There is no folder" in mistaken.stderr
    assert not (tmp_path / "mistyped").exists()


def settings(bootstrap_servers: str, prefix: str) -> dict[str, str]:
    return {"KINGUIN_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers, "KINGUIN_TOPICS__PREFIX": prefix}


def orders(bootstrap_servers: str, prefix: str) -> list[str]:
    log = Log(bootstrap_servers, topics(prefix, partitions=2))
    try:
        return sorted(kept.record.order_id for kept in log.events())
    finally:
        log.close()


@pytest.mark.kafka
def test_drain_brings_what_nobody_owns_into_kafka_and_leaves_to_the_living_what_is_theirs(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    apply_topics(kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
    fill(tmp_path / "a.spool", "A", "B", prefix=topic_prefix)
    fill(tmp_path / "b.spool", "C", "D", prefix=topic_prefix, refused="D")
    with another_process(tmp_path / "living.spool"):
        done = spool(tmp_path, "drain", "--json", **settings(kafka.bootstrap_servers, topic_prefix))
        told = {"drained": 3, "dead_lettered": 1, "left": 0, "refused": 0, "unreadable": 0}
        assert (done.returncode, json.loads(done.stdout)) == (0, told)
        assert orders(kafka.bootstrap_servers, topic_prefix) == ["A", "B", "C"]
        assert dead_letters(kafka.bootstrap_servers, topic_prefix) == [order_status("D")]
        assert look(tmp_path / "living.spool").records == 3
    assert [path.name for path in tmp_path.glob("*.spool")] == ["living.spool"]


@pytest.mark.kafka
def test_drain_gives_up_in_time_with_1_and_keeps_what_is_left(tmp_path: Path) -> None:
    fill(tmp_path / "a.spool", "A", "B")
    nowhere = settings(f"127.0.0.1:{free_port()}", "kinguin")
    began_s = time.monotonic()
    done = spool(tmp_path, "drain", "--timeout-s", "2", **nowhere)
    assert time.monotonic() - began_s < 2 + 5 + 8  # its time, the last flush, and a busy machine
    assert done.returncode == 1
    assert done.stdout == "0 events drained, 0 made dead letters, 2 left, 0 refused by Kafka, 0 files unreadable\n"
    (left,) = tmp_path.glob("*.spool")
    assert look(left).records == 2


@pytest.mark.kafka
def test_drain_goes_on_once_kafka_is_back(own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path) -> None:
    """Nothing but the command itself asks whether Kafka is back after its first batch was given up."""
    apply_topics(own_kafka.bootstrap_servers, topics(topic_prefix, partitions=2))
    fill(tmp_path / "a.spool", "A", "B", prefix=topic_prefix)
    environment = {
        **settings(own_kafka.bootstrap_servers, topic_prefix),
        "KINGUIN_INGRESS__DELIVERY_TIMEOUT_S": "1",
        "KINGUIN_LOG__FORMAT": "json",
    }
    arguments: Any = [*COMMAND, "spool", "drain", "--path", str(tmp_path), "--json"]
    with (
        stalled(own_kafka.broker),
        subprocess.Popen(
            arguments, env=clean_environment(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as draining,
    ):
        time.sleep(5)
        os.kill(own_kafka.broker.pid, signal.SIGCONT)
        told, said = draining.communicate(timeout=60)
    assert json.loads(told) == {"drained": 2, "dead_lettered": 0, "left": 0, "refused": 0, "unreadable": 0}, said
    assert draining.returncode == 0
    assert set(orders(own_kafka.bootstrap_servers, topic_prefix)) == {"A", "B"}


def dead_letters(bootstrap_servers: str, prefix: str) -> list[bytes]:
    log = Log(bootstrap_servers, topics(prefix, partitions=2))
    try:
        return [letter.body for letter in log.dead_letters()]
    finally:
        log.close()


def retry(folder: Path, **environment: str) -> tuple[int, Any]:
    done = spool(folder, "retry", "--json", **environment)
    return done.returncode, json.loads(done.stdout)


def test_retry_lets_what_nobody_owns_wait_for_kafka_again_in_its_old_place(tmp_path: Path) -> None:
    fill(tmp_path / "a.spool", "A", "B", "C", refused="B")
    fill(tmp_path / "b.spool", "D")
    assert retry(tmp_path) == (0, {"retried": 1, "asked": 0})
    with SpoolFile(tmp_path / "a.spool") as file:
        assert [spooled.record.key for spooled in file.oldest(9)] == [record(name).key for name in "ABC"]
        assert (file.contents.records, file.contents.refused) == (3, 0)
    assert retry(tmp_path) == (0, {"retried": 0, "asked": 0})
    assert "has refused nothing" in spool(tmp_path, "retry").stdout


def test_retry_writes_nothing_into_a_file_that_a_living_process_owns_but_asks_for_it(tmp_path: Path) -> None:
    fill(tmp_path / "a.spool", "A", refused="A")
    with SpoolFile(tmp_path / "a.spool"):
        before = (tmp_path / "a.spool").read_bytes()
        assert retry(tmp_path) == (0, {"retried": 0, "asked": 1})
        assert look(tmp_path / "a.spool").refused == 1
        assert (tmp_path / "a.spool").read_bytes() == before
    # Whoever takes the file over does what was asked, once.
    taking_over = Spool(SpoolSettings(path=tmp_path))
    taking_over.retry_where_asked()
    assert taking_over.waiting == 1
    assert list(tmp_path.glob("*.retry")) == []
    taking_over.close()


def test_retry_that_cannot_write_is_a_sentence_and_keeps_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path / "a.spool", "A", refused="A")
    (tmp_path / "a.lock").unlink()
    (tmp_path / "a.lock").mkdir()
    done = spool(tmp_path, "retry")
    assert done.returncode == 1
    assert f"{tmp_path / 'a.spool'} cannot be changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert look(tmp_path / "a.spool").refused == 1


@pytest.mark.kafka
def test_after_the_topic_takes_more_a_retry_brings_into_kafka_what_it_had_refused(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """A living ingress retries its own files when asked; what is refused again is kept again, and not tried for ever."""
    bootstrap, topic = own_kafka.bootstrap_servers, f"{topic_prefix}.order.status"
    with running_ingress(bootstrap, topic_prefix, tmp_path) as running:
        folder = tmp_path / ".data" / "spool"
        for refusing in (topic, f"{topic_prefix}.dead-letter"):
            configure(bootstrap, refusing, "max.message.bytes", "10000")
        large = order_status("LARGE", extra=f', "padding": "{"x" * 20_000}"')
        with stalled(own_kafka.broker):
            assert running.post(large).status == 204

        def refused() -> float:
            return running.metrics()["kinguin_ingress_spool_refused_events", ()]

        set_aside = "spooled_record_set_aside"
        wait_until(lambda: set_aside in running.log_text(), 40, "a refusal")
        assert refused() == 1
        assert retry(folder) == (0, {"retried": 0, "asked": 1})
        wait_until(lambda: "spool_retried" in running.log_text(), 20, "a retry")
        wait_until(lambda: running.log_text().count(set_aside) == 2, 20, "a second refusal")
        assert running.log.events() == []
        configure(bootstrap, topic, "max.message.bytes", "1000000")
        assert retry(folder) == (0, {"retried": 0, "asked": 1})
        wait_until(lambda: refused() == 0 and spooled(running) == 0, 20, "an empty spool")
        assert {kept.record.raw for kept in running.log.events()} == {large}
        assert running.log.dead_letters() == []
        assert list(folder.glob("*.retry")) == []
        assert running.log_text().count("spool_retried") == 2
