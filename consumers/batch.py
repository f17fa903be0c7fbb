"""What is in a batch: events to apply, records to dead-letter, records to wait for. Decides only; does nothing.

A message is anything with the accessors of confluent_kafka.Message.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from kinguin_streams.consumers.projection import Received
from kinguin_streams.schemas.codec import UndecodableRecord, UnknownSchema
from kinguin_streams.schemas.dead_letters import SourcePosition, from_consumer
from kinguin_streams.schemas.events import DeadLetter, DeadLetterTrail, Derived, Event, Record, RecordName
from kinguin_streams.schemas.instants import MAX_MS, MIN_MS

MAX_DETAIL_CHARACTERS = 1_000
# A dead letter may be as large as the record it is about, plus what is said about it; these would push it over.
MAX_KEPT_HEADERS_BYTES = 16_384
MAX_KEPT_KEY_BYTES = 16_384
_NO_TIMESTAMP = 0
_NoEvent = DeadLetter | DeadLetterTrail | Derived


class Message(Protocol):
    """A record as the client hands it over."""

    def topic(self) -> Any: ...
    def partition(self) -> Any: ...
    def offset(self) -> Any: ...
    def key(self) -> Any: ...
    def value(self) -> Any: ...
    def headers(self) -> Any: ...
    def timestamp(self) -> Any: ...


class TopicPart(NamedTuple):
    """A partition by name."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Held:
    """Records of one partition that must wait: the schema of the first one is not known here yet."""

    messages: list[Message]
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages, sorted out. next_offsets: for each partition, the offset after the last message that needs no waiting."""

    received: list[Received[Event]] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    next_offsets: dict[TopicPart, int] = field(default_factory=dict)
    held: dict[TopicPart, Held] = field(default_factory=dict)

    def without(self, parts: Collection[TopicPart]) -> "Batch":
        """Return what is of other partitions."""
        return Batch(
            [each for each in self.received if (each.topic, each.partition) not in parts],
            [each for each in self.dead_letters if (each.source_topic, each.source_partition) not in parts],
            {part: next_offset for part, next_offset in self.next_offsets.items() if part not in parts},
            {part: held for part, held in self.held.items() if part not in parts},
        )


def sort_out(
    messages: Iterable[Message],
    batch: Batch | None = None,
    *,
    decode: Callable[[bytes | None], Record],
    expected: Mapping[str, RecordName],
    consumer: str,
    now_ms: int,
) -> Batch:
    """Return the messages sorted out, each partition in its order.

    batch: of the messages before these, which is added to. decode: Decoder.decode. expected: topic to what it holds. consumer, now_ms: for dead letters.
    Raises RegistryNeeded as decode does.
    """
    batch = Batch() if batch is None else batch
    received, next_offsets, held = batch.received, batch.next_offsets, batch.held
    parts: dict[tuple[str, int], TopicPart] = {}
    for message in messages:
        place = (message.topic(), message.partition())
        part = parts.get(place)
        if part is None:
            part = parts[place] = TopicPart(*place)
        if held and (waiting := held.get(part)) is not None:
            waiting.messages.append(message)
            continue
        offset = message.offset()
        try:
            record = decode(message.value())
        except UnknownSchema as error:
            held[part] = Held([message], str(error))
            continue
        except UndecodableRecord as error:
            batch.dead_letters.append(dead_letter(message, consumer, error.code, error.detail, now_ms))
        else:
            fault = _fault(record, expected[part.topic])
            if fault is None:
                received.append(Received(record, part.topic, part.partition, offset, _timestamp_ms(message)))  # type: ignore[arg-type]
            else:
                batch.dead_letters.append(dead_letter(message, consumer, *fault, now_ms))
        next_offsets[part] = offset + 1
    return batch


def _fault(record: Record, expected: RecordName) -> tuple[str, str] | None:
    """Return code and detail of what makes a readable record useless in its topic, or None."""
    if record.record_name != expected or isinstance(record, _NoEvent):
        return "unexpected_record", f"a {record.record_name} in a topic of {expected}"
    if not MIN_MS <= record.updated_at_ms <= MAX_MS:
        return "updated_at_out_of_range", f"updatedAt {record.updated_at_ms} ms is not within the years 1 to 9999"
    return None


def dead_letter(message: Message, consumer: str, code: str, detail: str, now_ms: int) -> DeadLetter:
    """Return the dead letter of a message, small enough for its topic."""
    key = message.key()
    return from_consumer(
        consumer=consumer,
        reason=code,
        detail=detail[:MAX_DETAIL_CHARACTERS],
        value=message.value(),
        headers=_kept_headers(message.headers() or ()),
        source=SourcePosition(
            topic=message.topic(),
            partition=message.partition(),
            offset=message.offset(),
            key=None if key is None else key[:MAX_KEPT_KEY_BYTES],
            timestamp_ms=_timestamp_ms(message),
        ),
        failed_at_ms=now_ms,
    )


def _kept_headers(headers: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    kept: list[tuple[str, bytes | None]] = []
    size = 0
    for name, value in headers:
        size += len(name.encode()) + len(value or b"")
        if size > MAX_KEPT_HEADERS_BYTES:
            break
        kept.append((name, value))
    return kept


def _timestamp_ms(message: Message) -> int | None:
    kind, instant_ms = message.timestamp()
    return None if kind == _NO_TIMESTAMP else instant_ms
