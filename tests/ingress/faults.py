"""What the fault tests of the ingress share: a witness on disk, a Kafka that stops or dies, and the invariants.

The witness is a ledger file with one line an answer, fsynced before anybody counts the answer; what stands there is all that
`assert_invariants` knows of what was promised.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import msgspec
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from kinguin_streams.cluster.connection import CLIENT_LOGGER
from kinguin_streams.cluster.local_broker import LocalBroker
from kinguin_streams.consumers import order_state, product_changes
from kinguin_streams.consumers.projection import Received, StateKey
from kinguin_streams.schemas.events import ProductUpdate
from kinguin_streams.simulator.ledger import FileLedger, LedgerEntry, acked_webhooks, read_ledger
from kinguin_streams.simulator.plan import plan_deliveries
from kinguin_streams.simulator.sender import Sender, SenderSettings
from kinguin_streams.simulator.witness import expected_event_id, recompute
from tests.ingress.running_ingress import (
    EVENT_TOPICS,
    SECRET,
    Answer,
    Connection,
    Kept,
    RunningIngress,
    assert_balanced,
    new_id,
    order_status,
    wait_until,
)
from tests.pausing import paused

log = logging.getLogger(__name__)

DEADLINE_S = 5.0
LATEST_S = DEADLINE_S + 0.5
FIRST_WAIT_S = 1.3
"""The first second of a silent Kafka, after which nobody waits for it, and what a busy machine adds."""
START_OF_PLAN = datetime(2024, 1, 1, tzinfo=UTC)


class Witness:
    """Posts, and has each answer on disk before it returns it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._numbers = iter(range(1_000_000_000))
        self.took_s: list[float] = []
        """How long each answer to `post` has taken, from the first byte of its request on."""

    @property
    def slowest_s(self) -> float:
        """The longest of them."""
        return max(self.took_s, default=0.0)

    def longer_than_the_first_wait(self) -> int:
        """Return how many took longer than FIRST_WAIT_S."""
        return sum(each > FIRST_WAIT_S for each in self.took_s)

    def entries(self) -> list[LedgerEntry]:
        """Return what was sent and answered so far."""
        return list(read_ledger(self._file))

    def post(
        self, running: RunningIngress, bodies: Sequence[bytes], *, clients: int = 8, event: str = "order.status"
    ) -> list[Answer]:
        """Post webhooks over some connections at once; return the answers in the order of the bodies."""
        with FileLedger(self._file, fsync=True) as ledger:

            def client(number: int) -> list[Answer]:
                connection, answers = Connection(running.port), []
                try:
                    for body in bodies[number::clients]:
                        answer: Answer | None = None
                        began_s = time.monotonic()
                        try:
                            answer = connection.exchange(running.webhook(body, event=event))
                            answers.append(answer)
                        finally:
                            self.took_s.append(time.monotonic() - began_s)
                            status = None if answer is None else answer.status
                            ledger.record(LedgerEntry(next(self._numbers), event, "default", body, status, 1))
                finally:
                    connection.close()
                return answers

            with ThreadPoolExecutor(clients) as pool:
                shares = list(pool.map(client, range(clients)))
        return [shares[number % clients][number // clients] for number in range(len(bodies))]

    @contextmanager
    def sender(self, port: int, posts: int, *, broken: float = 0.0, rate_per_s: float = 0.0) -> Iterator[Sender]:
        """Run the simulated sender: 8 clients that come again until each webhook has its 2xx."""
        settings = SenderSettings(
            target=f"http://127.0.0.1:{port}",
            secret=SECRET,
            clients=8,
            rate_per_s=rate_per_s,
            timeout_s=10,
            retry_waits_s=(0.2,) * 200,
            disable_after=100_000,
        )
        with FileLedger(self._file, fsync=True) as ledger:
            plan = plan_deliveries(uuid4().int % 2**32, start=START_OF_PLAN, count=posts, broken=broken)
            sender = Sender(settings, plan, total=posts, ledger=ledger)
            sender.start()
            try:
                yield sender
                assert sender.wait(240), "the sender did not come to its end"
            finally:
                sender.stop()
                sender.wait(60)


@dataclass(frozen=True)
class Outcome:
    """What the invariants found."""

    acked: int
    """Distinct events."""
    landed: int
    """Distinct events."""
    copies: int
    """Records beyond the first one of each event."""
    answers: "Counter[int | None]"
    letters: int
    """Distinct dead letters."""
    records: tuple[Kept, ...] = field(repr=False)
    """All that was read of the event topics, those of a partition in order."""


def assert_invariants(witness: Witness, running: RunningIngress, *, room: bool = True, killed: bool = False) -> Outcome:
    """Assert I1 to I6 of what was sent through the witness; the topics hold nothing else, and the spool is empty by now.

    I1 every 2xx is in its topic, or in the dead letters. I2 nothing is there that was not sent. I3 nothing is there that only
    got a 4xx. I4 what is there is what was accepted and those "maybe" that landed, and copies of an event are the same event.
    I5 the state that consumers fold is the one recomputed from the distinct events. I6 every request was answered, by no 5xx
    but a 503 and, as long as there was room to keep events, by a 2xx only.
    room: whether the spool was on and had room all the time.
    killed: whether the ingress was killed, which is the one reason for a request without an answer.
    """
    entries = witness.entries()
    acked = recompute(acked_webhooks(entries))
    sent = recompute({(entry.store, entry.event, entry.body) for entry in entries})
    maybe = recompute(
        {
            (entry.store, entry.event, entry.body)
            for entry in entries
            if not entry.acked and (entry.status is None or entry.status >= 500)
        }
    )
    landed: list[Kept] = []
    for name in EVENT_TOPICS:
        kept = running.log.new(name)
        ids = {record.headers["ce_id"].decode() for record in kept}
        assert acked.topics[name] - ids == set(), "I1"
        assert ids - sent.topics[name] == set(), "I2"
        assert ids - acked.topics[name] - maybe.topics[name] == set(), "I3"
        assert len(ids) == len(acked.topics[name]) + len(ids & maybe.topics[name] - acked.topics[name]), "I4"
        landed += kept
    letters = {
        expected_event_id(letter.store or "", letter.event or "", letter.body) for letter in running.log.dead_letters()
    }
    assert acked.refused - letters == set(), "I1, of dead letters"
    assert letters - sent.refused == set(), "I2, of dead letters"
    by_id: dict[str, tuple[Any, bytes | None]] = {}
    for record in landed:
        said = msgspec.structs.replace(record.record, received_at_ms=0), record.message.key()
        assert record.headers["ce_id"].decode() == said[0].event_id, "I4"
        assert by_id.setdefault(said[0].event_id, said) == said, "I4"
    model = recompute({(event.store, event.record_name, event.raw) for event, _ in by_id.values()})
    assert _folded_orders(landed) == model.orders, "I5"
    assert _folded_products(landed) == model.products, "I5"
    statuses = Counter(entry.status for entry in entries)
    assert {status for status in statuses if status is not None and status >= 500} <= {503}, "I6"
    if room:
        assert {status for status in statuses if status is not None and not 200 <= status < 300} == set(), "I6"
    if not killed:
        assert statuses[None] == 0, "I6"
    acked_ids = {event_id for ids in acked.topics.values() for event_id in ids}
    outcome = Outcome(len(acked_ids), len(by_id), len(landed) - len(by_id), statuses, len(letters), tuple(landed))
    log.info("%s", outcome)
    return outcome


def _folded_orders(landed: Sequence[Kept]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the state of the orders that our own fold makes of the log, copies included, as the model says it."""
    states: dict[StateKey, order_state.OrderState] = {}
    for received in _received(landed):
        if not isinstance(received.event, ProductUpdate):
            key = order_state.order_key(received.event)
            states[key] = order_state.fold(states.get(key), received)
    views = {key: order_state.view(key, state) for key, state in states.items()}
    return {
        (key.store, key.id): {
            "status": view.status,
            "updatedAt": view.updated_at_ms,
            "orderExternalId": view.order_external_id,
        }
        for key, view in views.items()
    }


def _folded_products(landed: Sequence[Kept]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what our own rows of product changes say, each distinct one once, as the model says it."""
    changes: dict[tuple[str, int], dict[str, product_changes.Change]] = {}
    for received in _received(landed):
        if isinstance(received.event, ProductUpdate):
            row = product_changes.row(received)
            of_product = changes.setdefault((row["store"], row["kinguin_id"]), {})
            of_product[row["event_id"]] = product_changes.change(SimpleNamespace(**row))
    summaries = {product: product_changes.summarise(of_product.values()) for product, of_product in changes.items()}
    return {
        product: {
            "productId": summary.known["product_id"].value,
            "updatedAt": summary.updated_at_ms,
            "changes": summary.changes,
        }
        for product, summary in summaries.items()
    }


def _received(landed: Sequence[Kept]) -> Iterator[Received[Any]]:
    for kept in landed:
        event, message = kept.record, kept.message
        at = (message.topic() or "", message.partition() or 0, message.offset() or 0)
        yield Received(event, *at, event.received_at_ms)


def spooled(running: RunningIngress) -> float:
    """Return how many events wait on disk, by a scrape whose ledger must balance."""
    metrics = running.metrics()
    assert_balanced(metrics)
    return metrics["kinguin_ingress_spool_events", ()]


def wait_until_drained(running: RunningIngress, timeout_s: float = 60.0) -> None:
    wait_until(lambda: spooled(running) == 0, timeout_s, "an empty spool")


def stalled(broker: LocalBroker) -> AbstractContextManager[None]:
    """Stop the broker as a machine that hangs does: connections stay, nobody answers."""
    return paused(broker.pid)


def fill_spool(witness: Witness, running: RunningIngress, broker: LocalBroker, count: int) -> list[bytes]:
    """Have so many events on disk: post them while Kafka is stalled. It is up again afterwards, so they drain at once."""
    bodies = [order_status(new_id()) for _ in range(count)]
    with stalled(broker):
        assert {answer.status for answer in witness.post(running, bodies)} == {204}
    return bodies


def kill(running: RunningIngress) -> None:
    """End it as a crash does."""
    running.process.kill()
    running.process.wait()
    running.log.close()


def end(running: RunningIngress) -> None:
    """Leave no process behind, whatever the test came to."""
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()
    running.log.close()


def bodies(count: int, size: int = 0) -> list[bytes]:
    return [order_status(new_id(), extra=f', "padding": "{"x" * size}"') for _ in range(count)]


def admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers}, logger=CLIENT_LOGGER)


def configure(bootstrap_servers: str, topic: str, key: str, value: str) -> None:
    resource = ConfigResource(
        ResourceType.TOPIC,
        topic,
        incremental_configs=[ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)],
    )
    client = admin(bootstrap_servers)
    for future in client.incremental_alter_configs([resource]).values():
        future.result(timeout=10)


def resident_bytes(process_id: int) -> int:
    """Return the memory that a process has in RAM."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
