"""Groups of a cluster that does not answer; of one that does, see tests/cli/test_consumers_lag.py."""

from collections.abc import Callable

import pytest

from kinguin_streams.cluster.connection import admin_config, consumer_config
from kinguin_streams.cluster.groups import committed, describe
from kinguin_streams.cluster.settings import KafkaSettings
from kinguin_streams.telemetry.operator_error import OperatorError

AWAY = KafkaSettings(bootstrap_servers="127.0.0.1:1")


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda: describe(admin_config(AWAY), "any"), id="who is in a group"),
        pytest.param(
            lambda: committed(consumer_config(AWAY, group_id="any", client_id="test"), [("t", 0)]),
            id="what it has committed",
        ),
    ],
)
def test_a_cluster_that_is_away_is_a_sentence(monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]) -> None:
    monkeypatch.setattr("kinguin_streams.cluster.groups.REQUEST_TIMEOUT_S", 1.0)
    with pytest.raises(OperatorError) as away:
        ask()
    assert away.value.code == "kafka_unreachable"
