"""What a projection is: values and pure functions, from which the runtime makes state. Imports no client and no database.

A projection never sees offsets to commit, transactions or retries: it says which events it takes, which key an event
belongs to, and what an event makes of a state. The result should not depend on the order or the number of arrivals:
the sender promises neither, and a partition is read again from the last stored offset after a crash.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, get_args

import msgspec

from kinguin_streams.schemas.codec import Unused
from kinguin_streams.schemas.events import DerivedName, Event, EventName
from kinguin_streams.telemetry.operator_error import OperatorError

E = TypeVar("E", bound=Event)
S = TypeVar("S", bound=msgspec.Struct)


class StateKey(NamedTuple):
    """Whose state it is: the store, and the sender's id of the order or product as text."""

    store: str
    id: str

    @property
    def in_topic(self) -> str:
        """The record key in a derived topic, `<store>:<id>`. A store's name has no colon, so the first one ends it."""
        return f"{self.store}:{self.id}"


class Received(msgspec.Struct, Generic[E], frozen=True, gc=False):
    """One event, and where it lies in Kafka."""

    event: E
    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    """The record's own time: when the ingress received the event."""


ByKey = list[tuple[StateKey, list[Received[Any]]]]
"""Events by the key of their state: the keys in order, each one once, with its events as they came."""


def _all_of_it(state: Any) -> Any:
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldProjection(Generic[E, S]):
    """One state for each key, made by a pure fold.

    name: as in `consume NAME`; also names the consumer group and the rows in the database.
    version: raise it whenever the fold would make another state of the same events; old state is then refused.
    events: the events it takes, each from its own topic.
    state_type: a msgspec Struct; it is stored as JSON.
    key: the key of an event; events of one key must share their record key, so that they share a partition number.
    fold: the state after an event. None stands for no state yet. Returning the very state that was given says that
        nothing has changed, and nothing is written.
    derived: the topic that tells each key's newest state, if there is one; consumers/derived_records.py says how.
    facts: what of a state is the same for any order and copy of the events, for comparing one make of it with another:
        all of it, unless it also keeps where an event was seen.
    unused: fields of the events that neither key nor fold looks at; they are msgspec.UNSET then. A batch takes less memory.
    """

    name: str
    version: int
    events: tuple[EventName, ...]
    state_type: type[S]
    key: Callable[[E], StateKey]
    fold: Callable[[S | None, Received[E]], S]
    derived: DerivedName | None = None
    facts: Callable[[S], Any] = _all_of_it
    unused: tuple[Unused, ...] = ()

    def __post_init__(self) -> None:
        """Raises OperatorError("projection_unused") for a field that cannot be left out."""
        _check_can_be_left_out(self.name, self.unused)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsProjection(Generic[E]):
    """One row for each distinct event; the table's primary key is what makes two deliveries the same event.

    table: a table of consumers/tables.py. Besides its own columns it has `generation`, the provenance (`received_at_ms`,
        `topic`, `partition`, `offset`) and `set_aside`. Of several deliveries of one event the smallest position is
        kept, and it is set aside only if all of them were.
    row: the columns of an event but `generation`. Pure.
    derived: as of FoldProjection. A state's key is the event's store and record key.
    unused: as of FoldProjection, of what `row` does not look at.
    """

    name: str
    version: int
    events: tuple[EventName, ...]
    table: str
    row: Callable[[Received[E]], Mapping[str, Any]]
    derived: DerivedName | None = None
    unused: tuple[Unused, ...] = ()

    def __post_init__(self) -> None:
        """Raises OperatorError("projection_unused") for a field that cannot be left out."""
        _check_can_be_left_out(self.name, self.unused)


def _check_can_be_left_out(name: str, unused: tuple[str, ...]) -> None:
    known = get_args(Unused)
    for field in unused:
        if field not in known:
            raise OperatorError(
                "projection_unused",
                f"{name} says that it does without {field!r}, which cannot be left out.",
                f"unused takes {' and '.join(map(repr, known))}, as in unused=({known[-1]!r},).",
            )


Projection = FoldProjection[Any, Any] | RowsProjection[Any]
