"""Files of records hold what was written, to the byte, and survive whoever writes them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinguin_streams.replay.container_files import ContainerWriter
from kinguin_streams.replay.file_names import FileName, parse
from kinguin_streams.replay.json_lines import JsonLinesWriter
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.record_coding import SCHEMA, RecordEncoder, decode
from kinguin_streams.replay.record_files import read_records
from kinguin_streams.replay.rolled_writer import FileMark, RolledWriter
from kinguin_streams.schemas.binary import coding
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.replay.file_records import PARTITION, TOPIC, WRITERS, made, partitions, write_all

both_formats = pytest.mark.parametrize("kind", WRITERS, ids=lambda kind: str(kind.format))


def read_all(*paths: Path) -> list[Record]:
    return [record for path in paths for record in read_records(path)]


@both_formats
@settings(deadline=None, max_examples=50)
@given(records=partitions())
def test_what_is_read_is_what_was_written_to_the_byte(kind: type[RolledWriter], records: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert read_all(*write_all(kind, Path(folder), records)) == records


@settings(deadline=None, max_examples=50)
@given(records=partitions())
def test_the_fast_encoding_is_the_one_of_the_schema(records: list[Record]) -> None:
    assert RecordEncoder(TOPIC, PARTITION).encode(records) == b"".join(map(coding(SCHEMA).write, records))


@settings(deadline=None, max_examples=200)
@given(records=partitions(), position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_the_fast_decoding_takes_and_refuses_what_the_schemas_own_does(
    records: list[Record], position: float, byte: int
) -> None:
    data = bytearray(b"".join(map(coding(SCHEMA).write, records)))
    assert decode(bytes(data), len(records)) == records
    if data:
        data[int(position * len(data))] = byte
    found = [outcome(read, bytes(data), len(records)) for read in (decode, decode_by_schema)]
    assert found[0] == found[1]


def decode_by_schema(data: bytes, count: int) -> list[Record]:
    records, at = [], 0
    for _ in range(count):
        values, at = coding(SCHEMA).read(data, at)
        records.append(Record(*values))
    if at != len(data):
        raise ValueError
    return records


def outcome(read: Callable[[bytes, int], list[Record]], data: bytes, count: int) -> list[Record] | None:
    """Return the records, None if they are refused."""
    try:
        return read(data, count)
    except (ValueError, IndexError):
        return None


@both_formats
@pytest.mark.parametrize("size", [0, 63, 64, 8_191, 8_192, 1_048_576, 3_000_000])
def test_values_of_every_length_come_back(kind: type[RolledWriter], size: int, tmp_path: Path) -> None:
    value = bytes(range(256)) * (size // 256) + bytes(size % 256)
    records = [Record(TOPIC, PARTITION, 0, 0, value, value, (("note", value),) * (70 if size < 10_000 else 1))]
    assert read_all(*write_all(kind, tmp_path, records)) == records


@both_formats
@settings(deadline=None, max_examples=50)
@given(records=partitions(), lengths=st.lists(st.integers(0, 5), max_size=5))
def test_however_often_it_is_synced_the_files_hold_the_same(
    kind: type[RolledWriter], records: list[Record], lengths: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer, rest = kind(Path(folder), TOPIC, PARTITION), records
        for length in lengths:
            writer.write(rest[:length])
            rest = rest[length:]
            writer.sync()
        writer.write(rest)
        assert read_all(*writer.close()) == records


@both_formats
def test_a_full_file_is_followed_by_another(kind: type[RolledWriter], tmp_path: Path) -> None:
    records = made(12_000)
    paths = write_all(kind, tmp_path, records, max_bytes=40_000)
    assert len(paths) > 3
    assert all(40_000 <= path.stat().st_size < 300_000 for path in paths[:-1])
    assert [path.name for path in paths] == sorted(path.name for path in tmp_path.iterdir())
    assert read_all(*paths) == records
    for path in paths:
        assert parse(path.name) == FileName(TOPIC, PARTITION, next(read_records(path)).offset, kind.format)


@both_formats
def test_a_file_has_its_name_only_when_it_is_complete(kind: type[RolledWriter], tmp_path: Path) -> None:
    writer = kind(tmp_path, TOPIC, PARTITION)
    writer.write(made(10))
    writer.sync()
    (part,) = tmp_path.iterdir()
    assert part.name == f"{TOPIC}.{PARTITION}.{0:020}.{kind.format}.part"
    with pytest.raises(OperatorError, match="not done"):
        read_records(part)
    (complete,) = writer.close()
    assert list(tmp_path.iterdir()) == [complete]
    assert complete.name == f"{TOPIC}.{PARTITION}.{0:020}.{kind.format}"
    assert writer.close() == (complete,)


@both_formats
def test_no_file_is_made_of_no_records(kind: type[RolledWriter], tmp_path: Path) -> None:
    writer = kind(tmp_path, TOPIC, PARTITION)
    writer.write([])
    assert writer.sync() == FileMark("", 0, 0, 0)
    assert writer.close() == ()
    assert list(tmp_path.iterdir()) == []


@both_formats
def test_a_file_that_is_there_is_never_written_over(kind: type[RolledWriter], tmp_path: Path) -> None:
    (path,) = write_all(kind, tmp_path, made(5))
    before = path.read_bytes()
    with pytest.raises(OperatorError) as found:
        write_all(kind, tmp_path, made(5))
    assert found.value.code == "file_exists"
    assert path.read_bytes() == before


@both_formats
@pytest.mark.parametrize("after", [0, 1, 150, 1_500])
def test_a_writer_that_was_killed_is_gone_on_with_without_a_gap_or_a_second_copy(
    kind: type[RolledWriter], after: int, tmp_path: Path
) -> None:
    records = made(3_000)
    killed = kind(tmp_path, TOPIC, PARTITION)
    killed.write(records[:700])
    mark = killed.sync()
    assert mark.next_offset == mark.records == 700
    killed.write(records[700 : 700 + after])
    killed.abandon()
    with next(tmp_path.iterdir()).open("ab") as part:
        part.write(b"the first bytes of a block that was nev")
    resumed = kind(tmp_path, TOPIC, PARTITION, mark=mark)
    resumed.write(records[mark.next_offset : 1_900])
    again = kind(tmp_path, TOPIC, PARTITION, mark=resumed.sync())
    resumed.abandon()
    again.write(records[1_900:])
    (path,) = again.close()
    assert read_all(path) == records


@both_formats
def test_a_writer_that_was_killed_at_its_end_needs_only_to_be_closed(kind: type[RolledWriter], tmp_path: Path) -> None:
    killed = kind(tmp_path, TOPIC, PARTITION)
    killed.write(made(50))
    mark = killed.sync()
    killed.abandon()
    resumed = kind(tmp_path, TOPIC, PARTITION, mark=mark)
    assert resumed.sync() == mark
    (path,) = resumed.close()
    assert read_all(path) == made(50)
    assert kind(tmp_path, TOPIC, PARTITION, mark=mark).close() == ()


@both_formats
def test_a_file_completed_after_the_mark_is_a_part_again(kind: type[RolledWriter], tmp_path: Path) -> None:
    killed = kind(tmp_path, TOPIC, PARTITION)
    killed.write(made(50))
    mark = killed.sync()
    killed.write(made(50, start=50))
    killed.close()
    resumed = kind(tmp_path, TOPIC, PARTITION, mark=mark)
    resumed.write(made(100, start=50))
    (path,) = resumed.close()
    assert read_all(path) == made(150)


@both_formats
def test_a_file_that_lost_what_was_durable_is_not_gone_on_with(kind: type[RolledWriter], tmp_path: Path) -> None:
    killed = kind(tmp_path, TOPIC, PARTITION)
    killed.write(made(50))
    mark = killed.sync()
    killed.abandon()
    (part,) = tmp_path.iterdir()
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(OperatorError) as found:
        kind(tmp_path, TOPIC, PARTITION, mark=mark).write(made(1, start=50))
    assert found.value.code == "file_changed"


def test_a_line_written_by_hand_needs_no_checksum_and_no_text_of_its_time(tmp_path: Path) -> None:
    path = tmp_path / FileName("orders", 0, 7, "jsonl").text
    path.write_text(
        '{"topic":"orders","partition":0,"offset":7,"timestamp_ms":null,"key_base64":"QQ==","value_base64":null,"headers":[]}\n'
    )
    assert read_all(path) == [Record("orders", 0, 7, None, b"A", None, ())]


def test_a_line_says_its_time_in_words_where_a_calendar_has_it(tmp_path: Path) -> None:
    first, second = made(2)
    (path,) = write_all(JsonLinesWriter, tmp_path, [first, second._replace(timestamp_ms=2**62)])
    in_words, in_numbers = path.read_text().splitlines()
    assert '"timestamp":"2020-10-16T11:24:08.000Z"' in in_words
    assert f'"timestamp_ms":{2**62},"timestamp":null' in in_numbers


@pytest.mark.parametrize(
    "name",
    ["orders.avro", "orders.0.12.avro", f"orders.0.{1:020}.csv", f"orders.0.{1:020}.avro.part", f"or d.0.{1:020}.avro"],
)
def test_any_other_name_is_no_file_of_ours(name: str) -> None:
    assert parse(name) is None


def test_a_topic_with_dots_and_digits_is_read_from_its_files_name() -> None:
    name = FileName("a.7.b-1", 12, 0, "avro")
    assert parse(name.text) == name


def test_several_partitions_share_a_folder(tmp_path: Path) -> None:
    for partition in range(3):
        writer = ContainerWriter(tmp_path, TOPIC, partition)
        writer.write([record._replace(partition=partition) for record in made(10)])
        writer.close()
    names = [parse(path.name) for path in tmp_path.iterdir()]
    assert sorted(name.partition for name in names if name) == [0, 1, 2]
