"""Records into Kafka, with an answer that can be trusted: `publish` returns when every in-sync replica has the record.

The delivery report alone decides. An empty queue proves nothing: librdkafka's flush() returns 0 when all records were
reported, and they may all have been reported as failed. And a report of success is one only if it names the record's offset:
see `_said`.
"""

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from kinguin_streams.cluster.connection import new_client
from kinguin_streams.schemas.outgoing import OutgoingRecord, OutgoingTombstone

log = structlog.get_logger()

FailureCode = Literal["queue_full", "no_report", "not_delivered", "refused", "fatal", "closed", "forked"]


class PublishFailed(Exception):
    """Kafka has not confirmed the record.

    code: why; "no_report" if Kafka has said nothing of this very record, in time or at all. landed: "no" if it certainly is not
    in the log and will not be, "maybe" otherwise: a record that timed out may still be written (measured with a broker that was
    paused longer than the timeout: all such records were there).
    """

    def __init__(self, code: FailureCode, detail: str, *, landed: Literal["no", "maybe"]) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: FailureCode = code
        self.landed: Literal["no", "maybe"] = landed


class TopicMissing(PublishFailed):
    """The cluster answers, and does not have the topic."""


class Report:
    """What Kafka is going to say of a record: None once all in-sync replicas have it, else why not.

    A concurrent.futures.Future of just that, without its condition variable: making one, waiting for it and settling it
    took longer than validating the webhook.
    """

    __slots__ = ("_callbacks", "_came", "_failure", "_is_there")

    def __init__(self) -> None:
        self._came = threading.Lock()
        self._came.acquire()
        self._is_there = False
        self._failure: PublishFailed | None = None
        self._callbacks: list[Callable[[Report], object]] = []

    def result(self, timeout: float | None = None) -> PublishFailed | None:
        """Return it; timeout: in seconds. Raises TimeoutError if it is not there by then."""
        if not self._is_there:
            if not self._came.acquire(timeout=-1 if timeout is None else timeout):
                raise TimeoutError
            self._came.release()  # for whoever else waits
        return self._failure

    @property
    def is_decided(self) -> bool:
        """Whether Kafka has looked at the record: it has it, or refuses it for good. What the client refuses has no report."""
        return self._is_there and (self._failure is None or self._failure.code == "refused")

    def add_done_callback(self, fn: "Callable[[Report], object]", /) -> None:
        """Call it with this report once it is there, on the thread that polls; at once if it is."""
        self._callbacks.append(fn)
        if self._is_there:
            self._call_back()

    def settle(self, failure: PublishFailed | None) -> None:
        """Say it."""
        self._failure = failure
        self._is_there = True
        self._came.release()
        self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:
                return  # the other thread, which added it just now, has taken it: each is called once
            try:
                callback(self)
            except Exception:
                log.exception("report_not_heard")  # it must not end the thread that polls


class Publisher(Protocol):
    """Takes a record and keeps it, or says that it did not."""

    def publish(self, record: OutgoingRecord) -> None:
        """Return once the record is durable. Raises PublishFailed; safe to call from any thread."""
        ...


class KafkaPublisher:
    """A Publisher over one idempotent producer and one thread that polls it."""

    def __init__(self, config: dict[str, Any], *, ack_wait_s: float = 3.0) -> None:
        """config: from cluster.connection.producer_config. ack_wait_s: how long `publish` waits for the delivery report.

        Raises OperatorError as cluster.connection.new_client does.
        """
        self._ack_wait_s = ack_wait_s
        self._config = config
        self._alone: KafkaPublisher | None = None
        self._making_alone = threading.Lock()
        self._pid = os.getpid()
        self._closing = threading.Event()
        self._fatal: str | None = None
        self.cluster_id: str | None = None
        """Of the cluster that last answered `partitions`."""
        self._producer = new_client(Producer, {**config, "error_cb": self._on_error})
        self._poller = threading.Thread(target=self._poll, name="kafka-delivery-reports", daemon=True)
        self._poller.start()

    @property
    def fatal(self) -> str | None:
        """Why this producer can never deliver again (a fenced or otherwise fatal state), or None while it can."""
        return self._fatal or (self._alone.fatal if self._alone is not None else None)

    @property
    def queue_records(self) -> int:
        """Records handed to the client and not yet reported; for a moment also what it has to say about connections."""
        return len(self._producer) + (self._alone.queue_records if self._alone is not None else 0)

    def partitions(self, topic: str, timeout_s: float) -> int:
        """Return the topic's number of partitions as this producer's own connection sees it.

        Raises TopicMissing, or PublishFailed("not_delivered") if the cluster does not answer, or cannot say just now.
        """
        try:
            cluster = self._producer.list_topics(topic, timeout=timeout_s)
        except KafkaException as error:
            raise PublishFailed("not_delivered", _words(error.args[0]), landed="no") from error
        self.cluster_id = cluster.cluster_id
        metadata = cluster.topics[topic]
        if metadata.error is not None:
            # Others pass, such as LEADER_NOT_AVAILABLE while a broker restarts, or do not say that the topic is not there.
            is_missing = metadata.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
            kind = TopicMissing if is_missing else PublishFailed
            raise kind("not_delivered", f"topic {topic}: {_words(metadata.error)}", landed="no")
        return len(metadata.partitions)

    def publish(self, record: OutgoingRecord) -> None:
        """Return once all in-sync replicas have the record; raises PublishFailed otherwise, within ack_wait_s."""
        report = self.send(record)
        try:
            failure = report.result(timeout=self._ack_wait_s)
        except TimeoutError as timeout:
            detail = f"no delivery report within {self._ack_wait_s:g} s"
            raise PublishFailed("no_report", detail, landed="maybe") from timeout
        if failure is not None:
            raise failure

    def send(self, record: OutgoingRecord | OutgoingTombstone) -> Report:
        """Hand the record to the client and return what will be its delivery report.

        The report comes within delivery_timeout_s of the producer's configuration, on the client's own thread: what is
        called back must not block. Raises PublishFailed if the client does not take the record; then it will not land.
        """
        if os.getpid() != self._pid:
            # The client's threads did not come along: what is handed to it would wait for ever.
            raise PublishFailed("forked", "this producer was made before fork(); make one in each process", landed="no")
        if self._closing.is_set():
            raise PublishFailed("closed", "the publisher is closed", landed="no")
        if self._fatal is not None:
            raise PublishFailed("fatal", self._fatal, landed="no")
        report = Report()

        def settle(error: KafkaError | None, message: Message) -> None:
            report.settle(self._said(error, message))

        try:
            self._producer.produce(
                record.topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                timestamp=record.timestamp_ms,
                on_delivery=settle,
            )
        except BufferError as full:
            raise PublishFailed("queue_full", "the producer's queue is full", landed="no") from full
        except KafkaException as refused:
            raise self._failure(refused.args[0], landed="no") from refused
        return report

    def send_alone(self, record: OutgoingRecord) -> Report:
        """Do as `send` does, in a batch of the record's own.

        Kafka looks at a batch as a whole: measured at max.message.bytes=8192, 413 of 600 events of half a kilobyte that came at
        once were refused, although it takes each.
        """
        with self._making_alone:
            if self._alone is None and not self._closing.is_set():
                self._alone = KafkaPublisher({**self._config, "batch.num.messages": 1}, ack_wait_s=self._ack_wait_s)
        return (self._alone or self).send(record)

    def _said(self, error: KafkaError | None, message: Message) -> PublishFailed | None:
        """Return what a delivery report says: None if all in-sync replicas have the record.

        librdkafka also reports a record as delivered when a later batch of its partition was: it takes for granted that Kafka
        refuses a gap in a producer's sequence (rd_kafka_dr_implicit_ack). Kafka does not where it knows nothing of the producer:
        in a partition that this producer has not written yet, or that was made anew. If the partition begins to be led between
        two requests, the first is refused, the second taken, and the first one's records are reported delivered and lost
        (seen with 2.16.0 and Kafka 4.3.1; confluent-kafka-go issue 921). Such a report has no offset: no broker gave one.
        """
        if error is not None:
            return self._failure(error)
        if message.offset() is None:
            return PublishFailed("no_report", "Kafka has confirmed a later record, and not this one", landed="maybe")
        return None

    def _failure(self, error: KafkaError, landed: Literal["no", "maybe"] = "maybe") -> PublishFailed:
        self._on_error(error)
        if self._fatal is not None:
            return PublishFailed("fatal", self._fatal, landed=landed)
        if error.code() in _REFUSED_FOR_GOOD:
            return PublishFailed("refused", _words(error), landed="no")
        return PublishFailed("not_delivered", _words(error), landed=landed)

    def _on_error(self, error: KafkaError) -> None:
        """Called by the client too, for what concerns no record: a fatal state is known before the next record fails."""
        if (error.fatal() or error.code() == KafkaError._FATAL) and self._fatal is None:
            self._fatal = _words(error)
            log.error("producer_fatal", error=self._fatal)

    def _poll(self) -> None:
        while not self._closing.is_set():
            try:
                self._producer.poll(0.1)
            except KafkaException as error:
                # The client raises its fatal state from here. Without this thread nobody would hear of any report again.
                self._on_error(error.args[0])
                self._closing.wait(0.1)

    def close(self, timeout_s: float) -> int:
        """Stop taking records, wait for the reports of those taken, and return how many are left without one.

        A left-over is logged with its count and was reported to its caller as PublishFailed: nothing is lost silently.
        """
        self._closing.set()
        self._poller.join()
        try:
            left = self._producer.flush(timeout_s)
        except KafkaException as error:  # as in _poll
            self._on_error(error.args[0])
            left = len(self._producer)
        with self._making_alone:  # one that is being made just now is closed too
            alone = self._alone
        if alone is not None:
            left += alone.close(timeout_s)
        if left:
            log.error("records_without_report", records=left, waited_s=timeout_s)
        return int(left)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(timeout_s=10)


# The broker or the client has looked at this very record and will never take it.
_REFUSED_FOR_GOOD = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_MSG_SIZE})


def _words(error: KafkaError) -> str:
    return f"{error.name()}: {error.str()}"
