"""docs/tutorial.md, followed to the letter: in an empty folder, with a wheel, and with everything that the page says run.

Only what a machine has for itself is given by the environment: where the wheel is, which versions we pin, free ports.
"""

import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
STEPS = re.findall(r"^<!-- ([a-z ]+)(?:: (.+?))? -->(?:\n```\w*\n(.*?)```)?$", PAGE, re.DOTALL | re.MULTILINE)
PATIENCE_S = 60.0
COMMAND_TIMEOUT_S = 240.0


@dataclass
class Reader:
    """Somebody who does what the page says, in one folder."""

    folder: Path
    environment: dict[str, str]
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    last: str = ""

    def run(self, commands: str) -> str:
        """Run commands as typed into one shell, whose environment goes on in the next; return what they print."""
        kept = self.folder.parent / "environment"
        done = subprocess.run(
            ["bash", "-ec", f"{commands}\nenv -0 > '{kept}'"],  # noqa: S607 - the reader's own shell
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        pairs = kept.read_text().rstrip("\0").split("\0")
        self.environment = dict(pair.split("=", 1) for pair in pairs)
        self.last = commands
        return done.stdout

    def run_and_see(self, commands: str, expected: str) -> None:
        """Run them until they print that: a consumer that was just started needs its time."""
        ends_s = time.monotonic() + PATIENCE_S
        while not matches(expected, printed := self.run(commands)):
            assert self.running and time.monotonic() < ends_s, f"{printed}\n{self.logs()}"  # noqa: PT018
            time.sleep(0.5)

    def start(self, commands: str) -> None:
        """Run them in a terminal of their own."""
        *before, last = commands.strip().splitlines()
        with self.log(commands).open("wb") as log:
            self.running[commands] = subprocess.Popen(
                ["bash", "-ec", "\n".join([*before, f"exec {last}"])],  # noqa: S607
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def see(self, commands: str, expected: str) -> None:
        """Wait until what was started has printed that."""
        ends_s = time.monotonic() + PATIENCE_S
        while not matches(expected, self.log(commands).read_text()):
            assert all(process.poll() is None for process in self.running.values()), self.logs()
            assert time.monotonic() < ends_s, self.logs()
            time.sleep(0.2)

    def stop(self) -> None:
        """Press Ctrl-C in each of those terminals."""
        for commands, process in reversed(self.running.items()):
            process.send_signal(signal.SIGINT)
            process.wait(30)
            if "shop.py" not in commands:  # ours say how they ended
                assert process.returncode == 130, self.log(commands).read_text()
        self.running.clear()

    def logs(self) -> str:
        return "\n".join(f"$ {each}{self.log(each).read_text()[-3_000:]}" for each in self.running)

    def log(self, commands: str) -> Path:
        return self.folder.parent / (re.sub(r"\W+", "-", commands.strip().splitlines()[-1]) + ".log")


def matches(expected: str, printed: str) -> bool:
    """Return whether these lines were printed, in this order; … stands for anything."""
    lines = [re.escape(line).replace("…", ".+") for line in expected.strip().splitlines()]
    return re.search(r"(?:^|\n)" + r"(?:\n.*)*?\n".join(lines), printed) is not None


@pytest.fixture
def somebody(tmp_path: Path) -> Iterator[Reader]:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed: the page begins with it")
    dist = tmp_path / "dist"
    build = [uv, "build", "--quiet", "--out-dir", str(dist), str(ROOT)]
    for network in (["--offline"], []):
        built = subprocess.run(
            [*build, *network], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
        if built.returncode == 0:
            break
    assert built.returncode == 0, built.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (tmp_path / "constraints.txt").write_text("\n".join(project["tool"]["uv"]["constraint-dependencies"]))
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KINGUIN_", "PYTHON", "PYTEST", "VIRTUAL_ENV", "COV"))
    }
    ports = {
        name: str(free_port())
        for name in (
            "SHOP_PORT",
            "KINGUIN_LOCAL__KAFKA_PORT",
            "KINGUIN_LOCAL__CONTROLLER_PORT",
            "KINGUIN_INGRESS__PORT",
            "KINGUIN_INGRESS__ADMIN_PORT",
        )
    }
    folder = tmp_path / "empty"
    folder.mkdir()
    reader = Reader(
        folder,
        {
            **clean,
            **ports,
            "UV_FIND_LINKS": str(dist),
            "UV_CONSTRAINT": str(tmp_path / "constraints.txt"),
            "PATH": f"{Path(uv).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    try:
        yield reader
    finally:
        for process in reader.running.values():
            process.kill()
            process.wait()
        program = folder / ".venv" / "bin" / "kinguin-streams"
        if program.exists():
            subprocess.run([program, "kafka", "stop"], cwd=folder, env=reader.environment, timeout=60, check=False)


@pytest.mark.kafka
def test_the_tutorial_ends_with_two_consumers_that_work(somebody: Reader) -> None:
    for number, (kind, name, text) in enumerate(STEPS):
        following = STEPS[number + 1] if number + 1 < len(STEPS) else ("", "", "")
        match kind:
            case "file":
                (somebody.folder / name).write_text(text, "utf-8")
            case "run":
                if following[0] == "output":
                    somebody.run_and_see(text, following[2])
                else:
                    somebody.run(text)
            case "start":
                somebody.start(text)
            case "shown by":
                somebody.see(f"{name}\n", text)
            case "stop":
                somebody.stop()
            case "output":
                assert STEPS[number - 1][0] == "run"
            case _:
                pytest.fail(f"nobody knows what {kind!r} asks for")
    assert {"notifier.py", "lead_times.py", "test_notifier.py", "test_lead_times.py"} <= {
        path.name for path in somebody.folder.iterdir()
    }


def test_everything_on_the_page_is_followed() -> None:
    assert sum(bool(text) for _, _, text in STEPS) == PAGE.count("\n```") // 2
    assert [kind for kind, _, _ in STEPS].count("file") == PAGE.count("```python")


def test_the_pages_notifier_is_the_example() -> None:
    [shown] = [text for kind, name, text in STEPS if (kind, name) == ("file", "notifier.py")]
    assert shown == (ROOT / "examples" / "order_completed_notifier.py").read_text("utf-8")
