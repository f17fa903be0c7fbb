"""What files of records are called: topic, partition and first offset, so that a listing sorts as they are read. Pure."""

import re
from typing import Literal, NamedTuple

PART = ".part"
"""At the end of a name while the file is written. Whatever has no such end is complete."""

Format = Literal["avro", "jsonl"]
FORMATS: tuple[Format, ...] = ("avro", "jsonl")

# A topic's name may have dots: partition, offset and format are found from the end.
_NAME = re.compile(r"([a-zA-Z0-9._-]{1,249})\.([0-9]{1,10})\.([0-9]{20})\.(avro|jsonl)")


class FileName(NamedTuple):
    """A complete file's name, in parts; they compare in the order in which files are read."""

    topic: str
    partition: int
    first_offset: int
    format: Format

    @property
    def text(self) -> str:
        """The name, e.g. `kinguin.order.status.3.00000000000000001200.avro`."""
        return f"{self.topic}.{self.partition}.{self.first_offset:020}.{self.format}"


def parse(text: str) -> FileName | None:
    """Return the parts of a complete file's name; None for any other, `.part` included."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    topic, partition, first_offset, suffix = match.groups()
    return FileName(topic, int(partition), int(first_offset), "avro" if suffix == "avro" else "jsonl")
