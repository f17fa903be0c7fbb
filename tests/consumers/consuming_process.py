"""`kinguin-streams consume` as a process with an admin port, for the tests of what it says of itself."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from tests.conftest import free_port
from tests.consumers.kafka_streams import Streams, wait_until
from tests.consumers.test_consumer_kill import environment, start

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass
class Consuming:
    """The process, and questions to its admin port."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def ask(self, path: str) -> tuple[int, str]:
        """Return status and text; (0, why) while nobody answers."""
        try:
            with urllib3.PoolManager() as http:
                answer = http.request("GET", f"http://127.0.0.1:{self.port}{path}", retries=False, timeout=5)
                return answer.status, answer.data.decode()
        except urllib3.exceptions.HTTPError as error:
            return 0, str(error)

    def metrics(self) -> dict[str, float]:
        """Return each sample by its name and labels, but those that are the same in all of a test."""
        text = self.ask("/metrics")[1]
        return {_short(name, labels): float(value) for name, labels, value in SAMPLE.findall(text)}

    def wait_for_metric(self, name: str, value: float) -> None:
        """Wait until it has this value."""
        wait_until(lambda: self.metrics().get(name) == value, f"{name} {value:g} ({self.log})")

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.ask("/readyz")[0] == 200, f"a consumer that is ready ({self.log})")


def _short(name: str, labels: str) -> str:
    values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    topic = values.pop("topic", "").partition(".")[2]
    others = [value for key, value in values.items() if key not in ("consumer", "group")]
    return " ".join([name.removeprefix("kinguin_consumer_"), *filter(None, [topic]), *others])


@contextmanager
def consuming(streams: Streams, folder: Path, what: str = "order-state", **settings: object) -> Iterator[Consuming]:
    """A consumer that is killed at the end, if it has not ended before."""
    port, log = free_port(), folder / f"{Path(what).stem}.log"
    quick = {"KAFKA__CONFIG": "{}", "CONSUMER__ADMIN_PORT": port, **settings}
    process = start(environment(streams, folder, **quick), log, what)
    try:
        yield Consuming(process, port, log)
    finally:
        process.kill()
        process.wait()
