"""Running a reader, and what it printed."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "schemas" / "avro"

Position = tuple[str, int, int]
"""Topic, partition, offset."""


def new_prefix() -> str:
    """Return a first part for topic names that nobody else has."""
    return f"t{uuid.uuid4().hex[:12]}"


def an_hour_ago_ms() -> int:
    """Return an instant within every topic's retention, so that nothing goes while it is read."""
    return (int(time.time()) - 3_600) * 1_000


def python(module: str) -> list[str]:
    """Return the command of a reader in Python."""
    return [sys.executable, "-m", f"tests.readers.{module}"]


def read(command: Sequence[str], topics: Sequence[str]) -> dict[Position, dict[str, Any]]:
    """Run a reader over the topics; return its records in the canonical form."""
    done = subprocess.run(
        [*command, *topics], cwd=ROOT, capture_output=True, check=False, timeout=120, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    # Not splitlines(): U+0085 and U+2028, which some of the texts have, end no line of JSON.
    records = [json.loads(line) for line in done.stdout.removesuffix("\n").split("\n")]
    by_position = {(record["topic"], record["partition"], record["offset"]): record for record in records}
    assert len(by_position) == len(records), "a record was printed twice"
    return by_position
