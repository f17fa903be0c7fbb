"""Instants as this project writes them: integers in milliseconds since 1970-01-01T00:00:00Z, and RFC 3339 for people."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_IN_UTC = EPOCH.replace(tzinfo=None)
MIN_MS = -62_135_596_800_000
"""0001-01-01T00:00:00.000Z, the first instant that RFC 3339 and Python can both write."""
MAX_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z, the last one."""


def to_rfc3339(instant_ms: int) -> str:
    """Return e.g. "2020-10-16T11:24:08.000Z": UTC, always with three fractional digits, so that text sorts like time.

    instant_ms: MIN_MS to MAX_MS; raises OverflowError outside.
    """
    return (_EPOCH_IN_UTC + timedelta(milliseconds=instant_ms)).isoformat(timespec="milliseconds") + "Z"
