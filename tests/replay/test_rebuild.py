"""`replay rebuild` on a real Kafka: the new state is right, readers never see half of it, and the live consumer goes on."""

import json
import random
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from kinguin_streams.consumers import database, reader
from kinguin_streams.consumers.order_state import ORDER_STATE, OrderState, rank
from kinguin_streams.consumers.projection import Received
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.schemas.dead_letters import from_ingress
from kinguin_streams.schemas.events import DeadLetter, OrderComplete, OrderStatus, StoreName
from tests.commands import COMMAND, clean_environment, run
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_complete, order_status
from tests.consumers.kafka_streams import Streams, running_loop, wait_until

pytestmark = pytest.mark.kafka

EVENTS = 2_400
STATUSES = ["processing", "completed", "canceled", "refunded"]


def settings_of(streams: Streams, state: StateSettings, **more: object) -> dict[str, str]:
    return {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": str(streams.kafka.bootstrap_servers),
        "KINGUIN_TOPICS__PREFIX": streams.prefix,
        "KINGUIN_TOPICS__PARTITIONS": "3",
        "KINGUIN_CONSUMER__GROUP_PREFIX": streams.prefix,
        "KINGUIN_STATE__URL": state.url,
        **{f"KINGUIN_{name}": str(value) for name, value in more.items()},
    }


class History:
    """Events in any order with duplicates, and what they come to, worked out without the fold."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._sent: list[Any] = []
        self.facts: dict[str, set[tuple[int, str]]] = {}

    def more(self, events: int) -> list[Any]:
        made: list[Any] = []
        for number in range(len(self._sent), len(self._sent) + events):
            order_id = f"O{self._dice.randrange(400)}"
            if self._sent and self._dice.random() < 0.1:
                event = self._dice.choice(self._sent)
            elif self._dice.random() < 0.1:
                event = order_complete(number - self._dice.randrange(50), order_id=order_id)
            else:
                minute = number - (self._dice.randrange(500) if self._dice.random() < 0.2 else 0)
                event = order_status(self._dice.choice(STATUSES), minute, order_id=order_id)
            made.append(event)
            self._sent.append(event)
            self.facts.setdefault(event.order_id, set()).add((event.updated_at_ms, event.status))
        return made

    def expected(self) -> dict[str, tuple[str, int]]:
        winners = {order_id: max(found, key=lambda fact: rank(*fact)) for order_id, found in self.facts.items()}
        return {order_id: (status, len(self.facts[order_id])) for order_id, (_, status) in winners.items()}


def stored(state: StateSettings) -> dict[str, tuple[str | None, int]]:
    return {view.order_id: (view.status, len(view.facts)) for view in reader.order_views(state.url)}


def built_offsets(state: StateSettings) -> int:
    engine = database.open_for_reading(state)
    try:
        with engine.connect() as connection:
            ask = "SELECT sum(next_offset) FROM projection_offset o JOIN projection_build b ON o.generation = b.generation"
            return int(connection.execute(text(ask)).scalar() or 0)
    finally:
        engine.dispose()


@pytest.fixture
def live(kafka: KafkaCluster, topic_prefix: str, state: StateSettings, tmp_path: Path) -> Iterator[Any]:
    """A consumer's process over topics with some thousand events, and what it is started with."""
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make()
    history = History(random.randrange(2**32))
    streams.write(*history.more(EVENTS))
    yield from _consuming(streams, history, state, tmp_path)


def _consuming(streams: Streams, history: History, state: StateSettings, folder: Path) -> Iterator[Any]:
    settings = settings_of(streams, state)
    process = start(settings, folder)
    try:
        ends = streams.ends("order.status", "order.complete")
        wait_until(lambda: reader.stored_offsets(state.url, "order-state") == ends, "the state", timeout_s=60)
        yield streams, history, settings, process
    finally:
        process.kill()
        process.wait(30)


def start(settings: Mapping[str, str], folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / "consumer.log").open("ab") as log:
        return subprocess.Popen(
            [*COMMAND, "consume", "order-state"],
            env=clean_environment(settings),
            stdout=log,
            stderr=log,
            cwd=folder,
        )


def test_a_rebuild_killed_twice_is_swapped_in_while_events_keep_arriving(
    live: Any, state: StateSettings, tmp_path: Path
) -> None:
    streams, history, settings, consumer = live
    command = [*COMMAND, "replay", "rebuild", "order-state", "--execute", "--json"]
    for wanted in (EVENTS // 8, EVENTS // 2):
        slow = clean_environment({**settings, "KINGUIN_CONSUMER__BATCH_RECORDS": "50"})
        process = subprocess.Popen(
            command, env=slow, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda wanted=wanted: built_offsets(state) >= wanted, f"{wanted} records", timeout_s=60)  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    assert built_offsets(state) < EVENTS, "it was done before it could be killed"

    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.wait(0.05):
            streams.write(*history.more(10))

    writing = threading.Thread(target=keep_writing)
    writing.start()
    try:
        done = run({**settings, "KINGUIN_LOCAL__DATA_DIR": str(tmp_path)}, *command[3:])
    finally:
        stop.set()
        writing.join()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["resumed"]
    assert 0 < said["applied"] < sum(streams.ends("order.status", "order.complete").values())
    assert (said["swapped"]["before"], said["swapped"]["generation"], said["swapped"]["vanished"]) == (1, 2, 0)

    # The old consumer is refused as soon as there is something to write.
    streams.write(*history.more(10))
    assert consumer.wait(30) == 1
    assert b"has been rebuilt" in (tmp_path / "consumer.log").read_bytes()
    again = start(settings, tmp_path)
    try:
        ends = streams.ends("order.status", "order.complete")
        wait_until(lambda: reader.stored_offsets(state.url, "order-state") == ends, "the rest", timeout_s=60)
        assert stored(state) == history.expected()

        def told() -> bool:
            return run(settings, "state", "verify", "--derived").returncode == 0

        wait_until(told, "the derived topic to say the same", timeout_s=60)
    finally:
        again.send_signal(signal.SIGTERM)
        again.wait(30)


def hasty(known: OrderState | None, delivery: Received[OrderStatus | OrderComplete]) -> OrderState:
    """A fold with a bug: what is canceled is taken for refunded."""
    event = delivery.event
    if isinstance(event, OrderStatus) and event.status == "canceled":
        wrong = order_status("refunded", order_id=event.order_id, updated_at_ms=event.updated_at_ms)
        delivery = Received(wrong, delivery.topic, delivery.partition, delivery.offset, delivery.timestamp_ms)
    return ORDER_STATE.fold(known, delivery)


def test_what_a_mended_fold_makes_different_is_shown_before_it_is_live(
    kafka: KafkaCluster, topic_prefix: str, state: StateSettings, tmp_path: Path
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make()
    streams.write(
        *(order_status("processing", 0, order_id=f"O{number}") for number in range(200)),
        *(order_status("canceled", 1, order_id=f"O{number}") for number in range(30)),
    )
    with running_loop(streams, tmp_path, replace(ORDER_STATE, fold=hasty), state=state) as loop:
        loop.catch_up(streams.ends("order.status"))
    settings = settings_of(streams, state)
    shown = run(settings, "replay", "rebuild", "order-state", "--compare", "--execute").stdout
    assert (shown.count("    live "), "and 10 more" in shown) == (20, True), shown
    compared = run(settings, "replay", "rebuild", "order-state", "--compare", "--execute", "--json")
    assert compared.returncode == 0, compared.stderr
    said = json.loads(compared.stdout)
    assert (said["differing"], said["swapped"]) == (30, None)
    assert [each["key"] for each in said["examples"]] == sorted(f"default:O{number}" for number in range(30))
    assert stored(state)["O0"] == ("refunded", 2)

    swapped = run(settings, "replay", "rebuild", "order-state", "--execute")
    assert swapped.returncode == 0, swapped.stderr
    assert "generation 2 instead of 1" in swapped.stdout
    assert stored(state)["O0"] == ("canceled", 2)


def test_history_that_retention_has_deleted_is_reported_and_not_lost_by_mistake(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    state = state_settings(tmp_path)
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=1).make()
    streams.write(*(order_status("processing", 0, order_id=f"O{number}") for number in range(50)))
    with running_loop(streams, tmp_path, state=state) as loop:
        loop.catch_up(streams.ends("order.status"))
    streams.delete_records("order.status", 0, 20)
    settings = settings_of(streams, state)
    plan = run(settings, "replay", "rebuild", "order-state", "--json")
    assert (plan.returncode, json.loads(plan.stdout)["gone"]) == (0, 20)
    refused = run(settings, "replay", "rebuild", "order-state", "--execute")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--allow-gaps" in refused.stderr
    assert len(stored(state)) == 50
    done = run(settings, "replay", "rebuild", "order-state", "--execute", "--allow-gaps", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["swapped"] == {"before": 1, "generation": 2, "told": 50, "vanished": 20}
    assert len(stored(state)) == 30


def a_dead_letter() -> DeadLetter:
    return from_ingress(
        store=StoreName("default"),
        event="order.status",
        reason="malformed_json",
        detail="",
        body=b"{",
        headers=(),
        received_at_ms=1_790_000_000_000,
    )


def test_what_retention_has_deleted_is_read_from_files_first(
    kafka: KafkaCluster, topic_prefix: str, state: StateSettings, tmp_path: Path
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=2).make()
    streams.write(*(order_status("processing", 0, order_id=f"O{number}") for number in range(60)))
    settings = settings_of(streams, state, REPLAY__RECEIPTS=tmp_path / "receipts")
    files, topic, letters = tmp_path / "files", streams.name("order.status"), streams.name("dead-letter")
    streams.write(a_dead_letter())  # an export of several topics has files that are none of this projection's
    exported = run(settings, "replay", "file", str(files), topic, letters, "--execute")
    assert exported.returncode == 0, exported.stderr
    streams.write(*(order_status("completed", 1, order_id=f"O{number}") for number in range(60)))
    with running_loop(streams, tmp_path, state=state) as loop:
        loop.catch_up(streams.ends("order.status"))
    before = stored(state)
    for partition in range(2):
        streams.delete_records("order.status", partition, 10)

    command = ("replay", "rebuild", "order-state", "--source", str(files))
    plan = run(settings, *command, "--json")
    assert (plan.returncode, f"left out: the files of {letters}" in plan.stderr) == (0, True), plan.stderr
    said = json.loads(plan.stdout)
    assert (said["records_at_most"], said["records_in_files"], said["seconds_estimated"]) == (100, 60, 0.0)
    assert said["bytes_estimated"] > 0
    assert (said["gone"], said["warnings"]) == (20, []), "the files have what is gone"
    assert not [path for path in said["source_files"] if letters in path]
    none = run(settings, "replay", "rebuild", "product-changes", "--source", str(files))
    assert (none.returncode, "nothing of" in none.stderr) == (1, True), none.stderr
    compared = run(settings, *command, "--compare", "--execute", "--json")
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["differing"] == 0
    other = tmp_path / "other"
    assert run(settings, "replay", "file", str(other), topic, "--execute").returncode == 0
    said = json.loads(run(settings, *command[:-1], str(other), "--json").stdout)
    assert [warning.partition(":")[0] for warning in said["warnings"]] == [f"{topic}/0", f"{topic}/1"]
    refused = run(settings, *command[:-1], str(other), "--allow-gaps", "--execute")
    assert "--anew" in refused.stderr
    done = run(settings, *command, "--execute", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["swapped"]["vanished"] == 0
    assert stored(state) == before


def test_an_app_has_no_state_to_rebuild(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from kinguin_streams.consumers.app import App\n"
        "from kinguin_streams.schemas.events import OrderStatus\n"
        'app = App("mine")\n'
        "@app.on(OrderStatus)\n"
        "def take(event, context): ...\n"
    )
    refused = run({"KINGUIN_KAFKA__BOOTSTRAP_SERVERS": "localhost:1"}, "replay", "rebuild", f"{tmp_path}/mine.py:app")
    assert refused.returncode == 1
    assert "has handlers and no state" in refused.stderr
