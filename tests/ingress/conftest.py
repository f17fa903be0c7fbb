"""One ingress a server for all tests of this folder that only talk to it; who kills one, or sets it up otherwise, runs his own.

Whatever a test finds out over HTTP with the fixture `ingress`, it finds out twice: on waitress and on granian.
"""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.conftest import KafkaCluster
from tests.ingress.running_ingress import SERVERS, RunningIngress, running_ingress


@pytest.fixture(scope="session", params=SERVERS)
def shared_ingress(
    request: pytest.FixtureRequest, kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningIngress]:
    """The shared process; at the end it must exit 0."""
    prefix = f"t{uuid4().hex[:12]}"
    folder = tmp_path_factory.mktemp("ingress")
    with running_ingress(kafka.bootstrap_servers, prefix, folder, server=request.param) as running:
        yield running


@pytest.fixture
def ingress(shared_ingress: RunningIngress) -> RunningIngress:
    """The shared ingress, its log read to the end: what a test reads there is its own."""
    shared_ingress.log.skip()
    return shared_ingress
