"""The OpenAPI document against the ingress, by a program that nobody here wrote: schemathesis."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import KafkaCluster
from tests.ingress.running_ingress import SECRET, SERVERS, assert_balanced, running_ingress

SCHEMATHESIS = "schemathesis==4.32.5"
EXAMPLES = 500
"""For each path and method."""
TIMEOUT_S = 400  # on two cores it takes one minute
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
# What breaks a rule on purpose must be refused: with `reject` it is answered 422. By default it is kept and answered 202, as
# documented, and so is a delivery that does not name its event; the two checks that take a 2xx for a fault there are left out.
WAYS = [
    pytest.param("reject", (), id="reject"),
    pytest.param(
        "accept", ("--exclude-checks", "negative_data_rejection,missing_required_header"), id="accept, the default"
    ),
]

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(2 * TIMEOUT_S)]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("on_invalid", "options"), WAYS)
def test_row_42_schemathesis_finds_no_difference_between_document_and_behaviour(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, *, server: str, on_invalid: str, options: tuple[str, ...]
) -> None:
    uv = os.environ.get("UV") or shutil.which("uv") or _missing()
    config = tmp_path / "schemathesis.toml"
    config.write_text(f'hooks = "{HOOKS}"\n[auth.openapi.EventSecret]\napi_key = "{SECRET}"\n', "utf-8")
    settings = {"server": server, "on_invalid": on_invalid}
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as ingress:
        document = f"http://127.0.0.1:{ingress.admin_port}/openapi.json"
        for tag, port in (("webhooks", ingress.port), ("operations", ingress.admin_port)):
            command = [
                *(uv, "tool", "run", "--quiet", "--from", SCHEMATHESIS, "schemathesis", "--config-file", str(config)),
                *("run", document, "--url", f"http://127.0.0.1:{port}", "--include-tag", tag),
                *("--checks", "all", "--max-examples", str(EXAMPLES), "--continue-on-failure", *options),
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
