"""The states that the derived topics are to tell, read from the database, as their records."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, and_, select

from kinguin_streams.consumers import product_changes, tables
from kinguin_streams.consumers.derived_records import order_record, product_record
from kinguin_streams.consumers.order_state import OrderState
from kinguin_streams.consumers.product_changes import Change
from kinguin_streams.consumers.projection import Projection, StateKey
from kinguin_streams.schemas.events import Derived

KEYS_PER_SELECT = 500
ROWS_IN_MEMORY = 1_000

_decode_order = msgspec.json.Decoder(OrderState).decode


def live_generation(connection: Connection, projection: str) -> int | None:
    """Return the generation that readers see, or None if no consumer of this projection has ever started."""
    table = tables.projection
    live: int | None = connection.execute(select(table.c.live_generation).where(table.c.name == projection)).scalar()
    return live


def states_of(
    connection: Connection, projection: Projection, generation: int, revisions: Mapping[StateKey, int]
) -> dict[StateKey, Derived]:
    """Return the records of these keys, at these revisions; one that was forgotten is not among them."""
    state, change = tables.projection_state, tables.product_change
    found: dict[StateKey, Derived] = {}
    for store, its_keys in groupby(sorted(revisions), key=lambda key: key.store):
        ids = [key.id for key in its_keys]
        for start in range(0, len(ids), KEYS_PER_SELECT):
            some = ids[start : start + KEYS_PER_SELECT]
            if projection.derived == "order.state":
                orders = _orders(projection, generation).where(state.c.store == store, state.c.id.in_(some))
                for _, id_, text, _ in connection.execute(orders):
                    key = StateKey(store, id_)
                    found[key] = order_record(key, _decode_order(text), generation, revisions[key])
            else:
                wanted = change.c.kinguin_id.in_([int(id_) for id_ in some])
                changes = connection.execute(_changes(generation).where(change.c.store == store, wanted))
                for key, its_changes in _by_product(changes):
                    found[key] = product_record(key, its_changes, generation, revisions[key])
    return found


def every_state(connection: Connection, projection: Projection, generation: int) -> Iterator[tuple[StateKey, Derived]]:
    """Yield every key with its record, by key; memory does not grow with their number.

    A product that has no revision yet has 0.
    """
    streaming = connection.execution_options(yield_per=ROWS_IN_MEMORY)
    if projection.derived == "order.state":
        for store, id_, text, revision in streaming.execute(_orders(projection, generation)):
            key = StateKey(store, id_)
            yield key, order_record(key, _decode_order(text), generation, revision)
        return
    state = tables.projection_state
    mine = and_(state.c.projection == projection.name, state.c.generation == generation)
    counted = connection.execute(select(state.c.store, state.c.id, state.c.revision).where(mine))
    revisions = {StateKey(store, id_): revision for store, id_, revision in counted}
    for key, its_changes in _by_product(streaming.execute(_changes(generation))):
        yield key, product_record(key, its_changes, generation, revisions.get(key, 0))


def _orders(projection: Projection, generation: int) -> Select[Any]:
    table = tables.projection_state
    mine = and_(table.c.projection == projection.name, table.c.generation == generation)
    columns = select(table.c.store, table.c.id, table.c.state, table.c.revision)
    return columns.where(mine, table.c.state != tables.NONE_YET).order_by(table.c.store, table.c.id)


def _changes(generation: int) -> Select[Any]:
    table = tables.product_change
    return select(table).where(table.c.generation == generation).order_by(table.c.store, table.c.kinguin_id)


def _by_product(rows: Iterable[Any]) -> Iterator[tuple[StateKey, Iterable[Change]]]:
    for (store, kinguin_id), its_rows in groupby(rows, key=lambda row: (row.store, row.kinguin_id)):
        yield StateKey(store, str(kinguin_id)), map(product_changes.change, its_rows)
