"""The jars of the local broker: the list, and what happens to bytes that are not what the list says."""

import gc
import hashlib
import http.server
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kinguin_streams.cluster.kafka_jars import (
    KAFKA_VERSION,
    PINS_FILE,
    Jar,
    JarProgress,
    fetch_jars,
    parse_pins,
    pinned_jars,
)
from kinguin_streams.telemetry.operator_error import OperatorError

CONTENT = b"PK a jar, more or less"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
JARS = (Jar("org.example", "one", "1.0", SHA256), Jar("org.example", "two", "2.0", SHA256))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven repository on this machine, with both jars, that jgo is pointed at; yields its folder."""
    root = tmp_path / "repository"
    for jar in JARS:
        folder = root.joinpath(*jar.group.split("."), jar.artifact, jar.version)
        folder.mkdir(parents=True)
        (folder / jar.file_name).write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        _point_jgo_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield root
        server.shutdown()
        thread.join()


def _point_jgo_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("jgo.maven._core.DEFAULT_REMOTE_REPOS", {"central": url})


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".fetch.lock"}


def test_the_list_names_46_jars_once_each() -> None:
    jars = pinned_jars()
    assert len(jars) == len({jar.coordinate for jar in jars}) == len({jar.file_name for jar in jars}) == 46
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in jars)


def test_the_list_is_of_the_kafka_version_the_code_speaks_of() -> None:
    versions = {jar.version for jar in pinned_jars() if jar.group == "org.apache.kafka"}
    assert versions == {KAFKA_VERSION}


def test_the_list_says_how_to_make_it_anew() -> None:
    assert "resolve_pins()" in PINS_FILE.read_text(encoding="ascii")


def test_a_comment_is_no_jar() -> None:
    assert parse_pins(f"# why\norg.example:one:1.0 {SHA256}\n") == (JARS[0],)


def test_jars_are_fetched_once_and_then_taken_from_the_folder(repository: Path, tmp_path: Path) -> None:
    reports: list[JarProgress] = []
    paths = fetch_jars(tmp_path / "cache", reports.append, JARS)
    assert paths == (tmp_path / "cache" / "one-1.0.jar", tmp_path / "cache" / "two-2.0.jar")
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert reports[-1] == JarProgress(jars_done=2, jars_total=2, bytes_fetched=2 * len(CONTENT), note="verified")

    reports.clear()
    for jar in repository.rglob("*.jar"):
        jar.unlink()
    assert fetch_jars(tmp_path / "cache", reports.append, JARS) == paths
    assert reports == []


def test_a_download_with_other_bytes_is_refused_and_not_kept(repository: Path, tmp_path: Path) -> None:
    forged = replace(JARS[1], sha256=hashlib.sha256(b"what was published").hexdigest())
    with pytest.raises(OperatorError, match=r"org\.example:two:2\.0 is not the published file") as caught:
        fetch_jars(tmp_path / "cache", None, (JARS[0], forged))
    assert caught.value.code == "jar_corrupt"
    assert _files(tmp_path / "cache") == {"one-1.0.jar"}


def test_a_jar_that_was_damaged_in_the_folder_is_fetched_again(repository: Path, tmp_path: Path) -> None:
    (first, _) = fetch_jars(tmp_path / "cache", None, JARS)
    first.write_bytes(CONTENT[:5])
    fetch_jars(tmp_path / "cache", None, JARS)
    assert first.read_bytes() == CONTENT


def test_what_a_killed_fetch_left_is_cleared_away(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / ".fetch-killed").mkdir(parents=True)
    fetch_jars(tmp_path / "cache", None, JARS)
    assert _files(tmp_path / "cache") == {"one-1.0.jar", "two-2.0.jar"}


def test_many_who_fetch_at_once_all_get_whole_jars(repository: Path, tmp_path: Path) -> None:
    found: list[tuple[Path, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_jars(tmp_path / "cache", None, JARS))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(path.read_bytes() == CONTENT for paths in found for path in paths)
    assert _files(tmp_path / "cache") == {"one-1.0.jar", "two-2.0.jar"}


def test_a_jar_nobody_has_is_a_failed_download(repository: Path, tmp_path: Path) -> None:
    missing = Jar("org.example", "three", "3.0", SHA256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # jgo leaves the connection of a 404 to the garbage collector
        with pytest.raises(OperatorError, match=r"Could not download org\.example:three:3\.0") as caught:
            fetch_jars(tmp_path / "cache", None, (*JARS, missing))
        code = caught.value.code
        del caught
        gc.collect()
    assert code == "download_failed"
    assert _files(tmp_path / "cache") == {"one-1.0.jar", "two-2.0.jar"}  # the next try goes on from here


def test_without_a_network_the_message_names_the_jar_the_reason_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _point_jgo_at(monkeypatch, "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(OperatorError) as caught:
        fetch_jars(tmp_path / "cache", None, JARS)
    assert caught.value.code == "download_failed"
    assert "org.example:one:1.0" in caught.value.what
    assert "Connection refused" in caught.value.what
    assert str(tmp_path / "cache") in caught.value.hint
    assert "KINGUIN_KAFKA__BOOTSTRAP_SERVERS" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OperatorError, match=r"file/cache, cannot be written \(Not a directory\)") as caught:
        fetch_jars(tmp_path / "file" / "cache", None, JARS)
    assert caught.value.code == "cache_not_writable"


def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    with pytest.raises(OperatorError, match=r"Install kinguin-streams\[local\]") as caught:
        fetch_jars(tmp_path / "cache", None, JARS)
    assert caught.value.code == "local_extra_missing"


def test_jgo_is_not_imported_when_all_jars_are_there(tmp_path: Path) -> None:
    """It takes 0.2 s to import, and may be missing where the jars were copied by hand."""
    for jar in JARS:
        (tmp_path / jar.file_name).write_bytes(CONTENT)
    program = (
        "import sys; from pathlib import Path; from kinguin_streams.cluster.kafka_jars import Jar, fetch_jars; "
        f"fetch_jars(Path({str(tmp_path)!r}), None, {JARS!r}); sys.exit('jgo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
