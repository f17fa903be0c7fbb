"""The states that the derived topics are to tell, read from the database, as their records."""

from collections.abc import Iterator, Mapping

from sqlalchemy import Connection, and_, select

from kinguin_streams.consumers import tables
from kinguin_streams.consumers.derived_records import order_record, product_record
from kinguin_streams.consumers.live_rows import (
    ROWS_IN_MEMORY,
    by_product,
    changes,
    decode_order,
    of_keys,
    states,
)
from kinguin_streams.consumers.projection import Projection, StateKey
from kinguin_streams.schemas.events import Derived


def states_of(
    connection: Connection, projection: Projection, generation: int, revisions: Mapping[StateKey, int]
) -> dict[StateKey, Derived]:
    """Return the records of these keys, at these revisions; one that was forgotten is not among them."""
    found: dict[StateKey, Derived] = {}
    if projection.derived == "order.state":
        orders = of_keys(connection, states(projection.name, generation), tables.projection_state.c.id, revisions)
        for store, id_, text, _ in orders:
            key = StateKey(store, id_)
            found[key] = order_record(key, decode_order(text), generation, revisions[key])
    else:
        wanted = [(store, int(id_)) for store, id_ in revisions]
        rows = of_keys(connection, changes(generation), tables.product_change.c.kinguin_id, wanted)
        for key, its_changes in by_product(rows):
            found[key] = product_record(key, its_changes, generation, revisions[key])
    return found


def every_state(connection: Connection, projection: Projection, generation: int) -> Iterator[tuple[StateKey, Derived]]:
    """Yield every key with its record, by key; in memory are some rows, and of products all the revisions.

    A product that has no revision yet has 0.
    """
    streaming = connection.execution_options(yield_per=ROWS_IN_MEMORY)
    if projection.derived == "order.state":
        for store, id_, text, revision in streaming.execute(states(projection.name, generation)):
            key = StateKey(store, id_)
            yield key, order_record(key, decode_order(text), generation, revision)
        return
    state = tables.projection_state
    mine = and_(state.c.projection == projection.name, state.c.generation == generation)
    counted = connection.execute(select(state.c.store, state.c.id, state.c.revision).where(mine))
    revisions = {StateKey(store, id_): revision for store, id_, revision in counted}
    for key, its_changes in by_product(streaming.execute(changes(generation))):
        yield key, product_record(key, its_changes, generation, revisions.get(key, 0))
