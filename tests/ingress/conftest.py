"""One ingress for all tests of this folder that only talk to it; whoever kills one, or sets it up otherwise, runs his own."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.conftest import KafkaCluster
from tests.ingress.running_ingress import RunningIngress, running_ingress


@pytest.fixture(scope="session")
def shared_ingress(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningIngress]:
    """The shared process; at the end of the session it must exit 0."""
    prefix = f"t{uuid4().hex[:12]}"
    with running_ingress(kafka.bootstrap_servers, prefix, tmp_path_factory.mktemp("ingress")) as running:
        yield running


@pytest.fixture
def ingress(shared_ingress: RunningIngress) -> RunningIngress:
    """The shared ingress, its log read to the end: what a test reads there is its own."""
    shared_ingress.log.skip()
    return shared_ingress
