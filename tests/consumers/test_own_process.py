"""A user's own program that calls `kinguin_streams.run`: it does what `kinguin-streams consume` does, and ends as that does."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinguin_streams import run
from kinguin_streams.cli import mistakes, running
from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from tests.conftest import KafkaCluster, free_port
from tests.consumers.consuming_process import Consuming
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_status
from tests.consumers.kafka_streams import Streams, wait_until
from tests.consumers.test_consumer_kill import environment
from tests.consumers.test_handler_process import CONSUMER, PROJECTION, effects

IMPORT = "from kinguin_streams import run\n"
APP = CONSUMER.replace("\nimport", f"{IMPORT}import", 1)
STARTED = """
if __name__ == "__main__":
    run(app)
"""
NO_KAFKA = Streams("127.0.0.1:1", "none")


@contextmanager
def started(text: str, streams: Streams, folder: Path, **settings: object) -> Iterator[Consuming]:
    """`python my_consumer.py`, killed at the end if it has not ended before."""
    (folder / "my_consumer.py").write_text(text)
    port, log = free_port(), folder / "consumer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "my_consumer.py"],
            env=environment(streams, folder, CONSUMER__ADMIN_PORT=port, **settings),
            stdout=output, stderr=output, cwd=folder,
        )  # fmt: skip
    try:
        yield Consuming(process, port, log)
    finally:
        process.kill()
        process.wait()


def ended(text: str, folder: Path, *command: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Run a program that is expected to end by itself."""
    (folder / "my_consumer.py").write_text(text)
    return subprocess.run(
        [sys.executable, *(command or ("my_consumer.py",))],
        env=environment(NO_KAFKA, folder, **settings),
        capture_output=True, text=True, timeout=60, check=False, cwd=folder,
    )  # fmt: skip


@pytest.mark.kafka
def test_an_app_is_served_and_ends_on_sigterm_and_the_rest_of_the_program_has_its_signals_back(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(order_status("processing", order_id="A"))
    text = f"""{APP}
if __name__ == "__main__":
    import signal
    try:
        run(app)
    finally:
        print("at the end:", signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT).__name__)
"""
    with started(text, streams, tmp_path) as consuming:
        consuming.wait_for_metric("applied_total", 1)
        assert consuming.ask("/livez")[0] == 200
        consuming.process.send_signal(signal.SIGTERM)
        assert consuming.process.wait(30) == 0, consuming.log.read_text()
    log = consuming.log.read_text()
    assert [order_id for order_id, _, _ in effects(tmp_path)] == ["A"]
    assert "at the end: 0 default_int_handler" in log
    assert '"event": "consumer_stopped"' in log
    assert "Traceback" not in log


@pytest.mark.kafka
def test_a_projection_keeps_its_state_and_ends_on_ctrl_c(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(*(order_status(status, order_id="A") for status in ("pending", "processing")))
    url, ends = state_settings(tmp_path).url, streams.ends("order.status")
    text = PROJECTION.replace("import msgspec", f"{IMPORT}import msgspec") + STARTED.replace("app", "counts")
    with started(text, streams, tmp_path) as consuming:
        wait_until(lambda: reader.stored_offsets(url, "my-counts") == ends, f"offsets ({consuming.log})")
        consuming.process.send_signal(signal.SIGINT)
        assert consuming.process.wait(30) == 130, consuming.log.read_text()
    assert "Traceback" not in consuming.log.read_text()


@pytest.mark.kafka
def test_a_second_signal_ends_it_at_once(kafka: KafkaCluster, topic_prefix: str, tmp_path: Path) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make()
    streams.write(order_status("processing", order_id="A"))
    text = APP.replace("time.sleep(0.001)", "print('called', flush=True); time.sleep(60)") + STARTED
    with started(text, streams, tmp_path) as consuming:
        wait_until(lambda: "called" in consuming.log.read_text(), f"a call ({consuming.log})")
        consuming.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            consuming.process.wait(1)
        consuming.process.send_signal(signal.SIGTERM)
        assert consuming.process.wait(5) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("text", "settings", "exit_code", "says"),
    [
        (APP + STARTED, {"CONSUMER__BATCH_RECORDS": 0}, 2, "configuration: KINGUIN_CONSUMER__BATCH_RECORDS"),
        (APP + STARTED, {"CONSUMER__KAFKA_WAIT_S": 1}, 1, "error: Kafka does not answer"),
        (
            f"{IMPORT}run('my_consumer.py:app')",
            {},
            1,
            "error: What run() was given is a str, and no App or projection.",
        ),
        (APP + STARTED.replace("(app)", "(App('idle'))"), {}, 1, "error: The App idle has no handlers."),
    ],
    ids=["setting", "kafka", "kind", "handlers"],
)
def test_a_mistake_is_a_sentence_and_an_exit_code(
    tmp_path: Path, text: str, settings: dict[str, object], exit_code: int, says: str
) -> None:
    done = ended(text, tmp_path, **settings)
    assert done.returncode == exit_code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_runs_its_consumer_when_a_command_imports_it_is_refused(tmp_path: Path) -> None:
    done = ended(f"{APP}\nrun(app)\n", tmp_path, "-m", "kinguin_streams", "consume", "my_consumer.py:app")
    assert done.returncode == 1
    assert "error: my_consumer.py runs its consumer as soon as it is imported." in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_thread_is_refused_where_no_signal_would_arrive(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(thread_name_prefix="other") as threads:
        refused = threads.submit(run, ORDER_STATE).exception(10)
    assert isinstance(refused, SystemExit)
    assert refused.code == 1
    assert "error: run() was called in the thread other_0." in capsys.readouterr().err


def test_ctrl_c_before_there_is_a_consumer_is_no_traceback() -> None:
    with pytest.raises(SystemExit) as ended, mistakes.told():
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_a_signal_handler_that_is_not_pythons_is_no_error_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in C that has Python inside may have its own; Python says None of it, and cannot put it back."""
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)
    with running.handlers_put_back():
        pass
