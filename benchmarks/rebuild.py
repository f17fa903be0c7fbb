"""Seconds of `replay rebuild order-state`, beside the consumer that has made the live state from the same topic.

uv run python benchmarks/rebuild.py [--records 1000000] [--orders 100000] [--repetitions 3] [--state sqlite] [--json]

The topic is that of benchmarks/consumers.py. In each repetition, and in a database of its own:
  consume  `kinguin-streams consume order-state` from the first record until its stored offsets are at the end; then it is stopped
  rebuild  `kinguin-streams replay rebuild order-state --execute`: the same records beside that state, swapped in, the old one deleted
The clock of each runs from the start of its process to the last record (consume) or the end of the process (rebuild). The derived
topic is off, since a rebuild tells nothing before it is live. PostgreSQL is left out where its server is not installed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from measuring import broker, median, process, say
from postgres import NoPostgres, postgres

from consumers import TOPIC, fill
from kinguin_streams.consumers import reader
from kinguin_streams.telemetry.operator_error import OperatorError

COMMAND = (sys.executable, "-m", "kinguin_streams")
KINDS = ("sqlite", "postgres")
GIVE_UP_S = 1_800
_NAP_S = 0.05


def consumed(environment: Mapping[str, str], url: str, records: int) -> float:
    """Make the live state, and return the seconds."""
    began_s = time.monotonic()
    with process([*COMMAND, "consume", "order-state"], dict(environment)) as child:
        while _stored(url) < records:
            assert child.poll() is None, "the consumer has stopped"
            assert time.monotonic() - began_s < GIVE_UP_S, "the consumer is too slow"
            time.sleep(_NAP_S)
        return time.monotonic() - began_s


def _stored(url: str) -> int:
    try:
        return sum(offset for (topic, _), offset in reader.stored_offsets(url, "order-state").items() if topic == TOPIC)
    except OperatorError:  # there are no tables yet
        return 0


def rebuilt(environment: Mapping[str, str], records: int) -> float:
    """Make it anew, and return the seconds."""
    began_s = time.monotonic()
    command = [*COMMAND, "replay", "rebuild", "order-state", "--execute", "--json"]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    took_s = time.monotonic() - began_s
    said = json.loads(done.stdout)
    assert (said["applied"], said["swapped"]["generation"]) == (records, 2), said
    return took_s


@contextmanager
def database(kind: str) -> Iterator[str]:
    """Yield the URL of an empty one, gone after it. Raises NoPostgres."""
    if kind == "postgres":
        with postgres() as server:
            yield server.url
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{Path(folder) / 'state.db'}"


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--orders", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--state", choices=KINDS, action="append", help="only this database; repeatable")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    with broker() as local:
        fill(local.bootstrap_servers, given.records, given.orders)
        for kind in given.state or KINDS:
            seconds: list[tuple[float, float]] = []
            try:
                for _ in range(given.repetitions):
                    with database(kind) as url:
                        environment = {
                            "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": local.bootstrap_servers,
                            "KINGUIN_STATE__URL": url,
                            "KINGUIN_CONSUMER__DERIVED": "false",
                        }
                        seconds.append((consumed(environment, url, given.records), rebuilt(environment, given.records)))
                    say(f"{kind}: consume and rebuild {seconds[-1]}")
            except NoPostgres as missing:
                say(f"{kind} is left out: {missing}")
                continue
            consume_s, rebuild_s = (median([each[number] for each in seconds]) for number in (0, 1))
            report[kind] = {
                "consume_s": round(consume_s, 1),
                "rebuild_s": round(rebuild_s, 1),
                "records_per_s": round(given.records / rebuild_s),
                "of_consume": round(rebuild_s / consume_s, 2),
            }
    if given.json:
        print(json.dumps({"records": given.records, "orders": given.orders, **report}))
        return
    for kind, said in report.items():
        print(f"{kind:8} {said}")


if __name__ == "__main__":
    main()
