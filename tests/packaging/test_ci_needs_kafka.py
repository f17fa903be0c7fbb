"""A run of CI that could not test with Kafka has not passed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS_KAFKA = """
def test_something(kafka):
    assert kafka.bootstrap_servers
"""


@pytest.mark.parametrize(
    ("ci", "verdict"),
    [
        pytest.param("true", "1 error", id="CI fails"),
        pytest.param("", "1 skipped", id="a developer's machine skips"),
    ],
)
def test_without_any_kafka(tmp_path: Path, ci: str, verdict: str) -> None:
    test = tmp_path / "test_needs_kafka.py"
    test.write_text(NEEDS_KAFKA)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KINGUIN_")}
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.conftest", "--kafka=container"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", ROOT, "--config-file", ROOT / "pyproject.toml", test],
        cwd=ROOT,
        env={**environment, "CI": ci, "DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert verdict in done.stdout, done.stdout + done.stderr
    assert (done.returncode != 0) == (ci == "true")
