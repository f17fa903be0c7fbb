"""The fleet itself: what is left to read when a consumer does not stop."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.consumers import fleet
from tests.consumers.fleet import Fleet

HANGS = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("it hangs", flush=True)

def hang_in_the_stop():
    while True:
        time.sleep(60)

hang_in_the_stop()
"""


def test_a_member_that_does_not_stop_leaves_its_stack_in_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(environment: dict[str, str], log: Path, _name: str) -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            return subprocess.Popen([sys.executable, "-c", HANGS], env=environment, stdout=output, stderr=output)

    monkeypatch.setattr(fleet, "start", start)
    monkeypatch.setattr(fleet, "STOPS_WITHIN_S", 0.5)
    some = Fleet(os.environ, tmp_path, random.Random(1))
    some.join("order-state")
    [member] = some.members
    while "it hangs" not in member.log.read_text():
        assert member.process.poll() is None
    with pytest.raises(AssertionError, match="hang_in_the_stop"):
        some.end()
    assert member.process.returncode == -signal.SIGABRT
