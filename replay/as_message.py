"""A Record with the accessors of a client's message, for what the consumers room offers."""

from typing import Final

from kinguin_streams.replay.record import Record

_NO_TIMESTAMP: Final = 0
_CREATE_TIME: Final = 1


class AsMessage:
    """What consumers.batch.Message asks for."""

    __slots__ = ("_record",)

    def __init__(self, record: Record) -> None:
        self._record = record

    def topic(self) -> str:
        """The topic."""
        return self._record.topic

    def partition(self) -> int:
        """The partition."""
        return self._record.partition

    def offset(self) -> int:
        """The offset."""
        return self._record.offset

    def key(self) -> bytes | None:
        """The key."""
        return self._record.key

    def value(self) -> bytes | None:
        """The value."""
        return self._record.value

    def headers(self) -> list[tuple[str, bytes | None]]:
        """The headers."""
        return list(self._record.headers)

    def timestamp(self) -> tuple[int, int]:
        """Kind and milliseconds."""
        instant_ms = self._record.timestamp_ms
        return (_NO_TIMESTAMP, 0) if instant_ms is None else (_CREATE_TIME, instant_ms)
