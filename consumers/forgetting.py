"""Deleting a state at somebody's wish."""

from typing import Any

from kinguin_streams.consumers import database, outbox
from kinguin_streams.consumers.generations import held_live
from kinguin_streams.consumers.projection import FoldProjection, StateKey
from kinguin_streams.consumers.settings import StateSettings


def forget_state(settings: StateSettings, projection: FoldProjection[Any, Any], key: StateKey) -> bool:
    """Delete a key's state, and queue that its topic is told, in one transaction. Return whether there was a state.

    Also while consumers run. Raises OperatorError("state_missing") and others of consumers/database.py.
    """
    database.open_for_reading(settings).dispose()  # a database that is not there is not made
    engine = database.open_for_writing(settings)
    try:
        with database.explained(settings), engine.begin() as connection:
            live = held_live(connection, projection)
            return live is not None and outbox.forget(connection, projection.name, live.generation, key)
    finally:
        engine.dispose()
