"""The rows that readers see: those of a projection's live generation. One way to ask, for readers and for derived topics."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Column, Connection, Select, Text, not_, select

from kinguin_streams.consumers import product_changes, tables
from kinguin_streams.consumers.order_state import OrderState
from kinguin_streams.consumers.postgres import of_each, unnested
from kinguin_streams.consumers.product_changes import Change
from kinguin_streams.consumers.projection import StateKey

T = TypeVar("T")

KEYS_PER_SELECT: Final = 500
"""SQLite takes 32,766 variables in a statement; one of this size is parsed in no time."""
ROWS_IN_MEMORY: Final = 1_000

LANE: Final = "replay:"
"""First part of what stands for a cluster's id in the offsets of a replay: they say how far it has come, beside those of the
consumer, and a consumer knows nothing of them."""

decode_order = msgspec.json.Decoder(OrderState).decode


def live_generation(connection: Connection, projection: str) -> int | None:
    """Return the generation that readers see, or None if no consumer of this projection has ever started."""
    table = tables.projection
    live: int | None = connection.execute(select(table.c.live_generation).where(table.c.name == projection)).scalar()
    return live


def not_lane() -> Any:
    """Return the condition for offsets of a consumer, and not of a replay."""
    return not_(tables.projection_offset.c.cluster_id.startswith(LANE, autoescape=True))


def states(projection: str, generation: int | None) -> Select[Any]:
    """Ask for store, id, state and revision of every key that has a state, by key."""
    table = tables.projection_state
    return (
        select(table.c.store, table.c.id, table.c.state, table.c.revision)
        .where(
            table.c.projection == projection,
            table.c.generation == generation,
            table.c.state != tables.NONE_YET,
        )
        .order_by(table.c.store, table.c.id)
    )


def changes(generation: int | None) -> Select[Any]:
    """Ask for every change of every product, by product."""
    table = tables.product_change
    return select(table).where(table.c.generation == generation).order_by(table.c.store, table.c.kinguin_id)


def by_product(rows: Iterable[Any]) -> Iterator[tuple[StateKey, Iterable[Change]]]:
    """Yield each product with its changes, of rows that `changes` has asked for; holds none of them in memory."""
    for (store, kinguin_id), its_rows in groupby(rows, key=lambda row: (row.store, row.kinguin_id)):
        yield StateKey(store, str(kinguin_id)), map(product_changes.change, its_rows)


def of_keys(
    connection: Connection, rows: Select[Any], id_column: Column[Any], keys: Iterable[tuple[str, Any]]
) -> Iterator[Any]:
    """Yield the rows of these keys, by key, of what `states` or `changes` asks for. keys: store, and the column's own id."""
    in_order = sorted(keys)
    if connection.dialect.name != "postgresql":
        for store, ids in ids_by_store(in_order):
            yield from connection.execute(rows.where(id_column.table.c.store == store, id_column.in_(ids)))
        return
    wanted = unnested("wanted", store=Text, id=type(id_column.type))
    arrays = {"stores": [store for store, _ in in_order], "ids": [id_ for _, id_ in in_order]}
    yield from connection.execute(of_each(wanted, rows.order_by(None), id_column), arrays)


def ids_by_store(keys: Sequence[tuple[str, T]], at_once: int = KEYS_PER_SELECT) -> Iterator[tuple[str, Sequence[T]]]:
    """Yield the ids of keys that are in their order, store by store, as many at once as a statement is to have.

    Store by store: for `(store, id) IN (…)` SQLite 3.40 scans the whole projection (EXPLAIN QUERY PLAN).
    """
    for store, its_keys in groupby(keys, key=lambda key: key[0]):
        ids = [id_ for _, id_ in its_keys]
        for start in range(0, len(ids), at_once):
            yield store, ids[start : start + at_once]
