"""A file that was cut or changed is refused where it is, and everything before that is read."""

import io
import random
from pathlib import Path

import pytest

from kinguin_streams.replay.container_files import ContainerWriter, read_header, write_header
from kinguin_streams.replay.file_damage import DamagedFile
from kinguin_streams.replay.file_names import FileName
from kinguin_streams.replay.json_lines import JsonLinesWriter, next_offset
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.record_files import read_records
from kinguin_streams.replay.rolled_writer import RolledWriter
from kinguin_streams.telemetry.operator_error import OperatorError
from tests.replay.file_records import PARTITION, TOPIC, made

BLOCKS = 4
RECORDS_IN_BLOCK = 4
RECORDS = made(BLOCKS * RECORDS_IN_BLOCK)


def write_blocks(kind: type[RolledWriter], folder: Path) -> tuple[Path, list[int]]:
    """Return a file, and where each of its blocks ends."""
    writer, ends = kind(folder, TOPIC, PARTITION), []
    for begin in range(0, len(RECORDS), RECORDS_IN_BLOCK):
        writer.write(RECORDS[begin : begin + RECORDS_IN_BLOCK])
        ends.append(writer.sync().size_bytes)
    (path,) = writer.close()
    return path, ends


def read_until_damage(path: Path) -> tuple[list[Record], DamagedFile | None]:
    records = []
    try:
        for record in read_records(path):
            records.append(record)  # noqa: PERF402 - what was yielded before the error is the point
    except DamagedFile as damage:
        return records, damage
    return records, None


def test_a_container_cut_anywhere_in_its_last_block_yields_all_blocks_before_it(tmp_path: Path) -> None:
    path, ends = write_blocks(ContainerWriter, tmp_path)
    whole = path.read_bytes()
    assert len(whole) == ends[-1]
    good = RECORDS[:-RECORDS_IN_BLOCK]
    for size in range(ends[-2], ends[-1]):
        path.write_bytes(whole[:size])
        records, damage = read_until_damage(path)
        assert records == good, size
        assert damage is not None, size
        assert (damage.path, damage.block_number, damage.position) == (path, BLOCKS, ends[-2])
        assert damage.good_records == len(good)


def test_a_container_cut_at_a_blocks_end_does_not_pass_for_a_shorter_one(tmp_path: Path) -> None:
    path, ends = write_blocks(ContainerWriter, tmp_path)
    path.write_bytes(path.read_bytes()[: ends[1]])
    records, damage = read_until_damage(path)
    assert records == RECORDS[: 2 * RECORDS_IN_BLOCK]
    assert damage is not None
    assert "it was complete with 16 records" in damage.what


def test_a_flipped_bit_in_a_block_is_refused_at_that_block_or_changes_no_record(tmp_path: Path) -> None:
    path, ends = write_blocks(ContainerWriter, tmp_path)
    whole = path.read_bytes()
    unseen = 0
    for position in range(ends[0], ends[1]):
        for bit in (0, position % 7 + 1):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            records, damage = read_until_damage(path)
            if damage is None:
                assert records == RECORDS, (position, bit)
                unseen += 1
            else:
                assert (damage.block_number, damage.position) == (2, ends[0]), (position, bit)
                assert records == RECORDS[:RECORDS_IN_BLOCK]
    assert unseen < (ends[1] - ends[0]) / 5  # bits that zstd's decoder does not look at


def test_a_flipped_bit_in_the_header_is_refused_or_changes_no_record(tmp_path: Path) -> None:
    path, _ends = write_blocks(ContainerWriter, tmp_path)
    whole = path.read_bytes()
    with path.open("rb") as file:
        size = read_header(path, file, len(whole)).size_bytes
    chance = random.Random(7)
    refused = 0
    for position in range(size):
        changed = bytearray(whole)
        changed[position] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            assert list(read_records(path)) == RECORDS, position
        except OperatorError as error:
            assert error.code in ("file_damaged", "file_not_ours"), position  # noqa: PT017
            refused += 1
    assert refused > size / 10  # the rest is documentation


def test_lines_cut_in_the_last_one_yield_all_before_it(tmp_path: Path) -> None:
    path, _ends = write_blocks(JsonLinesWriter, tmp_path)
    whole = path.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for size in range(begin + 1, len(whole)):
        path.write_bytes(whole[:size])
        records, damage = read_until_damage(path)
        assert records == RECORDS[:-1]
        assert damage is not None
        assert (damage.block_number, damage.position, damage.good_records) == (len(RECORDS), begin, len(RECORDS) - 1)
        assert next_offset(path, 0) == RECORDS[-1].offset + 1  # the cut line was a record


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_was_damaged_at_the_end_reaches_to_the_next_file_or_is_a_record_a_line(count: int, tmp_path: Path) -> None:
    path, _ends = write_blocks(JsonLinesWriter, tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[: len(lines) - count], *[b"x" + line for line in lines[len(lines) - count :]]]))
    end = len(RECORDS)
    assert next_offset(path, 0) == next_offset(path, 0, end) == end
    path.write_bytes(path.read_bytes() + b"no line of ours\n")
    assert next_offset(path, 0, end) == end  # one line that was changed may look like two
    assert next_offset(path, 0, end + 5) == end + 5
    assert next_offset(path, 0) == end + 1
    path.write_bytes(b"nothing\nof ours")
    assert next_offset(path, 7) == 9
    path.write_bytes(b"")
    assert next_offset(path, 7) == 7


def test_a_flipped_bit_in_a_line_is_refused_or_changes_no_record(tmp_path: Path) -> None:
    path, _ends = write_blocks(JsonLinesWriter, tmp_path)
    whole = path.read_bytes()
    begin = whole.index(b"\n") + 1
    end = whole.index(b"\n", begin) + 1
    unseen = 0
    for position in range(begin, end):
        for bit in (0, position % 7 + 1):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            records, damage = read_until_damage(path)
            if damage is None:
                assert records == RECORDS
                unseen += 1
            else:
                assert (damage.block_number, damage.position, records) == (2, begin, RECORDS[:1])
    assert unseen < 2 * 40  # the text of its time says nothing new: it may be changed


def test_what_is_no_container_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / FileName(TOPIC, PARTITION, 0, "avro").text
    for content, code in (
        (b"", "file_damaged"),
        (b"Obj", "file_damaged"),
        (b"PK\x03\x04 something else altogether", "file_not_ours"),
        (write_header({"avro.schema": b'"string"', "avro.codec": b"zstandard"}, bytes(16)), "file_not_ours"),
        (write_header({"avro.codec": b"null"}, bytes(16)), "file_not_ours"),
    ):
        path.write_bytes(content)
        with pytest.raises(OperatorError) as found:
            list(read_records(path))
        assert found.value.code == code, content


def test_a_length_of_a_terabyte_is_no_reason_to_ask_for_its_memory(tmp_path: Path) -> None:
    path, ends = write_blocks(ContainerWriter, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: ends[0]] + b"\x08\x80\x80\x80\x80\x80\x80\x02" + whole[ends[0] + 3 :])
    records, damage = read_until_damage(path)
    assert records == RECORDS[:RECORDS_IN_BLOCK]
    assert damage is not None
    assert "the file ends" in damage.what


def test_a_header_of_nonsense_lengths_is_read_from_its_own_bytes_only() -> None:
    with pytest.raises(OperatorError):
        read_header(Path("nothing"), io.BytesIO(b"Obj\x01" + b"\xff" * 40), 44)
