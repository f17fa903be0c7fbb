"""The guarantee, in one place: `keep` ends once Kafka or the disk has the record, and says which.

Kafka answers          one delivery report
Kafka is known away    straight to the spool, nobody waits
Kafka is slow          after a second without any confirmation, or ack_wait_s, the spool as well: the record is then
                       "maybe" in Kafka, and is dropped from the spool if its late report says that it is
neither                NotKept: 503, the sender comes again
"""

import time
from dataclasses import dataclass, field
from typing import Final, Literal

import structlog

from kinguin_streams.cluster.publisher import KafkaPublisher, PublishFailed, Report
from kinguin_streams.ingress.breaker import QUIET_S, Breaker
from kinguin_streams.ingress.spool import Spool
from kinguin_streams.ingress.spool_file import SpoolFailed
from kinguin_streams.ingress.waiting import Steps, Wait
from kinguin_streams.schemas.outgoing import OutgoingRecord

log = structlog.get_logger()

LEAST_DISK_WAIT_S: Final = 0.05

Where = Literal["kafka", "spool"]


class NotKept(Exception):
    """Neither Kafka nor the spool has the record for certain. code: a label of a metric, of a fixed set."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class KafkaRefuses(Exception):
    """Kafka has looked at this very record and will never take it; waiting on disk would not help."""


@dataclass
class Keeper:
    """Keeps records. Safe to use from any thread."""

    publisher: KafkaPublisher
    spool: Spool | None
    ack_wait_s: float
    spool_timeout_s: float
    breaker: Breaker = field(default_factory=Breaker)

    def keep(self, record: OutgoingRecord, deadline_s: float) -> Steps[Where]:
        """End once the record is durable. Raises NotKept, or KafkaRefuses.

        deadline_s: when the answer must be there, on the monotonic clock; some of the time is left to the disk.
        """
        if not self.breaker.may_try(time.monotonic()):
            without = NotKept("kafka_away", "Kafka did not confirm anything for a while")
            return (yield from self._spool(record, None, deadline_s, without))
        try:
            report = self.publisher.send(record)
        except PublishFailed as failed:
            return (yield from self._after(failed, record, deadline_s))
        try:
            failure = yield from self._report(report, deadline_s)
        except TimeoutError:
            report.add_done_callback(self._came_late)
            without = NotKept("kafka_no_report", "no delivery report in time")
            return (yield from self._spool(record, report, deadline_s, without))
        if report.is_decided:
            self._confirmed()
        if failure is None:
            return "kafka"
        return (yield from self._after(failure, record, deadline_s))

    def keep_on_disk(self, record: OutgoingRecord, deadline_s: float, refused: KafkaRefuses) -> Steps[Where]:
        """End once a record that Kafka has refused is on disk, for a person. Raises NotKept."""
        return (yield from self._spool(record, None, deadline_s, NotKept("kafka_refused", str(refused))))

    def _confirmed(self) -> None:
        if self.breaker.confirmed(time.monotonic()):
            log.info("kafka_back")

    def _came_late(self, report: Report) -> None:
        """Late is not never: without this, Kafka would count as away until the next webhook."""
        if report.is_decided:
            self._confirmed()

    def _report(self, report: Report, deadline_s: float) -> Steps[PublishFailed | None]:
        """End with what Kafka says of the record. Raises TimeoutError once waiting longer makes no sense."""
        wait_s = max(0.0, min(self.ack_wait_s, deadline_s - time.monotonic() - self.spool_timeout_s))
        at_first_s = min(QUIET_S, wait_s)
        failure: PublishFailed | None
        try:
            failure = yield Wait(report, at_first_s)
            return failure
        except TimeoutError:
            if at_first_s == QUIET_S:
                self._heard_nothing()
            longer_s = wait_s - at_first_s
            if longer_s <= 0 or self.breaker.state != "closed":
                raise
        failure = yield Wait(report, longer_s)
        return failure

    def _after(self, failed: PublishFailed, record: OutgoingRecord, deadline_s: float) -> Steps[Where]:
        if failed.code == "refused":
            return (yield from self._alone(record, deadline_s))
        if failed.code in ("queue_full", "not_delivered"):
            self._heard_nothing()
        return (yield from self._spool(record, None, deadline_s, NotKept(f"kafka_{failed.code}", str(failed))))

    def _alone(self, record: OutgoingRecord, deadline_s: float) -> Steps[Where]:
        """Try a refused record once more by itself: Kafka refuses a whole batch, be it because of another record in it."""
        wait_s = max(0.0, min(self.ack_wait_s, deadline_s - time.monotonic() - self.spool_timeout_s))
        report: Report | None = None
        failure: PublishFailed | None
        try:
            report = self.publisher.send_alone(record)
            failure = yield Wait(report, wait_s)
        except PublishFailed as not_taken:
            failure = not_taken
        except TimeoutError:
            return (yield from self._spool(record, report, deadline_s, NotKept("kafka_no_report", "none in time")))
        if failure is None:
            self._confirmed()
            return "kafka"
        if failure.code == "refused":
            raise KafkaRefuses(str(failure)) from failure
        return (yield from self._spool(record, None, deadline_s, NotKept(f"kafka_{failure.code}", str(failure))))

    def _heard_nothing(self) -> None:
        if self.breaker.waited_in_vain(time.monotonic()):
            log.error(
                "kafka_away", hint="until it answers, events go to the spool at once" if self.spool else "503 at once"
            )

    def _spool(
        self,
        record: OutgoingRecord,
        report: Report | None,
        deadline_s: float,
        without: NotKept,
    ) -> Steps[Where]:
        """Put the record on disk. without: what to raise where there is no spool."""
        if self.spool is None:
            raise without
        # However late it is: most disks answer in a millisecond, and a 503 costs the sender more than a late 204.
        timeout_s = max(LEAST_DISK_WAIT_S, min(self.spool_timeout_s, deadline_s - time.monotonic()))
        try:
            yield Wait(self.spool.append(record, report), timeout_s)
        except SpoolFailed as failed:
            raise NotKept(f"spool_{failed.code}", f"{without}; and {failed}") from failed
        except TimeoutError as slow:
            raise NotKept("spool_slow", f"{without}; and the disk did not answer within {timeout_s:g} s") from slow
        return "spool"
