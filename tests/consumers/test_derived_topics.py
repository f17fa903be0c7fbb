"""The derived topics on a real Kafka: what is read back from them is what the database holds, whatever is killed."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kinguin_streams.cluster.connection import consumer_config, producer_config
from kinguin_streams.cluster.publisher import KafkaPublisher
from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.consumers import derived, reader
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.relay import Relay, running
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import OrderStateRecord
from kinguin_streams.schemas.outgoing import outgoing
from tests.conftest import KafkaCluster
from tests.consumers.databases import PRODUCT_TOPIC, STATUS_TOPIC, advance
from tests.consumers.deliveries import order_status, product_update, received
from tests.consumers.kafka_streams import Streams, wait_until
from tests.consumers.test_consumer_kill import environment, start

pytestmark = pytest.mark.kafka


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


@contextmanager
def topic_reader(streams: Streams) -> Iterator[TopicReader]:
    made = TopicReader(consumer_config(streams.kafka, group_id="verify", client_id="verify"))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def relaying(streams: Streams, settings: StateSettings, projection: Projection = ORDER_STATE) -> Iterator[Relay]:
    with KafkaPublisher(producer_config(streams.kafka, client_id="relay")) as publisher:
        relay = Relay(projection, state=settings, topics=streams.topics, encoder=Encoder(), sender=publisher)
        with running(relay):
            yield relay


def verified(streams: Streams, settings: StateSettings, projection: Projection = ORDER_STATE) -> derived.Comparison:
    assert projection.derived is not None
    with topic_reader(streams) as made:
        return derived.verify(projection, settings, made, streams.name(projection.derived), Decoder())


def verify_command(env: dict[str, str], folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "kinguin_streams", "state", *more]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=folder)


def test_rebuilding_from_the_topic_gives_the_database_while_states_change(
    streams: Streams, settings: StateSettings
) -> None:
    orders, products = StateStore(settings, ORDER_STATE), StateStore(settings, PRODUCT_CHANGES)
    with relaying(streams, settings) as one, relaying(streams, settings, PRODUCT_CHANGES) as other:
        for round_ in range(20):
            first, after = round_ * 50, (round_ + 1) * 50
            statuses = [
                received(order_status(f"s{number % 7}", number % 90, order_id=f"O{number % 60}"), number)
                for number in range(first, after)
            ]
            orders.apply(statuses, [advance(STATUS_TOPIC, first or None, after)])
            changes = [
                received(product_update(number, kinguin_id=number % 30, qty=number), number)
                for number in range(first, after)
            ]
            products.apply(changes, [advance(PRODUCT_TOPIC, first or None, after)])
        for projection in (ORDER_STATE, PRODUCT_CHANGES):
            wait_until(lambda which=projection: verified(streams, settings, which).waiting == 0, "all told")  # type: ignore[misc]
        assert one.leading and other.leading  # noqa: PT018
    assert verified(streams, settings) == derived.Comparison(60, 0, ())
    assert verified(streams, settings, PRODUCT_CHANGES) == derived.Comparison(30, 0, ())
    with topic_reader(streams) as made:
        table = derived.read_derived(made, streams.name("order.state"), Decoder())
    told = {
        state.order_id: (state.status, state.updated_at_ms, len(state.facts))
        for state in table.values()
        if isinstance(state, OrderStateRecord)
    }
    assert told == {
        view.order_id: (view.status, view.updated_at_ms, len(view.facts)) for view in reader.order_views(settings.url)
    }
    orders.close()
    products.close()


def test_an_order_is_forgotten_by_command_and_verify_says_what_differs(streams: Streams, tmp_path: Path) -> None:
    streams.write(order_status("processing"), order_status("completed", 1, order_id="B"), product_update())
    env, log = environment(streams, tmp_path), tmp_path / "consumer.log"

    def told() -> Any:
        ended = verify_command(env, tmp_path, "verify", "--derived", "--json")
        return ended.returncode, json.loads(ended.stdout or "{}").get(streams.name("order.state"), {})

    process = start(env, log)
    try:
        wait_until(lambda: told() == (0, {"keys": 2, "waiting": 0, "differences": []}), f"both orders told ({log})")
        assert verify_command(env, tmp_path, "forget", "order", "B").returncode == 0
        assert verify_command(env, tmp_path, "forget", "order", "B").returncode == 1
        wait_until(lambda: told() == (0, {"keys": 1, "waiting": 0, "differences": []}), f"the tombstone ({log})")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(30)
    assert "Traceback" not in log.read_text()

    # Somebody else writes into the topic.
    stranger = OrderStateRecord(
        store=order_status("x").store, order_id="PHS84FJAG5U", generation=1, revision=99, received_at_ms=1,
        truncated=False, set_aside=0, set_aside_truncated=False,
    )  # fmt: skip
    with KafkaPublisher(producer_config(streams.kafka, client_id="stranger")) as publisher:
        publisher.publish(outgoing(stranger, streams.topics, Encoder()))
    assert told() == (
        1,
        {
            "keys": 1,
            "waiting": 0,
            "differences": [{"key": "default:PHS84FJAG5U", "difference": "newer", "topic": "1.99", "database": "1.1"}],
        },
    )
    table = verify_command(env, tmp_path, "verify", "--derived")
    assert (table.returncode, "newer" in table.stdout) == (1, True)


def test_kill_9_of_the_consumer_at_any_moment_leaves_the_topic_right(streams: Streams, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    streams.write(
        *(order_status(f"s{number % 5}", dice.randrange(500), order_id=f"O{number % 400}") for number in range(4_000))
    )
    ends = streams.ends("order.status")
    env, log = environment(streams, tmp_path, CONSUMER__BATCH_RECORDS=100), tmp_path / "consumer.log"
    settings = StateSettings(url=env["KINGUIN_STATE__URL"])

    def offsets() -> int:
        return sum(reader.stored_offsets(settings.url, "order-state").values())

    for moment in sorted(dice.sample(range(1, 3_900), 3)):
        process = start(env, log)
        try:
            wait_until(lambda moment=moment: offsets() >= moment, f"{moment} records ({log})", timeout_s=60)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait(30)
    process = start(env, log)
    try:
        wait_until(lambda: reader.stored_offsets(settings.url, "order-state") == ends, f"the end ({log})")
        wait_until(lambda: verified(streams, settings).waiting == 0, f"all told, seed {seed} ({log})")
    finally:
        process.kill()
        process.wait(30)
    assert verified(streams, settings) == derived.Comparison(400, 0, ())


def test_without_derived_topics_a_consumer_goes_on_and_says_which_topic_is_missing(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    streams = Streams(kafka.bootstrap_servers, topic_prefix).make("order.status", "order.complete", "dead-letter")
    streams.write(order_status("processing"))
    log = tmp_path / "consumer.log"
    process = start(environment(streams, tmp_path), log)
    try:
        wait_until(lambda: "There is no topic" in log.read_text(), f"the missing topic ({log})")
        assert streams.name("order.state") in log.read_text()
        url = environment(streams, tmp_path)["KINGUIN_STATE__URL"]
        wait_until(lambda: bool(reader.stored_offsets(url, "order-state")), f"a stored offset ({log})")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
