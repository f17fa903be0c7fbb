"""The documents in docs/ are what the program generates, and their own validators have no fault with them."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import platformdirs
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from tests.commands import run

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
NPM_FILES = [HERE / name for name in ("package.json", "package-lock.json", ".npmrc")]
INFORMATION = 2  # of Spectral's severities: 0 error, 1 warning, 2 information, 3 hint


@pytest.mark.parametrize("kind", ["asyncapi", "openapi"])
def test_the_committed_document_is_what_the_program_generates(kind: str) -> None:
    done = run({}, "schemas", "export", "--format", kind)
    assert done.returncode == 0, done.stderr
    committed = (DOCS / f"{kind}.json").read_text("utf-8")
    assert done.stdout == committed, f"docs/{kind}.json is out of date: `just documents` makes it anew"


def test_the_openapi_document_is_valid() -> None:
    validate(json.loads((DOCS / "openapi.json").read_text("utf-8")), cls=OpenAPIV31SpecValidator)


def test_the_asyncapi_document_is_valid(parser_modules: Path) -> None:
    assert _faults(parser_modules, DOCS / "asyncapi.json") == []


def test_the_asyncapi_document_of_another_installation_is_valid_too(parser_modules: Path, tmp_path: Path) -> None:
    settings = {
        "KINGUIN_TOPICS__PREFIX": "shop.eu",
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": "kafka-1:9092,kafka-2:9092",
        "KINGUIN_REGISTRY__URL": "https://registry.example/apis/ccompat/v7",
        "KINGUIN_SCHEMAS__WRITE": '{"product.update": 2}',
    }
    assert run(settings, "schemas", "export", "--format", "asyncapi", "--output", str(tmp_path)).returncode == 0
    assert _faults(parser_modules, tmp_path / "asyncapi.json") == []


def test_a_fault_in_an_avro_schema_and_a_dead_reference_are_found(parser_modules: Path, tmp_path: Path) -> None:
    """A validator that finds nothing, whatever it is given, is none."""
    good = (DOCS / "asyncapi.json").read_text("utf-8")
    bad = tmp_path / "bad.json"
    for right, wrong in (
        ('"type": "long"', '"type": "lonk"'),
        ("#/channels/order.status/", "#/channels/order_status/"),
    ):
        bad.write_text(good.replace(right, wrong), "utf-8")
        assert _faults(parser_modules, bad) != []


@pytest.fixture(scope="module")
def parser_modules() -> Path:
    """The AsyncAPI project's parser: fetched once a machine and lock file, into the user's cache folder."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        _missing("there is no node and npm to run the AsyncAPI parser with (Debian: apt-get install nodejs npm)")
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in NPM_FILES)).hexdigest()[:16]
    cache = Path(platformdirs.user_cache_dir("kinguin-streams")) / "documents"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"npm-{digest}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = cache / f".{folder.name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            for file in NPM_FILES:
                shutil.copy(file, unfinished)
            done = subprocess.run([npm, "ci"], cwd=unfinished, capture_output=True, text=True, timeout=200, check=False)
            if done.returncode != 0:
                _missing(f"the AsyncAPI parser could not be fetched: {done.stderr.strip()}")
            unfinished.rename(folder)
    return folder / "node_modules"


def _missing(why: str) -> NoReturn:
    """A machine without it skips; CI must never pass because it skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and {why}", pytrace=False)
    pytest.skip(why)


def _faults(parser_modules: Path, document: Path) -> list[Any]:
    """Return the errors and warnings of the AsyncAPI parser."""
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, HERE / "validate_asyncapi.cjs", document],
        env=os.environ | {"NODE_PATH": str(parser_modules)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Information is left out: that there is a newer AsyncAPI than 3.0, which fewer tools read.
    return [said for said in json.loads(done.stdout) if said["severity"] < INFORMATION]
