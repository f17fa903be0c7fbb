"""The databases that the suite of this folder runs on, and the protocols of its groups in memory."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.consumers.testing import processes
from tests.consumers.databases import state_settings


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> StateSettings:
    """Settings of an empty database, of each kind."""
    if request.param == "sqlite":
        return state_settings(tmp_path)
    return StateSettings(url=request.getfixturevalue("postgres").new_database(), busy_timeout_s=5.0)


@pytest.fixture
def orders(settings: StateSettings) -> Iterator[StateStore]:
    store = StateStore(settings, ORDER_STATE)
    yield store
    store.close()


@pytest.fixture
def products(settings: StateSettings) -> Iterator[StateStore]:
    store = StateStore(settings, PRODUCT_CHANGES)
    yield store
    store.close()


@pytest.fixture
def group_protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol of a driver's groups. The Kafka in memory moves partitions as Kafka does with either."""
    with_protocol = partial(KafkaSettings, config={"group.protocol": request.param})
    monkeypatch.setattr(processes, "KafkaSettings", with_protocol)
