"""FILE.py:NAME and module:NAME: what is found, and which sentence says what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from kinguin_streams.consumers.app import App
from kinguin_streams.consumers.loading import load
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.telemetry.operator_error import OperatorError

GOOD = """
import dataclasses
from kinguin_streams.consumers.app import App, Context
from kinguin_streams.schemas.events import OrderStatus
from kinguin_streams.consumers.order_state import ORDER_STATE as states

app = App("mine")
empty = App("empty")
number = 7
copied = dataclasses.replace(states, version=2)

@app.on(OrderStatus)
def handle(event: OrderStatus, context: Context) -> None: ...
"""


@pytest.fixture(autouse=True)
def own_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})


def written(folder: Path, text: str, name: str = "some_consumer.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_an_app_or_a_projection_is_found_by_file_or_by_module(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    app = load(f"{file}:app")
    assert isinstance(app, App)
    assert (app.name, list(app.handlers)) == ("mine", ["order.status"])
    assert load("some_consumer.py:states") is ORDER_STATE
    (tmp_path / "package").mkdir()
    written(tmp_path / "package", GOOD, "inner.py")
    assert isinstance(load("package.inner:app"), App)


def test_a_file_may_import_its_neighbours_and_be_called_like_a_module_that_is_there(tmp_path: Path) -> None:
    written(tmp_path, "NAME = 'neighbourly'", "a_neighbour.py")
    written(tmp_path, GOOD.replace('"mine"', "a_neighbour.NAME").replace("\nfrom", "\nimport a_neighbour\nfrom", 1), "json.py")  # fmt: skip
    app = load("json.py:app")
    assert isinstance(app, App)
    assert app.name == "neighbourly"


@pytest.mark.parametrize(
    ("target", "code", "says"),
    [
        ("nowhere.py:app", "consumer_file_missing", "nowhere.py"),
        ("some_consumer.py:copied", "consumer_name", "order-state is a consumer that comes with the package"),
        ("some_consumer.py:ap", "consumer_name_missing", "app, empty"),
        ("some_consumer.py", "consumer_target", "app, empty"),
        ("some_consumer.py:number", "consumer_wrong_kind", "is a int"),
        ("some_consumer.py:handle", "consumer_wrong_kind", "is a function"),
        ("some_consumer.py:empty", "no_handlers", "@empty.on(OrderStatus)"),
        ("no_such_package.module:app", "consumer_module_missing", "no_such_package"),
        ("words", "consumer_target", "words"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, target: str, code: str, says: str) -> None:
    written(tmp_path, GOOD)
    with pytest.raises(OperatorError) as refused:
        load(target)
    assert refused.value.code == code
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import no_such_thing", "ModuleNotFoundError"),
        ("price = 1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("import json; json.loads('[')", "JSONDecodeError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_shown_with_its_own_line(tmp_path: Path, line: str, says: str) -> None:
    file = written(tmp_path, f"# first line\n{line}\n")
    with pytest.raises(OperatorError) as refused:
        load("some_consumer.py:app")
    assert refused.value.code == "consumer_not_importable"
    assert says in refused.value.what
    assert refused.value.hint == f"At {file}, line 2: {line}"


def test_a_handler_with_a_wrong_signature_is_shown_with_its_own_line(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD.replace("event: OrderStatus, context: Context", "event: OrderStatus"))
    with pytest.raises(OperatorError) as refused:
        load("some_consumer.py:app")
    assert refused.value.code == "handler_refused"
    assert f"{file}, line 12: handle cannot be called with (event, context)" in refused.value.what


def test_the_command_says_it_in_two_lines(tmp_path: Path) -> None:
    written(tmp_path, "price = 1 / 0\n")
    for target, says in (("some_consumer.py:app", "price = 1 / 0"), ("order-sate", "order-state or product-changes")):
        ended = subprocess.run(
            [sys.executable, "-m", "kinguin_streams", "consume", target],
            capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert ended.returncode == 1
        assert says in ended.stderr
        assert "Traceback" not in ended.stderr
