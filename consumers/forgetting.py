"""Deleting a state at somebody's wish, and heeding the wish when the state is made anew."""

from typing import Any

from sqlalchemy import Connection, select

from kinguin_streams.consumers import database, outbox, tables
from kinguin_streams.consumers.clock import SYSTEM_CLOCK
from kinguin_streams.consumers.generations import held_build, held_live, insert_into
from kinguin_streams.consumers.projection import ByKey, FoldProjection, Received, StateKey
from kinguin_streams.consumers.settings import StateSettings


def forget_state(settings: StateSettings, projection: FoldProjection[Any, Any], key: StateKey) -> bool:
    """Delete a key's state, and queue that its topic is told, in one transaction. Return whether there was a state.

    What was received up to now stays forgotten in every rebuild. Also while consumers and a rebuild run. Raises
    OperatorError("state_missing") and others of consumers/database.py.
    """
    database.open_for_reading(settings).dispose()  # a database that is not there is not made
    engine = database.open_for_writing(settings)
    try:
        with database.explained(settings), engine.begin() as connection:
            live = held_live(connection, projection)
            if live is None or not outbox.forget(connection, projection.name, live.generation, key):
                return False
            _note(connection, projection.name, key, SYSTEM_CLOCK.now_ms())
            # After the note, which `generations.begin` waits for: a build that is not seen here begins by reading it. The
            # writer of one that is seen waits for this transaction, and reads the note then.
            build = held_build(connection, projection)
            if build is not None:
                outbox.empty(connection, projection.name, build.generation, key)
            return True
    finally:
        engine.dispose()


def not_forgotten(connection: Connection, projection: str, by_key: ByKey) -> ByKey:
    """Return a batch without what was received before its key was forgotten.

    By the events' receivedAt: it stays the same in files, copies and other clusters, where offsets and record times do not.
    """
    if not by_key:
        return by_key
    table = tables.projection_forgotten
    oldest_ms = min(received.event.received_at_ms for _, its in by_key for received in its)
    later = select(table.c.store, table.c.id, table.c.forgotten_at_ms).where(
        table.c.projection == projection, table.c.forgotten_at_ms >= oldest_ms
    )
    forgotten = {StateKey(store, id_): at_ms for store, id_, at_ms in connection.execute(later)}
    if not forgotten:
        return by_key
    return [(key, left) for key, its in by_key if (left := _after(forgotten.get(key), its))]


def _after(forgotten_at_ms: int | None, its: list[Received[Any]]) -> list[Received[Any]]:
    if forgotten_at_ms is None:
        return its
    return [received for received in its if received.event.received_at_ms > forgotten_at_ms]


def _note(connection: Connection, projection: str, key: StateKey, at_ms: int) -> None:
    table = tables.projection_forgotten
    row = insert_into(table, connection.dialect.name).values(
        projection=projection, **key._asdict(), forgotten_at_ms=at_ms
    )
    connection.execute(
        row.on_conflict_do_update(index_elements=list(table.primary_key), set_={"forgotten_at_ms": at_ms})
    )
