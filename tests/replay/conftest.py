"""What the tests of replays share."""

from pathlib import Path

import pytest

from kinguin_streams.consumers.settings import StateSettings
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.replay.replay_topics import Bench


@pytest.fixture
def bench(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> Bench:
    """The session's Kafka, topics of the test's own, and a folder for receipts."""
    return Bench(kafka.bootstrap_servers, topic_prefix, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> StateSettings:
    """An empty database, of each kind."""
    if request.param == "sqlite":
        return state_settings(tmp_path)
    return StateSettings(url=request.getfixturevalue("postgres").new_database())
