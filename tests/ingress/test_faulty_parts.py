"""What callers and metrics see when a part behind the application fails, or when somebody tries to make series."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import generate_latest

from kinguin_streams.ingress.answering import Keeps, StrippedHeaders, Webhooks
from kinguin_streams.ingress.app import make_app
from kinguin_streams.ingress.keeper import KafkaRefuses, NotKept, Where
from kinguin_streams.ingress.ledger import Ledger
from kinguin_streams.ingress.request_log import RequestLog
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.ingress.waiting import Steps
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import DeadLetter, Record
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.schemas.topics import topics
from kinguin_streams.telemetry.traces import PassedOn
from tests.ingress.running_ingress import SECRET, Answer, assert_balanced, call_wsgi, order_status, samples

INTERNALS = "/opt/secret-path/broker.py line 7: password=hunter2"


@dataclass
class Taken:
    """Keeps what it is given, or fails as it is told."""

    failure: BaseException | None = None
    records: list[OutgoingRecord] = field(default_factory=list)
    of_topic: str = ""

    def keep(self, record: OutgoingRecord, _deadline_s: float, /) -> Steps[Where]:
        yield from ()
        if self.failure is not None and record.topic.startswith(self.of_topic):
            raise self.failure
        self.records.append(record)
        return "kafka"

    def keep_on_disk(self, _record: OutgoingRecord, _deadline_s: float, refused: KafkaRefuses, /) -> Steps[Where]:
        yield from ()
        raise NotKept("kafka_refused", str(refused))


class BrokenEncoder(Encoder):
    """Fails on every record."""

    def encode(self, record: Record) -> bytes:
        raise ValueError(f"{record.key}: {INTERNALS}")


def application(keeper: Keeps, ledger: Ledger, encoder: Encoder | None = None) -> Any:
    secrets = Secrets({"default": [SECRET]})
    return make_app(
        Webhooks(
            secrets=secrets,
            vigil=Vigil(secrets, ledger.registry, silence_s=3600, failure_budget=0.01),
            topics=topics(),
            encoder=encoder or Encoder(),
            keeper=keeper,
            ledger=ledger,
            on_invalid="accept",
            stripped_headers=StrippedHeaders(),
            deadline_s=5,
            max_in_flight=512,
            request_log=RequestLog(0),
            traces=PassedOn(),
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
    ("keeper", "encoder"),
    [
        pytest.param(Taken(RuntimeError(INTERNALS)), None, id="the keeper raises what it should not"),
        pytest.param(Taken(MemoryError(INTERNALS)), None, id="memory is short"),
        pytest.param(Taken(OSError(28, INTERNALS)), None, id="the disk is full"),
        pytest.param(Taken(), BrokenEncoder(), id="the encoder fails"),
    ],
)
def test_row_34_a_fault_of_ours_is_a_500_that_tells_nothing_of_our_insides(
    keeper: Taken, encoder: Encoder | None
) -> None:
    ledger = Ledger()
    answer = post(application(keeper, ledger, encoder))
    assert (answer.status, answer.problem_type) == (500, "internal_error")
    assert_tells_no_internals(answer)
    balance = ledger.balance()
    assert (balance.received, balance.refused, balance.balances) == (1, 1, True)


CODES = ["kafka_away", "kafka_no_report", "kafka_queue_full", "kafka_fatal", "spool_full", "spool_failed", "spool_slow"]


@pytest.mark.parametrize("code", CODES)
def test_row_34_what_neither_kafka_nor_the_spool_takes_is_a_503_to_come_again(code: str) -> None:
    ledger = Ledger()
    answer = post(application(Taken(NotKept(code, INTERNALS)), ledger))
    assert (answer.status, answer.problem_type, answer.headers["retry-after"]) == (503, "unavailable", "5")
    assert_tells_no_internals(answer)
    counted = samples(generate_latest(ledger.registry).decode())
    assert counted["kinguin_ingress_publish_failures_total", (("error", code),)] == 1
    assert_balanced(counted)


def test_a_dead_letter_that_cannot_be_kept_is_no_2xx_either() -> None:
    for failure in (NotKept("kafka_no_report", ""), KafkaRefuses("too large")):
        answer = post(application(Taken(failure), Ledger()), body=b"{")
        assert (answer.status, answer.fault) == (503, None)


def test_row_13_what_its_topic_will_never_take_is_kept_as_a_dead_letter() -> None:
    keeper = Taken(KafkaRefuses("MSG_SIZE_TOO_LARGE"), of_topic="kinguin.order.status")
    ledger = Ledger()
    answer = post(application(keeper, ledger))
    assert (answer.status, answer.fault, answer.body) == (202, "refused_by_kafka", b"")
    (letter,) = keeper.records
    kept = Decoder().decode(letter.value)
    assert isinstance(kept, DeadLetter)
    assert (letter.topic, kept.reason, kept.body) == ("kinguin.dead-letter", "refused_by_kafka", order_status("A"))
    assert (kept.body_size, kept.body_sha256) == (len(kept.body), hashlib.sha256(kept.body).hexdigest())
    assert ledger.balance().dead_lettered == 1


def test_row_63_ten_thousand_event_names_make_no_series_of_their_own() -> None:
    ledger, keeper = Ledger(), Taken()
    posted_to = application(keeper, ledger)
    post(posted_to)
    before = samples(generate_latest(ledger.registry).decode()).keys()
    for number in range(10_000):
        assert post(posted_to, event=f"order.status{number * 7919:x}").status == 202
    after = samples(generate_latest(ledger.registry).decode())
    assert len(after.keys() - before) <= 5
    assert len(keeper.records) == 10_001
    assert_balanced(after)
