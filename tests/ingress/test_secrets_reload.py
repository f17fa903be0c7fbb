"""Row 29: secrets change under load, without a restart, and without a 401 for a secret that is listed."""

import json
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from kinguin_streams.ingress.secrets import name_of
from tests.conftest import KafkaCluster
from tests.ingress import running_ingress as module
from tests.ingress.running_ingress import (
    Answer,
    Connection,
    RunningIngress,
    assert_balanced,
    new_id,
    order_status,
    running_ingress,
    wait_until,
)

pytestmark = pytest.mark.kafka

OLD, NEW = "old-7hTqL0x", "new-Zp93kWe"
NOTICED_S = 5.0
"""How long a change may take to be in force."""


class Load:
    """Clients that post with a secret, one answer after the other, until told to stop."""

    def __init__(self, running: RunningIngress, secrets: list[str]) -> None:
        self._running = running
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.answers: list[tuple[str, Answer]] = []
        self._threads = [threading.Thread(target=self._run, args=(secret,)) for secret in secrets]
        for thread in self._threads:
            thread.start()

    def _run(self, secret: str) -> None:
        connection = Connection(self._running.port)
        while not self._over.is_set():
            answer = connection.exchange(self._running.webhook(order_status(new_id()), secret=secret))
            with self._lock:
                self.answers.append((secret, answer))
        connection.close()

    def count(self) -> int:
        return len(self.answers)

    def statuses(self, secret: str) -> set[int]:
        with self._lock:
            return {answer.status for used, answer in self.answers if used == secret}

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)


def write_file(folder: Path, live: list[str]) -> None:
    """Write the file of KINGUIN_INGRESS__SECRETS_FILE."""
    (folder / "secrets.json").write_text(json.dumps({"default": live}))


def write_folder(folder: Path, live: list[str]) -> None:
    """Write the folder of KINGUIN_INGRESS__SECRETS_DIR: a file for each store, one secret a line."""
    (folder / "secrets").mkdir(exist_ok=True)
    new = folder / "secrets" / ".default.new"
    new.write_text("".join(f"{secret}\n" for secret in live))
    new.replace(folder / "secrets" / "default")


def swap_links(folder: Path, live: list[str]) -> None:
    """Write them as Kubernetes mounts them: <store>/<name> are links through a link that is swapped."""
    mounted = folder / "secrets" / "default"
    versions = folder / "versions"
    version = versions / str(time.time_ns())
    version.mkdir(parents=True)
    for number, secret in enumerate(live):
        (version / f"key-{number}").write_text(secret)
    mounted.mkdir(parents=True, exist_ok=True)
    fresh = mounted / "..data_tmp"
    fresh.symlink_to(version)
    fresh.replace(mounted / "..data")
    for number in range(len(live)):
        link = mounted / f"key-{number}"
        if not link.is_symlink():
            link.symlink_to(Path("..data") / f"key-{number}")
    for link in mounted.glob("key-*"):
        if not link.exists():
            link.unlink()


def break_file(folder: Path) -> None:
    (folder / "secrets.json").write_text('{"default": ["' + NEW)


def swap_store_and_secret(folder: Path) -> None:
    (folder / "secrets.json").write_text(json.dumps({NEW: ["default-x"]}))


def break_folder(folder: Path) -> None:
    (folder / "secrets" / "default").write_text("")


def break_links(folder: Path) -> None:
    (folder / "secrets" / "default" / "key-9").write_bytes(b"\xff\xfe")


Write = Callable[[Path, list[str]], None]
WAYS = [
    pytest.param(write_file, break_file, id="a mounted file"),
    pytest.param(write_file, swap_store_and_secret, id="a mounted file, with store and secret swapped"),
    pytest.param(write_folder, break_folder, id="a folder"),
    pytest.param(swap_links, break_links, id="a folder as Kubernetes mounts it"),
]


@pytest.fixture
def with_secrets(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Write], AbstractContextManager[RunningIngress]]:
    """run(write): an ingress whose secrets are nowhere but where `write` puts them; at first there is the old one."""
    plain = module.command

    def without_environment(
        bootstrap_servers: str, prefix: str, **settings: object
    ) -> tuple[list[str], dict[str, str]]:
        line, environment = plain(bootstrap_servers, prefix, **settings)
        del environment["KINGUIN_INGRESS__SECRETS"]
        return line, environment

    monkeypatch.setattr(module, "command", without_environment)

    def run(write: Write) -> AbstractContextManager[RunningIngress]:
        write(tmp_path, [OLD])
        of_file: dict[str, object] = {"secrets_file": tmp_path / "secrets.json"}
        of_folder: dict[str, object] = {"secrets_dir": tmp_path / "secrets"}
        settings = of_file if write is write_file else of_folder
        return running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, **settings)

    return run


RunWithSecrets = Callable[[Write], AbstractContextManager[RunningIngress]]


@pytest.mark.parametrize("posts", [200, pytest.param(2_000, marks=pytest.mark.faults)])
@pytest.mark.parametrize(("write", "broken"), WAYS)
def test_row_29_a_secret_is_changed_under_load_without_a_401_while_both_are_listed(
    with_secrets: RunWithSecrets, tmp_path: Path, write: Write, broken: Callable[[Path], None], posts: int
) -> None:
    with with_secrets(write) as running:

        def status(secret: str) -> int:
            return running.post(order_status(new_id()), secret=secret).status

        with Load(running, [OLD]) as old_only:
            assert status(NEW) == 401
            write(tmp_path, [OLD, NEW])
            wait_until(lambda: status(NEW) == 204, NOTICED_S, "the new secret")
            with Load(running, [OLD, NEW]) as both:
                wait_until(lambda: both.count() >= posts, 60, "load with both")
            assert both.statuses(OLD) == both.statuses(NEW) == {204}
        assert old_only.statuses(OLD) == {204}
        with Load(running, [NEW]) as new_only:
            write(tmp_path, [NEW])
            wait_until(lambda: status(OLD) == 401, NOTICED_S, "that the old secret is refused")
            before = running.log_text().count("secrets_not_reloaded")
            broken(tmp_path)
            wait_until(
                lambda: running.log_text().count("secrets_not_reloaded") == before + 1, NOTICED_S, "a line that says so"
            )
            running.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            assert running.log_text().count("secrets_not_reloaded") == before + 1  # once
            assert status(NEW) == 204
            assert status(OLD) == 401
        assert new_only.statuses(NEW) == {204}
        metrics = running.metrics()
        assert metrics["kinguin_ingress_secrets_reload_failures_total", ()] >= 1
        used = {
            dict(labels)["secret"]: value
            for (name, labels), value in metrics.items()
            if name == "kinguin_ingress_secret_last_used_timestamp_seconds"
        }
        assert used.keys() == {name_of(NEW)}
        assert abs(used[name_of(NEW)] - time.time()) < 10
        assert_balanced(metrics)
        told = (
            running.log_text()
            + running.admin("/metrics").body.decode()
            + running.admin("/readyz?verbose").body.decode()
        )
        assert OLD not in told
        assert NEW not in told


def test_row_29_sighup_looks_at_once(with_secrets: RunWithSecrets, tmp_path: Path) -> None:
    with with_secrets(write_file) as running:

        def takes(secret: str) -> bool:
            return running.post(order_status(new_id()), secret=secret).status == 204

        for number in range(5):
            secret = f"{NEW}-{number}"
            write_file(tmp_path, [secret])
            running.process.send_signal(signal.SIGHUP)
            wait_until(partial(takes, secret), 1.5, "a new secret")  # five times: the watch looks every two seconds
