"""Which records are replayed. Pure: everything is decided on the record's own bytes, decoded only where that is needed."""

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Protocol

from kinguin_streams.replay.plan import Selection
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.schema_unknown import schema_unknown
from kinguin_streams.schemas import events
from kinguin_streams.schemas.attributes import attribute_name
from kinguin_streams.schemas.codec import RegistryNeeded, UndecodableRecord, UnknownSchema
from kinguin_streams.schemas.instants import EPOCH
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped

Times = Mapping[tuple[str, int], tuple[int | None, int | None]]
"""(topic, partition) to the first instant that is in, and the first that is out again; milliseconds, None for no limit."""

_TYPES = (b"net.kinguin.", b"kinguin-streams.")
_STORE_SOURCE = b"urn:kinguin:store:"
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(==|!=|<=|>=|<|>)\s*(.+?)\s*")


class Decode(Protocol):
    """What reads a value: schemas.codec.Decoder.decode."""

    def __call__(self, value: bytes | None, /) -> events.Record:
        """Return the record; raises UndecodableRecord for bytes that nobody can read, UnknownSchema and RegistryNeeded."""
        ...


@dataclass(frozen=True, slots=True)
class Condition:
    """One `--where`: a field of the record as its schema calls it, compared with a value."""

    text: str
    attribute: str
    compare: Callable[[Any, Any], bool]
    literal: Any

    def holds(self, record: events.Record) -> bool:
        """Return whether it does. A record without the field, or with null in it, equals nothing but null."""
        value = getattr(record, self.attribute, None)
        if value is None or self.literal is None:
            return self.compare in (operator.eq, operator.ne) and self.compare(value, self.literal)
        try:
            return bool(self.compare(value, self.literal))
        except TypeError:
            return False


def condition(text: str) -> Condition:
    """Return the condition in e.g. `status == "completed"`, `quantity < 5`, `updatedAt >= "2026-01-01T00:00:00Z"`.

    The value is JSON; a word that is none stands for itself. Raises ValueError for anything else, and for a field that no
    record of ours has.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a condition like status == "completed"')
    field, sign, written = match.groups()
    attributes = _attributes()
    if field not in attributes:
        raise ValueError(f"no record has a field {field}; there are {', '.join(sorted(attributes))}")
    try:
        literal: Any = json.loads(written, parse_float=Decimal)
    except ValueError:
        literal = written.strip("'")
    if isinstance(literal, (dict, list)):
        raise ValueError(f"{text!r}: a field is compared with a text, a number, true, false or null")
    attribute, logical_type = attributes[field]
    if literal is not None:
        if logical_type == "timestamp-millis" and isinstance(literal, str):
            literal = instant_ms(literal)
        elif logical_type == "decimal":
            try:
                literal = Decimal(literal)
            except (InvalidOperation, TypeError, ValueError) as error:
                raise ValueError(f"{text!r}: {field} is compared with a number") from error
    return Condition(text, attribute, _OPERATORS[sign], literal)


def instant_ms(text: str) -> int:
    """Return the milliseconds since 1970 of e.g. 2026-01-31T12:00:00Z; a time without an offset, or a date, is UTC's.

    Raises ValueError.
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no time like 2026-01-31T12:00:00Z") from error
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    since = instant - EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


@cache
def _attributes() -> dict[str, tuple[str, str | None]]:
    """Return the fields of all records, as the schemas call them: what they are called in Python, and their logical type."""
    found: dict[str, tuple[str, str | None]] = {}
    for name in RECORD_NAMES:
        for schema in shipped().versions(name):
            for field in json.loads(schema.text)["fields"]:
                kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
                logical = next(
                    (kind["logicalType"] for kind in kinds if isinstance(kind, dict) and "logicalType" in kind), None
                )
                found[field["name"]] = (attribute_name(field), logical)
    return found


class Filters:
    """Splits records into those that are replayed and those that are not. Remembers event ids for `distinct`, nothing else."""

    def __init__(self, selection: Selection, times: Times, decode: Decode) -> None:
        """times: of every partition that is read. Raises ValueError as `condition` does."""
        self._times = {key: limits for key, limits in times.items() if limits != (None, None)}
        self._event_time = selection.event_time
        self._decode = decode
        self._events = frozenset(selection.events)
        self._stores = frozenset(selection.stores)
        self._keys = frozenset(key.encode() for key in selection.keys)
        self._headers = tuple((name, value.encode()) for name, value in selection.headers)
        self._conditions = tuple(condition(text) for text in selection.where)
        self._distinct = selection.distinct
        self._seen: dict[bytes, None] = {}
        self.undecodable = 0
        """Records that a filter had to look into and could not: they are left out, and said so."""
        self._passes_all = not any(
            (self._times, self._events, self._stores, self._keys, self._headers, self._conditions, self._distinct)
        )

    @property
    def distinct(self) -> int:
        """How many event ids are remembered at most, 0 for none."""
        return self._distinct

    @property
    def passes_all(self) -> bool:
        """Whether every record is replayed."""
        return self._passes_all

    def split(self, records: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
        """Return the records that are replayed, and the others, each in their order.

        Raises OperatorError("schema_unknown") for a record that has to be looked into, and cannot be read here.
        """
        if self._passes_all:
            return records, ()
        kept: list[Record] = []
        dropped: list[Record] = []
        for record in records:
            (kept if self._passes(record) else dropped).append(record)
        return kept, dropped

    def remember(self, record: Record) -> None:
        """Take the record's event id for seen: it was replayed before this process began. Raises as `split` does."""
        if self._distinct:
            self._is_new(_Look(record, self._decode))

    def _passes(self, record: Record) -> bool:
        if self._keys and record.key not in self._keys:
            return False
        if self._headers and not all(header in record.headers for header in self._headers):
            return False
        look = _Look(record, self._decode)
        try:
            return (
                self._in_time(look)
                and (not self._events or look.event() in self._events)
                and (not self._stores or look.store() in self._stores)
                and (not self._conditions or all(one.holds(look.decoded()) for one in self._conditions))
                and (not self._distinct or self._is_new(look))
            )
        except UndecodableRecord:
            self.undecodable += 1
            return False

    def _in_time(self, look: "_Look") -> bool:
        limits = self._times.get((look.record.topic, look.record.partition))
        if limits is None:
            return True
        since, until = limits
        at_ms = look.event_time_ms() if self._event_time else look.record.timestamp_ms
        if at_ms is None:
            return False
        return (since is None or at_ms >= since) and (until is None or at_ms < until)

    def _is_new(self, look: "_Look") -> bool:
        """Return whether the event was not seen among the last so many. A record that is no event is always new."""
        event_id = look.event_id()
        if event_id is None:
            return True
        if event_id in self._seen:
            return False
        self._seen[event_id] = None
        if len(self._seen) > self._distinct:
            del self._seen[next(iter(self._seen))]
        return True


class _Look:
    """One record, and what was found out about it; its CloudEvents headers say most without decoding the value."""

    __slots__ = ("_decode", "_decoded", "record")

    def __init__(self, record: Record, decode: Decode) -> None:
        self.record = record
        self._decode = decode
        self._decoded: events.Record | None = None

    def decoded(self) -> events.Record:
        if self._decoded is None:
            try:
                self._decoded = self._decode(self.record.value)
            except (UnknownSchema, RegistryNeeded) as error:
                raise schema_unknown(*self.record[:3], error) from error
        return self._decoded

    def _header(self, wanted: str) -> bytes | None:
        for name, value in self.record.headers:
            if name == wanted:
                return value
        return None

    def event(self) -> str:
        kind = self._header("ce_type")
        for prefix in _TYPES:
            if kind is not None and kind.startswith(prefix):
                return kind[len(prefix) :].decode("utf-8", "replace")
        return self.decoded().record_name

    def store(self) -> str | None:
        source = self._header("ce_source")
        if source is not None and source.startswith(_STORE_SOURCE):
            return source[len(_STORE_SOURCE) :].decode("utf-8", "replace")
        return getattr(self.decoded(), "store", None)

    def event_id(self) -> bytes | None:
        """Return the event id in 16 bytes; of what is no event, None."""
        kind, found = self._header("ce_type"), self._header("ce_id")
        if found is None or kind is None or not kind.startswith(_TYPES[0]):
            try:
                text = getattr(self.decoded(), "event_id", None)
            except UndecodableRecord:
                return None
            found = None if text is None else text.encode()
        if found is None:
            return None
        try:
            return bytes.fromhex(found.decode("ascii"))
        except ValueError:
            return found

    def event_time_ms(self) -> int | None:
        time = self._header("ce_time")
        kind = self._header("ce_type")
        if time is not None and kind is not None and kind.startswith(_TYPES[0]):
            try:
                return instant_ms(time.decode("ascii"))
            except ValueError:
                pass
        return getattr(self.decoded(), "updated_at_ms", None)
