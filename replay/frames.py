"""Values that name their schema by a registry's id mean something else where another registry answers. Pure.

A value in the Confluent wire format begins with 0x00 and a 4-byte id. Copied beside another registry, it would be read with
whatever schema has that id there, or not at all.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from kinguin_streams.replay.record import Record
from kinguin_streams.schemas.codec import CONFLUENT_HEADER_BYTES, CONFLUENT_MARKER
from kinguin_streams.telemetry.operator_error import OperatorError

TextOfId = Callable[[int], str | None]
"""A registry's id to its schema as JSON, None if it has none."""


class FrameGuard:
    """Refuses records whose schema's id is another schema, or none, in the registry of the target."""

    def __init__(
        self, at_source: Mapping[int, str], at_target: TextOfId | None, *, takes_unknown: bool = False
    ) -> None:
        """at_source: the ids' schemas where the values were written. at_target: None where no registry is set.

        takes_unknown: let ids pass that at_source says nothing of. In a topic that is not ours, a value that begins with
        0x00 may be anything.
        """
        self._at_source, self._at_target, self._takes_unknown = at_source, at_target, takes_unknown
        self._fine: set[bytes] = set()

    def __call__(self, records: Sequence[Record]) -> None:
        """Raise OperatorError("registry_differs") for the first record that would mean something else in the target.

        Each id is asked for once. A value that begins otherwise, or is too short to hold an id, means the same everywhere.
        """
        for record in records:
            value = record.value
            if value is None or value[:1] != CONFLUENT_MARKER or len(value) < CONFLUENT_HEADER_BYTES:
                continue
            frame = value[:CONFLUENT_HEADER_BYTES]
            if frame not in self._fine:
                self._look_at(int.from_bytes(frame[1:], "big"), record)
                self._fine.add(frame)

    def _look_at(self, schema_id: int, record: Record) -> None:
        source = self._at_source.get(schema_id)
        if source is None and self._takes_unknown:
            return
        if source is None:
            why = "nothing says which schema that was where it was written"
        elif self._at_target is None:
            why = "no registry is set here"
        elif (target := self._at_target(schema_id)) is None:
            why = "the registry here has no such id"
        elif json.loads(target) != json.loads(source):
            why = "the registry here has another schema under it"
        else:
            return
        raise OperatorError(
            "registry_differs",
            f"The record {record.topic}/{record.partition}/{record.offset} names its schema by the id {schema_id}, and {why}.",
            "Set KINGUIN_REGISTRY__URL to the registry that the values were written with, or one that was copied with its ids.",
        )
