"""An ingress that starts while Kafka is away goes by what an earlier one has proven, if that is about the same topics."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import urllib3

from kinguin_streams.ingress.proven import FILE_NAME, Proof, ProofFile, why_not
from tests.conftest import KafkaCluster, StartBroker, free_port
from tests.ingress.faults import Witness, assert_invariants, bodies, end, kill, spooled, wait_until_drained
from tests.ingress.running_ingress import SERVERS, command, running_ingress, start, wait_until

NOW_S = 1_700_000_000.0
PROOF = Proof(
    cluster_id="c", bootstrap_servers="a:1,b:2", partitions={"k.one": 6, "k.two": 6}, proven_at_ms=int(NOW_S * 1000)
)
BY_EARLIER = ("kinguin_ingress_ready_by_earlier_proof", ())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        pytest.param({}, None, id="the same settings"),
        pytest.param({"bootstrap_servers": "b:2, a:1"}, None, id="the same servers in another order"),
        pytest.param({"topics": ["k.one"]}, None, id="fewer topics"),
        pytest.param({"now_ms": int((NOW_S + 99) * 1000)}, None, id="young enough"),
        pytest.param({"bootstrap_servers": "c:3"}, "it is of the Kafka at a:1,b:2", id="another Kafka"),
        pytest.param({"topics": ["p.one", "k.two"]}, "it does not name p.one", id="another prefix"),
        pytest.param({"now_ms": int((NOW_S + 101) * 1000)}, "it is 101 s old", id="too old"),
        pytest.param({"now_ms": int((NOW_S - 101) * 1000)}, "it is 101 s old", id="from the future"),
    ],
)
def test_a_proof_counts_for_the_same_kafka_and_topics_while_it_is_young(
    asked: dict[str, Any], reason: str | None
) -> None:
    same: dict[str, Any] = {
        "bootstrap_servers": "a:1,b:2",
        "topics": ["k.one", "k.two"],
        "max_age_s": 100,
        "now_ms": int(NOW_S * 1000),
    }
    said = why_not(PROOF, **{**same, **asked})
    assert (said is None) == (reason is None)
    assert (said or "").startswith(reason or "")


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def file_in(folder: Path, clock: Clock, *, max_age_s: float = 100_000) -> ProofFile:
    return ProofFile(folder, "a:1", ["k.one"], max_age_s, now_s=clock)


def test_what_one_process_has_seen_the_next_one_reads(tmp_path: Path) -> None:
    clock = Clock()
    assert file_in(tmp_path, clock).read() is None
    file_in(tmp_path, clock).write("c", {"k.one": 6})
    clock.now_s += 60
    assert file_in(tmp_path, clock).read() == Proof(
        cluster_id="c", bootstrap_servers="a:1", partitions={"k.one": 6}, proven_at_ms=int(NOW_S * 1000)
    )
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"format": 1}', b'{"format": "1"}'])
def test_a_file_that_is_no_proof_does_not_count_and_stops_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    file = file_in(tmp_path, Clock())
    assert file.read() is None
    file.write("c", {"k.one": 6})
    assert file.read() is not None


def test_the_disk_is_written_for_news_and_once_in_a_while_not_with_every_look(tmp_path: Path) -> None:
    clock = Clock()
    file = file_in(tmp_path, clock)
    written = []
    for seconds, partitions in ((0, 6), (5, 6), (5, 12), (5, 12), (600, 12)):
        clock.now_s += seconds
        (tmp_path / FILE_NAME).unlink(missing_ok=True)
        file.write("c", {"k.one": partitions})
        written.append((tmp_path / FILE_NAME).exists())
    assert written == [True, False, True, False, True]


def test_a_folder_that_cannot_be_written_costs_a_later_start_and_nothing_now(tmp_path: Path) -> None:
    file_in(tmp_path / "is-not-there", Clock()).write("c", {"k.one": 6})


@pytest.mark.kafka
def test_an_ingress_restarted_while_kafka_is_away_is_ready_spools_and_says_why(
    kafka_factory: StartBroker, topic_prefix: str, tmp_path: Path
) -> None:
    """With all ingresses restarted in an outage nobody would be there, and the sender disables the endpoint."""
    broker = kafka_factory(tmp_path / "kafka")
    bootstrap = broker.bootstrap_servers
    witness = Witness(tmp_path / "witness.jsonl")
    with running_ingress(bootstrap, topic_prefix, tmp_path) as first:
        witness.post(first, bodies(20))
        assert first.metrics()[BY_EARLIER] == 0
        proof = json.loads((tmp_path / ".data" / "spool" / FILE_NAME).read_bytes())
        assert proof["partitions"][f"{topic_prefix}.order.status"] == 2
        broker.stop()
        kill(first)
        second = start(bootstrap, topic_prefix, tmp_path)  # returns once it is ready
        try:
            answers = witness.post(second, bodies(50))
            assert {answer.status for answer in answers} == {204}
            assert witness.slowest_s < 3  # nobody waits for a Kafka that is known to be away
            assert spooled(second) == 50
            assert second.metrics()[BY_EARLIER] == 1
            said = second.admin("/readyz?verbose").body.decode()
            assert "[+] topics: not_delivered" in said
            assert "[!] topics: not seen by this process" in said
            assert "topics_not_seen_yet" in second.log_text()
            kafka_factory(tmp_path / "kafka")
            wait_until_drained(second)
            wait_until(lambda: second.metrics()[BY_EARLIER] == 0, 20, "topics that this process has seen")
            assert "[!] topics" not in second.admin("/readyz?verbose").body.decode()
            assert assert_invariants(witness, second).acked == 70
            assert second.terminate() == 0
        finally:
            end(second)


def _readyz(port: int) -> str:
    with suppress(urllib3.exceptions.HTTPError):
        answer = urllib3.request("GET", f"http://127.0.0.1:{port}/readyz", timeout=5, retries=False)
        return f"{answer.status} {answer.data.decode()}"
    return ""


@pytest.mark.parametrize("unlike", ["prefix", "spool"])
def test_while_kafka_is_away_a_proof_of_other_topics_or_no_spool_leaves_it_unready(
    topic_prefix: str, tmp_path: Path, unlike: str
) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    spool = tmp_path / ".data" / "spool"
    spool.mkdir(parents=True)
    named = f"{topic_prefix}x" if unlike == "prefix" else topic_prefix
    names = [f"{named}.{name}" for name in ("product.update", "order.status", "order.complete", "dead-letter")]
    ProofFile(spool, nowhere, names, 1000).write("c", dict.fromkeys(names, 2))
    port, admin_port = free_port(), free_port()
    arguments, environment = command(
        nowhere, topic_prefix, port=port, admin_port=admin_port, spool__enabled=unlike != "spool"
    )
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(arguments, env=environment, cwd=tmp_path, stderr=log) as process,
    ):
        try:
            wait_until(lambda: "topics: not_delivered" in _readyz(admin_port), 30, "an answer about the topics")
            assert _readyz(admin_port).startswith("503")
        finally:
            process.kill()
    assert ("topics_proof_not_counted" in (tmp_path / "log").read_text()) == (unlike == "prefix")


@pytest.mark.kafka
@pytest.mark.parametrize("server", SERVERS)
def test_row_12_before_the_topics_have_been_seen_a_missing_one_is_unreadiness(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, server: str
) -> None:
    arguments, environment = command(
        kafka.bootstrap_servers, topic_prefix, port=free_port(), admin_port=(admin_port := free_port()), server=server
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(arguments, env=environment, cwd=tmp_path, stderr=log)
    try:
        wait_until(lambda: "UNKNOWN_TOPIC_OR_PART" in _readyz(admin_port), 30, "an answer about the topics")
        assert _readyz(admin_port).startswith("503")
    finally:
        process.kill()
        process.wait()
