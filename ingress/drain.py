"""Brings what was spooled into Kafka: in order, in batches, on a thread of its own, with nobody's help."""

import threading
import time
from collections.abc import Sequence
from typing import Final

import structlog

from kinguin_streams.cluster.publisher import KafkaPublisher, PublishFailed, Report
from kinguin_streams.ingress.breaker import Breaker
from kinguin_streams.ingress.spool import ADOPT_EVERY_S, Spool
from kinguin_streams.ingress.spool_file import Spooled, SpoolFailed, SpoolFile

log = structlog.get_logger()

BATCH_RECORDS: Final = 1_000
TURN_S: Final = 1.0
LAST_STEP_S: Final = 1.0
HELD_UP_S: Final = 5.0
"""How long the records of a topic are passed over that does not exist, or that this client may not write."""


class Drain:
    """Reads the oldest records, sends them, and forgets those that Kafka has confirmed.

    A batch is confirmed before the next one is sent, so that records of one key keep their order; what is killed in between
    is sent again, one batch at most.
    """

    def __init__(self, spool: Spool, publisher: KafkaPublisher, breaker: Breaker, queue_records: int) -> None:
        """queue_records: how many the producer takes; half of that is left to what comes in."""
        self._spool = spool
        self._publisher = publisher
        self._breaker = breaker
        self._batch_records = max(1, min(BATCH_RECORDS, queue_records // 2))
        self._stopping = threading.Event()
        self._adopted_at_s = time.monotonic()
        self._held_up_until_s: dict[str, float] = {}
        self.drained = 0
        """Records that Kafka has confirmed, in this run."""
        self._thread = threading.Thread(target=self._run, name="spool-drain", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Drain on until the spool is empty, Kafka is away or the time is over, then end.

        The thread has a second at least for its last step; on a disk that does not answer it is left behind.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._spool.waiting and self._breaker.state == "closed" and time.monotonic() < deadline_s:
            time.sleep(0.05)
        self._stopping.set()
        self._spool.arrived.set()
        self._thread.join(max(LAST_STEP_S, deadline_s - time.monotonic()))
        if self._thread.is_alive():
            log.error("spool_drain_not_ended", hint="the disk does not answer; what Kafka has may be sent again")

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._spool.arrived.wait(TURN_S)
            self._spool.arrived.clear()
            try:
                self._turn()
            except Exception as error:
                log.error("spool_drain_failed", exc_info=error)
                self._stopping.wait(TURN_S)

    def _turn(self) -> None:
        if time.monotonic() - self._adopted_at_s >= ADOPT_EVERY_S:
            self._adopted_at_s = time.monotonic()
            self._spool.adopt()
            self._spool.retry_where_asked()
        while not self._stopping.is_set() and self._breaker.state != "open" and self._drain_batch():
            pass

    def _drain_batch(self) -> bool:
        """Send the oldest records; return whether to go on with the next ones at once."""
        now_s = time.monotonic()
        self._held_up_until_s = {topic: until_s for topic, until_s in self._held_up_until_s.items() if until_s > now_s}
        held_up = frozenset(self._held_up_until_s)
        found = self._spool.oldest(self._batch_records, held_up)
        if found is None:
            return False
        # To a Kafka that has only just answered, one record first.
        at_most = self._batch_records if self._breaker.state == "closed" else 1
        file, waiting = found
        sent: list[tuple[Spooled, Report]] = []
        try:
            for spooled in waiting:
                if spooled.record.topic in self._held_up_until_s:
                    continue
                if len(sent) == at_most:
                    break
                try:
                    sent.append((spooled, self._publisher.send(spooled.record)))
                except PublishFailed as failed:
                    if failed.code == "refused":
                        self._refused(file, spooled, failed)
                    elif failed.code == "not_delivered":
                        self._hold_up(spooled, failed)
                    else:
                        self._breaker.waited_in_vain(time.monotonic())
                        break
            if self._settle(file, sent) or not self._held_up_until_s.keys() <= held_up:
                return True
        except SpoolFailed as failed:
            # Kafka has them, and they are sent again: twice is allowed, never is not.
            log.error("spool_not_emptied", path=str(file.path), error=str(failed))
        self._stopping.wait(TURN_S)
        return False

    def _hold_up(self, spooled: Spooled, failed: PublishFailed) -> None:
        """Pass the topic's records over for a while: one that is not there, or may not be written, is no trouble of others.

        Where it is Kafka that is away, the breaker finds that out, and this costs a few seconds more.
        """
        topic = spooled.record.topic
        if topic not in self._held_up_until_s:
            log.warning("spooled_topic_held_up", topic=topic, error=str(failed), again_in_s=HELD_UP_S)
        self._held_up_until_s[topic] = time.monotonic() + HELD_UP_S

    def _settle(self, file: SpoolFile, sent: Sequence[tuple[Spooled, Report]]) -> bool:
        """Do with each what Kafka says of it; return whether it has any of them now."""
        delivered, failed, refused = [], [], []
        for spooled, report in sent:
            failure = self._wait_for(report)
            if failure is None:
                delivered.append(spooled.id)
            elif failure.code == "refused":
                refused.append((spooled, failure))
            else:
                failed.append((spooled, failure))
        file.remove(delivered)
        for spooled, failure in refused:
            self._alone(file, spooled, failure, was_alone=len(sent) == 1)
        self.drained += len(delivered)
        if delivered:
            self._breaker.confirmed(time.monotonic())
            if not self._spool.waiting:
                log.info("spool_drained", records=self.drained)
        for spooled, failure in failed:
            if failure.code == "not_delivered":
                self._hold_up(spooled, failure)
        if failed:
            self._breaker.waited_in_vain(time.monotonic())
        return bool(delivered)

    def _alone(self, file: SpoolFile, spooled: Spooled, failed: PublishFailed, *, was_alone: bool) -> None:
        """Give a refused record a second try by itself: Kafka refuses a whole batch because of one record in it."""
        try:
            failure = failed if was_alone else self._wait_for(self._publisher.send(spooled.record))
        except PublishFailed as refused:
            failure = refused
        if failure is None:
            file.remove([spooled.id])
            self.drained += 1
        elif failure.code == "refused":
            self._refused(file, spooled, failure)

    def _wait_for(self, report: Report) -> PublishFailed | None:
        """Return what Kafka says; a report comes, if only to say that the record was given up."""
        while True:
            try:
                # One turn for all that is in flight, not one for each, once the process has been told to stop.
                return report.result(0 if self._stopping.is_set() else TURN_S)
            except TimeoutError:
                self._breaker.waited_in_vain(time.monotonic())
                if self._stopping.is_set():
                    return PublishFailed("no_report", "stopped", landed="maybe")

    def _refused(self, file: SpoolFile, spooled: Spooled, failed: PublishFailed) -> None:
        file.refuse(spooled.id, str(failed))
        hint = "it stays in the spool, and the others go on; once the cause is mended: `kinguin-streams spool retry`"
        log.error("spooled_record_refused", topic=spooled.record.topic, error=str(failed), hint=hint)
