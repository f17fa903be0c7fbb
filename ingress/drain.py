"""Brings what was spooled into Kafka: in order, in batches, on a thread of its own, with nobody's help.

What Kafka refuses for good becomes a dead letter: it is marked on disk, its dead letter is sent, and only once Kafka has that is
the row removed. A process that dies in between sends the same dead letter, with the same id, once more.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from kinguin_streams.cluster.publisher import KafkaPublisher, PublishFailed, Report
from kinguin_streams.ingress.breaker import Breaker
from kinguin_streams.ingress.refusals import NoDeadLetter, Refusals
from kinguin_streams.ingress.spool import ADOPT_EVERY_S, Spool
from kinguin_streams.ingress.spool_file import Spooled, SpoolFailed, SpoolFile
from kinguin_streams.schemas.events import EVENT_NAMES
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

BATCH_RECORDS: Final = 1_000
TURN_S: Final = 1.0
LAST_STEP_S: Final = 1.0
_NO_LETTER: Final = "; and no dead letter: "
HELD_UP_S: Final = 5.0
"""How long the records of a topic are passed over that does not exist, or that this client may not write."""


class Drain:
    """Reads the oldest records, sends them, and forgets those that Kafka has confirmed.

    A batch is confirmed before the next one is sent, so that records of one key keep their order; what is killed in between
    is sent again, one batch at most.
    """

    def __init__(
        self, spool: Spool, publisher: KafkaPublisher, breaker: Breaker, queue_records: int, refusals: Refusals
    ) -> None:
        """queue_records: how many the producer takes; half of that is left to what comes in."""
        self._spool = spool
        self._publisher = publisher
        self._breaker = breaker
        self._refusals = refusals
        self._dead_letter_topic = refusals.topics.name("dead-letter")
        self._batch_records = max(1, min(BATCH_RECORDS, queue_records // 2))
        self._stopping = threading.Event()
        self._adopted_at_s = time.monotonic()
        self._held_up_until_s: dict[str, float] = {}
        self.drained = 0
        """Records that Kafka has confirmed, in this run."""
        self.dead_lettered = Counter(dict.fromkeys((refusals.topics.name(event) for event in EVENT_NAMES), 0))
        """Events whose dead letter Kafka has confirmed, in this run, by the topic that refused them: 0 of each at first."""
        self._thread = threading.Thread(target=self._run, name="spool-drain", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Drain on until the spool is empty, Kafka is away or the time is over, then end.

        The thread has a second at least for its last step; on a disk that does not answer it is left behind.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._spool.unsettled and self._breaker.state == "closed" and time.monotonic() < deadline_s:
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
        if not self._stopping.is_set() and self._breaker.state != "open":
            self._send_dead_letters()

    def _drain_batch(self) -> bool:
        """Send the oldest records; return whether to go on with the next ones at once."""
        now_s = time.monotonic()
        self._held_up_until_s = {topic: until_s for topic, until_s in self._held_up_until_s.items() if until_s > now_s}
        held_up = frozenset(self._held_up_until_s)
        found = self._spool.oldest(self._batch_records, held_up)
        if found is None:
            return False
        at_most = self._at_most()
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
                        self._hold_up(spooled.record.topic, failed)
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

    def _at_most(self) -> int:
        """How many to send at once: to a Kafka that has only just answered, one record first."""
        return self._batch_records if self._breaker.state == "closed" else 1

    def _hold_up(self, topic: str, failed: Exception) -> None:
        """Pass the topic's records over for a while: one that is not there, or may not be written, is no trouble of others.

        Where it is Kafka that is away, the breaker finds that out, and this costs a few seconds more.
        """
        if topic not in self._held_up_until_s:
            log.warning("spooled_topic_held_up", topic=topic, error=str(failed), again_in_s=HELD_UP_S)
        self._held_up_until_s[topic] = time.monotonic() + HELD_UP_S

    def _settle(self, file: SpoolFile, sent: Sequence[tuple[Spooled, Report]]) -> bool:
        """Do with each what Kafka says of it; return whether any of them waits no more."""
        drained_before = self.drained
        left = self._forget_delivered(file, [(spooled, self._wait_for(report)) for spooled, report in sent])
        # Kafka refuses a whole batch because of one record in it, be that one of a request that has just come in.
        again = self._alone([(spooled, spooled.record) for spooled, failure in left if failure.code == "refused"])
        failed = [(spooled, failure) for spooled, failure in left if failure.code != "refused"]
        refused = 0
        for spooled, failure in self._forget_delivered(file, again):
            if failure.code == "refused":
                self._refused(file, spooled, failure)
                refused += 1
            else:
                failed.append((spooled, failure))
        delivered = self.drained - drained_before
        if delivered and not self._spool.waiting:
            log.info("spool_drained", records=self.drained)
        for spooled, failure in failed:
            if failure.code == "not_delivered":
                self._hold_up(spooled.record.topic, failure)
        if failed:
            self._breaker.waited_in_vain(time.monotonic())
        return delivered + refused > 0

    def _forget_delivered(
        self, file: SpoolFile, said: Iterable[tuple[Spooled, PublishFailed | None]]
    ) -> list[tuple[Spooled, PublishFailed]]:
        """Take what Kafka has out of the file; return the others, each with what Kafka says of it."""
        delivered, left = [], []
        for spooled, failure in said:
            if failure is None:
                delivered.append(spooled.id)
            else:
                left.append((spooled, failure))
        file.remove(delivered)
        self.drained += len(delivered)
        return left

    def _alone(self, records: Iterable[tuple[Spooled, OutgoingRecord]]) -> list[tuple[Spooled, PublishFailed | None]]:
        """Send a record for each, in a batch of its own; return what Kafka says of it."""
        said: list[tuple[Spooled, PublishFailed | None]] = []
        sent: list[tuple[Spooled, Report]] = []
        for spooled, record in records:
            try:
                sent.append((spooled, self._publisher.send_alone(record)))
            except PublishFailed as failed:
                said.append((spooled, failed))
        return [*said, *((spooled, self._wait_for(report)) for spooled, report in sent)]

    def _wait_for(self, report: Report) -> PublishFailed | None:
        """Return what Kafka says; a report comes, if only to say that the record was given up."""
        while True:
            try:
                # One turn for all that is in flight, not one for each, once the process has been told to stop.
                failure = report.result(0 if self._stopping.is_set() else TURN_S)
            except TimeoutError:
                self._breaker.waited_in_vain(time.monotonic())
                if self._stopping.is_set():
                    return PublishFailed("no_report", "stopped", landed="maybe")
            else:
                # A refusal too: without other traffic Kafka would count as away for as long as all that waits is refused.
                if report.is_decided:
                    self._breaker.confirmed(time.monotonic())
                return failure

    def _refused(self, file: SpoolFile, spooled: Spooled, failed: PublishFailed) -> None:
        """Note it on disk: the record waits no more, and its dead letter is due."""
        file.refuse(spooled.id, str(failed))
        log.warning("spooled_record_refused", topic=spooled.record.topic, error=str(failed))

    def _send_dead_letters(self) -> None:
        """Send those that are due, as far as Kafka takes them now."""
        for file in self._spool.files():
            while (
                file.failure is None
                and file.due_dead_letters
                and time.monotonic() >= self._held_up_until_s.get(self._dead_letter_topic, 0.0)
                and not self._stopping.is_set()
            ):
                try:
                    settled = self._dead_letter(file, file.refused(self._at_most()))
                except SpoolFailed as failed:
                    log.error("spool_not_emptied", path=str(file.path), error=str(failed))
                    break
                except OperatorError as error:
                    # A registry that is away, say: what the letters are written with is not to be had now.
                    self._hold_up(self._dead_letter_topic, error)
                    break
                if not settled:
                    break

    def _dead_letter(self, file: SpoolFile, refused: Sequence[Spooled]) -> bool:
        """Send the dead letter of each, and forget it once Kafka has that; return whether none of them is due any more."""
        letters = []
        for spooled in refused:
            try:
                letters.append((spooled, self._refusals.dead_letter(spooled)))
            except NoDeadLetter as none:
                self._set_aside(file, spooled, str(none))
        said = self._alone(letters)
        delivered = [spooled for spooled, failure in said if failure is None]
        file.remove([spooled.id for spooled in delivered])  # last: a crash above sends the same letters again
        for spooled in delivered:
            self.dead_lettered[spooled.record.topic] += 1
            log.warning("spooled_record_dead_lettered", topic=spooled.record.topic, error=spooled.refused)
        left = [(spooled, failure) for spooled, failure in said if failure is not None]
        for spooled, failure in left:
            if failure.code == "refused":
                self._set_aside(file, spooled, str(failure))
            else:
                self._hold_up(self._dead_letter_topic, failure)
        return bool(refused) and all(failure.code == "refused" for _, failure in left)

    def _set_aside(self, file: SpoolFile, spooled: Spooled, why: str) -> None:
        """Leave a refused record in the spool, for a person: there is no other place for it."""
        by_kafka = (spooled.refused or "").partition(_NO_LETTER)[0]
        file.refuse(spooled.id, f"{by_kafka}{_NO_LETTER}{why}", set_aside=True)
        hint = "it stays in the spool, and the others go on; once the cause is mended: `kinguin-streams spool retry`"
        log.error("spooled_record_set_aside", topic=spooled.record.topic, error=by_kafka, no_dead_letter=why, hint=hint)
