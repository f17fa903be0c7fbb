"""`replay rebuild` of a million records: killed and gone on with beside a live consumer, while events keep arriving."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.settings import StateSettings
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import KafkaCluster
from tests.consumers.kafka_streams import Streams, wait_until
from tests.replay.many_orders import RECORDS, ManyOrders
from tests.replay.test_rebuild import built_offsets, settings_of, start, stored

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(3_600)]

KILLED_AT = (RECORDS // 5, RECORDS // 2, RECORDS * 7 // 10)
LONG_S = 1_500
ARRIVING_PER_S = 400


@contextmanager
def arriving(orders: ManyOrders) -> Iterator[None]:
    """News of known orders, some hundred in a second, until the end."""
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.wait(0.5):
            orders.write(ARRIVING_PER_S // 2)

    writing = threading.Thread(target=keep_writing)
    writing.start()
    try:
        yield
    finally:
        stop.set()
        writing.join()


def killed_at(built: int, state: StateSettings, settings: dict[str, str], folder: Path) -> None:
    """Start a rebuild, or go on with it, and kill it once so many records are in the new state."""
    process = subprocess.Popen(
        [*COMMAND, "replay", "rebuild", "order-state", "--execute"],
        env=clean_environment({**settings, "KINGUIN_CONSUMER__BATCH_RECORDS": "10000"}),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: built_offsets(state) >= built or process.poll() is not None, f"{built} records", timeout_s=LONG_S
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)


def test_a_million_records_rebuilt_and_killed_three_times_are_the_live_state_while_events_keep_arriving(
    *, kafka: KafkaCluster, topic_prefix: str, state: StateSettings, tmp_path: Path, record_property: Any
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make()
    orders = ManyOrders(streams)
    orders.write(RECORDS)
    settings = settings_of(streams, state, LOCAL__DATA_DIR=tmp_path)
    figures: dict[str, float] = {"records": RECORDS}

    def live_is_at(ends: dict[tuple[str, int], int]) -> bool:
        return reader.stored_offsets(state.url, "order-state") == ends

    def measured(name: str, began_s: float) -> None:
        figures[name] = round(time.monotonic() - began_s, 1)

    began_s = time.monotonic()
    live = start(settings, tmp_path)
    try:
        wait_until(lambda: live_is_at(streams.ends("order.status")), "the live state", timeout_s=LONG_S)
        measured("live_s", began_s)
        began_s = time.monotonic()
        with arriving(orders):
            for wanted in KILLED_AT:
                killed_at(wanted, state, settings, tmp_path)
                assert 0 < built_offsets(state) < RECORDS, "it was done before it could be killed"
        measured("killed_s", began_s)

        # Nothing arrives for a moment: what was built by four processes is what one live consumer has made of it.
        ends = streams.ends("order.status")
        wait_until(lambda: live_is_at(ends), "the live state", timeout_s=LONG_S)
        began_s = time.monotonic()
        rebuild = ("replay", "rebuild", "order-state", "--execute", "--json")
        compared = run(settings, *rebuild, "--compare", timeout_s=LONG_S)
        measured("compared_s", began_s)
        assert compared.returncode == 0, compared.stderr
        said = json.loads(compared.stdout)
        assert (said["resumed"], said["differing"], said["swapped"]) == (True, 0, None), said["examples"]

        with arriving(orders):
            time.sleep(5)
            began_s = time.monotonic()
            done = run(settings, *rebuild, timeout_s=LONG_S)
            measured("swapped_s", began_s)
            assert done.returncode == 0, done.stderr
            said = json.loads(done.stdout)
            assert (said["swapped"]["before"], said["swapped"]["generation"], said["swapped"]["vanished"]) == (1, 2, 0)
            assert live.wait(60) == 1  # there is something to write all the time
        assert b"has been rebuilt" in (tmp_path / "consumer.log").read_bytes()
    finally:
        live.kill()
        live.wait(30)

    again = start(settings, tmp_path)
    try:
        ends = streams.ends("order.status")
        wait_until(lambda: live_is_at(ends), "the rest", timeout_s=LONG_S)
        expected = orders.expected()
        assert sum(ends.values()) == orders.written
        assert stored(state) == expected

        def told() -> bool:
            return run(settings, "state", "verify", "--derived", timeout_s=LONG_S).returncode == 0

        wait_until(told, "the derived topic to say the same", timeout_s=LONG_S)
    finally:
        again.send_signal(signal.SIGTERM)
        again.wait(60)
    figures["arrived"] = orders.written - RECORDS
    figures["orders"] = len(expected)
    record_property("figures", json.dumps(figures))
