"""What the state says, for people and for the live view. Reads beside running consumers: neither waits for the other.

A database that does not exist yet is an OperatorError("state_missing") where somebody asked for its content, and empty
where somebody only watches: orders_by_status, busiest_products, product_count, stored_offsets.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Select, Text, and_, cast, distinct, func, literal, not_, select

from kinguin_streams.consumers import database, live_rows, order_state, product_changes, tables
from kinguin_streams.consumers.live_rows import ROWS_IN_MEMORY, by_product, decode_order, live_generation
from kinguin_streams.consumers.order_state import ORDER_STATE, OrderView
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES, Change, Summary
from kinguin_streams.consumers.projection import FoldProjection, StateKey
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.waiting_orders import Stuck, stuck
from kinguin_streams.telemetry.operator_error import OperatorError

S = TypeVar("S", bound=msgspec.Struct)


class ProductView(msgspec.Struct, frozen=True):
    """What is known of a product."""

    store: str
    kinguin_id: int
    summary: Summary


class BusyProduct(msgspec.Struct, frozen=True):
    """A product and the number of its distinct changes."""

    store: str
    kinguin_id: int
    changes: int


class Window(msgspec.Struct, frozen=True):
    """A stretch of event time: when it begins, how many distinct changes lie in it, and of how many products."""

    start_ms: int
    changes: int
    products: int


def states(url: str, projection: FoldProjection[Any, S]) -> Iterator[tuple[StateKey, S]]:
    """Yield every key of a projection with its state, by key, as of one instant; memory does not grow with their number."""
    decode = msgspec.json.Decoder(projection.state_type).decode
    with _reading(url) as connection:
        rows = connection.execution_options(yield_per=ROWS_IN_MEMORY).execute(_states(connection, projection.name))
        for store, id_, text, _ in rows:
            yield StateKey(store, id_), decode(text)


def state(url: str, projection: FoldProjection[Any, S], key: StateKey) -> S | None:
    """Return the state of a key, or None if it has none."""
    table = tables.projection_state
    with _reading(url) as connection:
        one = _states(connection, projection.name).where(table.c.store == key.store, table.c.id == key.id)
        row = connection.execute(one).one_or_none()
    return None if row is None else msgspec.json.decode(row.state, type=projection.state_type)


def order_views(url: str) -> Iterator[OrderView]:
    """Yield every order by (store, id), as of one instant; memory does not grow with their number."""
    with _reading(url) as connection:
        rows = connection.execution_options(yield_per=ROWS_IN_MEMORY).execute(_states(connection, ORDER_STATE.name))
        for store, order_id, text, _ in rows:
            yield order_state.view(StateKey(store, order_id), decode_order(text))


def stuck_orders(url: str, now_ms: int, after_ms: int) -> list[Stuck]:
    """Return the orders that have been open for longer than after_ms, the longest first. See waiting_orders.py."""
    found = [one for view in order_views(url) if (one := stuck(view, now_ms, after_ms)) is not None]
    return sorted(found, key=lambda one: (-one.waits_ms, one.view.store, one.view.order_id))


def order_view(url: str, store: str, order_id: str) -> OrderView | None:
    """Return one order, or None if no event of it has taken effect."""
    table = tables.projection_state
    with _reading(url) as connection:
        one = _states(connection, ORDER_STATE.name).where(table.c.store == store, table.c.id == order_id)
        row = connection.execute(one).one_or_none()
    return None if row is None else order_state.view(StateKey(store, order_id), decode_order(row.state))


def orders_by_status(url: str) -> dict[str, int]:
    """Return the number of orders in each status, most first. Orders all of whose facts were set aside are in none."""
    counts: dict[str, int] = {}
    with _watching(url) as connection:
        if connection is not None:
            rows = connection.execution_options(yield_per=ROWS_IN_MEMORY).execute(_states(connection, ORDER_STATE.name))
            for _store, _id, text, _ in rows:
                status = order_state.status(order_state.in_order(decode_order(text).facts))
                if status is not None:
                    counts[status] = counts.get(status, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def product_views(url: str) -> Iterator[ProductView]:
    """Yield every product by (store, kinguinId), as of one instant; memory does not grow with their number."""
    with _reading(url) as connection:
        rows = connection.execution_options(yield_per=ROWS_IN_MEMORY).execute(_changes(connection))
        for (store, kinguin_id), its_changes in by_product(rows):
            yield ProductView(store, int(kinguin_id), product_changes.summarise(its_changes))


def product_view(url: str, store: str, kinguin_id: int) -> ProductView | None:
    """Return one product, or None if no change of it has taken effect."""
    changes = changes_of(url, store, kinguin_id)
    return ProductView(store, kinguin_id, product_changes.summarise(changes)) if changes else None


def changes_of(url: str, store: str, kinguin_id: int) -> tuple[Change, ...]:
    """Return the distinct changes of one product, those set aside included, in no particular order."""
    table = tables.product_change
    with _reading(url) as connection:
        rows = connection.execute(_changes(connection).where(table.c.store == store, table.c.kinguin_id == kinguin_id))
        return tuple(map(product_changes.change, rows))


def busiest_products(url: str, n: int, since_ms: int | None = None) -> list[BusyProduct]:
    """Return the n products with the most changes, most first. since_ms: counts changes by updatedAt from then on."""
    table = tables.product_change
    with _watching(url) as connection:
        if connection is None:
            return []
        number = func.count().label("changes")
        counted = select(table.c.store, table.c.kinguin_id, number).where(
            table.c.generation == live_generation(connection, PRODUCT_CHANGES.name), not_(table.c.set_aside)
        )
        if since_ms is not None:
            counted = counted.where(table.c.updated_at_ms >= since_ms)
        counted = counted.group_by(table.c.store, table.c.kinguin_id)
        rows = connection.execute(counted.order_by(number.desc(), table.c.store, table.c.kinguin_id).limit(n))
        return [BusyProduct(*row) for row in rows]


def changes_per_window(url: str, window_ms: int, since_ms: int) -> list[Window]:
    """Return how much changed in each window of event time from since_ms on, oldest first; empty windows are left out.

    Windows begin at multiples of window_ms since 1970, UTC. A change that arrives late counts where its updatedAt lies, so a
    window is never closed.
    """
    table = tables.product_change
    with _reading(url) as connection:
        # What is not set aside has an updatedAt of this century, so the remainder is positive in every database.
        start = (table.c.updated_at_ms - table.c.updated_at_ms % window_ms).label("start")
        mine = and_(
            table.c.generation == live_generation(connection, PRODUCT_CHANGES.name),
            not_(table.c.set_aside),
            table.c.updated_at_ms >= since_ms - since_ms % window_ms,
        )
        products = func.count(distinct(table.c.store + literal("/") + cast(table.c.kinguin_id, Text)))
        rows = connection.execute(select(start, func.count(), products).where(mine).group_by(start).order_by(start))
        return [Window(*row) for row in rows]


def product_count(url: str) -> int:
    """Return the number of products that changed, whatever the sender says about when."""
    table = tables.product_change
    with _watching(url) as connection:
        if connection is None:
            return 0
        live = live_generation(connection, PRODUCT_CHANGES.name)
        products = select(table.c.store, table.c.kinguin_id).where(table.c.generation == live).distinct().subquery()
        return connection.execute(select(func.count()).select_from(products)).scalar_one()


def stored_offsets(url: str, projection: str) -> dict[tuple[str, int], int]:
    """Return (topic, partition) to the next offset: every record below it has taken effect."""
    table = tables.projection_offset
    with _watching(url) as connection:
        if connection is None:
            return {}
        mine = and_(table.c.projection == projection, table.c.generation == live_generation(connection, projection))
        rows = connection.execute(
            select(table.c.topic, table.c.partition, table.c.next_offset).where(mine, live_rows.not_lane())
        )
        return {(topic, partition): next_offset for topic, partition, next_offset in rows}


@contextmanager
def _reading(url: str) -> Iterator[Connection]:
    settings = StateSettings(url=url)
    engine = database.open_for_reading(settings)
    try:
        with database.explained(settings), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _watching(url: str) -> Iterator[Connection | None]:
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(_reading(url))
        except OperatorError as error:
            if error.code != "state_missing":
                raise
            connection = None
        yield connection


def _states(connection: Connection, projection: str) -> Select[Any]:
    return live_rows.states(projection, live_generation(connection, projection))


def _changes(connection: Connection) -> Select[Any]:
    return live_rows.changes(live_generation(connection, PRODUCT_CHANGES.name))
