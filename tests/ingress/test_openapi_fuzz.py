"""The OpenAPI document against the ingress, by a program that nobody here wrote: schemathesis."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import KafkaCluster
from tests.ingress.running_ingress import SECRET, assert_balanced, running_ingress

SCHEMATHESIS = "schemathesis==4.32.5"
EXAMPLES = 500
"""For each path and method."""
TIMEOUT_S = 400  # on two cores it takes one minute
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# What breaks a rule on purpose must be refused, so the ingress answers 422; with 202 a fault would pass for a success.
REFUSING = {"on_invalid": "reject"}

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(2 * TIMEOUT_S)]


def test_row_42_schemathesis_finds_no_difference_between_document_and_behaviour(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    uv = os.environ.get("UV") or shutil.which("uv") or _missing()
    config = tmp_path / "schemathesis.toml"
    config.write_text(f'hooks = "{HOOKS}"\n[auth.openapi.EventSecret]\napi_key = "{SECRET}"\n', "utf-8")
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, **REFUSING) as ingress:
        document = f"http://127.0.0.1:{ingress.admin_port}/openapi.json"
        for tag, port in (("webhooks", ingress.port), ("operations", ingress.admin_port)):
            command = [
                *(uv, "tool", "run", "--quiet", "--from", SCHEMATHESIS, "schemathesis", "--config-file", str(config)),
                *("run", document, "--url", f"http://127.0.0.1:{port}", "--include-tag", tag),
                *("--checks", "all", "--max-examples", str(EXAMPLES), "--continue-on-failure"),
            ]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        assert_balanced(ingress.metrics())
        assert "internal_error" not in ingress.log_text()


def _missing() -> NoReturn:
    """A machine without it skips; CI must never pass because it skipped."""
    why = "uv is not installed: there is nothing to run schemathesis with"
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and {why}", pytrace=False)
    pytest.skip(why)
