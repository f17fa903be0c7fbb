"""A broker that is away is said once in a while, not many times a second."""

import logging

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from kinguin_streams.telemetry.repeats import SAME_EVERY_S


def passes(message: str, at_s: float) -> bool:
    record = logging.LogRecord("librdkafka", logging.ERROR, "", 0, message, (), None)
    record.created = at_s
    return bool(CLIENT_LOGGER.filter(record))


def test_the_same_line_is_logged_once_in_a_while_and_another_line_at_once() -> None:
    now_s = 1e9
    assert passes("Connect to b:1 failed (after 0ms in state CONNECT)", now_s)
    assert not passes("Connect to b:1 failed (after 3ms in state CONNECT)", now_s + 0.1)
    assert passes("Connect to b:2 failed (after 0ms in state CONNECT)", now_s + 0.2)
    assert passes("Connect to b:1 failed (after 0ms in state CONNECT)", now_s + SAME_EVERY_S)
