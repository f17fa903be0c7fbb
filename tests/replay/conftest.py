"""What the tests of replays share."""

from pathlib import Path

import pytest

from tests.conftest import KafkaCluster
from tests.replay.replay_topics import Bench


@pytest.fixture
def bench(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> Bench:
    """The session's Kafka, topics of the test's own, and a folder for receipts."""
    return Bench(kafka.bootstrap_servers, topic_prefix, tmp_path)
