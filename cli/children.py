"""The processes that `up` starts: this same command with another subcommand, each with a log file of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kinguin_streams.cli.lifeline import VARIABLE
from kinguin_streams.telemetry.operator_error import OperatorError

LAST_LINES = 5


@dataclass(frozen=True, slots=True)
class Child:
    """One running subcommand."""

    name: str
    process: "subprocess.Popen[bytes]"
    log_file: Path


def environment_with(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings; where a file was named for one of them, its value stands now."""
    named_by_file = {f"{name}_FILE" for name in settings}
    return {**{name: value for name, value in os.environ.items() if name not in named_by_file}, **settings}


class Children:
    """Starts children, notices a death, stops them in the reverse order. They end when this process does, however it does."""

    def __init__(self, log_dir: Path, environment: Mapping[str, str]) -> None:
        """environment: on top of this process's own."""
        self._log_dir = log_dir
        self._environment = environment_with(environment)
        self._children: list[Child] = []
        self._lifeline, self._held_open = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            self.stop(child.name)
        os.close(self._lifeline)
        os.close(self._held_open)

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start `kinguin-streams <arguments>`. Ctrl-C reaches this process alone, which then stops the children in order."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        log_file = self._log_dir / f"{name}.log"
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kinguin_streams", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._environment, VARIABLE: str(self._lifeline)},
                pass_fds=(self._lifeline,),
                start_new_session=True,
            )
        self._children.append(Child(name, process, log_file))

    def check(self) -> None:
        """Raise OperatorError("child_ended") if one of them has ended by itself."""
        for child in self._children:
            if (code := child.process.poll()) is not None:
                raise OperatorError(
                    "child_ended",
                    f"`{child.name}` has ended with exit code {code}: {_last_lines(child.log_file)}",
                    f"The whole story is in {child.log_file}.",
                )

    def stop(self, name: str, timeout_s: float = 20.0) -> int:
        """Stop one as SIGTERM does and return its exit code; kill it if it does not end in time."""
        child = next(child for child in self._children if child.name == name)
        self._children.remove(child)
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
            deadline_s = time.monotonic() + timeout_s
            while child.process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.02)
            if child.process.poll() is None:
                child.process.kill()
        return child.process.wait()


def _last_lines(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-LAST_LINES:]) or "it wrote nothing"
