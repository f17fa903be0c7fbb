"""What callers and metrics see when a part behind the application fails, or when somebody tries to make series."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import generate_latest

from kinguin_streams.cluster.publisher import FailureCode, Publisher, PublishFailed
from kinguin_streams.ingress.app import StrippedHeaders, Webhooks, make_app
from kinguin_streams.ingress.ledger import Ledger
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.schemas.codec import Encoder
from kinguin_streams.schemas.events import Record
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import topics
from tests.ingress.running_ingress import SECRET, Answer, assert_balanced, call_wsgi, order_status, samples

INTERNALS = "/opt/secret-path/broker.py line 7: password=hunter2"


@dataclass
class Taken:
    """A Publisher that keeps what it is given, or fails as it is told."""

    failure: BaseException | None = None
    records: list[OutgoingRecord] = field(default_factory=list)

    def publish(self, record: OutgoingRecord) -> None:
        if self.failure is not None:
            raise self.failure
        self.records.append(record)


class BrokenEncoder(Encoder):
    """Fails on every record."""

    def encode(self, record: Record) -> bytes:
        raise ValueError(f"{record.key}: {INTERNALS}")


def application(publisher: Publisher, ledger: Ledger, encoder: Encoder | None = None) -> Any:
    return make_app(
        Webhooks(
            secrets=Secrets({"default": [SECRET]}),
            topics=topics(),
            encoder=encoder or Encoder(),
            publisher=publisher,
            ledger=ledger,
            on_invalid="accept",
            stripped_headers=StrippedHeaders(),
        )
    )


def post(application: Any, event: str = "order.status", body: bytes | None = None) -> Answer:
    headers = [("X-Event-Name", event), ("X-Event-Secret", SECRET), ("Accept", "text/xml")]
    return call_wsgi(application, headers, order_status("A") if body is None else body)


def assert_tells_no_internals(answer: Answer) -> None:
    text = answer.body.decode() + json.dumps(dict(answer.headers))
    for inside in ("Traceback", ".py", "hunter2", "kafka", "Error", "Exception", SECRET):
        assert inside not in text
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])
    assert answer.problem["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"
    assert answer.problem["status"] == answer.status


@pytest.mark.parametrize(
    ("publisher", "encoder"),
    [
        pytest.param(Taken(RuntimeError(INTERNALS)), None, id="the publisher raises what it should not"),
        pytest.param(Taken(MemoryError(INTERNALS)), None, id="memory is short"),
        pytest.param(Taken(OSError(28, INTERNALS)), None, id="the disk is full"),
        pytest.param(Taken(), BrokenEncoder(), id="the encoder fails"),
    ],
)
def test_row_34_a_fault_of_ours_is_a_500_that_tells_nothing_of_our_insides(
    publisher: Taken, encoder: Encoder | None
) -> None:
    ledger = Ledger()
    answer = post(application(publisher, ledger, encoder))
    assert (answer.status, answer.problem_type) == (500, "internal_error")
    assert_tells_no_internals(answer)
    balance = ledger.balance()
    assert (balance.received, balance.refused, balance.balances) == (1, 1, True)


CODES: list[FailureCode] = ["queue_full", "no_report", "not_delivered", "refused", "fatal", "closed", "forked"]


@pytest.mark.parametrize("code", CODES)
def test_row_34_whatever_kafka_refuses_is_a_503_to_come_again(code: FailureCode) -> None:
    ledger = Ledger()
    answer = post(application(Taken(PublishFailed(code, INTERNALS, landed="maybe")), ledger))
    assert (answer.status, answer.problem_type, answer.headers["retry-after"]) == (503, "unavailable", "5")
    assert_tells_no_internals(answer)
    counted = samples(generate_latest(ledger.registry).decode())
    assert counted["kinguin_ingress_publish_failures_total", (("error", code),)] == 1
    assert_balanced(counted)


def test_a_dead_letter_that_cannot_be_kept_is_no_2xx_either() -> None:
    answer = post(application(Taken(PublishFailed("no_report", "", landed="maybe")), Ledger()), body=b"{")
    assert (answer.status, answer.fault) == (503, None)


def test_row_63_ten_thousand_event_names_make_no_series_of_their_own() -> None:
    ledger, publisher = Ledger(), Taken()
    posted_to = application(publisher, ledger)
    post(posted_to)
    before = samples(generate_latest(ledger.registry).decode()).keys()
    for number in range(10_000):
        assert post(posted_to, event=f"order.status{number * 7919:x}").status == 202
    after = samples(generate_latest(ledger.registry).decode())
    assert len(after.keys() - before) <= 5
    assert len(publisher.records) == 10_001
    assert_balanced(after)
