"""The reader of a projection of one's own: its states, typed, of the live generation, and no others."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.forgetting import forget_state
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.projection import FoldProjection, Received, StateKey
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import STATUS_TOPIC, advance, state_settings
from tests.consumers.deliveries import order_status, received


class Latest(msgspec.Struct, frozen=True):
    status: str


def fold(_state: Latest | None, received: Received[Any]) -> Latest:
    return Latest(received.event.status)


LATEST = FoldProjection(
    name="latest",
    version=1,
    events=("order.status",),
    state_type=Latest,
    key=lambda event: StateKey(event.store, event.order_id),
    fold=fold,
)


@pytest.fixture
def database(tmp_path: Path) -> StateSettings:
    """One with two orders, each known to two projections."""
    settings = state_settings(tmp_path)
    for projection in (LATEST, ORDER_STATE):
        store = StateStore(settings, projection)
        arrived = [received(order_status(f"s{name}", order_id=name), offset) for offset, name in enumerate("BA")]
        store.apply(arrived, [advance(STATUS_TOPIC, None, 2)])
        store.close()
    return settings


def test_states_come_by_key_in_their_own_type(database: StateSettings) -> None:
    a, b = StateKey("default", "A"), StateKey("default", "B")
    assert list(reader.states(database.url, LATEST)) == [(a, Latest("sA")), (b, Latest("sB"))]
    assert reader.state(database.url, LATEST, b) == Latest("sB")
    assert reader.state(database.url, LATEST, StateKey("default", "C")) is None


def test_a_forgotten_state_is_none(database: StateSettings) -> None:
    a = StateKey("default", "A")
    assert forget_state(database, LATEST, a)
    assert reader.state(database.url, LATEST, a) is None
    assert [key.id for key, _ in reader.states(database.url, LATEST)] == ["B"]


def test_a_database_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as refused:
        list(reader.states(state_settings(tmp_path / "nowhere").url, LATEST))
    assert refused.value.code == "state_missing"
