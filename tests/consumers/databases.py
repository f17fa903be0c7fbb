"""State databases for the tests of this folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event

from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import Advance, PartitionSource, StateStore

CLUSTER = "the-cluster"
STATUS_TOPIC = "kinguin.order.status"
PRODUCT_TOPIC = "kinguin.product.update"


def state_settings(folder: Path, busy_timeout_s: float = 5.0) -> StateSettings:
    """Return settings of a database in that folder."""
    return StateSettings(url=f"sqlite:///{folder / 'state.db'}", busy_timeout_s=busy_timeout_s)


def source(topic: str, partition: int = 0) -> PartitionSource:
    """Return a partition of the one cluster there is here."""
    return PartitionSource(CLUSTER, f"id-of-{topic}", topic, partition)


def advance(topic: str, expected: int | None, next_offset: int, partition: int = 0) -> Advance:
    """Return the move of an offset."""
    return Advance(source(topic, partition), expected, next_offset)


def next_offsets(store: StateStore, *topics: str) -> dict[tuple[str, int], int]:
    """Return what the store has stored, by topic and partition."""
    stored = store.offsets(CLUSTER, {topic: f"id-of-{topic}" for topic in topics})
    return {(part.topic, part.partition): offset for part, offset in stored.items()}


class Crash(Exception):
    """The process died between the last write and the commit."""


@contextmanager
def crash_before_commit(store: StateStore) -> Iterator[None]:
    """Let the store's next commits fail as if the process had died before them."""

    def die(_connection: Any) -> None:
        raise Crash

    event.listen(store.engine, "commit", die)
    try:
        yield
    finally:
        event.remove(store.engine, "commit", die)


def without_fsync(store: StateStore) -> StateStore:
    """Return the store, quicker: what these tests crash is the process, never the machine."""

    def relax(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(store.engine, "connect", relax)
    store.engine.dispose()
    return store


class Template:
    """A migrated, empty database to copy: making one takes longer than a whole example of a property."""

    def __init__(self, folder: Path, projection: Projection) -> None:
        self._settings = state_settings(folder)
        self._projection = projection
        self._path = folder / "state.db"
        StateStore(self._settings, projection).close()

    def copy(self, folder: Path) -> StateSettings:
        """Return the settings of a new copy."""
        shutil.copy(self._path, folder / "state.db")
        return state_settings(folder)
