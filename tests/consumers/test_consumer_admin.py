"""The admin port of a consumer: what it says while all is well, while it waits, when it is stuck, and after it has stopped."""

import signal
import textwrap
import time
from pathlib import Path

import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from tests.conftest import KafkaCluster
from tests.consumers.consuming_process import consuming
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, wait_until
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.kafka

APP = textwrap.dedent("""
    import time
    from kinguin_streams.consumers.app import App, Context
    from kinguin_streams.schemas.events import OrderStatus

    app = App("notes")

    @app.on(OrderStatus)
    def note(event: OrderStatus, context: Context) -> None:
        if event.status == "refunded":
            raise RuntimeError("not now")
        if event.status == "canceled":
            time.sleep(60)
""")


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_consumer_that_has_caught_up_is_ready_and_says_what_it_has_done(streams: Streams, tmp_path: Path) -> None:
    facts = [order_status("processing", order_id=f"O{n}") for n in range(20)]
    streams.write(*facts, *facts[:5])
    streams.write_bytes("order.status", [b"no Avro"])
    with consuming(streams, tmp_path) as consumer:
        consumer.wait_until_ready()
        assert consumer.ask("/livez") == (200, "ok\n")
        consumer.wait_for_metric("applied_total", 25)
        checks = consumer.ask("/readyz?verbose")[1].splitlines()
        assert [line.partition(":")[0] for line in checks] == [
            "[+] running", "[+] member", "[+] kafka", "[+] database", "[+] breaker", "ready",
        ]  # fmt: skip
        lags = {f"lag_seconds {topic} {n}" for topic in ("order.status", "order.complete") for n in (0, 1)}
        # The last look may be older than what has taken effect since.
        wait_until(lambda: {consumer.metrics().get(lag) for lag in lags} == {0}, "a look at the topics")
        consumer.wait_for_metric("outbox_published_total", 20)
        found = consumer.metrics()
    assert found["stale_total"] == 5
    assert (found["consumed_total order.status"], found["consumed_total order.complete"]) == (26, 0)
    assert found["dlq_total unknown_frame"] == 1
    assert found["rebalances_total assigned"] == 1
    assert found["assigned_partitions"] == 4
    assert found["batch_records_sum"] == 26
    assert found["process_duration_seconds_count"] >= 1
    assert found["next_offset order.status 0"] + found["next_offset order.status 1"] == 26
    assert (found["generation"], found["breaker_open"], found["outbox_elected"]) == (1, 0, 1)
    assert found["outbox_age_seconds"] < 60
    assert time.time() - 60 < found["last_commit_timestamp_seconds"] <= time.time()
    assert {found[f"paused_partitions {reason}"] for reason in ("database", "kafka", "schema", "retry", "handler")} == {
        0
    }
    assert not [name for name in found if name.startswith("stopped")]


def test_two_consumers_with_one_port_do_not_both_start(streams: Streams, tmp_path: Path) -> None:
    with consuming(streams, tmp_path) as first:
        first.wait_until_ready()
        with consuming(streams, tmp_path, "product-changes", CONSUMER__ADMIN_PORT=first.port) as second:
            assert second.process.wait(30) == 1
            said = second.log.read_text()
    assert f"Cannot listen on 127.0.0.1:{first.port}" in said
    assert "KINGUIN_CONSUMER__ADMIN_PORT" in said


def test_a_member_too_many_is_ready(streams: Streams, tmp_path: Path) -> None:
    """It has no partition, and would have some as soon as another one goes."""
    (tmp_path / "app.py").write_text(APP)
    with (
        consuming(streams, tmp_path, "app.py:app") as one,
        consuming(streams, tmp_path, "app.py:app") as two,
        consuming(streams, tmp_path, "app.py:app") as three,
    ):
        members = (one, two, three)
        wait_until(lambda: sum(each.metrics().get("assigned_partitions", 9) for each in members) == 2, "a share each")
        for each in members:
            each.wait_until_ready()
        assert sorted(each.metrics()["assigned_partitions"] for each in members) == [0, 1, 1]
        assert "[+] database" not in one.ask("/readyz?verbose")[1]  # handlers have none


def test_who_waits_for_its_database_is_alive_and_not_ready(
    streams: Streams, tmp_path: Path, own_postgres: PostgresServer
) -> None:
    url = own_postgres.new_database()
    with consuming(streams, tmp_path, STATE__URL=url, CONSUMER__STATE_RETRY_MAX_S=0.5) as consumer:
        consumer.wait_until_ready()
        own_postgres.stop("immediate")
        streams.write(
            *(order_status("processing", order_id=f"O{n}", received_at_ms=now_ms() - 60_000) for n in range(9))
        )
        consumer.wait_for_metric("paused_partitions database", 4)
        assert consumer.ask("/readyz") == (
            503,
            "[-] database: away: every partition waits, and no offset moves\nnot ready\n",
        )
        assert consumer.ask("/livez")[0] == 200
        wait_until(lambda: consumer.metrics().get("lag_seconds order.status 0", 0) > 59, "a lag in seconds")
        found = consumer.metrics()
        assert found["lag_records order.status 0"] + found["lag_records order.status 1"] == 9
        own_postgres.start()
        consumer.wait_until_ready()
        consumer.wait_for_metric("applied_total", 9)
    assert reader.orders_by_status(url) == {"processing": 9}


def test_a_handler_that_is_tried_again_is_not_stuck_and_one_that_does_not_return_is(
    streams: Streams, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    settings = {"CONSUMER__STUCK_AFTER_S": 3, "CONSUMER__HANDLER_RETRY_S": 30, "CONSUMER__HANDLER_RETRY_MAX_S": 30}
    with consuming(streams, tmp_path, "app.py:app", **settings) as consumer:
        consumer.wait_until_ready()
        streams.write(order_status("refunded"))
        consumer.wait_for_metric("retries_total", 1)
        consumer.wait_for_metric("paused_partitions retry", 1)
        assert "wait for the next attempt" in consumer.ask("/readyz")[1]
        time.sleep(4)
        assert consumer.ask("/livez")[0] == 200
        streams.write(*(order_status("canceled", order_id=f"O{n}") for n in range(9)))
        wait_until(lambda: consumer.ask("/livez")[0] == 503, "a probe that fails")
        assert "the loop has not turned for" in consumer.ask("/livez")[1]
        assert consumer.ask("/metrics")[0] == 200


def test_a_breaker_that_is_open_is_not_ready_and_then_says_why_it_stopped(streams: Streams, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    settings = {"CONSUMER__HANDLER_BREAKER_LETTERS": 1, "CONSUMER__HANDLER_ATTEMPTS": 2}
    with consuming(streams, tmp_path, "app.py:app", CONSUMER__HANDLER_RETRY_S=2, **settings) as consumer:
        consumer.wait_until_ready()
        streams.write(*(order_status("refunded", n) for n in range(2)))
        consumer.wait_for_metric("breaker_open", 1)
        assert "[-] breaker: the handler gives up" in consumer.ask("/readyz")[1]
        consumer.wait_for_metric("stopped handler_keeps_failing", 1)


def test_row_58_retention_that_has_passed_the_offset_stops_and_can_be_seen(streams: Streams, tmp_path: Path) -> None:
    streams.write(*(order_status("processing", order_id=f"O{n}") for n in range(20)))
    with consuming(streams, tmp_path) as consumer:
        consumer.wait_for_metric("applied_total", 20)
        consumer.process.send_signal(signal.SIGTERM)
        assert consumer.process.wait(30) == 0
    streams.write(*(order_status("completed", 1, order_id=f"O{n}") for n in range(20)))
    for partition in (0, 1):
        streams.delete_records("order.status", partition, streams.ends("order.status")[streams.name("order.status"), partition])  # fmt: skip
    with consuming(streams, tmp_path) as consumer:
        consumer.wait_for_metric("stopped offset_out_of_range", 1)
        assert consumer.process.poll() is None  # it waits to be scraped, and has left its group
        assert consumer.ask("/livez")[0] == 200
        assert "[-] running: stopped: offset_out_of_range" in consumer.ask("/readyz")[1]
        assert "consumer_cannot_go_on" in consumer.log.read_text()
        consumer.process.send_signal(signal.SIGTERM)
        assert consumer.process.wait(10) == 1
    assert "Retention has deleted records" in consumer.log.read_text()
    assert reader.orders_by_status(state_settings(tmp_path).url) == {"processing": 20}


def test_what_a_restart_mends_ends_at_once(streams: Streams, tmp_path: Path) -> None:
    streams.write(order_status("processing"))
    settings = state_settings(tmp_path)
    with consuming(streams, tmp_path) as consumer:
        consumer.wait_for_metric("applied_total", 1)
        store = StateStore(StateSettings(url=settings.url), ORDER_STATE)
        with store.engine.begin() as connection:  # another process, to which Kafka has given the partition
            connection.exec_driver_sql("UPDATE projection_offset SET next_offset = next_offset + 1")
        store.close()
        streams.write(order_status("completed", 1))
        assert consumer.process.wait(15) == 1
    assert "Another process has taken over" in consumer.log.read_text()
    assert reader.orders_by_status(settings.url) == {"processing": 1}
