"""The loop while its database is away: it keeps its partitions and waits, and no record is skipped or counted twice."""

from pathlib import Path

import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import KafkaCluster
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, running_loop, wait_until
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.kafka

QUICK = {"state_retry_s": 0.05, "state_retry_max_s": 0.2}


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


@pytest.fixture
def away(own_postgres: PostgresServer) -> tuple[PostgresServer, StateSettings]:
    return own_postgres, StateSettings(url=own_postgres.new_database(), busy_timeout_s=5.0)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_row_59_a_database_that_is_away_is_waited_for(
    streams: Streams, tmp_path: Path, away: tuple[PostgresServer, StateSettings], mode: str
) -> None:
    server, state = away
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(50)))
    with running_loop(streams, tmp_path, state=state, **QUICK) as running:
        running.catch_up(streams.ends("order.status"))
        server.stop(mode)
        streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(40)))
        wait_until(lambda: running.loop.waits_for == "database", "the loop to notice")
        streams.write(*(order_status("refunded", 2, order_id=f"O{n}") for n in range(20)))
        server.start()
        running.catch_up(streams.ends("order.status"))
        assert running.loop.waits_for is None
        assert len(running.loop.assigned) == 4
    assert reader.orders_by_status(state.url) == {"processing": 10, "completed": 20, "refunded": 20}


def test_partitions_that_come_while_the_database_is_away_are_read_from_their_offsets(
    streams: Streams, tmp_path: Path, away: tuple[PostgresServer, StateSettings]
) -> None:
    server, state = away
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(50)))
    with running_loop(streams, tmp_path, state=state, **QUICK) as before:
        before.catch_up(streams.ends("order.status"))
    streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(50)))
    store = StateStore(state, ORDER_STATE)
    server.stop()
    with running_loop(streams, tmp_path, state=state, store=store, **QUICK) as running:
        wait_until(lambda: running.loop.waits_for == "database", "the loop to notice")
        server.start()
        running.catch_up(streams.ends("order.status"))
        assert running.loop.applied == 50
    assert reader.orders_by_status(state.url) == {"completed": 50}


@pytest.mark.parametrize("was_committed", [True, False])
def test_whether_the_last_transaction_was_committed_is_asked_when_the_database_is_back(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_committed: bool
) -> None:
    """The line may break after COMMIT was sent and before its answer came."""
    with running_loop(streams, tmp_path, **QUICK) as running:
        apply = running.store.apply_by_key

        def break_the_line(*batch: object) -> None:
            monkeypatch.setattr(running.store, "apply_by_key", apply)
            if was_committed:
                apply(*batch)  # type: ignore[arg-type]
            raise OperatorError("state_away", "The line is broken.", "")

        monkeypatch.setattr(running.store, "apply_by_key", break_the_line)
        streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(50)))
        running.catch_up(streams.ends("order.status"))
    assert reader.orders_by_status(running.state.url) == {"processing": 50}
