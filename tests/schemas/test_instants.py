"""Instants for people."""

import pytest

from kinguin_streams.schemas.instants import MAX_MS, MIN_MS, to_rfc3339


@pytest.mark.parametrize(
    ("instant_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_602_847_448_000, "2020-10-16T11:24:08.000Z"),
        (MIN_MS, "0001-01-01T00:00:00.000Z"),
        (MAX_MS, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_an_instant_is_utc_with_milliseconds(instant_ms: int, text: str) -> None:
    assert to_rfc3339(instant_ms) == text


@pytest.mark.parametrize("instant_ms", [MIN_MS - 1, MAX_MS + 1, 2**63])
def test_an_instant_outside_the_calendar_overflows(instant_ms: int) -> None:
    with pytest.raises(OverflowError):
        to_rfc3339(instant_ms)
