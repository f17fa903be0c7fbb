"""Running a reader, and what it printed."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "schemas" / "avro"

Position = tuple[str, int, int]
"""Topic, partition, offset."""


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
