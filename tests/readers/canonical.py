"""The canonical form of README.md, of what Python's Avro libraries give."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaRecord:
    """A record as Kafka has it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    headers: Sequence[tuple[str, bytes]]
    value: bytes


def line(record: KafkaRecord, value: dict[str, Any]) -> str:
    """Return a record, and what its value was decoded to, as a line of JSON."""
    return json.dumps(
        {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": record.key.decode(),
            "headers": [[name, content.decode()] for name, content in record.headers],
            "value": _canonical(value),
        }
    )


def _canonical(datum: Any) -> Any:
    match datum:
        case None | bool() | str():
            return datum
        case int():
            return str(datum)
        case datetime():
            milliseconds, rest = divmod(datum - _EPOCH, timedelta(milliseconds=1))
            assert not rest, datum
            return str(milliseconds)
        case Decimal():
            return f"{datum:f}"
        case bytes():
            return base64.b64encode(datum).decode()
        case list():
            return [_canonical(item) for item in datum]
        case dict():
            return {name: _canonical(item) for name, item in datum.items()}
    raise TypeError(type(datum))
