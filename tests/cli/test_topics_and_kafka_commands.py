"""`kinguin-streams topics` and `kinguin-streams kafka`, run as commands."""

import json
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.schemas.versions import RECORD_NAMES
from tests.commands import run
from tests.conftest import free_port

pytestmark = pytest.mark.kafka


def test_plan_says_what_apply_would_do_and_changes_nothing_and_after_apply_there_is_nothing_to_do(
    kafka: Any, topic_prefix: str
) -> None:
    environment = {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KINGUIN_TOPICS__PREFIX": topic_prefix,
        "KINGUIN_TOPICS__PARTITIONS": "2",
    }
    for _ in range(2):
        planned = run(environment, "topics", "plan", "--json")
        assert planned.returncode == 1
        assert {step["topic"]: step["action"] for step in json.loads(planned.stdout)["steps"]} == {
            f"{topic_prefix}.{record}": "create" for record in RECORD_NAMES
        }

    assert run(environment, "topics", "apply").returncode == 0
    after = run(environment, "topics", "plan")

    assert (after.returncode, after.stdout) == (0, "")
    assert "as declared" in after.stderr


def test_kafka_that_is_away_is_a_sentence_not_a_traceback() -> None:
    refused = run({"KINGUIN_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}, "topics", "plan")

    assert refused.returncode == 1
    assert "Kafka does not answer" in refused.stderr
    assert "KINGUIN_KAFKA__BOOTSTRAP_SERVERS" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_local_kafka_starts_in_the_background_serves_other_commands_and_stops(tmp_path: Path) -> None:
    environment = {
        "KINGUIN_LOCAL__DATA_DIR": str(tmp_path),
        "KINGUIN_LOCAL__KAFKA_PORT": str(free_port()),
        "KINGUIN_LOCAL__CONTROLLER_PORT": str(free_port()),
    }
    assert run(environment, "kafka", "status").returncode == 1
    try:
        started = run(environment, "kafka", "start", "--json")
        assert started.returncode == 0, started.stderr
        told = json.loads(started.stdout)
        assert told["bootstrap_servers"] == f"127.0.0.1:{environment['KINGUIN_LOCAL__KAFKA_PORT']}"

        again = json.loads(run(environment, "kafka", "start", "--json").stdout)
        status = run(environment, "kafka", "status", "--json")
        assert again["pid"] == told["pid"]
        assert (status.returncode, json.loads(status.stdout)["pid"]) == (0, told["pid"])

        assert run(environment, "topics", "apply").returncode == 0, "no bootstrap servers set: the local one is found"
        unhealthy = run(environment, "doctor", "--json")
        checks = {check["name"]: check["state"] for check in json.loads(unhealthy.stdout)["checks"]}
        assert (checks["kafka"], checks["topics"]) == ("ok", "ok")
    finally:
        stopped = run(environment, "kafka", "stop")
    assert stopped.returncode == 0
    assert run(environment, "kafka", "status").returncode == 1
    assert run(environment, "kafka", "stop").returncode == 0, "stopping what does not run is no error"
