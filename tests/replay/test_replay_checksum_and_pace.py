"""The proof's arithmetic, and the pace."""

import random

import pytest

from kinguin_streams.replay.checksum import Tally, tally
from kinguin_streams.replay.pace import Pace
from kinguin_streams.replay.plan import PaceLimit
from kinguin_streams.replay.record import Record

BASE = Record("t", 0, 0, 1_000, b"k", b"v", (("a", b"1"), ("b", None)))


def test_tallies_add_up_and_do_not_depend_on_order() -> None:
    records = [BASE._replace(key=str(number).encode()) for number in range(50)]
    shuffled = random.Random(1).sample(records, 50)
    assert tally(records) == tally(shuffled) == tally(shuffled[:20]) + tally(shuffled[20:])
    assert tally(records) != tally(records[1:])
    assert Tally() + tally(records) == tally(records)


def test_where_a_record_lies_is_no_part_of_what_it_is() -> None:
    assert tally([BASE]) == tally([BASE._replace(topic="u", partition=3, offset=9)])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(BASE._replace(timestamp_ms=1_001), id="another time"),
        pytest.param(BASE._replace(timestamp_ms=None), id="no time"),
        pytest.param(BASE._replace(key=None), id="no key"),
        pytest.param(BASE._replace(key=b""), id="an empty key is not none"),
        pytest.param(BASE._replace(value=None), id="a tombstone"),
        pytest.param(BASE._replace(key=b"kv", value=b""), id="the same bytes, cut elsewhere"),
        pytest.param(BASE._replace(headers=(("b", None), ("a", b"1"))), id="headers in another order"),
        pytest.param(BASE._replace(headers=(("a", b"1"), ("b", b""))), id="an empty header is not none"),
        pytest.param(BASE._replace(headers=(("a", b"1"),)), id="a header less"),
    ],
)
def test_every_other_record_has_another_checksum(other: Record) -> None:
    assert tally([other]).checksum != tally([BASE]).checksum


def test_two_of_one_are_not_none() -> None:
    assert tally([BASE, BASE]).checksum != tally([]).checksum


def test_the_checksum_of_a_record_never_changes() -> None:
    """Receipts of other versions are compared with it."""
    assert tally([BASE]).checksum == "9d0296b8cea3d9ff945c56fc1193549c"


def seconds_for(limit: PaceLimit, chunks: int, records: int, size_bytes: int) -> float:
    now_s = 0.0
    pace = Pace(limit, now_s)
    for _ in range(chunks):
        now_s += pace.wait_s(records, size_bytes, now_s)
    return now_s


def test_a_pace_is_kept_over_time_whichever_limit_is_lower() -> None:
    assert seconds_for(PaceLimit(max_records_per_s=100), 100, 10, 1) == pytest.approx(10, rel=0.02)
    assert seconds_for(PaceLimit(max_bytes_per_s=1_000), 100, 1, 100) == pytest.approx(10, rel=0.02)
    assert seconds_for(PaceLimit(max_records_per_s=1_000, max_bytes_per_s=1_000), 100, 1, 100) == pytest.approx(
        10, rel=0.02
    )
    assert seconds_for(PaceLimit(), 100, 10, 1) == 0


def test_a_pause_of_the_source_is_not_made_up_for() -> None:
    pace = Pace(PaceLimit(max_records_per_s=10), 0.0)
    assert pace.wait_s(10, 0, now_s=100.0) == pytest.approx(0.9)


def test_chunks_are_a_tenth_of_a_second_at_most() -> None:
    assert Pace(PaceLimit(max_records_per_s=1_000), 0).chunk_records(5_000) == 100
    assert Pace(PaceLimit(max_records_per_s=0.5), 0).chunk_records(5_000) == 1
    assert Pace(PaceLimit(), 0).chunk_records(5_000) == 5_000
    assert not Pace(PaceLimit(), 0).limited
