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
from kinguin_streams.ingress.settings import SpoolSettings
from kinguin_streams.ingress.spool import Spool
from kinguin_streams.ingress.spool_file import SpoolFile
from kinguin_streams.schemas.outgoing import OutgoingRecord
from tests.ingress.running_ingress import wait_until


def record(topic: str, number: int) -> OutgoingRecord:
    return OutgoingRecord(topic, f"key-{number}".encode(), b"v", (), 1_700_000_000_000 + number)


class Kafka:
    """Confirms at once, but for topics that fail: as the client says no when it takes a record, or in its report."""

    def __init__(self) -> None:
        self.confirmed: Counter[str] = Counter()
        self.missing: set[str] = set()
        self.forbidden: set[str] = set()

    def send(self, sent: OutgoingRecord) -> Report:
        if sent.topic in self.missing:
            raise PublishFailed("not_delivered", "_UNKNOWN_TOPIC", landed="no")
        report = Report()
        if sent.topic in self.forbidden:
            report.settle(PublishFailed("not_delivered", "TOPIC_AUTHORIZATION_FAILED", landed="no"))
        else:
            self.confirmed[sent.topic] += 1
            report.settle(None)
        return report


@contextmanager
def draining(folder: Path, kafka: Kafka, breaker: Breaker | None = None) -> Iterator[Spool]:
    spool = Spool(SpoolSettings(path=folder))
    drainer = Drain(spool, cast("KafkaPublisher", kafka), breaker or Breaker(), 10_000)
    drainer.start()
    try:
        yield spool
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

    with draining(tmp_path, kafka, breaker) as spool:

        def holds(records: int) -> bool:
            breaker.answered()  # as the readiness thread says where Kafka answers questions
            return spool.contents.records == records

        wait_until(lambda: holds(len(gone)), 20, "the good topic in Kafka")
        assert kafka.confirmed == {"good": 15}
        denied(kafka).clear()
        wait_until(lambda: holds(0), 20, "an empty spool")
    assert kafka.confirmed["gone"] == len(gone)


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
    drainer = Drain(spool, cast("KafkaPublisher", Kafka()), Breaker(), 10_000)
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
