"""Which schemas values were written with: what a container says of them, so that a stranger can decode them."""

from collections.abc import Iterable, Mapping, Sequence

from kinguin_streams.replay.frames import TextOfId
from kinguin_streams.replay.record import Record
from kinguin_streams.schemas.codec import CONFLUENT_HEADER_BYTES, CONFLUENT_MARKER
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped

_ID = "id:"


class ValueSchemas:
    """Schemas by name: a fingerprint in 16 hex digits, as in bytes 2 to 10 of a single-object value, or `id:7` of a registry.

    What is shipped for a topic is known from the beginning, what a registry has is asked for when it is met.
    """

    def __init__(self, shipped_texts: Mapping[str, str], text_of_id: TextOfId | None = None) -> None:
        self._texts = dict(shipped_texts)
        self._text_of_id = text_of_id
        self._asked: dict[bytes, str | None] = {}

    def texts(self) -> dict[str, str]:
        """Return all that are known."""
        return dict(self._texts)

    def named_by(self, records: Sequence[Record]) -> set[str]:
        """Return the names of the registry's schemas that these values need; those that nobody has are left out."""
        if self._text_of_id is None:
            return set()
        frames = {
            value[:CONFLUENT_HEADER_BYTES]
            for *_, value, _headers in records
            if value is not None and value[:1] == CONFLUENT_MARKER and len(value) >= CONFLUENT_HEADER_BYTES
        }
        return {name for frame in frames if (name := self._name(frame)) is not None}

    def _name(self, frame: bytes) -> str | None:
        if frame not in self._asked:
            schema_id = int.from_bytes(frame[1:], "big")
            text = None if self._text_of_id is None else self._text_of_id(schema_id)
            name = None if text is None else f"{_ID}{schema_id}"
            if name is not None and text is not None:
                self._texts[name] = text
            self._asked[frame] = name
        return self._asked[frame]


def texts_of_ids(said: Iterable[Mapping[str, str]]) -> dict[int, str]:
    """Return the schemas of a registry's ids, from what files say; without those that two files do not agree on."""
    texts: dict[int, str] = {}
    disputed: set[int] = set()
    for schemas in said:
        for name, text in schemas.items():
            if name.startswith(_ID):
                schema_id = int(name.removeprefix(_ID))
                if texts.setdefault(schema_id, text) != text:
                    disputed.add(schema_id)
    return {schema_id: text for schema_id, text in texts.items() if schema_id not in disputed}


def of_topic(topic: str, ours: Topics, text_of_id: TextOfId | None = None) -> ValueSchemas:
    """Return what is shipped for the topic; of a topic that is not ours, such as a copy, all that is shipped."""
    held = [spec.record for spec in ours.specs if spec.name == topic]
    versions = [schema for name in held or RECORD_NAMES for schema in shipped().versions(name)]
    return ValueSchemas({schema.fingerprint.hex(): schema.text for schema in versions}, text_of_id)
