"""order.status records by the million, written fast, and what they come to, worked out without our fold."""

import math
import os
from array import array
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, Message, Producer

from kinguin_streams.cluster.connection import CLIENT_LOGGER, producer_config
from kinguin_streams.consumers.order_state import rank
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from tests.consumers.deliveries import STORE, order_status
from tests.consumers.kafka_streams import Streams
from tests.replay.replay_topics import ORIGIN_MS

RECORDS: Final = int(os.environ.get("KINGUIN_TEST_REPLAY_RECORDS", "1000000"))
"""Records of a long run. A fiftieth of them is enough to try one out."""
ORDERS: Final = RECORDS // 10
FACTS: Final = 11
"""Of each order. A tenth more than RECORDS, so that old orders have news while a test goes on."""
LIVES: Final = 3
STATUSES: Final = ("pending", "processing", "completed", "canceled", "refunded", "out_of_stock")
_STRIDE: Final = 700_001
_ID: Final = "O0000000"


class Fact(NamedTuple):
    """What one record says of an order."""

    updated_at_ms: int
    status: str


class _Template(NamedTuple):
    """A record of the order _ID; those of other orders differ in bytes that are as long."""

    fact: Fact
    body: bytes
    event_id: bytes
    record: OutgoingRecord


class ManyOrders:
    """Records by number: which order, which of its facts. Each order's facts arrive out of order, and one in nineteen is a copy.

    What is kept of a record is a bit, so that memory does not grow with what was written.
    """

    def __init__(self, streams: Streams, orders: int = ORDERS) -> None:
        self._topic, self._orders = streams.name("order.status"), orders
        self._lives = [[_template(streams, life, step) for step in range(FACTS)] for life in range(LIVES)]
        assert math.gcd(_STRIDE, orders * FACTS) == 1, "each fact of each order is to have its number"
        self._facts = array("H", [0]) * orders  # a bit for each fact that was written
        self.deliveries = array("H", [0]) * orders
        """Of each order, how often something of it was written."""
        self.written = 0
        self._refused: list[str] = []
        config = producer_config(streams.kafka, client_id="many", queue_records=100_000, delivery_timeout_s=120.0)
        # A report of each record that went well would be most of the work.
        quick = {"linger.ms": 20, "delivery.report.only.error": True, "on_delivery": self._on_delivery}
        self._producer = Producer({**config, **quick}, logger=CLIENT_LOGGER)

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._refused.append(error.str())

    def order_of(self, number: int) -> int:
        """Return which order the record of this number is of."""
        return self._of(number)[0]

    def fact_of(self, number: int) -> Fact:
        """Return what the record of this number says."""
        order, step = self._of(number)
        return self._lives[order % LIVES][step].fact

    def _of(self, number: int) -> tuple[int, int]:
        once = number - 7 if number % 19 == 18 else number  # every nineteenth is one that was just written
        step, order = divmod(once * _STRIDE % (self._orders * FACTS), self._orders)
        return order, step

    def write(self, count: int) -> None:
        """Write so many more records as the ingress does; all of them are in Kafka then."""
        produce, poll = self._producer.produce, self._producer.poll
        for number in range(self.written, self.written + count):
            key, value, headers = self._record(number)
            # The times go on, but some records lie behind one that is up to a second later.
            written_ms = ORIGIN_MS + number * 10 - (number % 7) * 200
            while True:
                try:
                    produce(self._topic, value, key, headers=headers, timestamp=written_ms)
                    break
                except BufferError:
                    poll(0.1)
            if number % 1_000 == 0:
                poll(0)
        assert self._producer.flush(120) == 0
        assert self._refused == []
        self.written += count

    def _record(self, number: int) -> tuple[bytes, bytes, Any]:
        order, step = self._of(number)
        template = self._lives[order % LIVES][step]
        self._facts[order] |= 1 << step
        self.deliveries[order] += 1
        mine = b"O%07d" % order
        body = template.body.replace(_ID.encode(), mine)
        mine_too = event_id(STORE, "order.status", body).encode()
        record = template.record
        value = record.value.replace(_ID.encode(), mine).replace(template.event_id, mine_too)
        headers = [
            (name, mine_too if name == "ce_id" else mine if name == "ce_subject" else said)
            for name, said in record.headers
        ]
        return mine, value, headers

    def expected(self) -> dict[str, tuple[str, int]]:
        """Return of each order, by its id, the status that counts and the number of its facts."""
        found: dict[str, tuple[str, int]] = {}
        known: dict[tuple[int, int], tuple[str, int]] = {}
        for order, facts in enumerate(self._facts):
            if facts:
                which = order % LIVES, facts
                if which not in known:
                    known[which] = _outcome(
                        self._lives[order % LIVES][step].fact for step in range(FACTS) if facts & 1 << step
                    )
                found[f"O{order:07d}"] = known[which]
        return found


def _outcome(facts: Iterable[Fact]) -> tuple[str, int]:
    distinct = set(facts)
    return max(distinct, key=lambda fact: rank(*fact)).status, len(distinct)


def _template(streams: Streams, life: int, step: int) -> _Template:
    """Return the record of one fact. The last two of an order have one updatedAt: which of them counts is not the newer one."""
    status = STATUSES[step * (life + 1) % len(STATUSES)]
    event = order_status(status, 3 * (step - step // (FACTS - 1)), order_id=_ID)
    record = outgoing(event, streams.topics, Encoder())
    assert record.key == _ID.encode()
    assert (record.value.count(_ID.encode()), record.value.count(event.event_id.encode())) == (2, 1)
    return _Template(Fact(event.updated_at_ms, status), event.raw, event.event_id.encode(), record)
