"""Records for tests of files, drawn and made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from kinguin_streams.replay.container_files import ContainerWriter
from kinguin_streams.replay.json_lines import JsonLinesWriter
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.rolled_writer import RolledWriter

TOPIC = "kinguin.order.status"
PARTITION = 3
WRITERS: tuple[type[RolledWriter], ...] = (ContainerWriter, JsonLinesWriter)

_bytes = st.none() | st.binary(max_size=40) | st.sampled_from([63, 64, 300]).map(bytes)
_names = st.sampled_from(["", "ce_id", "ce_time", "content-type"]) | st.text(max_size=8)
_headers = st.lists(st.tuples(_names, _bytes), max_size=4).map(tuple)
_times = st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(1_500_000_000_000, 1_900_000_000_000)
_gaps = st.integers(1, 3) | st.just(2**40)


@st.composite
def partitions(draw: st.DrawFn) -> list[Record]:
    """Records of one partition: offsets grow, everything else is anything that Kafka takes."""
    drawn = draw(st.lists(st.tuples(_gaps, _times, _bytes, _bytes, _headers), max_size=12))
    records, offset = [], -1
    for gap, timestamp_ms, key, value, headers in drawn:
        offset += gap
        records.append(Record(TOPIC, PARTITION, offset, timestamp_ms, key, value, headers))
    return records


def made(count: int, start: int = 0) -> list[Record]:
    """Records like those of a topic, none equal to another."""
    return [
        Record(
            TOPIC,
            PARTITION,
            offset,
            1_602_847_448_000 + offset,
            None if offset % 7 == 0 else b"PHS%06d" % offset,
            None if offset % 11 == 0 else b"\xc3\x01" + offset.to_bytes(8, "big") * 8,
            (("ce_id", b"%032x" % offset), ("note", None), ("note", b"")),
        )
        for offset in range(start, start + count)
    ]


def write_all(kind: type[RolledWriter], folder: Path, records: Sequence[Record], **options: Any) -> tuple[Path, ...]:
    """Write one partition; return its files."""
    writer = kind(folder, TOPIC, PARTITION, **options)
    writer.write(records)
    return writer.close()
