"""The local broker: its data lasts, its folder has one owner, and nobody is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kinguin_streams.cluster import kafka_jars, local_broker
from kinguin_streams.cluster.connection import CLIENT_LOGGER
from kinguin_streams.cluster.local_broker import LocalBroker
from kinguin_streams.cluster.settings import LocalSettings
from kinguin_streams.telemetry.operator_error import OperatorError

TOPIC = "kept"


class Factory(Protocol):
    def __call__(self, data_dir: Path) -> LocalBroker: ...

    def settings(self, data_dir: Path) -> LocalSettings: ...


def _make_topic(broker: LocalBroker, partitions: int = 2) -> None:
    client = AdminClient({"bootstrap.servers": broker.bootstrap_servers}, logger=CLIENT_LOGGER)
    for made in client.create_topics([NewTopic(TOPIC, partitions, 1)]).values():
        made.result(timeout=10)


def _write(broker: LocalBroker, *values: bytes) -> None:
    config = {"bootstrap.servers": broker.bootstrap_servers, "enable.idempotence": True}
    producer = Producer(config, logger=CLIENT_LOGGER)
    failures: list[object] = []
    for value in values:
        producer.produce(
            TOPIC, value=value, partition=0, on_delivery=lambda error, _: failures.append(error) if error else None
        )
    assert producer.flush(20) == 0
    assert failures == []


def _read(broker: LocalBroker, count: int) -> list[bytes | None]:
    config = {"bootstrap.servers": broker.bootstrap_servers, "group.id": "reader", "enable.auto.commit": False}
    consumer = Consumer(config, logger=CLIENT_LOGGER)
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    messages = consumer.consume(count, timeout=20)
    consumer.close()
    return [message.value() for message in messages]


def _until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that nobody has waited for yet is gone for our purposes.
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc/self").exists() else True


@pytest.mark.kafka
def test_topics_records_and_cluster_id_outlive_a_stop(kafka_factory: Factory, tmp_path: Path) -> None:
    first = kafka_factory(tmp_path)
    _make_topic(first)
    _write(first, b"one", b"two")
    assert first.stop() is True
    assert not _exists(first.pid)

    second = kafka_factory(tmp_path)
    assert second.cluster_id == first.cluster_id
    assert _read(second, 2) == [b"one", b"two"]
    assert second.log_file.read_text().count("Kafka Server started") >= 1


@pytest.mark.kafka
def test_no_acknowledged_record_is_lost_by_kill_9_and_the_broker_comes_back(
    kafka_factory: Factory, tmp_path: Path
) -> None:
    broker = kafka_factory(tmp_path)
    _make_topic(broker)
    written = []
    for round_number in range(2):
        values = [f"{round_number}-{n}".encode() for n in range(100)]
        _write(broker, *values)
        written += values
        os.kill(broker.pid, signal.SIGKILL)
        broker = kafka_factory(tmp_path)
    assert _read(broker, len(written)) == written


@pytest.mark.kafka
def test_a_second_start_on_the_folder_is_refused_and_names_the_owner(kafka_factory: Factory, tmp_path: Path) -> None:
    broker = kafka_factory(tmp_path)
    with pytest.raises(OperatorError, match=f"in use by the broker with pid {broker.pid}") as caught:
        local_broker.start(LocalSettings(data_dir=tmp_path, kafka_port=1, controller_port=2))
    assert caught.value.code == "data_dir_in_use"
    assert "KINGUIN_LOCAL__DATA_DIR" in caught.value.hint
    assert broker.is_alive()


@pytest.mark.kafka
def test_stop_is_for_the_folder_not_for_the_handle(kafka_factory: Factory, tmp_path: Path) -> None:
    started = kafka_factory(tmp_path)
    found = local_broker.find(kafka_factory.settings(tmp_path))
    assert found == started
    assert found.stop() is True
    assert not started.is_alive()
    assert started.stop() is True  # once more does nothing
    assert local_broker.find(kafka_factory.settings(tmp_path)) is None


@pytest.mark.kafka
def test_a_broker_that_does_not_stop_is_killed(kafka_factory: Factory, tmp_path: Path) -> None:
    broker = kafka_factory(tmp_path)
    os.kill(broker.pid, signal.SIGSTOP)
    with pytest.raises(OperatorError, match="does not answer") as caught:
        local_broker.find(kafka_factory.settings(tmp_path), answers_within_s=0.5)
    assert caught.value.code == "broker_silent"
    assert str(broker.log_file) in caught.value.hint
    assert broker.stop(timeout_s=0.5) is False
    assert not _exists(broker.pid)


STARTER = """
import os, signal, sys
from pathlib import Path
from kinguin_streams.cluster import local_broker
from kinguin_streams.cluster.settings import LocalSettings
settings = LocalSettings(data_dir=Path(sys.argv[1]), kafka_port=int(sys.argv[2]), controller_port=int(sys.argv[3]))
print(local_broker.start(settings).pid, file=sys.stderr)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.kafka
def test_a_broker_whose_starter_was_killed_is_found_and_can_be_stopped(kafka_factory: Factory, tmp_path: Path) -> None:
    settings = kafka_factory.settings(tmp_path)
    arguments = [str(tmp_path), str(settings.kafka_port), str(settings.controller_port)]
    starter = subprocess.run([sys.executable, "-c", STARTER, *arguments], capture_output=True, check=False)
    assert starter.returncode == -signal.SIGKILL

    found = local_broker.find(settings)
    assert found is not None
    assert found.pid == int(starter.stderr)
    with pytest.raises(OperatorError, match=f"pid {found.pid}"):
        local_broker.start(settings)
    assert found.stop() is True
    _until(lambda: not _exists(found.pid))
    assert local_broker.find(settings) is None


@pytest.mark.kafka
def test_the_folder_may_move_and_the_ports_may_change(kafka_factory: Factory, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after, with a comma and ümlaut"
    first = kafka_factory(before)
    _make_topic(first)
    _write(first, b"one")
    first.stop()
    before.rename(after)
    second = kafka_factory(after)
    assert second.bootstrap_servers != first.bootstrap_servers
    assert _read(second, 1) == [b"one"]


@pytest.mark.kafka
def test_a_start_that_fails_tells_why_where_to_read_more_and_leaves_no_process(
    kafka_factory: Factory, tmp_path: Path
) -> None:
    settings = kafka_factory.settings(tmp_path)
    with pytest.raises(OperatorError, match="not usable within 0 s"):
        local_broker.start(settings, start_timeout_s=0.0)
    assert local_broker.find(settings) is None

    meta = tmp_path / "kafka" / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    with pytest.raises(OperatorError, match="ended while starting") as caught:
        local_broker.start(settings)
    assert caught.value.code == "broker_failed"
    assert "node" in caught.value.what.split("\n", 1)[1].lower()
    assert str(tmp_path / "kafka" / "logs" / "server.log") in caught.value.hint
    assert local_broker.find(settings) is None


@pytest.mark.parametrize("variable", ["KINGUIN_LOCAL__KAFKA_PORT", "KINGUIN_LOCAL__CONTROLLER_PORT"])
def test_a_taken_port_is_named_with_its_setting(variable: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger, socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = stranger.getsockname()[1], other.getsockname()[1]
        other.close()
        ports = {"kafka_port": taken, "controller_port": free}
        if variable == "KINGUIN_LOCAL__CONTROLLER_PORT":
            ports = {"kafka_port": free, "controller_port": taken}
        with pytest.raises(OperatorError, match=f"Port {taken} .* is taken") as caught:
            local_broker.start(LocalSettings(data_dir=tmp_path, **ports))
    assert caught.value.code == "port_taken"
    assert variable in caught.value.what
    assert f"set {variable} to a free port" in caught.value.hint
    assert local_broker.find(LocalSettings(data_dir=tmp_path)) is None  # a failed start lets go of the folder


def test_one_port_cannot_serve_both(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot serve both"):
        local_broker.start(LocalSettings(data_dir=tmp_path, kafka_port=45678, controller_port=45678))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OperatorError, match=r"file/kafka cannot be written \(Not a directory\)") as caught:
        local_broker.start(LocalSettings(data_dir=tmp_path / "file"))
    assert caught.value.code == "data_dir_not_writable"


@pytest.mark.parametrize("made_by", ["4.2.0", None])
def test_data_of_another_kafka_version_is_not_touched(made_by: str | None, tmp_path: Path) -> None:
    data = tmp_path / "kafka" / "data"
    data.mkdir(parents=True)
    if made_by:
        (data / "kafka-version").write_text(made_by)
    with pytest.raises(
        OperatorError, match=f"version {made_by or 'unknown'}; this is {kafka_jars.KAFKA_VERSION}"
    ) as caught:
        local_broker.start(LocalSettings(data_dir=tmp_path))
    assert caught.value.code == "data_dir_other_version"


def test_where_no_broker_ever_ran_none_is_found(tmp_path: Path) -> None:
    assert local_broker.find(LocalSettings(data_dir=tmp_path / "never")) is None
    assert not (tmp_path / "never").exists()


def test_a_note_without_its_lock_is_of_a_broker_that_is_gone(tmp_path: Path) -> None:
    """Its pid may be another program's by now, here our own: it must be neither found nor stopped."""
    home = tmp_path / "kafka"
    home.mkdir()
    (home / "broker.lock").touch()
    (home / "broker.json").write_text(json.dumps({"pid": os.getpid(), "bootstrap_servers": "x:1", "cluster_id": "c"}))
    assert local_broker.find(LocalSettings(data_dir=tmp_path)) is None
    assert LocalBroker(data_dir=tmp_path, bootstrap_servers="x:1", cluster_id="c", pid=os.getpid()).stop() is True
