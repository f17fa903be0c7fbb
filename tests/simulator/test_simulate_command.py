"""`kinguin-streams simulate`, as typed."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kinguin_streams.cli.simulate import simulate
from kinguin_streams.simulator.ledger import acked_webhooks, read_ledger
from kinguin_streams.telemetry.operator_error import OperatorError

app = typer.Typer()
app.command()(simulate)


class Receiver(ThreadingHTTPServer):
    daemon_threads = True
    status = 204

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, str, str, bytes]] = []  # path, event, secret, body
        self.arrived = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        receiver = self.server
        assert isinstance(receiver, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        receiver.received.append((self.path, self.headers["X-Event-Name"], self.headers["X-Event-Secret"], body))
        receiver.arrived.set()
        self.send_response(receiver.status)
        if receiver.status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_settings_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("KINGUIN_"):
            monkeypatch.delenv(name)


def run(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout, stderr. Errors that cli/main.py turns into words come out as they are."""
    outcome = CliRunner().invoke(app, list(arguments))
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.stdout, outcome.stderr


def test_a_run_that_was_acked_exits_0_and_prints_its_summary_on_stdout(receiver: Receiver) -> None:
    code, out, err = run("--target", receiver.url, "--secret", "s", "--rate", "0", "--count", "40")
    assert code == 0
    assert out == "sent 40, acked 40, dropped 0, not sent 0\nattempts 40; answers: 40 x 204; without an answer 0\n"
    assert "--seed 1 --start 20" in err
    assert len(receiver.received) == 40
    assert {(path, secret) for path, _, secret, _ in receiver.received} == {("/webhooks/default", "s")}


def test_the_line_on_stderr_repeats_the_run_byte_for_byte(receiver: Receiver) -> None:
    to = ("--target", receiver.url, "--secret", "s", "--rate", "0", "--count", "30", "--clients", "1")
    _, _, err = run(*to, "--seed", "9")
    start = err.split("--start ")[1].split(",")[0]
    run(*to, "--seed", "9", "--start", start)
    assert receiver.received[:30] == receiver.received[30:]


def test_json_is_one_object_with_the_counts(receiver: Receiver) -> None:
    start = "2026-11-24T15:00:00Z"
    code, out, _ = run(
        "--target", receiver.url, "--secret", "s", "--rate", "0", "--count", "5", "--start", start, "--json"
    )
    assert code == 0
    assert json.loads(out) == {
        "sent": 5,
        "acked": 5,
        "attempts": 5,
        "dropped": 0,
        "not_sent": 0,
        "answers": {"204": 5},
        "no_answer": 0,
        "disabled": False,
        "seed": 1,
        "start": "2026-11-24T15:00:00+00:00",
    }


def test_for_times_rate_is_the_number_of_deliveries(receiver: Receiver) -> None:
    code, out, _ = run("--target", receiver.url, "--secret", "s", "--rate", "100", "--for", "250ms", "--json")
    assert (code, json.loads(out)["sent"]) == (0, 25)


def test_without_a_rate_the_clock_ends_the_run(receiver: Receiver) -> None:
    code, out, _ = run("--target", receiver.url, "--secret", "s", "--rate", "0", "--for", "200ms", "--json")
    assert (code, json.loads(out)["sent"]) == (0, len(receiver.received))


def test_a_receiver_that_refuses_is_disabled_and_the_exit_code_is_1(receiver: Receiver) -> None:
    receiver.status = 401
    to = ("--target", receiver.url, "--secret", "wrong", "--rate", "0", "--count", "30", "--clients", "1")
    code, out, _ = run(*to, "--retries", "", "--disable-after", "3")
    assert code == 1
    assert out.startswith("sent 3, acked 0, dropped 3, not sent 27\n")
    assert "disabled" in out


def test_the_ledger_holds_what_was_acked(receiver: Receiver, tmp_path: Path) -> None:
    ledger = tmp_path / "acked.jsonl"
    to = ("--target", receiver.url, "--secret", "s", "--rate", "0", "--count", "20", "--store", "shop-2")
    assert run(*to, "--ledger", str(ledger))[0] == 0
    assert acked_webhooks(read_ledger(ledger)) == {("shop-2", event, body) for _, event, _, body in receiver.received}


def test_target_and_secret_come_from_the_settings(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINGUIN_INGRESS__PORT", str(receiver.server_port))
    monkeypatch.setenv("KINGUIN_INGRESS__SECRETS", '{"default": ["first-of-settings", "second-of-settings"]}')
    assert run("--rate", "0", "--count", "1")[0] == 0
    assert receiver.received[0][2] == "first-of-settings"


def test_the_environment_may_hold_the_secret(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINGUIN_SIMULATE_SECRET", "from the environment")
    assert run("--target", receiver.url, "--rate", "0", "--count", "1")[0] == 0
    assert receiver.received[0][2] == "from the environment"


def test_no_secret_at_all_is_said(receiver: Receiver) -> None:
    with pytest.raises(OperatorError, match="KINGUIN_SIMULATE_SECRET") as error:
        run("--target", receiver.url, "--count", "1")
    assert error.value.code == "no_secret"


@pytest.mark.parametrize("ledger", ["missing-folder/ledger.jsonl", "notes.txt"])
def test_a_ledger_that_cannot_be_used_is_said_before_anything_is_sent(
    receiver: Receiver, tmp_path: Path, ledger: str
) -> None:
    (tmp_path / "notes.txt").write_text("not a ledger")
    with pytest.raises(OperatorError, match="ledger") as error:
        run("--target", receiver.url, "--secret", "s", "--count", "1", "--ledger", ledger)
    assert error.value.code == "bad_ledger"
    assert receiver.received == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("--count", "1", "--for", "1s"), "not both", id="two ends"),
        pytest.param(("--for", "soon"), "duration", id="a duration that is none"),
        pytest.param(("--for", "0s"), "longer", id="no time at all"),
        pytest.param(("--start", "yesterday"), "instant", id="a start that is no instant"),
        pytest.param(("--start", "2026-11-24T15:00:00"), "offset", id="a start without offset"),
        pytest.param(("--duplicates", "0.7", "--broken", "0.7"), "over 1", id="shares over one"),
        pytest.param(("--target", "localhost:8080"), "URL", id="a target without scheme"),
        pytest.param(("--retries", "1s,x"), "duration", id="a retry that is no duration"),
        pytest.param(("--store", "No Store"), "store", id="a store that cannot be"),
    ],
)
def test_a_mistake_in_the_options_exits_2(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run("--target", "http://127.0.0.1:1", "--secret", "s", *arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.replace("│", " ").split())


def test_ctrl_c_finishes_what_is_in_flight_prints_the_summary_and_exits_130(receiver: Receiver) -> None:
    code = (
        "import typer; from kinguin_streams.cli.simulate import simulate as s; a = typer.Typer(); a.command()(s); a()"
    )
    arguments = ["--target", receiver.url, "--secret", "s", "--rate", "50", "--for", "1h", "--json"]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as child:
        assert receiver.arrived.wait(20)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=20)
    summary = json.loads(out)
    assert child.returncode == 130
    assert summary["acked"] == summary["sent"] == len(receiver.received)
    assert summary["not_sent"] == 180_000 - summary["sent"]
