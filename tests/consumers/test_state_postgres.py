"""What PostgreSQL alone can do to a state: many writers, a server that goes away, texts it does not take."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sqlalchemy import Connection, event

from kinguin_streams.consumers import outbox, reader
from kinguin_streams.consumers.derived_states import states_of
from kinguin_streams.consumers.forgetting import forget_state
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.outbox import Queued
from kinguin_streams.consumers.postgres import text_array
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import StateKey
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.state_rows import state_rows
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.conftest import free_port
from tests.consumers.databases import PRODUCT_TOPIC, STATUS_TOPIC, advance
from tests.consumers.deliveries import order_status, product_update, received
from tests.postgres_server import PostgresServer


@pytest.fixture
def settings(postgres: PostgresServer) -> StateSettings:
    return StateSettings(url=postgres.new_database(), busy_timeout_s=5.0)


@pytest.fixture
def orders(settings: StateSettings) -> Iterator[StateStore]:
    store = StateStore(settings, ORDER_STATE)
    yield store
    store.close()


def test_writers_of_different_partitions_change_the_same_orders_and_none_overwrites_another(
    settings: StateSettings,
) -> None:
    """Without a lock two would read the same state, and the later one would write one that does not know of the other."""
    StateStore(settings, ORDER_STATE).close()
    writers, batches, keys = 4, 15, 30

    def write(partition: int) -> None:
        chance = Random(partition)
        store = StateStore(settings, ORDER_STATE)
        for number in range(batches):
            batch = [
                received(
                    order_status("processing", partition * 1_000 + number, order_id=f"O{key}"),
                    number * keys + key,
                    partition=partition,
                )
                for key in range(keys)
            ]
            chance.shuffle(batch)
            before = number * keys or None
            store.apply(batch, [advance(STATUS_TOPIC, before, (number + 1) * keys, partition=partition)])
        store.close()

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    views = list(reader.order_views(settings.url))
    assert len(views) == keys
    assert {len(view.facts) for view in views} == {writers * batches}


@pytest.mark.parametrize("known_before", [True, False])
def test_a_writer_that_is_overtaken_between_reading_and_writing_knows_of_the_other_in_the_end(
    orders: StateStore, settings: StateSettings, known_before: bool
) -> None:
    """Rows are read without a lock: what was read decides only while the row has the revision that was read."""
    if known_before:
        orders.apply([received(order_status("pending"), 0)], [advance(STATUS_TOPIC, None, 1)])
    other = StateStore(settings, ORDER_STATE)
    reads: list[str] = []

    def overtake(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT kept."):
            reads.append("locked" if "FOR UPDATE" in statement else "free")
            if len(reads) == 1:
                events = [received(order_status("completed", 1), 0, partition=1)]
                other.apply(events, [advance(STATUS_TOPIC, None, 1, partition=1)])

    event.listen(orders.engine, "after_cursor_execute", overtake)
    first = 1 if known_before else None
    orders.apply([received(order_status("refunded", 2), 1)], [advance(STATUS_TOPIC, first, 2)])
    other.close()
    assert reads == ["free", "locked"]
    (view,) = reader.order_views(settings.url)
    assert [fact.status for fact in view.facts] == ["pending", "completed", "refunded"][not known_before :]
    with orders.engine.begin() as connection:
        assert [row.revision for row in outbox.peek(connection, "order-state", 1, 9)] == [2 + known_before]


def test_an_order_that_is_forgotten_between_reading_and_writing_stays_forgotten(
    orders: StateStore, settings: StateSettings
) -> None:
    orders.apply([received(order_status("pending"), 0)], [advance(STATUS_TOPIC, None, 1)])
    reads: list[str] = []

    def forget(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT kept."):
            reads.append(statement)
            if len(reads) == 1:
                assert forget_state(settings, ORDER_STATE, StateKey("default", "PHS84FJAG5U"))

    event.listen(orders.engine, "after_cursor_execute", forget)
    orders.apply([received(order_status("refunded", 2), 1)], [advance(STATUS_TOPIC, 1, 2)])
    (view,) = reader.order_views(settings.url)
    assert [fact.status for fact in view.facts] == ["refunded"]


@pytest.fixture
def never_analysed(orders: StateStore) -> StateStore:
    """A state of 20,000 orders that PostgreSQL has no statistics of: as after a storm, until autovacuum comes by."""
    orders.apply([received(order_status("processing", order_id="K00000"), 0)], [advance(STATUS_TOPIC, None, 1)])
    with orders.engine.begin() as connection:
        for table in ("projection_state", "projection_outbox"):
            connection.exec_driver_sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        connection.exec_driver_sql(
            "INSERT INTO projection_state (projection, generation, store, id, state, revision) "
            "SELECT projection, generation, store, 'K' || lpad(n::text, 5, '0'), state, revision "
            "FROM projection_state, generate_series(1, 19999) AS n"
        )
        connection.exec_driver_sql(
            "INSERT INTO projection_outbox SELECT projection, generation, store, id, revision FROM projection_state "
            "ON CONFLICT DO NOTHING"
        )
    return orders


ASKED = [Queued(StateKey("default", f"K{n:05}"), 1) for n in range(0, 20_000, 100)]
KEYS = [row.key for row in ASKED]
ROWS = state_rows("postgresql", "order-state", 1, ORDER_STATE.state_type)


@pytest.mark.parametrize(
    ("ask", "found"),
    [
        pytest.param(lambda c: len(ROWS.load(c, KEYS, lock=False)), 200, id="load"),
        pytest.param(lambda c: len(ROWS.load(c, KEYS, lock=True)), 200, id="lock"),
        pytest.param(lambda c: len(states_of(c, ORDER_STATE, 1, dict(ASKED))), 200, id="tell"),
        pytest.param(lambda c: len(outbox.peek(c, "order-state", 1, 200, KEYS[50])), 200, id="peek"),
        pytest.param(lambda c: outbox.OutboxWriter("order-state", 1, "postgresql").queue(c, KEYS), None, id="queue"),
        pytest.param(
            lambda c: outbox.confirm(c, "order-state", 1, outbox.peek(c, "order-state", 1, 200)), None, id="confirm"
        ),
    ],
)
@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
def test_rows_are_found_by_their_keys_whatever_postgresql_knows_of_its_tables(
    never_analysed: StateStore, ask: Callable[[Connection], int | None], found: int | None, plan: str
) -> None:
    """Reading all the rows for some keys, a storm's backlog cost more the larger it was: 19 s for 1,000 of 60,000.

    A statement that comes often is prepared, and planned in the end without a look at its parameters.
    """
    statistics = (
        "SELECT count(*) FROM pg_class WHERE relname IN ('projection_state', 'projection_outbox') AND reltuples >= 0"
    )
    rows_read = (
        "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname LIKE 'projection_%%'"
    )
    with never_analysed.engine.connect() as connection:
        assert connection.exec_driver_sql(statistics).scalar_one() == 0
        connection.exec_driver_sql(f"SET LOCAL plan_cache_mode = {plan}")
        connection.connection.driver_connection.prepare_threshold = 0  # type: ignore[union-attr]
        before = connection.exec_driver_sql(rows_read).scalar_one()
        assert ask(connection) == found
        assert 200 <= connection.exec_driver_sql(rows_read).scalar_one() - before <= 2_000


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), max_size=5))
@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_array_of_texts_arrives_as_it_was(postgres: PostgresServer, texts: list[str]) -> None:
    with psycopg.connect(postgres.url("postgres").replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT %s::text[]", [text_array(texts)]).fetchone() == (texts,)


@pytest.mark.parametrize("texts", [["a\0b"], ["\0"], ["", "\0", "c"]])
def test_an_array_cannot_hold_nul(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="U\\+0000"):
        text_array(texts)


def test_row_40_text_with_nul_is_no_obstacle(orders: StateStore, settings: StateSettings) -> None:
    """PostgreSQL's text does not take U+0000; in the state it is escaped, and ids with it are refused by the ingress."""
    event = order_status("pro\x00cessing", external_id="a\x00b")
    orders.apply([received(event, 0)], [advance(STATUS_TOPIC, None, 1)])
    view = reader.order_view(settings.url, "default", event.order_id)
    assert view is not None
    assert view.status == "pro\x00cessing"
    products = StateStore(settings, PRODUCT_CHANGES)
    products.apply([received(product_update(offers=("a\x00b",)), 0)], [advance(PRODUCT_TOPIC, None, 1)])
    products.close()
    (change,) = reader.changes_of(settings.url, "default", 1949)
    assert change.cheapest_offer_ids == ("a\x00b",)


def test_row_59_a_server_that_was_away_is_used_again_and_nothing_was_half_done(own_postgres: PostgresServer) -> None:
    settings = StateSettings(url=own_postgres.new_database(), busy_timeout_s=5.0)
    store = StateStore(settings, ORDER_STATE)
    store.apply([received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)])
    own_postgres.stop("immediate")
    for _ in range(2):
        with pytest.raises(OperatorError) as away:
            store.apply([received(order_status("completed", 1), 1)], [advance(STATUS_TOPIC, 1, 2)])
        assert away.value.code == "state_away"
    own_postgres.start()
    store.apply([received(order_status("completed", 1), 1)], [advance(STATUS_TOPIC, 1, 2)])
    store.close()
    view = reader.order_view(settings.url, "default", "PHS84FJAG5U")
    assert view is not None
    assert (view.status, len(view.facts)) == ("completed", 2)
    assert reader.stored_offsets(settings.url, "order-state") == {(STATUS_TOPIC, 0): 2}


def test_a_row_that_somebody_holds_is_waited_for_and_then_named(postgres: PostgresServer) -> None:
    settings = StateSettings(url=postgres.new_database(), busy_timeout_s=0.3)
    store = StateStore(settings, ORDER_STATE)
    store.apply([], [advance(STATUS_TOPIC, None, 1)])
    with psycopg.connect(settings.url.replace("+psycopg", "")) as other:
        other.execute("SELECT * FROM projection_offset FOR UPDATE")
        with pytest.raises(OperatorError) as busy:
            store.apply([], [advance(STATUS_TOPIC, 1, 2)])
        assert busy.value.code == "state_busy"
    store.apply([], [advance(STATUS_TOPIC, 1, 2)])
    store.close()


def test_who_was_paused_within_a_transaction_does_it_again(settings: StateSettings, orders: StateStore) -> None:
    """The server ends a session that is idle in a transaction for long; the rows that it held are not held for ever."""

    def end_soon(connection: Any) -> None:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 100")

    def pause(connection: Any) -> None:
        time.sleep(1.0)

    batch = [received(order_status("processing"), 0)], [advance(STATUS_TOPIC, None, 1)]
    event.listen(orders.engine, "begin", end_soon)
    event.listen(orders.engine, "commit", pause)
    with pytest.raises(OperatorError) as away:
        orders.apply(*batch)
    assert away.value.code == "state_away"
    event.remove(orders.engine, "begin", end_soon)
    event.remove(orders.engine, "commit", pause)
    orders.apply(*batch)
    assert reader.orders_by_status(settings.url) == {"processing": 1}


def test_a_transaction_that_gives_way_to_another_is_done_again(settings: StateSettings, orders: StateStore) -> None:
    """Somebody with psql here; of ours, one that makes rows of new keys and then locks others, and one that writes them in order."""
    orders.apply([], [advance(STATUS_TOPIC, None, 1), advance(STATUS_TOPIC, None, 1, partition=1)])
    further = [advance(STATUS_TOPIC, 1, 2), advance(STATUS_TOPIC, 1, 2, partition=1)]
    held = "SELECT 1 FROM projection_offset WHERE partition = {} FOR UPDATE"
    with psycopg.connect(settings.url.replace("+psycopg", "")) as other, ThreadPoolExecutor() as pool:
        other.execute("SET deadlock_timeout = '30s'")  # the first to look for a circle is undone
        other.execute(held.format(1))
        applying = pool.submit(orders.apply, [], further)
        with psycopg.connect(settings.url.replace("+psycopg", ""), autocommit=True) as watching:
            while not watching.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
                time.sleep(0.01)
        other.execute(held.format(0))
        # That it got what ours had held shows that ours was undone.
        other.rollback()
        applying.result(30)
    assert reader.stored_offsets(settings.url, "order-state") == {(STATUS_TOPIC, 0): 2, (STATUS_TOPIC, 1): 2}


@pytest.mark.parametrize("database", ["missing", "postgres"])
def test_what_cannot_be_used_is_a_sentence_without_the_password(postgres: PostgresServer, database: str) -> None:
    url = postgres.url(database).replace("kinguin@", "nobody-known:hidden-word@")
    with pytest.raises(OperatorError) as refused:
        StateStore(StateSettings(url=url), ORDER_STATE)
    assert refused.value.code == "state_not_writable"
    assert "hidden-word" not in str(refused.value)


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    url = f"postgresql+psycopg://me:hidden-word@127.0.0.1:{free_port()}/state"
    with pytest.raises(OperatorError) as away:
        StateStore(StateSettings(url=url), ORDER_STATE)
    assert away.value.code == "state_away"
    assert "hidden-word" not in str(away.value)


def test_a_database_without_a_state_is_empty_to_whoever_watches(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    assert reader.orders_by_status(url) == {}
    with pytest.raises(OperatorError) as missing:
        list(reader.order_views(url))
    assert missing.value.code == "state_missing"


def test_a_reader_cannot_write(settings: StateSettings, orders: StateStore) -> None:
    from kinguin_streams.consumers import database

    engine = database.open_for_reading(settings)
    with pytest.raises(OperatorError) as refused, database.explained(settings), engine.connect() as connection:
        connection.exec_driver_sql("DELETE FROM projection_offset")
    assert refused.value.code == "state_not_writable"
    engine.dispose()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_keep_every_text_is_refused_with_what_to_do(
    postgres: PostgresServer, encoding: str
) -> None:
    url = postgres.new_database(encoding)
    with pytest.raises(OperatorError) as refused:
        StateStore(StateSettings(url=url), ORDER_STATE)
    assert refused.value.code == "state_encoding_refused"
    assert encoding in refused.value.what
    assert "ENCODING 'UTF8'" in refused.value.hint
    with pytest.raises(OperatorError) as unread:
        list(reader.order_views(url))
    assert unread.value.code == "state_encoding_refused"


def test_what_the_environment_says_of_encodings_does_not_count(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    settings = StateSettings(url=postgres.new_database())
    store = StateStore(settings, ORDER_STATE)
    store.apply([received(order_status("zażółć 🎮", 1, order_id="Ł"), 0)], [advance(STATUS_TOPIC, None, 1)])
    store.close()
    assert [(view.order_id, view.status) for view in reader.order_views(settings.url)] == [("Ł", "zażółć 🎮")]
