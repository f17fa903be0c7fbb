"""The command line as a process of its own, with nothing set but what a test sets."""

import os
import subprocess
import sys
from collections.abc import Mapping

COMMAND = [sys.executable, "-m", "kinguin_streams"]


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings and no others of ours."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("KINGUIN_")}, **settings}


def run(settings: Mapping[str, str], *arguments: str, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run a subcommand to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=clean_environment(settings),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
