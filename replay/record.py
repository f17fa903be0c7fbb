"""What every replay moves: one record, to the byte."""

from typing import Final, NamedTuple

REPLAY_ID: Final = "replay-id"
REPLAY_SOURCE: Final = "replay-source"
"""Headers that a replay adds: which one it was, and where the record came from."""


class Record(NamedTuple):
    """One record as it lies in Kafka or in a file, to the byte.

    timestamp_ms: milliseconds since 1970, UTC; None where the record has no time.
    value: None is a tombstone. headers: in their order, a name may come twice.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
