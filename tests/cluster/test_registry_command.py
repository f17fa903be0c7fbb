"""`schemas register`, `doctor` and the ingress's start against a registry, as processes of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinguin_streams.schemas.versions import RECORD_NAMES, shipped
from tests.commands import run
from tests.registries import StandIn, running

VERSIONS = [(record, schema.version) for record in RECORD_NAMES for schema in shipped().versions(record)]


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    with running(stand_in):
        yield stand_in


@pytest.fixture
def environment(server: StandIn, tmp_path: Path) -> dict[str, str]:
    return {
        "KINGUIN_REGISTRY__URL": server.url,
        "KINGUIN_LOCAL__DATA_DIR": str(tmp_path),
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "KINGUIN_INGRESS__SECRETS": '{"default": ["a-secret-of-tests"]}',
    }


def test_a_dry_run_says_what_would_change_and_changes_nothing(server: StandIn, environment: dict[str, str]) -> None:
    planned = run(environment, "schemas", "register", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    answer = json.loads(planned.stdout)
    assert [(row["record"], row["version"], row["action"], row["id"]) for row in answer["versions"]] == [
        (*version, "would register", None) for version in VERSIONS
    ]
    assert {row["action"] for row in answer["levels"]} == {"would set"}
    assert not [path for path in server.asked if not path.startswith("GET ")]


def test_every_version_is_registered_oldest_first_under_its_level_and_a_second_run_changes_nothing(
    server: StandIn, environment: dict[str, str]
) -> None:
    first = run(environment, "schemas", "register", "--json")
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    assert [(row["record"], row["version"], row["action"]) for row in answer["versions"]] == [
        (*version, "registered") for version in VERSIONS
    ]
    assert server.subjects == {
        f"kinguin.{record}-value": [row["id"] for row in answer["versions"] if row["record"] == record]
        for record in RECORD_NAMES
    }
    for record in RECORD_NAMES:
        texts = [server.schemas[number] for number in server.subjects[f"kinguin.{record}-value"]]
        assert texts == [schema.text for schema in shipped().versions(record)]
    assert server.levels == {f"kinguin.{record}-value": "FULL_TRANSITIVE" for record in RECORD_NAMES}

    server.asked.clear()
    second = json.loads(run(environment, "schemas", "register", "--json").stdout)
    assert {row["action"] for row in second["versions"] + second["levels"]} == {"present"}
    assert [row["id"] for row in second["versions"]] == [row["id"] for row in answer["versions"]]
    assert not [path for path in server.asked if not path.startswith("GET ")]


def test_a_registry_that_lets_nobody_set_levels_is_told_about_and_does_not_stop_it(
    server: StandIn, environment: dict[str, str]
) -> None:
    server.refuses_levels = True
    done = run(environment, "schemas", "register")
    assert done.returncode == 0
    assert "stays at level" in done.stderr
    assert len(server.schemas) == len(VERSIONS)


def test_a_version_under_our_subject_that_is_not_ours_is_refused(server: StandIn, environment: dict[str, str]) -> None:
    number = server.register("kinguin.order.status-value", '{"type": "record", "name": "Strange", "fields": []}')
    refused = run(environment, "schemas", "register")
    assert refused.returncode == 1
    assert f"kinguin.order.status-value version 1 (id {number})" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list(server.schemas) == [number]


def test_without_a_registry_or_with_one_that_is_away_it_says_which_setting(
    server: StandIn, environment: dict[str, str]
) -> None:
    server.stop()
    for given in (environment, {}):
        refused = run(given, "schemas", "register")
        assert refused.returncode == 1
        assert "KINGUIN_REGISTRY__URL" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_an_ingress_does_not_start_before_its_schemas_are_registered(environment: dict[str, str]) -> None:
    refused = run(environment, "ingress")
    assert refused.returncode == 1
    assert "kinguin-streams schemas register" in refused.stderr


def test_an_ingress_does_not_start_without_a_registry_and_without_ids(
    server: StandIn, environment: dict[str, str]
) -> None:
    server.stop()
    refused = run(environment, "ingress")
    assert refused.returncode == 1
    assert "KINGUIN_REGISTRY__CACHE_FILE" in refused.stderr
    assert "Traceback" not in refused.stderr


def checks_of(environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    without_kafka = {
        name: value for name, value in environment.items() if "KAFKA" not in name
    }  # it would be waited for
    answer = json.loads(run(without_kafka, "doctor", "--json").stdout)
    return {check["name"]: (check["state"], check["detail"]) for check in answer["checks"]}


def test_doctor_says_what_is_not_registered_and_what_is_all_right(server: StandIn, environment: dict[str, str]) -> None:
    before = checks_of(environment)
    assert before["subject kinguin.order.status-value"][0] == "fail"
    assert "schemas register" in before["subject kinguin.order.status-value"][1]
    assert run(environment, "schemas", "register").returncode == 0
    after = checks_of(environment)
    assert after["registry"][0] == "ok"
    assert not [name for name in after if name.startswith(("subject ", "level "))]
    server.stop()
    assert checks_of(environment)["registry"][0] == "warn"
    del environment["KINGUIN_REGISTRY__URL"]
    assert "registry" not in checks_of(environment)


def test_doctor_finds_ids_that_mean_something_else_now(
    server: StandIn, environment: dict[str, str], tmp_path: Path
) -> None:
    run(environment, "schemas", "register")
    (number,) = server.subjects["kinguin.order.status-value"]
    complete = shipped().newest("order.complete").fingerprint.hex()
    (tmp_path / "registry-ids.json").write_text(
        json.dumps({server.url: {"kinguin.order.complete-value": {str(number): complete}}})
    )
    state, detail = checks_of(environment)["registry ids"]
    assert state == "fail"
    assert "order.complete" in detail
