"""An import's pace is that of what it sends, whatever sizes its lines have. On a clock of its own, and no Kafka."""

import json
from pathlib import Path

import pytest

from kinguin_streams.cluster.publisher import Report
from kinguin_streams.replay.checksum import tally, without_replay
from kinguin_streams.replay.import_history import plan, run, survey
from kinguin_streams.replay.plan import PaceLimit
from kinguin_streams.replay.receipt import Receipt
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Landed, NothingLanded, Watch
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import topics

LINES = 1_000
LARGE_EVERY = 10
LARGE_BYTES = 20_000


class Clock:
    """It goes on only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Taken:
    """A Sender that takes every record at once."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def send(self, record: OutgoingRecord) -> Report:
        self.records.append(Record(record.topic, 0, 0, 0, record.key, record.value, record.headers))
        report = Report()
        report.settle(None)
        return report


class NothingThere:
    """A Written over topics that are empty."""

    def open(self, _mark: object) -> Landed:
        return NothingLanded()

    def sync(self) -> dict[str, object]:
        return {}


def imported(folder: Path, lines: list[str], limit: PaceLimit) -> tuple[list[Record], float]:
    """Return what was sent, and the seconds that it took."""
    file = folder / "webhooks.jsonl"
    file.write_text("".join(line + "\n" for line in lines))
    clock, taken = Clock(), Taken()
    made = plan("r", file, survey(file, 0, Watch()), limit, 0, skip_faults=True)
    receipt = Receipt.create(folder / "receipts", made)
    try:
        run(
            made,
            receipt,
            sender=taken,
            written=NothingThere(),
            topics=topics(),
            encoder=Encoder(),
            watch=Watch(clock=clock, sleep=clock.sleep),
        )
    finally:
        receipt.close()
    return taken.records, clock.now_s


def webhook(number: int, size_bytes: int) -> str:
    """Return a line whose body, which becomes a dead letter, has so many bytes."""
    return json.dumps({"store": "default", "event": "order.status", "body": f"{number:06}".ljust(size_bytes, "x")})


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([LARGE_BYTES] + [10] * (LARGE_EVERY - 1), id="the last line of each chunk is small"),
        pytest.param([10] * (LARGE_EVERY - 1) + [LARGE_BYTES], id="the last line of each chunk is large"),
    ],
)
def test_bytes_a_second_are_those_of_all_records_that_were_sent(tmp_path: Path, sizes: list[int]) -> None:
    lines = [webhook(number, sizes[number % LARGE_EVERY]) for number in range(LINES)]
    sent, took_s = imported(tmp_path, lines, PaceLimit(max_bytes_per_s=100_000))
    assert len(sent) == LINES
    assert took_s == pytest.approx(tally(map(without_replay, sent)).bytes / 100_000, rel=0.01)


def test_lines_that_become_no_record_cost_no_time(tmp_path: Path) -> None:
    lines = [line for number in range(100) for line in (webhook(number, 10), "", "no line of ours")]
    sent, took_s = imported(tmp_path, lines, PaceLimit(max_records_per_s=10))
    assert len(sent) == 100
    assert took_s == pytest.approx(100 / 10, rel=0.02)
