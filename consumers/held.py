"""Partitions whose next record cannot take effect yet: what was read of them, and when it is tried again. Does no I/O."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from kinguin_streams.consumers.batch import Message, TopicPart

PauseReason = Literal["database", "kafka", "schema", "retry", "handler"]
"""What a partition waits for: a database or a Kafka that is away, the schema of its next record, the time to try it again, its turn at a
slow handler."""


class _Waiting(NamedTuple):
    messages: list[Message]
    due_s: float
    schema_delay_s: float | None
    """How long the first of them waits for its schema; None: it waits for something else."""


class HeldPartitions:
    """Each is paused in the client: nothing more is read of it, and the others go on."""

    def __init__(self, schema_retry_s: float, schema_retry_max_s: float) -> None:
        self._schema_retry_s = schema_retry_s
        self._schema_retry_max_s = schema_retry_max_s
        self._waiting: dict[TopicPart, _Waiting] = {}

    def __contains__(self, part: object) -> bool:
        return part in self._waiting

    def due(self, now_s: float) -> set[TopicPart]:
        """Return those whose time has come."""
        return {part for part, waiting in self._waiting.items() if waiting.due_s <= now_s}

    def waiting(self, now_s: float) -> dict[PauseReason, int]:
        """Return how many partitions wait for what. Any thread may ask."""
        found: dict[PauseReason, int] = {"database": 0, "kafka": 0, "schema": 0, "retry": 0, "handler": 0}
        for each in self._waiting.copy().values():
            if each.schema_delay_s is not None:
                found["schema"] += 1
            else:
                found["retry" if each.due_s > now_s else "handler"] += 1
        return found

    def next_due_s(self) -> float | None:
        """Return when the next one's time comes, or None if nothing is held."""
        return min((waiting.due_s for waiting in self._waiting.values()), default=None)

    def messages(self, parts: Iterable[TopicPart]) -> list[Message]:
        """Return what was read of these, each partition in its order."""
        return [message for part in parts for message in self._waiting[part].messages]

    def add(self, part: TopicPart, message: Message) -> None:
        """Add a record that was read before the client heard of the pause."""
        self._waiting[part].messages.append(message)

    def hold(self, part: TopicPart, messages: list[Message], due_s: float) -> bool:
        """Hold these until then; return whether the partition is to be paused now."""
        is_new = part not in self._waiting
        self._waiting[part] = _Waiting(messages, due_s, None)
        return is_new

    def hold_for_schema(self, part: TopicPart, messages: list[Message], now_s: float) -> tuple[bool, float]:
        """Hold these, twice as long as the last time; return whether to pause, and for how many seconds they wait."""
        before = self._waiting.get(part)
        delay_s = self._schema_retry_s
        same_record = before is not None and before.messages[0].offset() == messages[0].offset()
        if before is not None and same_record and before.schema_delay_s is not None:
            delay_s = min(before.schema_delay_s * 2, self._schema_retry_max_s)
        self._waiting[part] = _Waiting(messages, now_s + delay_s, delay_s)
        return before is None, delay_s

    def release(self, part: TopicPart) -> None:
        """Hold it no longer; nothing happens if it is not held."""
        self._waiting.pop(part, None)

    def clear(self) -> None:
        """Hold nothing."""
        self._waiting.clear()
