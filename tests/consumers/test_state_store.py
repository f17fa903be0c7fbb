"""State and offsets in one transaction: the same suite on a real SQLite file and on a real PostgreSQL."""

import multiprocessing
from decimal import Decimal
from itertools import permutations
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select

from kinguin_streams.consumers import database, product_changes, reader
from kinguin_streams.consumers.database import judge
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.plausible_time import TOLERANCE_MS
from kinguin_streams.consumers.projection import FoldProjection
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import LostPartition, StateStore
from kinguin_streams.consumers.tables import REVISIONS, metadata, projection_state, schema_version
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import StoreName
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import (
    CLUSTER,
    PRODUCT_TOPIC,
    STATUS_TOPIC,
    Crash,
    advance,
    crash_before_commit,
    next_offsets,
)
from tests.consumers.deliveries import START_MS, order_status, product_update, received


def revision(orders: StateStore) -> int:
    """Return how often the one order's state has been written."""
    with orders.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT revision FROM projection_state").scalar_one())


def statuses(settings: StateSettings) -> dict[str, str | None]:
    return {view.order_id: view.status for view in reader.order_views(settings.url)}


# Exactly once


def test_state_and_offsets_take_effect_together(orders: StateStore, settings: StateSettings) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    orders.apply([received(order_status("completed", 1), 1)], [advance(STATUS_TOPIC, 1, 2)])
    assert next_offsets(orders, STATUS_TOPIC) == {(STATUS_TOPIC, 0): 2}
    assert reader.stored_offsets(settings.url, "order-state") == {(STATUS_TOPIC, 0): 2}
    assert statuses(settings) == {"PHS84FJAG5U": "completed"}


def test_a_crash_before_the_commit_leaves_neither(orders: StateStore, settings: StateSettings) -> None:
    with crash_before_commit(orders), pytest.raises(Crash):
        orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    assert next_offsets(orders, STATUS_TOPIC) == {}
    assert statuses(settings) == {}


@pytest.mark.parametrize(
    ("expected", "next_offset"),
    [
        pytest.param(None, 1, id="it believes that nothing has ever taken effect"),
        pytest.param(1, 2, id="it read before the other wrote"),
        pytest.param(7, 8, id="it is ahead"),
    ],
)
def test_a_writer_that_has_lost_its_partition_is_undone(
    orders: StateStore, settings: StateSettings, expected: int | None, next_offset: int
) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 5)])
    zombie = StateStore(settings, ORDER_STATE)
    # Its other partition is in order: the whole batch is undone nevertheless.
    moves = [advance(STATUS_TOPIC, None, 1, partition=1), advance(STATUS_TOPIC, expected, next_offset)]
    with pytest.raises(LostPartition) as lost:
        zombie.apply([received(order_status("refunded", 9), 1)], moves)
    zombie.close()
    assert lost.value.code == "lost_partition"
    assert f"{STATUS_TOPIC}/0" in lost.value.what
    assert next_offsets(orders, STATUS_TOPIC) == {(STATUS_TOPIC, 0): 5}
    assert statuses(settings) == {"PHS84FJAG5U": "processing"}


def test_offsets_move_where_no_record_takes_effect(orders: StateStore) -> None:
    orders.apply([], [advance(STATUS_TOPIC, None, 3)])
    assert next_offsets(orders, STATUS_TOPIC) == {(STATUS_TOPIC, 0): 3}


def test_many_keys_of_several_stores_are_loaded_and_kept_apart(orders: StateStore, settings: StateSettings) -> None:
    """More keys than one SELECT takes, and the same ids in two stores."""
    keys = [(StoreName(store), f"O{number:04}") for store in ("shop-1", "shop-2") for number in range(1_200)]
    for minute, status in enumerate(["processing", "completed"]):
        batch = [
            received(order_status(status, minute, order_id=order_id, store=store), offset)
            for offset, (store, order_id) in enumerate(keys)
        ]
        orders.apply(batch, [advance(STATUS_TOPIC, minute or None, minute + 1)])
    views = list(reader.order_views(settings.url))
    assert [(view.store, view.order_id) for view in views] == keys
    assert {len(view.facts) for view in views} == {2}


def test_a_state_that_did_not_change_is_not_written(orders: StateStore) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    orders.apply([received(order_status("processing"), 1)], [advance(STATUS_TOPIC, 1, 2)])
    orders.apply([received(order_status("completed", 1), 2)], [advance(STATUS_TOPIC, 2, 3)])
    before = revision(orders)
    orders.apply([received(order_status("completed", 1), 3)], [advance(STATUS_TOPIC, 3, 4)])
    assert revision(orders) == before


def test_two_projections_share_a_database(orders: StateStore, products: StateStore, settings: StateSettings) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    products.apply([received(product_update(), 0)], [advance(PRODUCT_TOPIC, None, 9)])
    assert reader.stored_offsets(settings.url, "order-state") == {(STATUS_TOPIC, 0): 1}
    assert reader.stored_offsets(settings.url, "product-changes") == {(PRODUCT_TOPIC, 0): 9}


# Rows


def rows(store: StateStore) -> list[tuple[Any, ...]]:
    with store.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql("SELECT * FROM product_change")]


def test_row_52_rows_are_equal_for_any_arrival_order_and_duplicates(
    products: StateStore, settings: StateSettings
) -> None:
    deliveries = [
        received(product_update(0, qty=1, received_at_ms=START_MS - 2 * TOLERANCE_MS), 0),  # set aside by this one only
        received(product_update(0, qty=1), 1),
        received(product_update(0, qty=1), 2, partition=1),
        received(product_update(1, qty=2), 3),
    ]
    results = set()
    kept: tuple[product_changes.Change, ...] = ()
    for number, order in enumerate(permutations([*deliveries, deliveries[1]])):
        split = number % 5  # some of them in one batch, some in two
        next_offset = 2 * number or None
        products.apply(order[:split], [advance(PRODUCT_TOPIC, next_offset, 2 * number + 1)])
        products.apply(order[split:], [advance(PRODUCT_TOPIC, 2 * number + 1, 2 * number + 2)])
        results.add(repr(sorted(rows(products))))
        kept = kept or reader.changes_of(settings.url, "default", 1949)
        with products.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM product_change")
    assert len(results) == 1
    assert sorted((change.qty, change.set_aside, change.partition, change.offset) for change in kept) == [
        (1, False, 0, 0),
        (2, False, 0, 3),
    ]


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_an_event_written_with_different_schema_versions_is_one_whole_row_for_any_arrival_order(
    products: StateStore, settings: StateSettings, order: tuple[int, int, int]
) -> None:
    """While writers are upgraded, a retry of the same bytes may lack fields that the first delivery has."""
    full = product_update(1, qty=5, text_qty=4, price="9.99", offers=("a",))
    for offset, version in enumerate(order):
        event: Any = Decoder().decode(Encoder({"product.update": version}).encode(full))
        products.apply([received(event, offset)], [advance(PRODUCT_TOPIC, offset or None, offset + 1)])
    (change,) = reader.changes_of(settings.url, "default", 1949)
    assert (change.qty, change.text_qty, change.price, change.cheapest_offer_ids) == (5, 4, Decimal("9.99"), ("a",))
    assert change.offset == 0


# Whose state it is


def test_state_of_another_cluster_is_refused(orders: StateStore) -> None:
    orders.apply([], [advance(STATUS_TOPIC, None, 3)])
    with pytest.raises(OperatorError, match="other-cluster") as refused:
        orders.offsets("other-cluster", {STATUS_TOPIC: f"id-of-{STATUS_TOPIC}"})
    assert refused.value.code == "cluster_changed"
    assert "KINGUIN_STATE__URL" in refused.value.hint


def test_state_of_a_topic_that_was_made_anew_is_refused(orders: StateStore) -> None:
    orders.apply([], [advance(STATUS_TOPIC, None, 3)])
    with pytest.raises(OperatorError, match=STATUS_TOPIC) as refused:
        orders.offsets(CLUSTER, {STATUS_TOPIC: "another-id"})
    assert refused.value.code == "topic_replaced"


def test_state_of_another_version_of_the_fold_is_refused(orders: StateStore, settings: StateSettings) -> None:
    newer = FoldProjection(
        name=ORDER_STATE.name, version=2, events=ORDER_STATE.events, state_type=ORDER_STATE.state_type,
        key=ORDER_STATE.key, fold=ORDER_STATE.fold,
    )  # fmt: skip
    with pytest.raises(OperatorError) as refused:
        StateStore(settings, newer)
    assert refused.value.code == "projection_version"


# The database itself


def test_the_migrations_make_the_tables_that_the_code_uses(orders: StateStore) -> None:
    with orders.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema_version.name})
        assert compare_metadata(context, metadata) == []


def test_the_code_knows_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(revisions)) == REVISIONS


def test_states_of_before_the_new_layout_are_all_there_after_it(settings: StateSettings) -> None:
    rows = [("order-state", 1, "s", f"O{n}", "x" * n, n) for n in range(1, 2_000)]
    engine = database.open_for_writing(settings)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(database.MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            insert(projection_state), [dict(zip(projection_state.c.keys(), row, strict=True)) for row in rows]
        )
    engine.dispose()
    assert database.migrate(settings) == ("0002", REVISIONS[-1])
    store = StateStore(settings, ORDER_STATE)
    with store.engine.connect() as connection:
        kept = connection.execute(select(projection_state).order_by(projection_state.c.revision))
        assert [tuple(row) for row in kept] == rows
    store.close()


@pytest.mark.parametrize(
    ("found", "verdict"), [(None, "new"), ("0002", "current"), ("0001", "older"), ("0003", "newer")]
)
def test_a_schema_is_judged_by_the_versions_there_have_been(found: str | None, verdict: str) -> None:
    assert judge(found, ("0001", "0002")) == verdict


def test_a_newer_schema_is_refused_by_everyone(orders: StateStore, settings: StateSettings) -> None:
    with orders.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE kinguin_schema_version SET version_num = '9999'")
    for use in (
        lambda: StateStore(settings, ORDER_STATE),
        lambda: database.migrate(settings),
        lambda: reader.orders_by_status(settings.url),
    ):
        with pytest.raises(OperatorError, match="Upgrade") as refused:
            use()
        assert refused.value.code == "state_schema_new"


def _make(url: str) -> None:
    StateStore(StateSettings(url=url), ORDER_STATE).close()


def test_consumers_that_start_together_make_one_database(settings: StateSettings) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = [spawn.Process(target=_make, args=(settings.url,)) for _ in range(3)]
    for process in together:
        process.start()
    for process in together:
        process.join(60)
    assert [process.exitcode for process in together] == [0, 0, 0]
    assert database.migrate(settings) == (REVISIONS[-1], REVISIONS[-1])


def test_a_reader_sees_one_instant_and_holds_nobody_up(orders: StateStore, settings: StateSettings) -> None:
    orders.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    reading = reader.order_views(settings.url)
    first = next(reading)
    orders.apply([received(order_status("completed", 1, order_id="OTHER"), 1)], [advance(STATUS_TOPIC, 1, 2)])
    assert [first.order_id, *(view.order_id for view in reading)] == ["PHS84FJAG5U"]
    assert len(list(reader.order_views(settings.url))) == 2
