"""A real Kafka for the tests: one broker a session, shared by all workers, and brokers of one's own to kill."""

import fcntl
import gc
import itertools
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kinguin_streams.cluster import local_broker, local_config
from kinguin_streams.cluster.local_broker import LocalBroker
from kinguin_streams.cluster.settings import LocalSettings
from kinguin_streams.telemetry.operator_error import OperatorError
from tests import apicurio as apicurio_registry
from tests import postgres_server
from tests.postgres_server import PostgresServer
from tests.slow_line import SlowLine

IMAGE = "apache/kafka:4.3.1"
START_ATTEMPTS = 3  # a free port may be gone by the time Java binds it


@dataclass(frozen=True)
class KafkaCluster:
    """Where the session's Kafka is. kind: "given" (KINGUIN_TEST_BOOTSTRAP_SERVERS), "jars" or "container"."""

    bootstrap_servers: str
    kind: str


class NoKafkaError(Exception):
    """No Kafka can be had here, and why."""


class StartBroker:
    """Starts brokers for one test. The same folder gets the same ports again, so that clients find it after a restart."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._settings: dict[Path, LocalSettings] = {}

    def __call__(self, data_dir: Path) -> LocalBroker:
        """Start the folder's broker, which must not be running, and return it once it can be used."""
        known = self._settings.get(data_dir)
        try:
            broker, self._settings[data_dir] = _start_from_jars(self._run_dir, data_dir, known)
        except NoKafkaError as exc:
            _skip_or_fail(str(exc))
        return broker

    def settings(self, data_dir: Path) -> LocalSettings:
        """Return the settings of the folder's broker. Whoever starts it with them, it is stopped at the test's end."""
        if data_dir not in self._settings:
            _note(self._run_dir, "brokers", data_dir)
            self._settings[data_dir] = _free_settings(data_dir)
        return self._settings[data_dir]

    def stop_all(self) -> None:
        for settings in self._settings.values():
            broker = local_broker.find(settings, answers_within_s=None)
            if broker:
                broker.stop(timeout_s=10.0)


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> KafkaCluster:
    """The session's Kafka. It lasts until the run ends; name your topics with topic_prefix and you are alone on it."""
    given = os.environ.get("KINGUIN_TEST_BOOTSTRAP_SERVERS")
    if given:
        return KafkaCluster(given, "given")
    try:
        return _shared_cluster(_run_dir(pytestconfig), pytestconfig.getoption("--kafka"))
    except NoKafkaError as exc:
        _skip_or_fail(str(exc))


@pytest.fixture(scope="session")
def apicurio(pytestconfig: pytest.Config) -> str:
    """The URL of the Confluent API of the session's schema registry, a real Apicurio.

    It lasts until the run ends, and forgets everything then; topics named by topic_prefix have subjects of their own.
    """
    run_dir = _run_dir(pytestconfig)
    record = run_dir / "apicurio.json"
    with _alone(run_dir):
        if not record.exists():
            try:
                url, process_id = apicurio_registry.start(run_dir)
            except apicurio_registry.NoApicurioError as exc:
                record.write_text(json.dumps({"why_not": str(exc)}))
            else:
                _note(run_dir, "processes", process_id)
                record.write_text(json.dumps({"url": url}))
        found = json.loads(record.read_text())
    if "why_not" in found:
        _skip_or_fail(found["why_not"], "schema registry")
    return str(found["url"])


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> PostgresServer:
    """The session's PostgreSQL, for databases of your own: `postgres.new_database()` returns the URL of one."""
    run_dir = _run_dir(pytestconfig)
    record = run_dir / "postgres.json"
    with _alone(run_dir):
        if not record.exists():
            record.write_text(json.dumps(_start_postgres(run_dir)))
        found = json.loads(record.read_text())
    if "why_not" in found:
        _skip_or_fail(found["why_not"], "PostgreSQL")
    return PostgresServer(Path(found["data_dir"]), found["port"])


@pytest.fixture
def own_postgres(pytestconfig: pytest.Config) -> PostgresServer:
    """A PostgreSQL of the test's own, to stop and start; it is removed at the end of the run."""
    found = _start_postgres(_run_dir(pytestconfig))
    if "why_not" in found:
        _skip_or_fail(str(found["why_not"]), "PostgreSQL")
    return PostgresServer(Path(str(found["data_dir"])), int(found["port"]))


def _start_postgres(run_dir: Path) -> dict[str, Any]:
    try:
        server = postgres_server.make(free_port())
    except postgres_server.NoPostgresError as exc:
        return {"why_not": str(exc)}
    _note(run_dir, "postgres", server.data_dir)
    return {"data_dir": str(server.data_dir), "port": server.port}


@pytest.fixture
def kafka_factory(pytestconfig: pytest.Config) -> Iterator[StartBroker]:
    """start(data_dir) -> LocalBroker: a broker of the test's own, to kill and restart; all are stopped at its end."""
    start = StartBroker(_run_dir(pytestconfig))
    try:
        yield start
    finally:
        start.stop_all()


@dataclass(frozen=True)
class OwnKafka:
    """A broker that no other worker uses. Who stops it lets it go on again; nobody kills it."""

    broker: LocalBroker
    line: SlowLine
    """The way to it that can be made slow."""

    @property
    def bootstrap_servers(self) -> str:
        return self.broker.bootstrap_servers

    @property
    def slow_bootstrap_servers(self) -> str:
        """Where a client enters that is to stay on the slow line."""
        return f"127.0.0.1:{self.line.port}"


@pytest.fixture(scope="session")
def own_kafka(pytestconfig: pytest.Config) -> Iterator[OwnKafka]:
    """A broker of this worker's own, to be paused or put behind a slow line; starting one for each test takes 3 s."""
    behind_the_line = free_port()
    start = StartBroker(_run_dir(pytestconfig))
    data_dir = Path(tempfile.mkdtemp(prefix="own-kafka-", dir=_run_dir(pytestconfig)))
    plain = local_config.server_properties
    with SlowLine(behind_the_line) as line:
        # A second way in, which the broker advertises to those who came in by it.
        added = {
            "listeners": f",SLOW://127.0.0.1:{behind_the_line}",
            "advertised.listeners": f",SLOW://127.0.0.1:{line.port}",
            "listener.security.protocol.map": ",SLOW:PLAINTEXT",
        }

        def with_slow_line(**settings: Any) -> str:
            entries = plain(**settings).splitlines()
            return "".join(f"{entry}{added.get(entry.partition('=')[0], '')}\n" for entry in entries)

        try:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(local_config, "server_properties", with_slow_line)
                broker = start(data_dir)
            yield OwnKafka(broker, line)
        finally:
            start.stop_all()


@pytest.fixture
def topic_prefix() -> str:
    """A first part for topic and group names that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session", autouse=True)
def _quiet_client_log() -> None:
    """librdkafka tells at length how a broker that a test has killed is away."""
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kafka",
        choices=["auto", "jars", "container"],
        default="auto",
        help="where the tests' Kafka comes from, unless KINGUIN_TEST_BOOTSTRAP_SERVERS names one: the published jars, "
        "a container, or (auto) the jars and, failing them, a container",
    )


# The run's folder: made by the pytest that was called, known to its xdist workers, cleaned up by kafka_keeper.py.

_RUN_DIR = pytest.StashKey[Path]()
_KEEPER = pytest.StashKey["subprocess.Popen[bytes]"]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["kafka_run_dir"] = str(_run_dir(node.config))


def pytest_unconfigure(config: pytest.Config) -> None:
    keeper = config.stash.get(_KEEPER, None)
    if keeper and keeper.stdin:
        keeper.stdin.close()
        keeper.wait(timeout=60)


def _run_dir(config: pytest.Config) -> Path:
    if hasattr(config, "workerinput"):
        return Path(config.workerinput["kafka_run_dir"])
    if _RUN_DIR not in config.stash:
        config.stash[_RUN_DIR] = Path(tempfile.mkdtemp(prefix="kinguin-streams-tests-"))
        config.stash[_KEEPER] = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kafka_keeper.py"), config.stash[_RUN_DIR]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not end it before its work is done
        )
    return config.stash[_RUN_DIR]


def _note(run_dir: Path, kind: str, name: object) -> None:
    """Tell the keeper what to stop."""
    with (run_dir / kind).open("a", encoding="utf-8") as notes:
        notes.write(f"{name}\n")


# Getting one


def _shared_cluster(run_dir: Path, wanted: str) -> KafkaCluster:
    """Return the run's cluster. Whoever comes first starts it, workers that come later wait for that."""
    record = run_dir / "cluster.json"
    with _alone(run_dir):
        if record.exists():
            found = json.loads(record.read_text())
            if "why_not" in found:
                raise NoKafkaError(found["why_not"])
            return KafkaCluster(**found)
        try:
            cluster = _start_cluster(run_dir, wanted)
        except NoKafkaError as exc:
            record.write_text(json.dumps({"why_not": str(exc)}))
            raise
        record.write_text(json.dumps(asdict(cluster)))
        return cluster


def _start_cluster(run_dir: Path, wanted: str) -> KafkaCluster:
    reasons = []
    if wanted != "container":
        try:
            broker, _ = _start_from_jars(run_dir, run_dir / "session")
            return KafkaCluster(broker.bootstrap_servers, "jars")
        except NoKafkaError as exc:
            reasons.append(str(exc))
    if wanted != "jars":
        try:
            return KafkaCluster(_start_container(run_dir), "container")
        except NoKafkaError as exc:
            reasons.append(str(exc))
    raise NoKafkaError(" / ".join(reasons))


def _start_from_jars(
    run_dir: Path, data_dir: Path, known: LocalSettings | None = None
) -> tuple[LocalBroker, LocalSettings]:
    _note(run_dir, "brokers", data_dir)
    for attempt in range(1, START_ATTEMPTS + 1):
        settings = known or _free_settings(data_dir)
        try:
            return local_broker.start(settings), settings
        except OperatorError as exc:
            if exc.code in ("download_failed", "local_extra_missing"):
                raise NoKafkaError(f"{exc.what} {exc.hint}") from exc
            if known or exc.code not in ("port_taken", "broker_failed") or attempt == START_ATTEMPTS:
                raise
    raise AssertionError


def _free_settings(data_dir: Path) -> LocalSettings:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        kafka_port, controller_port = (each.getsockname()[1] for each in (one, other))  # at once, so that they differ
    return LocalSettings(data_dir=data_dir, kafka_port=kafka_port, controller_port=controller_port, heap="384m")


def _start_container(run_dir: Path) -> str:
    """Start the official image and return its address. Set them all: one given setting drops the image's own file."""
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # its reaper is one more image; ours is the keeper
    from docker.errors import DockerException  # type: ignore[import-untyped]
    from testcontainers.core.container import DockerContainer

    port = free_port()
    settings = {
        "CLUSTER_ID": "kinguin-streams-tests-",  # 22 characters, as Kafka wants them
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": f"PLAINTEXT_HOST://0.0.0.0:{port},PLAINTEXT://localhost:19092,CONTROLLER://localhost:29093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT_HOST://127.0.0.1:{port},PLAINTEXT://localhost:19092",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT_HOST:PLAINTEXT,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:29093",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "PLAINTEXT",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    }
    why_not: str | None = None
    try:
        container = DockerContainer(IMAGE).with_bind_ports(port, port)
        for name, value in settings.items():
            container = container.with_env(name, value)
        container.start()
    except (DockerException, OSError) as exc:
        why_not = str(exc)
    if why_not is not None:
        with warnings.catch_warnings():
            # Where no engine answers, the docker client leaves its socket open; pytest would report that, not the skip.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        raise NoKafkaError(f"No Kafka in a container: {why_not}")
    _note(run_dir, "containers", container.get_wrapped_container().id)
    bootstrap_servers = f"127.0.0.1:{port}"
    _wait_for_metadata(bootstrap_servers, timeout_s=60.0)
    return bootstrap_servers


def _wait_for_metadata(bootstrap_servers: str, timeout_s: float) -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": bootstrap_servers}, logger=logging.getLogger("librdkafka"))
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            client.list_topics(timeout=2.0)
            return
        except KafkaException:
            if time.monotonic() > deadline_s:
                raise


# Begins anywhere, so that two runs on one machine rarely meet.
_PORTS = itertools.count(random.randrange(2_000))


def free_port() -> int:
    """Return a port that nobody listens on, and that no other worker of this run will be given.

    Below those that the system gives out by itself: one of them could be another worker's, or a client's, by the time that
    the program under test listens. Seen: an `up` that found its admin port taken.
    """
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
    while True:
        port = 12_000 + worker % 10 * 2_000 + next(_PORTS) % 2_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    with (run_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _skip_or_fail(why: str, what: str = "Kafka") -> NoReturn:
    """A machine without one skips these tests; CI must never pass because it skipped them."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and there is no {what} to test with: {why}", pytrace=False)
    pytest.skip(why)
