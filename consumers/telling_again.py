"""Telling states again that a derived topic may have wrong: under a revision that no record of the key has had."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, case
from sqlalchemy.dialects import postgresql, sqlite

from kinguin_streams.consumers import database, tables
from kinguin_streams.consumers.generations import held_live
from kinguin_streams.consumers.outbox import OutboxWriter
from kinguin_streams.consumers.projection import Projection, StateKey
from kinguin_streams.consumers.settings import StateSettings


def tell_again(settings: StateSettings, projection: Projection, told: Mapping[StateKey, int]) -> None:
    """Queue keys of the live generation, whether they have a state or not: one without is told as gone.

    told: a revision that the topic may have of each key, 0 if nobody knows one; what is told now has a greater one, and
    comes after all that is in the topic. Also while consumers run. Raises OperatorError as consumers/database.py does.
    """
    database.open_for_reading(settings).dispose()  # a database that is not there is not made
    engine = database.open_for_writing(settings)
    try:
        with database.explained(settings), engine.begin() as connection:
            live = held_live(connection, projection)
            if live is None or not told:
                return
            keys = sorted(told)
            _outnumber(connection, projection.name, live.generation, {key: told[key] for key in keys})
            OutboxWriter(projection.name, live.generation, engine.dialect.name).queue(connection, keys)
    finally:
        engine.dispose()


def _outnumber(connection: Connection, projection: str, generation: int, told: Mapping[StateKey, int]) -> None:
    """Give each key a revision above its own and the told one. The rows stay locked until the transaction ends."""
    table = tables.projection_state
    insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    own, above_told = table.c.revision, insert.excluded.revision
    upsert = insert.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={"revision": case((own < above_told, above_told), else_=own + 1)}
    )
    scope = {"projection": projection, "generation": generation, "state": tables.NONE_YET}
    rows = [{**scope, "store": key.store, "id": key.id, "revision": revision + 1} for key, revision in told.items()]
    connection.execute(upsert, rows)
