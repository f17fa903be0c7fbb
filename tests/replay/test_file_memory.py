"""Files of a million records are written and read in the memory of one block."""

import subprocess
import sys
from pathlib import Path

import pytest

from kinguin_streams.replay.rolled_writer import RolledWriter
from tests.replay.file_records import WRITERS

pytestmark = pytest.mark.faults

PROGRAM = """
import resource, sys
from pathlib import Path
from kinguin_streams.replay.record_files import read_records
from tests.replay.file_records import PARTITION, TOPIC, WRITERS, made

records = made(1_000)  # before it is measured, as is every import
kind = next(kind for kind in WRITERS if kind.format == sys.argv[1])
writer = kind(Path(sys.argv[2]), TOPIC, PARTITION, max_bytes=3_000_000)

def write(start, count):
    for begin in range(start, start + count, 1_000):
        writer.write([record._replace(offset=begin + at) for at, record in enumerate(records)])

def peak_kb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

write(0, 50_000)
before = peak_kb()
write(50_000, 950_000)
paths = writer.close()
offset = -1
for path in paths:
    for record in read_records(path):
        assert record.offset == offset + 1
        offset = record.offset
assert offset == 999_999
print(len(paths), peak_kb() - before)
"""


@pytest.mark.parametrize("kind", WRITERS, ids=lambda kind: str(kind.format))
def test_a_million_records_take_no_more_memory_than_fifty_thousand(kind: type[RolledWriter], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind.format, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files, grown_kb = map(int, done.stdout.split())
    assert files > 1
    assert grown_kb < 8_000, f"{grown_kb} kB for 950,000 records more"
