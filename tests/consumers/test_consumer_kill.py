"""kill -9 of the consumer's process at random moments changes nothing: state and offsets are what was committed."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.consumers import reader
from kinguin_streams.consumers.order_state import rank
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.schemas.instants import to_rfc3339
from tests.conftest import KafkaCluster
from tests.consumers.databases import state_settings
from tests.consumers.deliveries import order_complete, order_status
from tests.consumers.kafka_streams import Streams, wait_until

pytestmark = pytest.mark.kafka

STATUSES = ["processing", "completed", "canceled", "refunded"]


def environment(streams: Streams, folder: Path, **settings: object) -> dict[str, str]:
    """Return what a consumer's process is started with: its own group and state, and no wait for a dead predecessor."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("KINGUIN_")},
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": str(streams.kafka.bootstrap_servers),
        "KINGUIN_KAFKA__CONFIG": json.dumps({"group.instance.id": "the-only-one"}),
        "KINGUIN_TOPICS__PREFIX": streams.prefix,
        "KINGUIN_CONSUMER__GROUP_PREFIX": streams.prefix,
        "KINGUIN_STATE__URL": state_settings(folder).url,
        **{f"KINGUIN_{name}": str(value) for name, value in settings.items()},
    }


def start(environment: dict[str, str], log: Path, name: str = "order-state") -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "kinguin_streams", "consume", name],
            env=environment,
            stdout=output,
            stderr=output,
            cwd=log.parent,
        )


@pytest.mark.parametrize(
    ("events", "kills"),
    [
        pytest.param(4_000, 2, id="everyday"),
        pytest.param(50_000, 20, id="long", marks=[pytest.mark.faults, pytest.mark.timeout(900)]),
    ],
)
def test_rows_47_and_50_kill_9_at_random_moments_loses_nothing_and_counts_nothing_twice(
    *, kafka: KafkaCluster, topic_prefix: str, tmp_path: Path, settings: StateSettings, events: int, kills: int
) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    streams = Streams(kafka.bootstrap_servers, topic_prefix, partitions=3).make()
    sent: list[Any] = []
    facts: dict[str, set[tuple[int, str]]] = {}
    for number in range(events):
        if sent and dice.random() < 0.1:
            event = dice.choice(sent)
        elif dice.random() < 0.1:
            event = order_complete(number - dice.randrange(50), order_id=f"O{dice.randrange(events // 5)}")
        else:
            minute = number - (dice.randrange(500) if dice.random() < 0.2 else 0)
            event = order_status(dice.choice(STATUSES), minute, order_id=f"O{dice.randrange(events // 5)}")
        sent.append(event)
        facts.setdefault(event.order_id, set()).add((event.updated_at_ms, event.status))
    streams.write(*sent)
    ends = streams.ends("order.status", "order.complete")
    url = settings.url
    log = tmp_path / "consumer.log"
    env = environment(streams, tmp_path, STATE__URL=url, CONSUMER__BATCH_RECORDS=50)

    def done() -> int:
        return sum(reader.stored_offsets(url, "order-state").values())

    killed_at: list[int] = []
    for moment in sorted(dice.sample(range(1, events * 9 // 10), kills)):
        process = start(env, log)
        try:
            wait_until(lambda moment=moment: done() >= moment, f"{moment} records ({log})", timeout_s=60)  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        killed_at.append(done())
    process = start(env, log)
    try:
        wait_until(lambda: reader.stored_offsets(url, "order-state") == ends, f"all records ({log})", timeout_s=180)
        process.send_signal(signal.SIGTERM)
        # Everything may have been stored before this last one was far enough to handle a signal.
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    assert killed_at[-1] < sum(ends.values()), "no kill came before the end"

    dump = subprocess.run(
        [sys.executable, "-m", "kinguin_streams", "state", "dump", "orders", "--format", "json"],
        env=env, capture_output=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    orders = [json.loads(line) for line in dump.stdout.splitlines()]
    winners = {order_id: max(found, key=lambda fact: rank(*fact)) for order_id, found in facts.items()}
    assert {order["orderId"]: (order["status"], order["updatedAt"], order["facts"]) for order in orders} == {
        order_id: (status, to_rfc3339(updated_at_ms), len(facts[order_id]))
        for order_id, (updated_at_ms, status) in winners.items()
    }, f"seed {seed}, killed at {killed_at}"
