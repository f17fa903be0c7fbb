"""`kinguin-streams up`, as a stranger runs it: the real command, everything real behind it."""

import json
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from kinguin_streams.schemas.events import EVENT_NAMES
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import free_port

pytestmark = pytest.mark.kafka


@pytest.fixture
def environment(tmp_path: Path, kafka: Any, topic_prefix: str) -> dict[str, str]:
    """A folder and ports of the test's own, on the session's Kafka."""
    settings = {
        "KINGUIN_LOCAL__DATA_DIR": str(tmp_path / "data"),
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KINGUIN_TOPICS__PREFIX": topic_prefix,
        "KINGUIN_CONSUMER__GROUP_PREFIX": topic_prefix,
        "KINGUIN_INGRESS__PORT": str(free_port()),
        "KINGUIN_INGRESS__ADMIN_PORT": str(free_port()),
    }
    return clean_environment(settings)


@contextmanager
def running(environment: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """An `up` that is ready, until the block ends."""
    process = subprocess.Popen([*COMMAND, "up"], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "curl" in line:
                break
        else:
            pytest.fail("`up` ended before it was ready")
        yield process
    finally:
        process.kill()
        process.communicate()


def ingress_answers(environment: Mapping[str, str]) -> bool:
    url = f"http://127.0.0.1:{environment['KINGUIN_INGRESS__ADMIN_PORT']}/livez"
    try:
        return urllib3.request("GET", url, timeout=1, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def test_simulated_webhooks_become_state_and_it_all_adds_up_and_a_second_up_finds_the_first_ones_data(
    environment: dict[str, str],
) -> None:
    first = run(environment, "up", "--simulate", "150", "--for", "2s", "--seed", "7", "--json")
    second = run(environment, "up", "--simulate", "150", "--for", "1s", "--seed", "8", "--json")

    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    one, two = json.loads(first.stdout), json.loads(second.stdout)
    prefix = environment["KINGUIN_TOPICS__PREFIX"]
    assert (one["sent"], one["acked"], one["lost"], one["state_matches"]) == (300, 300, 0, True)
    assert sum(one["published"].values()) == 300
    assert set(one["published"]) == {f"{prefix}.{record}" for record in (*EVENT_NAMES, "dead-letter")}
    assert one["products"] > 0
    assert one["orders_by_status"]
    assert (two["sent"], two["state_matches"]) == (150, True)
    assert sum(two["published"].values()) == 150, "only this run's records are counted"
    assert two["products"] > one["products"], "the state of the first run is still there"


def test_the_verdict_is_no_if_the_state_is_not_what_was_sent(environment: dict[str, str], tmp_path: Path) -> None:
    """A check that could not fail would be none: an order that was acknowledged is taken out of the state in between."""
    assert run(environment, "up", "--simulate", "100", "--for", "1s", "--seed", "7").returncode == 0
    with closing(sqlite3.connect(tmp_path / "data" / "state.db")) as database, database:
        database.execute("DELETE FROM projection_state WHERE id IN (SELECT id FROM projection_state LIMIT 1)")

    again = run(environment, "up", "--simulate", "100", "--for", "1s", "--seed", "8", "--json")

    assert again.returncode == 1
    assert json.loads(again.stdout)["state_matches"] is False
    assert "difference: " in again.stderr


def test_a_simulation_without_an_end_is_ended_by_ctrl_c_and_what_was_sent_until_then_adds_up(
    environment: dict[str, str],
) -> None:
    command = [*COMMAND, "up", "--simulate", "50", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr is not None
        while "in 0" in (line := up.stderr.readline()) or not line.startswith("sent"):
            assert up.poll() is None
        up.send_signal(signal.SIGINT)
        out, _ = up.communicate(timeout=60)

    summary = json.loads(out)
    assert (up.returncode, summary["adds_up"], summary["state_matches"]) == (130, True, True)
    assert summary["sent"] == summary["acked"] > 0


def test_secrets_may_come_from_a_mounted_file(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text('{"default": ["from-a-file-9x"]}')
    by_file = {**environment, "KINGUIN_INGRESS__SECRETS_FILE": str(tmp_path / "secrets.json")}

    done = run(by_file, "up", "--simulate", "50", "--for", "1s", "--json")

    assert done.returncode == 0, done.stderr


def test_ctrl_c_stops_every_part_and_the_webhook_that_was_posted_is_in_the_state(environment: dict[str, str]) -> None:
    with running(environment) as up:
        secret = (Path(environment["KINGUIN_LOCAL__DATA_DIR"]) / "secret").read_text()
        answer = urllib3.request(
            "POST",
            f"http://127.0.0.1:{environment['KINGUIN_INGRESS__PORT']}/webhooks",
            headers={"X-Event-Name": "order.complete", "X-Event-Secret": secret, "Content-Type": "aplication/json"},
            body=b'{"orderId":"PHS84FJAG5U","orderExternalId":"AL2FEEHOO2OHF","updatedAt":"2020-10-16T11:24:08+00:00"}',
        )
        assert answer.status == 204
        deadline_s = time.monotonic() + 20
        while (shown := run(environment, "state", "show", "order", "PHS84FJAG5U", "--json")).returncode != 0:
            assert time.monotonic() < deadline_s, shown.stderr
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=30) == 130

    assert json.loads(shown.stdout)["status"] == "completed"
    assert not ingress_answers(environment)


def test_a_killed_up_leaves_no_process_behind(environment: dict[str, str]) -> None:
    with running(environment) as up:
        assert ingress_answers(environment)
        up.kill()
        up.wait()
        deadline_s = time.monotonic() + 15
        while ingress_answers(environment):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)


def test_a_second_up_in_the_same_folder_is_refused_and_names_the_first(environment: dict[str, str]) -> None:
    with running(environment) as up:
        second = run(environment, "up")

    assert second.returncode == 1
    assert f"Another `up` (pid {up.pid}) works in" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_is_named_with_the_setting_that_changes_it(environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        refused = run({**environment, "KINGUIN_INGRESS__PORT": str(port)}, "up")

    assert refused.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "KINGUIN_INGRESS__PORT" in refused.stderr


def test_a_host_that_is_not_there_is_not_called_a_taken_port(environment: dict[str, str]) -> None:
    for host in ("no-such-host.invalid", "192.0.2.1"):
        refused = run({**environment, "KINGUIN_INGRESS__HOST": host}, "up")
        assert refused.returncode == 1
        assert f"Cannot listen on {host}:" in refused.stderr
        assert "KINGUIN_INGRESS__HOST" in refused.stderr
        assert "Stop what listens there" not in refused.stderr


def test_json_without_a_simulation_is_a_usage_error_as_there_would_be_no_summary(environment: dict[str, str]) -> None:
    refused = run(environment, "up", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--simulate" in refused.stderr


def test_a_data_folder_that_cannot_be_written_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    refused = run({**environment, "KINGUIN_LOCAL__DATA_DIR": str(tmp_path / "file" / "data")}, "up")

    assert refused.returncode == 1
    assert f"The data folder {tmp_path / 'file' / 'data'} cannot be written" in refused.stderr
    assert "KINGUIN_LOCAL__DATA_DIR" in refused.stderr


def test_doctor_finds_a_running_stack_well_and_its_books_balanced(environment: dict[str, str]) -> None:
    with running(environment):
        healthy = run(environment, "doctor", "--json")

    checks = {check["name"]: check["state"] for check in json.loads(healthy.stdout)["checks"]}
    assert healthy.returncode == 0, healthy.stdout
    assert checks["ledger"] == checks["ingress"] == checks["kafka"] == checks["topics"] == "ok"


@pytest.mark.faults
def test_twenty_thousand_events_with_duplicates_and_disorder_equal_the_recomputation(
    environment: dict[str, str],
) -> None:
    done = run(environment, "up", "--simulate", "500", "--for", "40s", "--seed", "20000", "--json", timeout_s=240)

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["sent"], summary["acked"], summary["lost"]) == (20_000, 20_000, 0)
    assert summary["state_matches"] is True
