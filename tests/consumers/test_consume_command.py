"""`kinguin-streams consume` as a process: how it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kinguin_streams.consumers import reader
from tests.conftest import KafkaCluster, free_port
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status, product_update
from tests.consumers.kafka_streams import Streams, wait_until
from tests.consumers.test_consumer_kill import environment, start


def consume(name: str, streams: Streams, folder: Path, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Run a consumer that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "kinguin_streams", "consume", name],
        env=environment(streams, folder, **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("name", "ending"),
    [("order-state", (signal.SIGTERM, 0)), ("product-changes", (signal.SIGINT, 130))],
)
def test_a_consumer_ends_after_the_batch_in_hand_and_says_how(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, name: str, ending: tuple[signal.Signals, int]
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(order_status("processing"), product_update())
    stop, exit_code = ending
    url = state_settings(tmp_path).url
    log = tmp_path / "consumer.log"
    process = start(environment(streams, tmp_path), log, name)
    try:
        wait_until(lambda: bool(reader.stored_offsets(url, name)), f"a stored offset ({log})")
        process.send_signal(stop)
        assert process.wait(30) == exit_code, log.read_text()
    finally:
        process.kill()
    assert "Traceback" not in log.read_text()
    assert '"applied": 1' in log.read_text()


@pytest.mark.kafka
def test_missing_topics_are_a_sentence_and_exit_1(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> None:
    ended = consume("order-state", Streams(kafka.bootstrap_servers, topic_prefix), tmp_path)
    assert ended.returncode == 1
    assert f"There is no topic {topic_prefix}.order." in ended.stderr
    assert "topics apply" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_cluster_that_is_not_there_is_a_sentence_and_exit_1(tmp_path: Path) -> None:
    streams = Streams(f"127.0.0.1:{free_port()}", "none")
    ended = consume("product-changes", streams, tmp_path, CONSUMER__KAFKA_WAIT_S=1)
    assert ended.returncode == 1
    assert "Kafka does not answer" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bad_setting_is_named_and_exits_2(tmp_path: Path) -> None:
    ended = consume("order-state", Streams("127.0.0.1:1", "none"), tmp_path, CONSUMER__BATCH_RECORDS=0)
    assert ended.returncode == 2
    assert "KINGUIN_CONSUMER__BATCH_RECORDS" in ended.stderr


def test_no_kafka_at_all_says_how_to_get_one(tmp_path: Path) -> None:
    streams = Streams("127.0.0.1:1", "none")
    ended = subprocess.run(
        [sys.executable, "-m", "kinguin_streams", "consume", "order-state"],
        env={k: v for k, v in environment(streams, tmp_path).items() if k != "KINGUIN_KAFKA__BOOTSTRAP_SERVERS"},
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "kinguin-streams kafka start" in ended.stderr
    assert list(tmp_path.rglob("*.db")) == []  # nothing is left behind where nothing could be done
