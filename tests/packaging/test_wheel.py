"""What users install: built as a release is, used from a clean environment in an empty folder.

In the repository every file is at hand, so only a wheel elsewhere shows what was forgotten in it.
"""

import json
import os
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("cli", "cluster", "consumers", "ingress", "replay", "schemas", "simulator", "telemetry")
TIMEOUT_S = 240


def uv(*arguments: str | Path, cwd: Path) -> None:
    """Run uv, from its cache if all is there: the tests must pass again on a machine that has lost its network."""
    program = os.environ.get("UV") or shutil.which("uv")
    if program is None:
        pytest.skip("uv is not installed: there is nothing to build the wheel with")
    for network in (["--offline"], []):
        done = subprocess.run(
            [program, *network, *arguments], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode == 0:
            return
    pytest.fail(f"uv {' '.join(map(str, arguments))}: {done.stderr}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist and not from the repository."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, in an environment with nothing but the wheel and what it depends on, in the versions we pin."""
    folder = tmp_path_factory.mktemp("environment")
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]["constraint-dependencies"]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins))
    environment = folder / "venv"
    uv("venv", "--quiet", environment, cwd=folder)
    python = environment / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, "--constraints", constraints, wheel, cwd=folder)
    return environment / "bin" / "kinguin-streams"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("KINGUIN_", "PYTHON"))}


def run(program: Path, elsewhere: Path, environment: Mapping[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [program, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def data_files() -> Iterator[Path]:
    """Every file of a room that is not Python, and that the repository would carry."""
    tracked = subprocess.run(
        [shutil.which("git") or "git", "ls-files", "-z", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if not tracked.stdout:
        pytest.skip("not a git checkout: nothing says which files belong to it")
    yield from (Path(name) for name in tracked.stdout.split("\0") if name and not name.endswith(".py"))


def test_the_wheel_has_every_data_file_of_the_rooms(wheel: Path) -> None:
    expected = {f"kinguin_streams/{path}" for path in data_files()} | {"kinguin_streams/py.typed"}
    assert any(name.endswith(".avsc") for name in expected)
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_has_the_package_alone(wheel: Path) -> None:
    """A top-level `schemas` or `tests` of ours would stand in the way of a user's own."""
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kinguin_streams"}


def test_the_installed_program_knows_its_version(
    installed: Path, elsewhere: Path, environment: Mapping[str, str]
) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert run(installed, elsewhere, environment, "--version") == f"{version}\n"


def test_the_installed_program_carries_every_schema_version(
    installed: Path, elsewhere: Path, environment: Mapping[str, str]
) -> None:
    listed = json.loads(run(installed, elsewhere, environment, "schemas", "list", "--json"))["schemas"]
    shipped = {(path.parent.name, int(path.stem)) for path in (ROOT / "schemas" / "avro").glob("*/*.avsc")}
    assert {(schema["record"], schema["version"]) for schema in listed} == shipped
    checked = json.loads(run(installed, elsewhere, environment, "schemas", "check", "--json"))
    assert checked == {"checked": len(shipped), "findings": []}


def test_the_installed_program_can_make_a_database(
    installed: Path, elsewhere: Path, environment: Mapping[str, str]
) -> None:
    """The migrations are files that alembic runs by path: importing the package does not prove that they are there."""
    url = f"sqlite:///{elsewhere}/state.db"
    run(installed, elsewhere, environment, "state", "migrate", "--state-url", url)
    assert (
        run(installed, elsewhere, environment, "state", "dump", "orders", "--state-url", url, "--format", "json") == ""
    )


def test_without_the_local_extra_the_program_says_which_extra_is_missing(
    installed: Path, elsewhere: Path, environment: Mapping[str, str]
) -> None:
    done = subprocess.run(
        [installed, "kafka", "start"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "kinguin-streams[local]" in done.stderr
    assert "Traceback" not in done.stderr
