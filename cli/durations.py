"""Durations as people write them on a command line."""

import re

import typer

_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
# A float of any size can be written, and neither a clock nor a calendar holds it.
_LONGEST_S = 36_500 * 86_400.0
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|)")


def parse_duration_s(text: str) -> float:
    """Return the seconds in e.g. "30s", "2m", "1.5h", "250ms" or "30".

    Raises ValueError for anything else, and for more than 100 years.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 30s, 2m or 1h")
    seconds = float(match[1]) * _UNITS_S[match[2]]
    if seconds > _LONGEST_S:
        raise ValueError(f"{text!r} is more than 100 years; a duration is at most 36500d")
    return seconds


def duration_s(text: str, option: str | None = None) -> float:
    """Return the same for a command line. option: whose value it is. Raises typer.BadParameter."""
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
