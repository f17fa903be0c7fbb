"""From what a person writes to the offsets that are read."""

from itertools import pairwise

import msgspec
import pytest

from kinguin_streams.replay.plan import Window
from kinguin_streams.replay.windows import (
    EARLIEST,
    LATEST,
    Bound,
    Bounds,
    NoSuchPartition,
    PartitionFacts,
    of_span,
    parse_bound,
    parse_bounds,
    refuse_unknown,
    up_to,
    warnings,
    windows,
)

NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        pytest.param("earliest", EARLIEST, id="the beginning"),
        pytest.param("latest", LATEST, id="the end"),
        pytest.param("offset:100", Bound("offset", 100), id="an offset"),
        pytest.param("-7d", Bound("time", NOW_MS - 7 * DAY_MS), id="a week ago"),
        pytest.param("-1.5h", Bound("time", NOW_MS - 5_400_000), id="an hour and a half ago"),
        pytest.param("2026-01-01", Bound("time", NOW_MS), id="a date is UTC's"),
        pytest.param("2026-01-01T01:00:00+01:00", Bound("time", NOW_MS), id="a time with an offset from UTC"),
        pytest.param("2026-01-01T00:00:00.250Z", Bound("time", NOW_MS + 250), id="milliseconds"),
    ],
)
def test_a_bound_is_the_ends_a_time_or_an_offset(text: str, bound: Bound) -> None:
    assert parse_bound(text, NOW_MS) == bound


@pytest.mark.parametrize("text", ["", "yesterday", "7d", "offset:-1", "offset:x", "-7 d", "2026-13-01", "-40000d"])
def test_anything_else_is_refused_with_what_could_be_meant(text: str) -> None:
    with pytest.raises(ValueError, match=r"none of earliest|100 years"):
        parse_bound(text, NOW_MS)


def test_single_partitions_have_bounds_of_their_own() -> None:
    found = parse_bounds(["-7d", "3=100", "4=latest"], NOW_MS, EARLIEST)
    assert found == Bounds(Bound("time", NOW_MS - 7 * DAY_MS), {3: Bound("offset", 100), 4: LATEST})


def test_where_nothing_is_said_of_the_others_they_are_read_whole_and_it_is_known_that_nothing_was_said() -> None:
    found = parse_bounds(["3=100"], NOW_MS, EARLIEST)
    assert (found.of(0), found.only_some) == (EARLIEST, True)
    assert not parse_bounds(["3=100", "earliest"], NOW_MS, EARLIEST).only_some
    assert not parse_bounds([], NOW_MS, EARLIEST).only_some


def test_a_partition_that_no_topic_has_is_refused() -> None:
    bounds = parse_bounds(["2=100"], NOW_MS, EARLIEST), parse_bounds(["5=earliest"], NOW_MS, LATEST)
    refuse_unknown(bounds, [3, 6])  # one topic has it
    with pytest.raises(NoSuchPartition, match=r"no partition 5 .* the last one is 2"):
        refuse_unknown(bounds, [3])


def test_what_is_said_of_a_gap_reads_the_gap_and_nothing_else() -> None:
    said = of_span(1, 1_200, 2_000).split()
    since = parse_bounds((text for name, text in pairwise(said) if name == "--from"), NOW_MS, EARLIEST)
    until = parse_bounds((text for name, text in pairwise(said) if name == "--until"), NOW_MS, LATEST)
    three = [msgspec.structs.replace(facts(0, 5_000), partition=number) for number in range(3)]
    assert [(made.start, made.end) for made in windows(three, since, until) if made.records] == [(1_200, 2_000)]


@pytest.mark.parametrize("texts", [["-7d", "-8d"], ["1=5", "1=6"]])
def test_two_bounds_for_one_partition_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"two bounds|another bound"):
        parse_bounds(texts, NOW_MS, EARLIEST)


def facts(earliest: int = 0, latest: int = 1000, **at: int) -> PartitionFacts:
    return PartitionFacts(
        topic="t", partition=0, earliest=earliest, latest=latest, offset_at={int(k[1:]): v for k, v in at.items()}
    )


def window(since: Bound, until: Bound, known: PartitionFacts, *, event_time: bool = False) -> Window:
    (made,) = windows([known], Bounds(since), Bounds(until), event_time=event_time)
    return made


def span(made: Window) -> tuple[int, int, int]:
    return made.start, made.end, made.gone


@pytest.mark.parametrize(
    ("since", "until", "known", "expected"),
    [
        pytest.param(EARLIEST, LATEST, facts(), (0, 1000, 0), id="all of it"),
        pytest.param(EARLIEST, LATEST, facts(400), (400, 1000, 400), id="all of it, and what was before is gone"),
        pytest.param(Bound("offset", 100), LATEST, facts(400), (400, 1000, 300), id="retention has cut the window"),
        pytest.param(Bound("offset", 500), LATEST, facts(400), (500, 1000, 0), id="what is gone was not wanted"),
        pytest.param(Bound("offset", 5), Bound("offset", 300), facts(400), (400, 400, 295), id="all of it is gone"),
        pytest.param(Bound("offset", 5), Bound("offset", 9), facts(), (5, 9, 0), id="from offset to offset"),
        pytest.param(Bound("offset", 5), Bound("offset", 9_999), facts(), (5, 1000, 0), id="no further than there is"),
        pytest.param(Bound("offset", 2_000), LATEST, facts(), (1000, 1000, 0), id="beyond the end is nothing"),
        pytest.param(LATEST, LATEST, facts(400), (1000, 1000, 0), id="from the end is nothing"),
        pytest.param(Bound("offset", 9), Bound("offset", 5), facts(), (5, 5, 0), id="the wrong way round is nothing"),
        pytest.param(Bound("time", 7), LATEST, facts(400, _7=600), (600, 1000, 0), id="a time within what is there"),
        pytest.param(
            Bound("time", 7), LATEST, facts(400, _7=400), (400, 1000, 400), id="a time before all that retention left"
        ),
        pytest.param(Bound("time", 7), LATEST, facts(0, _7=0), (0, 1000, 0), id="nothing was ever deleted"),
        pytest.param(Bound("time", 7), LATEST, facts(0, _7=1000), (1000, 1000, 0), id="nothing is as new as that"),
        pytest.param(EARLIEST, Bound("time", 7), facts(), (0, 1000, 0), id="a time at the end is only a filter"),
        pytest.param(EARLIEST, EARLIEST, facts(400), (400, 400, 0), id="up to the beginning is nothing"),
    ],
)
def test_a_window_is_what_is_there_of_what_was_asked_for(
    since: Bound, until: Bound, known: PartitionFacts, expected: tuple[int, int, int]
) -> None:
    assert span(window(since, until, known)) == expected


def test_times_stay_in_the_window_as_filters() -> None:
    made = window(Bound("time", 5), Bound("time", 9), facts(_5=10))
    assert (made.from_ms, made.until_ms) == (5, 9)


def test_event_time_says_nothing_of_where_a_record_lies() -> None:
    made = window(Bound("time", 5), Bound("time", 9), facts(), event_time=True)
    assert (span(made), made.from_ms, made.until_ms) == ((0, 1000, 0), 5, 9)


def test_what_lies_before_a_checkpoint_is_within_the_window() -> None:
    made = [window(Bound("offset", 100), LATEST, facts())] * 4
    made = [msgspec.structs.replace(one, partition=number) for number, one in enumerate(made)]
    before = up_to(made, {("t", 0): 300, ("t", 1): 40, ("t", 2): 5_000})
    assert [(one.start, one.end) for one in before] == [(100, 300), (100, 100), (100, 1000), (100, 100)]


def test_what_retention_has_taken_is_said_for_each_partition() -> None:
    made = windows([facts(400), facts()], Bounds(Bound("offset", 100)), Bounds(LATEST))
    (said,) = warnings(made)
    assert "t/0" in said
    assert "300 records, offsets 100 to 399" in said
