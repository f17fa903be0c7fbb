"""A generation is built beside the live one and takes its place, in SQLite and in PostgreSQL: nobody sees half of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, delete, event, select

from kinguin_streams.consumers import database, derived, forgetting, generations, outbox, reader, tables
from kinguin_streams.consumers.clock import SYSTEM_CLOCK
from kinguin_streams.consumers.derived_records import digested
from kinguin_streams.consumers.derived_states import every_state
from kinguin_streams.consumers.forgetting import forget_state
from kinguin_streams.consumers.generations import Behind, Build, Swapped
from kinguin_streams.consumers.order_state import ORDER_STATE, OrderState
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import Projection, Received, StateKey
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import LostPartition, StateStore
from kinguin_streams.consumers.telling_again import tell_again
from kinguin_streams.schemas.events import OrderComplete, OrderStatus
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.consumers.databases import CLUSTER, PRODUCT_TOPIC, STATUS_TOPIC, Crash, advance, crash_before_commit
from tests.consumers.deliveries import order_status, product_update, received

TOPIC_IDS = {topic: f"id-of-{topic}" for topic in (STATUS_TOPIC, PRODUCT_TOPIC)}
EVENTS = [
    received(order_status("processing"), 0),
    received(order_status("completed", 1), 1),
    received(order_status("pending", 2, order_id="B"), 2),
]


def deaf_to_b(state: OrderState | None, delivery: Received[OrderStatus | OrderComplete]) -> OrderState:
    """A fold with a bug: it does not hear of order B's status, and takes it for completed."""
    if delivery.event.order_id == "B":
        delivery = received(order_status("completed", 2, order_id="B"), delivery.offset)
    return ORDER_STATE.fold(state, delivery)


BUGGY = replace(ORDER_STATE, fold=deaf_to_b)
MENDED = replace(ORDER_STATE, version=2)


@pytest.fixture
def live(settings: StateSettings) -> Iterator[StateStore]:
    """The state of three events, by a fold with a bug; the derived topic has been told of it."""
    store = StateStore(settings, BUGGY)
    store.apply(EVENTS, [advance(STATUS_TOPIC, None, 3)])
    told(store, ORDER_STATE, 1)
    yield store
    store.close()


def told(store: StateStore, projection: Projection, generation: int) -> dict[str, int]:
    """Take everything out of the outbox, as the relay would; return the keys with their revisions."""
    with store.engine.begin() as connection:
        rows = outbox.peek(connection, projection.name, generation, 100)
        outbox.confirm(connection, projection.name, generation, rows)
    return {row.key.id: row.revision for row in rows}


def statuses(settings: StateSettings) -> dict[str, str | None]:
    return {view.order_id: view.status for view in reader.order_views(settings.url)}


def built(settings: StateSettings, projection: Projection, events: Any, next_offset: int, topic: str) -> Build:
    build, _ = generations.begin(settings, projection)
    store = StateStore(settings, projection, build)
    store.apply(events, [advance(topic, None, next_offset)])
    store.close()
    return build


def swap(settings: StateSettings, projection: Projection, build: Build) -> Swapped | tuple[Behind, ...]:
    return generations.swap(settings, projection, build, CLUSTER, TOPIC_IDS)


def test_readers_have_the_old_state_until_the_swap_and_the_new_one_from_then_on(
    live: StateStore, settings: StateSettings
) -> None:
    before = {"PHS84FJAG5U": "completed", "B": "completed"}
    build = built(settings, MENDED, EVENTS, 3, STATUS_TOPIC)
    assert build == Build(2, 2)
    assert statuses(settings) == before
    assert swap(settings, MENDED, build) == Swapped(before=1, generation=2, told=1, vanished=0)
    assert statuses(settings) == before | {"B": "pending"}
    assert told(live, MENDED, 2) == {"B": 1}


def test_the_old_writer_is_refused_after_the_swap_also_where_it_has_written_nothing_yet(
    live: StateStore, settings: StateSettings
) -> None:
    swap(settings, MENDED, built(settings, MENDED, EVENTS, 3, STATUS_TOPIC))
    for moves in ([advance(STATUS_TOPIC, 3, 4)], [advance(STATUS_TOPIC, None, 1, partition=1)]):
        with pytest.raises(OperatorError) as refused:
            live.apply([received(order_status("refunded", 9), 3)], moves)
        assert refused.value.code == "generation_replaced"
    assert statuses(settings)["PHS84FJAG5U"] == "completed"
    with pytest.raises(OperatorError) as refused:
        StateStore(settings, BUGGY)
    assert refused.value.code == "projection_version"
    consumer = StateStore(settings, MENDED)
    consumer.apply([received(order_status("refunded", 9), 3)], [advance(STATUS_TOPIC, 3, 4)])
    consumer.close()
    assert statuses(settings)["PHS84FJAG5U"] == "refunded"


def test_a_build_that_is_behind_does_not_go_live(live: StateStore, settings: StateSettings) -> None:
    build = built(settings, MENDED, EVENTS[:1], 1, STATUS_TOPIC)
    live.apply([received(order_status("error", 3, order_id="C"), 0, partition=1)], [advance(STATUS_TOPIC, None, 1, 1)])
    assert swap(settings, MENDED, build) == (Behind(STATUS_TOPIC, 0, 3, 1), Behind(STATUS_TOPIC, 1, 1, None))
    assert statuses(settings)["B"] == "completed"
    store = StateStore(settings, MENDED, build)
    store.apply(EVENTS[1:], [advance(STATUS_TOPIC, 1, 3)])
    store.apply([received(order_status("error", 3, order_id="C"), 0, partition=1)], [advance(STATUS_TOPIC, None, 1, 1)])
    store.close()
    assert isinstance(swap(settings, MENDED, build), Swapped)
    assert statuses(settings) == {"PHS84FJAG5U": "completed", "B": "pending", "C": "error"}


def test_state_of_a_topic_that_was_made_anew_holds_no_rebuild_up(live: StateStore, settings: StateSettings) -> None:
    build, _ = generations.begin(settings, MENDED)
    assert isinstance(generations.swap(settings, MENDED, build, CLUSTER, {STATUS_TOPIC: "another"}), Swapped)
    assert statuses(settings) == {}


def test_a_build_goes_on_where_it_stopped_and_another_version_begins_anew(
    live: StateStore, settings: StateSettings
) -> None:
    build = built(settings, MENDED, EVENTS[:1], 1, STATUS_TOPIC)
    assert generations.begin(settings, MENDED) == (build, True)
    assert generations.begin(settings, replace(MENDED, version=3)) == (Build(3, 3), False)
    with pytest.raises(OperatorError) as refused:
        swap(settings, MENDED, build)
    assert refused.value.code == "build_replaced"
    store = StateStore(settings, MENDED, build)
    with pytest.raises(OperatorError) as refused:
        store.apply(EVENTS[1:], [advance(STATUS_TOPIC, 1, 3)])
    assert refused.value.code == "generation_replaced"
    store.close()


def test_a_build_begun_anew_has_nothing_of_the_one_before_whose_writer_is_refused(
    live: StateStore, settings: StateSettings
) -> None:
    given_up = built(settings, MENDED, EVENTS, 3, STATUS_TOPIC)
    writer = StateStore(settings, MENDED, given_up)
    build, resumed = generations.begin(settings, MENDED, anew=True)
    assert (build.generation > given_up.generation, resumed) == (True, False)
    with pytest.raises(OperatorError) as refused:
        writer.apply([received(order_status("refunded", 9, order_id="Z"), 3)], [advance(STATUS_TOPIC, 3, 4)])
    assert refused.value.code == "generation_replaced"
    writer.close()
    store = StateStore(settings, MENDED, build)
    assert store.offsets(CLUSTER, {STATUS_TOPIC: "of a topic that was made anew"}) == {}
    store.close()
    generations.drop_others(settings, MENDED)
    assert swap(settings, MENDED, build) == (Behind(STATUS_TOPIC, 0, 3, None),)


def test_a_build_never_begins_with_rows_that_were_left_over(live: StateStore, settings: StateSettings) -> None:
    left = built(settings, MENDED, EVENTS, 3, STATUS_TOPIC)
    with live.engine.begin() as connection:
        connection.execute(delete(tables.projection_build))
    assert generations.begin(settings, MENDED) == (Build(left.generation + 1, 2), False)


def test_of_two_processes_that_begin_at_once_one_joins_the_other_s_build(
    live: StateStore, settings: StateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = generations._newest
    with ThreadPoolExecutor(1) as pool:
        other: list[Future[tuple[Build, bool]]] = []

        def let_another_begin(*arguments: Any) -> int:
            if not other:
                other.append(pool.submit(generations.begin, settings, MENDED))
                wait(other, 0.5)  # SQLite lets one in at a time
            return newest(*arguments)

        monkeypatch.setattr(generations, "_newest", let_another_begin)
        begun = [generations.begin(settings, MENDED), other[0].result(10)]
    assert sorted(begun) == [(Build(2, 2), False), (Build(2, 2), True)]


def test_of_two_processes_that_build_the_same_one_is_refused(live: StateStore, settings: StateSettings) -> None:
    build = built(settings, MENDED, EVENTS[:1], 1, STATUS_TOPIC)
    second = StateStore(settings, MENDED, build)
    with pytest.raises(LostPartition):
        second.apply(EVENTS[:1], [advance(STATUS_TOPIC, None, 1)])
    second.close()


def test_a_crash_before_the_swap_s_commit_changes_nothing(
    live: StateStore, settings: StateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = built(settings, MENDED, EVENTS, 3, STATUS_TOPIC)

    def die(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(generations, "_forget_build", die)  # its last step
        with pytest.raises(Crash):
            swap(settings, MENDED, build)
    assert statuses(settings)["B"] == "completed"
    assert told(live, MENDED, 2) == {}
    assert isinstance(swap(settings, MENDED, build), Swapped)


def test_a_state_that_vanishes_is_queued_and_one_that_was_not_told_yet_stays_queued(
    live: StateStore, settings: StateSettings
) -> None:
    live.apply([received(order_status("processing", 3, order_id="A"), 3)], [advance(STATUS_TOPIC, 3, 4)])
    without_b = [EVENTS[0], EVENTS[1], received(order_status("processing", 3, order_id="A"), 3)]
    build = built(settings, MENDED, without_b, 4, STATUS_TOPIC)
    assert swap(settings, MENDED, build) == Swapped(before=1, generation=2, told=2, vanished=1)
    with live.engine.begin() as connection:
        keys = {key.id for key, _ in every_state(connection, MENDED, 2)}
    assert keys == {"A", "PHS84FJAG5U"}
    assert told(live, MENDED, 2) == {"A": 1, "B": 1}
    assert told(live, MENDED, 1) == {}


def test_a_tombstone_that_was_not_told_yet_stays_queued_through_the_next_swap(
    live: StateStore, settings: StateSettings
) -> None:
    for generation in (2, 3):
        swap(settings, MENDED, built(settings, MENDED, EVENTS[:2], 3, STATUS_TOPIC))
        with live.engine.begin() as connection:
            rows = outbox.peek(connection, MENDED.name, generation, 9)
        assert [row.key.id for row in rows] == ["B"]
    assert told(live, MENDED, 3) == {"B": 1}


B = StateKey("default", "B")


def facts_of_b(settings: StateSettings) -> list[str]:
    return [fact.status for view in reader.order_views(settings.url) if view.order_id == "B" for fact in view.facts]


def received_later(status: str, offset: int) -> Received[OrderStatus]:
    """Return an event of order B that is received an hour from now."""
    in_an_hour = SYSTEM_CLOCK.now_ms() + 3_600_000
    return received(order_status(status, 5, order_id="B", received_at_ms=in_an_hour), offset)


def test_a_state_that_vanished_is_back_when_it_is_found_again(live: StateStore, settings: StateSettings) -> None:
    swap(settings, MENDED, built(settings, MENDED, EVENTS[:2], 3, STATUS_TOPIC))
    told(live, MENDED, 2)
    tell_again(settings, MENDED, {B: 1})
    assert statuses(settings) == {"PHS84FJAG5U": "completed"}
    swap(settings, MENDED, built(settings, MENDED, EVENTS, 3, STATUS_TOPIC))
    assert statuses(settings) == {"PHS84FJAG5U": "completed", "B": "pending"}


def test_an_order_that_was_forgotten_stays_forgotten(live: StateStore, settings: StateSettings) -> None:
    assert forget_state(settings, ORDER_STATE, B)
    told(live, ORDER_STATE, 1)
    for generation, events in ((2, EVENTS), (3, EVENTS[:2]), (4, EVENTS)):  # the second one does not find it at all
        build = built(settings, MENDED, events, 3, STATUS_TOPIC)
        assert [differing.key.id for differing in generations.differences(settings, MENDED, build)] == []
        assert isinstance(swap(settings, MENDED, build), Swapped)
        assert statuses(settings) == {"PHS84FJAG5U": "completed"}
        assert told(live, MENDED, generation) == {}


def test_what_was_received_after_an_order_was_forgotten_is_all_that_a_rebuild_knows_of_it(
    live: StateStore, settings: StateSettings
) -> None:
    forget_state(settings, ORDER_STATE, B)
    later = received_later("refunded", 3)
    live.apply([later], [advance(STATUS_TOPIC, 3, 4)])
    assert facts_of_b(settings) == ["completed"]  # what the fold with the bug makes of it
    swap(settings, MENDED, built(settings, MENDED, [*EVENTS, later], 4, STATUS_TOPIC))
    assert facts_of_b(settings) == ["refunded"]


def test_an_order_that_is_forgotten_while_a_build_has_it_is_forgotten_there_too(
    live: StateStore, settings: StateSettings
) -> None:
    build = built(settings, MENDED, EVENTS, 3, STATUS_TOPIC)
    forget_state(settings, ORDER_STATE, B)
    store = StateStore(settings, MENDED, build)
    store.apply([received(order_status("canceled", 4, order_id="B"), 3), received_later("refunded", 4)], [])
    store.close()
    swap(settings, MENDED, build)
    assert facts_of_b(settings) == ["refunded"]


def test_a_build_that_begins_while_an_order_is_forgotten_leaves_it_out(
    live: StateStore, settings: StateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_build = generations.held_build
    with ThreadPoolExecutor(1) as pool:
        building: list[Future[Build]] = []

        def see_none(*arguments: Any) -> Build | None:
            seen = held_build(*arguments)
            building.append(pool.submit(built, settings, MENDED, EVENTS, 3, STATUS_TOPIC))
            wait(building, 0.5)
            return seen

        monkeypatch.setattr(forgetting, "held_build", see_none)
        assert forget_state(settings, ORDER_STATE, B)
        swap(settings, MENDED, building[0].result(10))
    assert statuses(settings) == {"PHS84FJAG5U": "completed"}


def test_a_build_whose_writer_is_about_to_commit_leaves_a_forgotten_order_out(
    live: StateStore, settings: StateSettings
) -> None:
    build, _ = generations.begin(settings, MENDED)
    store = StateStore(settings, MENDED, build)
    with ThreadPoolExecutor(1) as pool:
        wishes: list[Future[bool]] = []

        def forget(_connection: Any) -> None:
            wishes.append(pool.submit(forget_state, settings, ORDER_STATE, B))
            wait(wishes, 0.5)

        event.listen(store.engine, "commit", forget, once=True)
        store.apply(EVENTS, [advance(STATUS_TOPIC, None, 3)])
        assert wishes[0].result(10)
    store.close()
    swap(settings, MENDED, build)
    assert statuses(settings) == {"PHS84FJAG5U": "completed"}


def test_what_had_no_state_before_forgetting_was_noted_is_taken_for_forgotten(settings: StateSettings) -> None:
    engine = database.open_for_writing(settings)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(database.MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        for row in (
            "INSERT INTO projection VALUES ('order-state', 2, 1), ('product-changes', 2, 1)",
            "INSERT INTO projection_build VALUES ('order-state', 3, 1)",
            "INSERT INTO projection_state VALUES ('order-state', 1, 's', 'dead generation', '', 3)",
            "INSERT INTO projection_state VALUES ('order-state', 2, 's', 'forgotten', '', 3)",
            "INSERT INTO projection_state VALUES ('order-state', 2, 's', 'only locked', '', 0)",
            "INSERT INTO projection_state VALUES ('order-state', 2, 's', 'known', '{}', 3)",
            "INSERT INTO projection_state VALUES ('product-changes', 2, 's', '1949', '', 3)",
        ):
            connection.exec_driver_sql(row)
    assert database.migrate(settings) == ("0004", tables.REVISIONS[-1])
    with engine.begin() as connection:
        (forgotten,) = connection.execute(select(tables.projection_forgotten)).all()
        assert forgotten[:3] == ("order-state", "s", "forgotten")
        assert abs(forgotten.forgotten_at_ms - SYSTEM_CLOCK.now_ms()) < 60_000
    engine.dispose()
    assert generations.begin(settings, ORDER_STATE) == (Build(3, 1), False)


FORGET = pytest.param(partial(forget_state, key=StateKey("default", "PHS84FJAG5U")), id="forget")
TELL = pytest.param(partial(tell_again, told={StateKey("default", "PHS84FJAG5U"): 7}), id="tell again")


@pytest.mark.parametrize("wish", [FORGET, TELL])
def test_a_wish_that_meets_a_swap_is_done_in_the_new_generation(
    live: StateStore, settings: StateSettings, monkeypatch: pytest.MonkeyPatch, wish: Callable[..., Any]
) -> None:
    build = built(settings, MENDED, EVENTS, 3, STATUS_TOPIC)
    forget_build = generations._forget_build
    with ThreadPoolExecutor(1) as pool:
        meanwhile: list[Future[Any]] = []

        def go_on(*arguments: Any) -> None:
            meanwhile.append(pool.submit(wish, settings, ORDER_STATE))
            wait(meanwhile, 0.5)
            forget_build(*arguments)

        monkeypatch.setattr(generations, "_forget_build", go_on)  # the swap's last step
        assert isinstance(swap(settings, MENDED, build), Swapped)
        assert meanwhile[0].result(10) in (True, None)
    assert ("PHS84FJAG5U" in statuses(settings)) == (meanwhile[0].result() is None)
    assert told(live, MENDED, 2)["PHS84FJAG5U"] > 1


def test_what_differs_is_named_by_key_and_evidence_is_no_difference(live: StateStore, settings: StateSettings) -> None:
    elsewhere = [received(each.event, each.offset + 100, partition=7) for each in EVENTS]
    build = built(settings, MENDED, elsewhere, 3, STATUS_TOPIC)
    (differing,) = generations.differences(settings, MENDED, build)
    assert differing.key == StateKey("default", "B")
    assert "completed" in repr(differing.live)
    assert "pending" in repr(differing.new)


def test_only_what_the_topic_would_tell_otherwise_is_told_again(settings: StateSettings) -> None:
    store = StateStore(settings, PRODUCT_CHANGES)
    first, second = received(product_update(0, qty=1), 0), received(product_update(1, kinguin_id=2, qty=5), 1)
    store.apply([first, second], [advance(PRODUCT_TOPIC, None, 2)])
    told(store, PRODUCT_CHANGES, 1)
    build = built(settings, PRODUCT_CHANGES, [first, received(product_update(2, kinguin_id=3), 1)], 2, PRODUCT_TOPIC)
    assert [differing.key.id for differing in generations.differences(settings, PRODUCT_CHANGES, build)] == ["2", "3"]
    assert swap(settings, PRODUCT_CHANGES, build) == Swapped(before=1, generation=2, told=2, vanished=1)
    assert told(store, PRODUCT_CHANGES, 2) == {"2": 1, "3": 1}
    with store.engine.begin() as connection:
        records = {key.id: record for key, record in every_state(connection, PRODUCT_CHANGES, 2)}
    assert {id_: (record.generation, record.revision) for id_, record in records.items()} == {
        "1949": (2, 1),
        "3": (2, 1),
    }
    store.close()


def test_a_topic_that_tells_the_same_in_an_older_generation_is_up_to_date(
    live: StateStore, settings: StateSettings
) -> None:
    with live.engine.begin() as connection:
        before = {key.in_topic: digested(record) for key, record in every_state(connection, ORDER_STATE, 1)}
    in_topic = {key: derived.Told(*state) for key, state in before.items()}
    swap(settings, MENDED, built(settings, MENDED, EVENTS, 3, STATUS_TOPIC))
    with live.engine.begin() as connection:
        after = {key.in_topic: digested(record) for key, record in every_state(connection, MENDED, 2)}
    assert [each.key for each in derived.compare(after, frozenset(), in_topic)] == ["default:B"]


def test_generations_that_nobody_needs_are_deleted_and_the_others_kept(
    live: StateStore, settings: StateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "ROWS_PER_DELETE", 1)
    swap(settings, MENDED, built(settings, MENDED, EVENTS, 3, STATUS_TOPIC))
    built(settings, MENDED, EVENTS, 3, STATUS_TOPIC)
    assert generations.drop_others(settings, MENDED) == 2  # the states of two orders; offsets went with the swap
    assert generations.drop_others(settings, MENDED) == 0
    assert statuses(settings) == {"PHS84FJAG5U": "completed", "B": "pending"}
    generations.begin(settings, MENDED, anew=True)
    assert generations.drop_others(settings, MENDED) == 3


def test_a_build_that_begins_while_others_are_deleted_is_not_deleted(postgres: Any) -> None:
    """SQLite lets one write at a time."""
    settings = StateSettings(url=postgres.new_database(), busy_timeout_s=5.0)
    live = StateStore(settings, BUGGY)
    live.apply(EVENTS, [advance(STATUS_TOPIC, None, 3)])
    live.close()
    builds: list[Build] = []

    def begin(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM projection_state") and not builds:
            builds.append(Build(0, 0))
            builds.append(built(settings, MENDED, EVENTS, 3, STATUS_TOPIC))

    event.listen(Engine, "before_cursor_execute", begin)
    try:
        assert generations.drop_others(settings, MENDED) == 0
    finally:
        event.remove(Engine, "before_cursor_execute", begin)
    assert isinstance(swap(settings, MENDED, builds[1]), Swapped)
    assert statuses(settings) == {"PHS84FJAG5U": "completed", "B": "pending"}


def test_a_crash_while_building_leaves_state_and_offsets_together(live: StateStore, settings: StateSettings) -> None:
    build, _ = generations.begin(settings, MENDED)
    store = StateStore(settings, MENDED, build)
    with crash_before_commit(store), pytest.raises(Crash):
        store.apply(EVENTS, [advance(STATUS_TOPIC, None, 3)])
    assert store.offsets(CLUSTER, {STATUS_TOPIC: TOPIC_IDS[STATUS_TOPIC]}) == {}
    store.apply(EVENTS, [advance(STATUS_TOPIC, None, 3)])
    store.close()
    assert isinstance(swap(settings, MENDED, build), Swapped)
