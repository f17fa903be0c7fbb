"""Several brokers: the one that leads dies, or too few copies are in step."""

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinguin_streams.cluster import local_config
from kinguin_streams.cluster.local_broker import LocalBroker
from kinguin_streams.schemas.topics import topics
from tests.conftest import StartBroker
from tests.ingress.faults import (
    LATEST_S,
    Witness,
    admin,
    assert_invariants,
    bodies,
    configure,
    end,
    wait_until_drained,
)
from tests.ingress.running_ingress import apply_topics, order_status, running_ingress, start, wait_until

pytestmark = pytest.mark.kafka


@dataclass
class Cluster:
    """Brokers by their node id. Node 1 is the controller too: it stays alive."""

    brokers: dict[int, LocalBroker]
    restart: Callable[[int], LocalBroker]

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(broker.bootstrap_servers for broker in self.brokers.values())

    def kill(self, node: int) -> None:
        broker = self.brokers[node]
        os.kill(broker.pid, signal.SIGKILL)
        wait_until(lambda: not broker.is_alive(), 10, "a broker that is dead")


StartCluster = Callable[[int], Cluster]


@pytest.fixture
def kafka_cluster(
    kafka_factory: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StartCluster]:
    """start(count) -> Cluster; all are ended with the test."""
    started: list[Cluster] = []

    def start_cluster(count: int) -> Cluster:
        folders = {node: tmp_path / f"kafka-{node}" for node in range(1, count + 1)}
        settings = {node: kafka_factory.settings(folder) for node, folder in folders.items()}
        node_at = {settings[node].kafka_port: node for node in folders}
        plain = local_config.server_properties

        def of_a_cluster(*, kafka_port: int, controller_port: int, data_folder: str = local_config.DATA_FOLDER) -> str:
            node = node_at[kafka_port]
            changed = {
                "node.id": str(node),
                "controller.quorum.voters": f"1@127.0.0.1:{settings[1].controller_port}",
            }
            if node > 1:
                changed |= {"process.roles": "broker", "listeners": f"PLAINTEXT://127.0.0.1:{kafka_port}"}
            text = plain(kafka_port=kafka_port, controller_port=controller_port, data_folder=data_folder)
            entries = dict(line.split("=", 1) for line in text.splitlines())
            return "".join(f"{key}={value}\n" for key, value in (entries | changed).items())

        monkeypatch.setattr(local_config, "server_properties", of_a_cluster)
        monkeypatch.setattr(secrets, "token_urlsafe", lambda _size: "kinguin-streams-tests-")  # one cluster id for all
        started.append(
            Cluster(
                {node: kafka_factory(folder) for node, folder in folders.items()},
                lambda node: kafka_factory(folders[node]),
            )
        )
        return started[-1]

    yield start_cluster
    for cluster in started:
        for node in range(len(cluster.brokers), 1, -1):  # they would take their leave of a controller that is gone
            if cluster.brokers[node].is_alive():
                cluster.kill(node)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_row_2_the_leader_is_killed_again_and_again_and_no_acked_event_is_lost(
    kafka_cluster: StartCluster, topic_prefix: str, tmp_path: Path
) -> None:
    posts, kills = 20_000, 5
    cluster = kafka_cluster(3)
    bootstrap, declared = cluster.bootstrap_servers, topics(topic_prefix, partitions=2)
    apply_topics(bootstrap, declared)
    client = admin(bootstrap)
    watched = declared.name("product.update")

    def partitions() -> dict[int, tuple[int, int]]:
        """Return each partition's leader, and how many copies are in step."""
        found = client.list_topics(watched, timeout=10).topics[watched].partitions
        return {number: (partition.leader, len(partition.isrs)) for number, partition in found.items()}

    def is_leader(node: int) -> bool:
        return node in {leader for leader, _ in partitions().values()}

    running = start(bootstrap, topic_prefix, tmp_path)
    witness = Witness(tmp_path / "witness.jsonl")
    try:
        with witness.sender(running.port, posts, broken=0.02) as sender:
            killed_leaders = 0
            for number in range(kills):
                reached = posts * (number + 1) // (kills + 2)
                wait_until(lambda at=reached: sender.report().acked >= at, 200, "posts before a kill")  # type: ignore[misc]
                wait_until(lambda: all(in_step == 3 for _, in_step in partitions().values()), 60, "copies in step")
                leaders = {leader for leader, _ in partitions().values()}
                victim = max(leaders)
                killed_leaders += victim != 1
                victim = victim if victim != 1 else 2
                cluster.kill(victim)
                wait_until(lambda: not is_leader(victim), 60, "another leader")  # noqa: B023
                cluster.brokers[victim] = cluster.restart(victim)
        assert killed_leaders > 0
        assert sender.report().attempts == posts
        wait_until_drained(running)
        outcome = assert_invariants(witness, running)
        assert outcome.acked == outcome.landed
        assert running.terminate() == 0
    finally:
        end(running)


@pytest.mark.faults
def test_row_17_too_few_copies_in_step_are_no_ack_and_with_a_spool_no_loss(
    kafka_cluster: StartCluster, topic_prefix: str, tmp_path: Path
) -> None:
    """Two brokers: Kafka takes a minimum above the number of copies for that number, so one broker cannot show it."""
    cluster = kafka_cluster(2)
    bootstrap, declared = cluster.bootstrap_servers, topics(topic_prefix, partitions=2)
    topic = declared.name("order.status")
    client = admin(cluster.brokers[1].bootstrap_servers)

    def one_copy() -> bool:
        found = client.list_topics(topic, timeout=10).topics[topic].partitions.values()
        return all(partition.isrs == [1] for partition in found)

    with (
        running_ingress(bootstrap, topic_prefix, tmp_path) as spools,
        running_ingress(bootstrap, topic_prefix, tmp_path, spool__enabled=False) as does_not,
    ):
        configure(bootstrap, topic, "min.insync.replicas", "2")
        witness = Witness(tmp_path / "witness.jsonl")
        cluster.kill(2)
        wait_until(one_copy, 30, "copies that are out of step")
        answers = witness.post(does_not, bodies(100), clients=20)
        assert {answer.status for answer in answers} == {503}
        answers = witness.post(spools, bodies(100), clients=20)
        assert {answer.status for answer in answers} == {204}
        assert witness.slowest_s <= LATEST_S
        configure(cluster.brokers[1].bootstrap_servers, topic, "min.insync.replicas", "1")
        wait_until_drained(spools)
        assert assert_invariants(witness, spools, room=False).acked == 100
        wait_until(lambda: does_not.post(order_status("again")).status == 204, 30, "acks")
