"""Consumers as processes of one group each, which come, go and die, with somebody who starts what has ended by itself."""

import json
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.consumers.test_consumer_kill import start

RESTART_AFTER_S = 2.0
"""As a supervisor does: what ends by itself is started again, but not at once."""
STOPS_WITHIN_S = 60.0

# Every process has a log of its own; the last error in it is why it ended by itself.
_REASON = re.compile(r"^error: (.*)$", re.MULTILINE)


@dataclass
class Member:
    """One process."""

    consumer: str
    process: "subprocess.Popen[bytes]"
    log: Path
    asked_to_stop_s: float | None = None

    @property
    def works(self) -> bool:
        """Whether it has been given partitions."""
        return '"partitions_assigned"' in self.log.read_text()

    def last_words(self) -> str:
        """Have it say where each of its threads is, end it, and return the end of its log: the folder may be gone tomorrow."""
        self.process.send_signal(signal.SIGABRT)
        self.process.wait(30)
        return self.log.read_text()[-8_000:]

    @property
    def reason(self) -> str:
        """Why it has ended by itself, in its own words, without what differs from one time to the next."""
        found = _REASON.findall(self.log.read_text())
        return re.sub(r"[0-9]+|t[0-9a-f]{12}\S*", "#", found[-1])[:90] if found else "no reason"


@dataclass
class Fleet:
    """The processes of several consumers. Every act is noted, with its second, for who has to understand a failure."""

    environment: Mapping[str, str]
    folder: Path
    dice: random.Random
    least: int = 2
    most: int = 6
    members: list[Member] = field(default_factory=list)
    acts: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _ended: list[Member] = field(default_factory=list)
    _owed: list[tuple[float, str]] = field(default_factory=list)
    _began_s: float = field(default_factory=time.monotonic)

    def note(self, act: str) -> None:
        self.acts.append(f"{time.monotonic() - self._began_s:.1f} {act}")

    def of(self, consumer: str) -> list[Member]:
        """Return the members that nobody has asked to stop."""
        return [each for each in self.members if each.consumer == consumer and each.asked_to_stop_s is None]

    def join(self, consumer: str, act: str = "join") -> None:
        number = len(self.members) + len(self._ended)
        log = self.folder / f"{consumer}-{number}.log"
        environment = {**self.environment, "PYTHONFAULTHANDLER": "1"}  # so that it can say where it hangs
        self.members.append(Member(consumer, start(environment, log, consumer), log))
        self.counts[act] += 1
        self.note(f"{act} {log.stem}")

    def leave(self, consumer: str) -> None:
        member = self.dice.choice(self.of(consumer))
        member.process.send_signal(signal.SIGTERM)
        member.asked_to_stop_s = time.monotonic()
        self.counts["leave"] += 1
        self.note(f"leave {member.log.stem}")

    def come_or_go(self, consumer: str) -> None:
        """One member more or one fewer, within the limits."""
        number = len(self.of(consumer))
        comes = number < self.most and (number <= self.least or self.dice.random() < 0.5)
        (self.join if comes else self.leave)(consumer)

    def kill(self, consumer: str) -> None:
        """kill -9 one of them, whatever it is doing, one that has work if there is one; another one is started."""
        members = self.of(consumer)
        member = self.dice.choice([each for each in members if each.works] or members)
        self.members.remove(member)
        self.counts["kill -9 at work" if member.works else "kill -9 at its start"] += 1
        member.process.kill()
        member.process.wait(30)
        self._ended.append(member)
        self.note(f"kill -9 {member.log.stem}")
        self.join(consumer)

    def tend(self) -> None:
        """Look who has ended, and start again who did so by itself."""
        now_s = time.monotonic()
        for member in list(self.members):
            exit_code = member.process.poll()
            if exit_code is None:
                stops_late = member.asked_to_stop_s is not None and now_s > member.asked_to_stop_s + STOPS_WITHIN_S
                assert not stops_late, f"{member.log} does not stop; {self}\n{member.last_words()}"
                continue
            self.members.remove(member)
            self._ended.append(member)
            if member.asked_to_stop_s is None or exit_code not in (0, -signal.SIGTERM):
                self.counts[f"exit {exit_code}: {member.reason}"] += 1
                self.note(f"{member.log.stem} ends, {exit_code}: {member.reason}")
            if member.asked_to_stop_s is None:
                self._owed.append((now_s + RESTART_AFTER_S, member.consumer))
        due = [each for each in self._owed if each[0] <= now_s]
        for each in due:
            self._owed.remove(each)
            self.join(each[1], "start again")

    def settle(self, consumer: str, size: int) -> None:
        """Let so many be left, all running."""
        self._owed = [each for each in self._owed if each[1] != consumer]
        while len(self.of(consumer)) < size:
            self.join(consumer)
        while len(self.of(consumer)) > size:
            self.leave(consumer)

    def end(self) -> None:
        """Stop all of them, gracefully, and wait for that."""
        for member in self.members:
            if member.asked_to_stop_s is None:
                member.process.send_signal(signal.SIGTERM)
                member.asked_to_stop_s = time.monotonic()
        while self.members:
            self.tend()
            time.sleep(0.1)

    def kill_all(self) -> None:
        """Whatever happened: no process stays."""
        for member in self.members:
            member.process.kill()
            member.process.wait(30)

    def tracebacks(self) -> list[str]:
        """Return the logs with an error that nobody has foreseen."""
        return [str(member.log) for member in (*self._ended, *self.members) if "Traceback" in member.log.read_text()]

    def __str__(self) -> str:
        return json.dumps({"counts": self.counts, "acts": self.acts})
