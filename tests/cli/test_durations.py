"""Durations as people write them."""

import pytest

from kinguin_streams.cli.durations import parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("30s", 30.0),
        ("2m", 120.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("2d", 172_800.0),
        ("36500d", 3_153_600_000.0),
        ("0", 0.0),
        ("0.5", 0.5),
        (" 30s\n", 30.0),
    ],
)
def test_a_number_and_a_unit_are_a_duration(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["36501d", "999999999999d", "9" * 400 + "ms"])
def test_more_than_a_hundred_years_is_refused_as_a_clock_cannot_hold_it(text: str) -> None:
    with pytest.raises(ValueError, match="is more than 100 years"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "+1", "1 s", "1S", "1m30s", "1w", "1e3", ".5s", "5.s", "inf", "nan", "\u0663s"]
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="30s, 2m or 1h") as refused:
        parse_duration_s(text)
    assert repr(text) in str(refused.value)
