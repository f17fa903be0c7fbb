"""The drain, over a spool on disk and a Kafka by hand that takes some topics and not others."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from kinguin_streams.cluster.publisher import KafkaPublisher, PublishFailed, Report
from kinguin_streams.ingress import drain
from kinguin_streams.ingress.breaker import Breaker
from kinguin_streams.ingress.drain import BATCH_RECORDS, Drain
from kinguin_streams.ingress.payloads import read_event
from kinguin_streams.ingress.refusals import Refusals
from kinguin_streams.ingress.settings import SpoolSettings
from kinguin_streams.ingress.spool import Spool
from kinguin_streams.ingress.spool_file import SpoolFailed, SpoolFile, asked_retry_of, look, read_only
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.dead_letters import from_ingress
from kinguin_streams.schemas.events import DeadLetter, StoreName
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import topics
from tests.ingress.running_ingress import order_status, wait_until

TOO_LARGE = PublishFailed("refused", "MSG_SIZE_TOO_LARGE", landed="no")
TOPICS = topics()
REFUSALS = Refusals(topics=TOPICS, decoder=Decoder(), encoder=Encoder())
ORDERS, LETTERS = TOPICS.name("order.status"), TOPICS.name("dead-letter")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def order(order_id: str) -> OutgoingRecord:
    event = read_event(StoreName("shop"), "order.status", order_status(order_id), 1_700_000_000_000)
    return outgoing(event, TOPICS, Encoder(), TRACEPARENT)


def letter_of(order_id: str) -> DeadLetter:
    """Return what the request would have become, had Kafka refused it at once; but for the headers."""
    return from_ingress(
        store=StoreName("shop"),
        event="order.status",
        reason="refused_by_kafka",
        detail=str(TOO_LARGE),
        body=order_status(order_id),
        headers=order(order_id).headers,
        received_at_ms=1_700_000_000_000,
    )


def record(topic: str, number: int) -> OutgoingRecord:
    return OutgoingRecord(topic, f"key-{number}".encode(), b"v", (), 1_700_000_000_000 + number)


class Kafka:
    """Confirms at once, but for topics that fail: as the client says no when it takes a record, or in its report."""

    def __init__(self) -> None:
        self.confirmed: Counter[str] = Counter()
        self.missing: set[str] = set()
        self.forbidden: set[str] = set()
        self.unconfirmed: list[OutgoingRecord] = []
        """Of which, the next time they come, only the success of a later one is told."""
        self.refuse_batches = False
        """Whether a record sent with others is refused because of one of them."""
        self.refuse_alone: set[str] = set()
        self.too_large_for_client: set[str] = set()
        self.sent_alone: list[OutgoingRecord] = []

    def send(self, sent: OutgoingRecord) -> Report:
        if sent.topic in self.missing:
            raise PublishFailed("not_delivered", "_UNKNOWN_TOPIC", landed="no")
        if sent.topic in self.too_large_for_client:
            raise TOO_LARGE
        report = Report()
        if sent in self.unconfirmed:
            self.unconfirmed.remove(sent)
            report.settle(PublishFailed("no_report", "a later one is there", landed="maybe"))
        elif sent.topic in self.refuse_alone or (self.refuse_batches and sent not in self.sent_alone):
            report.settle(TOO_LARGE)
        elif sent.topic in self.forbidden:
            report.settle(PublishFailed("not_delivered", "TOPIC_AUTHORIZATION_FAILED", landed="no"))
        else:
            self.confirmed[sent.topic] += 1
            report.settle(None)
        return report

    def send_alone(self, sent: OutgoingRecord) -> Report:
        self.sent_alone.append(sent)
        if sent.topic not in self.refuse_alone:
            return self.send(sent)
        report = Report()
        report.settle(TOO_LARGE)
        return report


@contextmanager
def draining(folder: Path, kafka: Kafka, breaker: Breaker | None = None) -> Iterator[tuple[Spool, Drain]]:
    spool = Spool(SpoolSettings(path=folder))
    drainer = Drain(spool, cast("KafkaPublisher", kafka), breaker or Breaker(), 10_000, REFUSALS)
    drainer.start()
    try:
        yield spool, drainer
    finally:
        drainer._stopping.set()
        drainer.stop(0)
        spool.close()


def leave_behind(path: Path, *records: OutgoingRecord) -> None:
    with SpoolFile(path) as file:
        done = [file.append(each, 10) for each in records]
        for each in done:
            each.result(10)


Deny = Callable[[Kafka], set[str]]


@pytest.mark.parametrize(
    "denied",
    [
        pytest.param(lambda kafka: kafka.missing, id="that is not there"),
        pytest.param(lambda kafka: kafka.forbidden, id="that may not be written"),
    ],
)
def test_a_topic_holds_up_no_other_however_many_of_its_records_are_first_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: Deny
) -> None:
    monkeypatch.setattr(drain, "HELD_UP_S", 2.0)
    gone = [record("gone", number) for number in range(BATCH_RECORDS + 200)]
    leave_behind(tmp_path / "a.spool", *gone, *(record("good", number) for number in range(10)))
    leave_behind(tmp_path / "b.spool", *(record("good", number) for number in range(10, 15)))
    kafka, breaker = Kafka(), Breaker()
    denied(kafka).add("gone")

    with draining(tmp_path, kafka, breaker) as (spool, _):

        def holds(records: int) -> bool:
            breaker.answered()  # as the readiness thread says where Kafka answers questions
            return spool.contents.records == records

        wait_until(lambda: holds(len(gone)), 20, "the good topic in Kafka")
        assert kafka.confirmed == {"good": 15}
        denied(kafka).clear()
        wait_until(lambda: holds(0), 20, "an empty spool")
    assert kafka.confirmed["gone"] == len(gone)


def test_what_only_a_later_record_confirms_stays_on_disk_and_is_sent_again_at_once(tmp_path: Path) -> None:
    """A topic that was just made anew is no topic that is missing: its records are not passed over for a while."""
    records = [record("anew", number) for number in range(3)]
    leave_behind(tmp_path / "a.spool", *records)
    kafka = Kafka()
    kafka.unconfirmed.append(records[0])
    with draining(tmp_path, kafka) as (spool, drain_):
        wait_until(lambda: spool.contents.records == 0, drain.HELD_UP_S / 2, "an empty spool")
    assert (kafka.confirmed["anew"], drain_.drained) == (3, 3)


def test_a_disk_that_hangs_does_not_keep_a_process_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_behind(tmp_path / "a.spool", record("good", 1))
    hangs, began = threading.Event(), threading.Event()
    transact = SpoolFile._transact

    def hang(file: SpoolFile, batch: Sequence[Any]) -> list[int]:
        began.set()
        hangs.wait(30)
        return transact(file, batch)

    monkeypatch.setattr(SpoolFile, "_transact", hang)
    spool = Spool(SpoolSettings(path=tmp_path))
    drainer = Drain(spool, cast("KafkaPublisher", Kafka()), Breaker(), 10_000, REFUSALS)
    drainer.start()
    try:
        assert began.wait(10)
        began_s = time.monotonic()
        drainer.stop(0.2)
        spool.close()
        assert time.monotonic() - began_s < 10
    finally:
        hangs.set()
        drainer._thread.join()
        for file in spool.files():
            file._thread.join()
            file._reader.close()
            file._writer.close()


def test_what_kafka_refuses_for_good_becomes_the_dead_letter_of_its_request_and_holds_up_no_other(
    tmp_path: Path,
) -> None:
    leave_behind(tmp_path / "a.spool", record("good", 1), order("A"), record("good", 2))
    kafka = Kafka()
    kafka.refuse_alone.add(ORDERS)
    with draining(tmp_path, kafka) as (spool, drain_):
        wait_until(lambda: spool.contents.records == 0, 10, "an empty spool")
    assert (drain_.drained, drain_.dead_lettered[ORDERS], drain_.dead_lettered.total()) == (2, 1, 1)
    (sent,) = (each for each in kafka.sent_alone if each.topic == LETTERS)
    letter = Decoder().decode(sent.value)
    assert letter == letter_of("A")
    assert isinstance(letter, DeadLetter)
    assert sent.key == letter.dead_letter_id.encode()
    of_event, of_letter = dict(order("A").headers), dict(sent.headers)
    assert dict(letter.headers)["ce_id"] == of_event["ce_id"]  # its eventId
    assert of_letter["traceparent"] == TRACEPARENT.encode()
    assert sent.timestamp_ms == 1_700_000_000_000


@pytest.mark.parametrize("by_broker", [True, False], ids=["the broker", "the client"])
def test_a_refusal_by_the_broker_says_that_kafka_is_back_and_one_by_the_client_does_not(
    tmp_path: Path, by_broker: bool
) -> None:
    """Nothing else is delivered: its dead letter is refused as well."""
    leave_behind(tmp_path / "a.spool", order("A"))
    kafka, breaker = Kafka(), Breaker()
    (kafka.refuse_alone if by_broker else kafka.too_large_for_client).update({ORDERS, LETTERS})
    breaker.waited_in_vain(time.monotonic())
    breaker.answered()
    with draining(tmp_path, kafka, breaker) as (spool, _):
        wait_until(lambda: spool.contents.refused == 1 and spool.unsettled == 0, 10, "a record that is set aside")
    assert breaker.state == ("closed" if by_broker else "half_open")


def test_a_record_that_was_refused_with_others_is_tried_by_itself_before_it_becomes_a_dead_letter(
    tmp_path: Path,
) -> None:
    leave_behind(tmp_path / "a.spool", order("A"), order("B"))
    kafka = Kafka()
    kafka.refuse_batches = True
    with draining(tmp_path, kafka) as (spool, drain_):
        wait_until(lambda: spool.contents.records == 0, 10, "an empty spool")
    assert (drain_.drained, drain_.dead_lettered.total()) == (2, 0)
    assert kafka.sent_alone == [order("A"), order("B")]


def test_a_process_that_dies_before_the_row_is_gone_sends_the_same_dead_letter_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(tmp_path / "a.spool", order("A"))
    kafka = Kafka()
    kafka.refuse_alone.add(ORDERS)
    remove = SpoolFile.remove

    def dies(file: SpoolFile, ids: Sequence[int]) -> None:
        if ids:
            raise SpoolFailed("failed", "the process died here")

    monkeypatch.setattr(SpoolFile, "remove", dies)
    with draining(tmp_path, kafka):
        wait_until(lambda: kafka.confirmed[LETTERS] > 0, 10, "a dead letter")
    assert look(tmp_path / "a.spool").records == 1
    monkeypatch.setattr(SpoolFile, "remove", remove)
    with draining(tmp_path, kafka) as (spool, _):
        wait_until(lambda: spool.contents.records == 0, 10, "an empty spool")
    letters = [each for each in kafka.sent_alone if each.topic == LETTERS]
    assert len(letters) > 1
    assert set(letters) == {letters[0]}


@pytest.mark.parametrize("denied", [lambda kafka: kafka.missing, lambda kafka: kafka.forbidden], ids=["gone", "denied"])
def test_a_dead_letter_that_kafka_does_not_take_now_is_sent_later_and_nothing_is_lost_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: Deny
) -> None:
    monkeypatch.setattr(drain, "HELD_UP_S", 0.5)
    leave_behind(tmp_path / "a.spool", *(order(f"A{number}") for number in range(3)), record("good", 1))
    kafka = Kafka()
    kafka.refuse_alone.add(ORDERS)
    denied(kafka).add(LETTERS)
    with draining(tmp_path, kafka) as (spool, _):
        wait_until(lambda: spool.contents.records == 3, 10, "the good record in Kafka")
        wait_until(lambda: sum(each.topic == LETTERS for each in kafka.sent_alone) >= 6, 10, "a second try")
        assert (spool.contents.records, spool.unsettled) == (3, 3)
        denied(kafka).clear()
        wait_until(lambda: spool.contents.records == 0, 10, "an empty spool")
    assert kafka.confirmed == {"good": 1, LETTERS: 3}


def test_what_can_be_no_dead_letter_stays_in_the_spool_says_why_and_is_tried_again_only_when_asked(
    tmp_path: Path,
) -> None:
    """Its dead letter is refused as well; it is a dead letter itself; its value is nothing that we have written."""
    own = outgoing(letter_of("B"), TOPICS, Encoder())
    leave_behind(tmp_path / "a.spool", order("A"), own, record("strange", 1))
    kafka = Kafka()
    kafka.refuse_alone |= {ORDERS, LETTERS, "strange"}
    with draining(tmp_path, kafka) as (spool, _):
        wait_until(lambda: spool.contents.refused == 3 and spool.unsettled == 0, 10, "what is left")
        tried = len(kafka.sent_alone)
        spool.arrived.set()
        time.sleep(0.5)
        assert len(kafka.sent_alone) == tried
        why = [each.refused or "" for each in read_only(tmp_path / "a.spool")]
        by_kafka = f"{TOO_LARGE}; and no dead letter: "
        assert why[0] == f"{by_kafka}{TOO_LARGE}"
        assert why[1] == f"{by_kafka}it is a dead-letter itself"
        assert why[2].startswith(f"{by_kafka}its value cannot be read here: unknown_frame")
        kafka.refuse_alone.clear()
        asked_retry_of(tmp_path / "a.spool").touch()
        spool.retry_where_asked()
        wait_until(lambda: spool.contents.records == 0, 10, "an empty spool")
    assert kafka.confirmed == {ORDERS: 1, LETTERS: 1, "strange": 1}


def test_the_next_process_tries_the_dead_letter_of_what_was_set_aside_and_says_why_once(tmp_path: Path) -> None:
    leave_behind(tmp_path / "a.spool", order("A"))
    kafka = Kafka()
    kafka.refuse_alone |= {ORDERS, LETTERS}
    for _ in range(2):
        with draining(tmp_path, kafka) as (spool, _drain):
            wait_until(lambda: spool.contents.refused == 1 and spool.unsettled == 0, 10, "what is left")
        (left,) = read_only(tmp_path / "a.spool")
        assert left.refused == f"{TOO_LARGE}; and no dead letter: {TOO_LARGE}"
    kafka.refuse_alone.discard(LETTERS)
    with draining(tmp_path, kafka) as (spool, _drain):
        wait_until(lambda: spool.contents.records == 0, 10, "an empty spool")
    assert kafka.confirmed == {LETTERS: 1}
