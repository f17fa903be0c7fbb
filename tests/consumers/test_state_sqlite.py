"""What SQLite alone can do to a state: files, locks, folders, pragmas."""

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import STATUS_TOPIC, advance, state_settings
from tests.consumers.deliveries import order_status, received


@pytest.fixture
def orders(tmp_path: Path) -> Iterator[StateStore]:
    store = StateStore(state_settings(tmp_path), ORDER_STATE)
    yield store
    store.close()


def test_what_is_committed_is_on_disk(orders: StateStore) -> None:
    with orders.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


def test_row_60_a_writer_waits_for_another_one(orders: StateStore, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(1.0, other.execute, ["COMMIT"]).start()
    began_s = time.monotonic()
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    assert time.monotonic() - began_s >= 0.9
    other.close()


def test_row_60_a_writer_that_waits_too_long_stops_with_a_reason(tmp_path: Path) -> None:
    store = StateStore(state_settings(tmp_path, busy_timeout_s=0.2), ORDER_STATE)
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperatorError) as stopped:
        store.apply([], [advance(STATUS_TOPIC, None, 1)])
    assert stopped.value.code == "state_busy"
    other.close()
    store.apply([], [advance(STATUS_TOPIC, None, 1)])
    store.close()


def test_row_60_a_database_that_became_read_only_stops_with_a_reason(orders: StateStore) -> None:
    with orders.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")  # as chmod would, also for root
    with pytest.raises(OperatorError) as stopped:
        orders.apply([], [advance(STATUS_TOPIC, None, 1)])
    assert stopped.value.code == "state_not_writable"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="file") as refused:
        StateStore(StateSettings(url=f"sqlite:///{tmp_path}/file/state.db"), ORDER_STATE)
    assert refused.value.code == "state_not_writable"


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as refused:
        StateStore(StateSettings(url=f"sqlite:///{tmp_path}"), ORDER_STATE)
    assert refused.value.code == "state_not_writable"


def test_a_file_that_is_no_database_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 1_000)
    with pytest.raises(OperatorError) as refused:
        StateStore(state_settings(tmp_path), ORDER_STATE)
    assert refused.value.code == "state_damaged"


def test_a_full_disk_is_told_and_undone(orders: StateStore, tmp_path: Path) -> None:
    with orders.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    batch = [received(order_status("processing", order_id=f"O{n}"), n) for n in range(5_000)]
    with pytest.raises(OperatorError) as stopped:
        orders.apply(batch, [advance(STATUS_TOPIC, None, 5_000)])
    assert stopped.value.code == "state_disk_full"
    assert list(reader.order_views(state_settings(tmp_path).url)) == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql+asyncpg://state@localhost/state", "another driver than psycopg"),
        ("postgresql+psycopg://state@localhost", "no database"),
        ("mysql://localhost/state", "mysql"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("state.db", "not a database URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_a_reason(url: str, says: str) -> None:
    for use in (lambda: StateStore(StateSettings(url=url), ORDER_STATE), lambda: reader.orders_by_status(url)):
        with pytest.raises(OperatorError, match=says) as refused:
            use()
        assert refused.value.code == "state_url_refused"


def test_keys_of_any_text_are_found_again_among_thousands(orders: StateStore) -> None:
    """The states of many keys come as one JSON array, made by SQLite: quotes, controls and what is not ASCII are escaped there."""
    odd = ['"', "\\", "a\x00b", "\n", "\x1f", "Ł 🎮", "'", "[1,2]", "null", ""]
    names = odd + [f"O{number}" for number in range(3_000)]
    for minute, status in enumerate(("processing", "completed")):
        first = minute * len(names)
        batch = [
            received(order_status(status, minute, order_id=name), first + place) for place, name in enumerate(names)
        ]
        orders.apply(batch, [advance(STATUS_TOPIC, first or None, first + len(names))])
    views = {view.order_id: [fact.status for fact in view.facts] for view in reader.order_views(str(orders.engine.url))}
    assert views == {name: ["processing", "completed"] for name in names}


def test_parameters_of_large_statements_have_neither_name_nor_number(orders: StateStore) -> None:
    """Since 3.12 Python asks SQLite for the name of each one, and for `?7` SQLite looks through those of all before it."""
    seen: dict[str, int] = {}

    @event.listens_for(orders.engine, "before_cursor_execute")
    def _see(_connection: object, _cursor: object, statement: str, parameters: tuple[object, ...], *_: object) -> None:
        seen[statement] = len(parameters)

    batch = [received(order_status("processing", order_id=f"O{number}"), number) for number in range(3_000)]
    orders.apply(batch, [advance(STATUS_TOPIC, None, len(batch))])
    large = {statement: count for statement, count in seen.items() if count > 1_000}
    assert {statement.split()[0] for statement in large} == {"SELECT", "INSERT"}
    assert max(large.values()) < 32_766
    assert [statement[:60] for statement in large if re.search(r"\?[0-9]", statement)] == []
