"""Dead letters on their way again: through today's validator, or back to the consumer that failed.

The order is the guarantee: first the effect (an event confirmed by Kafka, or the consumer's own), then the trail. A crash in
between redrives once more: an event has the same id, a projection knows that it has taken the record in, a handler is called
again. What is the fault of one dead letter is noted in its trail, and the others go on; whatever else ends a run, what has taken
effect by then is noted first.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from kinguin_streams.cluster.publisher import PublishFailed, Report
from kinguin_streams.consumers.app import App
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.handler_effect import HandlerEffect
from kinguin_streams.consumers.handling import described
from kinguin_streams.consumers.live_rows import LANE
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.consumers.store import Advance, LostPartition, PartitionSource, StateStore
from kinguin_streams.ingress.decide import REFUSED_BY_KAFKA, Accepted, Delivery, validated
from kinguin_streams.replay.as_message import sorted_out
from kinguin_streams.replay.consumer_target import ConsumerTarget
from kinguin_streams.replay.dead_letters import Found, LetterState
from kinguin_streams.replay.pace import Pace
from kinguin_streams.replay.plan import PaceLimit
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Watch
from kinguin_streams.replay.trail import after_redrive, step
from kinguin_streams.schemas.codec import Decoder, RecordEncoder
from kinguin_streams.schemas.events import DeadLetter, Event, RecordName, StoreName
from kinguin_streams.schemas.instants import to_rfc3339
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

CHUNK: Final = 500
ORIGIN: Final = b"dead-letter"
NO_BREAKER: Final = 1_000_000
FAULTS_OF_THE_LETTER: Final = frozenset({"topic_not_read", "schema_unknown"})
"""OperatorErrors that are about the one record: those behind it may be all right."""


class Sender(Protocol):
    """What a redrive needs of cluster.publisher.KafkaPublisher."""

    def send(self, record: OutgoingRecord) -> Report:
        """Return what will be the record's delivery report; raises PublishFailed if it is not taken."""
        ...

    def send_alone(self, record: OutgoingRecord) -> Report:
        """Do the same in a batch of the record's own."""
        ...


class Redriver(Protocol):
    """Lets one dead letter's record take effect again."""

    def redrive(self, found: Found) -> str | None:
        """Return None once it has, or why it was refused.

        Raises OperatorError for what is no affair of this one, or is of FAULTS_OF_THE_LETTER, and whatever a fold raises.
        """
        ...

    def forget(self, found: Found) -> None:
        """The trail has it: nothing need be remembered of it."""
        ...

    def close(self) -> None:
        """Let go of the consumer."""
        ...


class _Taken(NamedTuple):
    """A dead letter whose turn it was. refusal: why it had no effect. event: what was sent of it, and what Kafka will say."""

    found: Found
    refusal: str | None = None
    redriver: Redriver | None = None
    event: "_Sent | None" = None


class Redriven(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. skipped: of consumers that were not named."""

    redriven: int = 0
    refused: int = 0
    parked: int = 0
    skipped: int = 0
    interrupted: bool = False


def judged(letter: DeadLetter, now_ms: int) -> Event | str:
    """Return the event that a dead letter of the ingress is by today's rules, or why it is none."""
    if letter.body_size > len(letter.body):
        return (
            f"body_cut: {letter.body_size:,} bytes were too many to be kept; the first {len(letter.body):,} are there"
        )
    headers = {name.lower(): (value or b"").decode("latin-1") for name, value in letter.headers}
    decision = validated(
        Delivery(
            store=StoreName(letter.store or ""),
            event_name=letter.event,
            secret=None,
            content_type=headers.get("content-type"),
            content_encoding=headers.get("content-encoding"),
            kept_headers=(),
            body=letter.body,
            received_at_ms=now_ms,
        )
    )
    if isinstance(decision, Accepted):
        return decision.event
    return f"{decision.dead_letter.reason}: {decision.dead_letter.detail}"


def original(letter: DeadLetter) -> Record | str:
    """Return the record that a consumer could not process, or why it cannot be had."""
    if letter.body_size > len(letter.body):
        return f"value_cut: {letter.body_size:,} bytes were too many to be kept; the record is at its source position"
    if letter.source_topic is None or letter.source_partition is None or letter.source_offset is None:
        return "no_position: the dead letter does not say where its record lay"
    return Record(
        letter.source_topic,
        letter.source_partition,
        letter.source_offset,
        letter.source_timestamp_ms,
        letter.source_key,
        letter.body,
        letter.headers,
    )


class HandlerRedriver:
    """Calls an App's handlers, once each; what fails is refused, and dead-lettered no second time."""

    def __init__(
        self,
        app: App,
        settings: ConsumerSettings,
        *,
        decoder: Decoder,
        expected: Mapping[str, RecordName],
        watch: Watch,
    ) -> None:
        self._letters: list[DeadLetter] = []
        once = settings.model_copy(update={"handler_attempts": 1, "handler_breaker_letters": NO_BREAKER})
        self._decoder, self._expected, self._watch = decoder, expected, watch
        self._app, self._settings = app, once

    def redrive(self, found: Found) -> str | None:
        """Return None once the handler has returned, or why not."""
        record = original(found.letter)
        if isinstance(record, str):
            return record
        self._letters.clear()
        target = ConsumerTarget(
            HandlerEffect(self._app, self._settings, replay=True),
            decoder=self._decoder,
            expected=self._expected,
            keep=self._letters.append,
            watch=self._watch,
            replay_id=found.id,
            topic_ids={},
        )
        target.write([record])
        return f"{self._letters[0].reason}: {self._letters[0].detail}" if self._letters else None

    def forget(self, found: Found) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing is held."""


class ProjectionRedriver:
    """Folds the record into the state, once: that it has is noted in the transaction of the state, in a lane of its own."""

    def __init__(
        self, projection: Projection, store: StateStore, *, decoder: Decoder, expected: Mapping[str, RecordName]
    ) -> None:
        self._projection, self._store = projection, store
        self._decoder, self._expected = decoder.without(projection.unused), expected

    def redrive(self, found: Found) -> str | None:
        """Return None once the state has it, or why not."""
        record = original(found.letter)
        if isinstance(record, str):
            return record
        batch, _ = sorted_out([record], self._decoder, self._expected, self._projection.name)
        if batch.dead_letters:
            return f"{batch.dead_letters[0].reason}: {batch.dead_letters[0].detail}"
        source = PartitionSource(self._lane(found), "", *TopicPart(record.topic, record.partition))
        try:
            self._store.apply(batch.received, [Advance(source, None, record.offset + 1)])
        except LostPartition:
            log.info("redriven_before", dead_letter_id=found.id)  # and killed before the trail said so
        return None

    def forget(self, found: Found) -> None:
        """Drop the note: the trail says it now."""
        self._store.close_lane(self._lane(found))

    def close(self) -> None:
        """Close the state."""
        self._store.close()

    def _lane(self, found: Found) -> str:
        return f"{LANE}{found.id}"


class Redrive:
    """One run of it."""

    def __init__(
        self,
        redrive_id: str,
        *,
        sender: Sender,
        topics: Topics,
        encoder: RecordEncoder,
        redriver_of: Callable[[str], Redriver | None],
        most_attempts: int,
        by: str,
        pace: PaceLimit | None = None,
        watch: Watch | None = None,
    ) -> None:
        """redriver_of: a consumer's name to what redrives its dead letters, None if it was not named."""
        self._redrive_id = redrive_id
        self._sender, self._topics, self._encoder = sender, topics, encoder
        self._redriver_of = redriver_of
        self._most_attempts, self._by = most_attempts, by
        self._watch = watch or Watch()
        self._pace = Pace(pace or PaceLimit(), self._watch.clock())
        self._counts = {"redriven": 0, "refused": 0, "parked": 0, "skipped": 0}

    def run(self, found: Iterable[Found], total: int) -> Redriven:
        """Redrive these, each id once.

        Raises OperatorError: "redrive_refused" if Kafka does not confirm something, and what a Redriver raises. What had
        taken effect by then has its trail, as far as Kafka took it.
        """
        done = 0
        for chunk in _chunks(found, self._pace.chunk_records(CHUNK) if self._pace.limited else CHUNK):
            self._chunk(chunk)
            done += len(chunk)
            self._watch.progress(done, total, f"{self._counts['redriven']:,} redriven")
            if self._pace.limited:
                self._watch.sleep(
                    self._pace.wait_s(len(chunk), sum(each.letter.body_size for each in chunk), self._watch.clock())
                )
            if self._watch.stop():
                return self._said(interrupted=done < total)
        return self._said(interrupted=False)

    def _said(self, *, interrupted: bool) -> Redriven:
        return msgspec.convert({**self._counts, "interrupted": interrupted}, Redriven)

    def _chunk(self, chunk: Sequence[Found]) -> None:
        taken: list[_Taken] = []
        try:
            for each in chunk:
                one = self._take(each)
                if one is None:
                    self._counts["skipped"] += 1
                else:
                    taken.append(one)
        finally:
            # Also after an error: what has no trail would take effect again in every run that comes to the same error.
            self._settle(taken)

    def _take(self, found: Found) -> _Taken | None:
        """Let one take effect; return None if it is of a consumer that was not named."""
        redriver = None
        if found.letter.origin != "ingress":
            redriver = self._redriver_of(found.letter.consumer or "")
            if redriver is None:
                return None
        try:
            if redriver is None:
                return self._through_validator(found)
            return _Taken(found, redriver.redrive(found), redriver)
        except OperatorError as error:
            if error.code not in FAULTS_OF_THE_LETTER:
                raise
            return _Taken(found, f"{error.code}: {error.what}")
        except Exception as error:
            # A fold may raise anything, and would again in every run: without its trail nothing behind it were ever reached.
            log.exception("redrive_failed", dead_letter_id=found.id)
            return _Taken(found, f"redrive_failed: {described(error)}")

    def _through_validator(self, found: Found) -> _Taken:
        event = judged(found.letter, _now_ms())
        if isinstance(event, str):
            return _Taken(found, event)
        record = outgoing(event, self._topics, self._encoder)
        headers = (
            *record.headers,
            ("origin", ORIGIN),
            ("origin-time", to_rfc3339(found.letter.failed_at_ms).encode()),
            ("replay-id", self._redrive_id.encode()),
            ("dead-letter-id", found.letter.dead_letter_id.encode()),
        )
        return _Taken(found, event=_Sent(self._sender, msgspec.structs.replace(record, headers=headers)))

    def _settle(self, taken: Sequence[_Taken]) -> None:
        """Note what has become of each whose effect is certain."""
        unconfirmed: list[PublishFailed] = []
        noted: list[tuple[_Taken, LetterState, _Sent]] = []
        for each in taken:
            if each.event is not None and (failed := each.event.failure()) is not None:
                if failed.code != "refused":
                    unconfirmed.append(failed)  # it may be there: no trail, and next time the same event id
                    continue
                each = each._replace(refusal=f"{REFUSED_BY_KAFKA}: {failed}")  # noqa: PLW2901
            state = after_redrive(each.found, each.refusal, self._most_attempts)
            trail = step(each.found, state, at_ms=_now_ms(), by=self._by, why=each.refusal, redrive_id=self._redrive_id)
            noted.append((each, state, _Sent(self._sender, outgoing(trail, self._topics, self._encoder))))
        for each, state, sent in noted:
            if (failed := sent.failure()) is not None:
                unconfirmed.append(failed)
                continue
            self._counts[state] += 1
            if each.redriver is not None and each.refusal is None:
                each.redriver.forget(each.found)
        if unconfirmed:
            raise _refused(unconfirmed[0]) from unconfirmed[0]


class _Sent:
    """A record on its way."""

    def __init__(self, sender: Sender, record: OutgoingRecord) -> None:
        self._sender, self._record = sender, record
        self._report = _report(sender.send, record)

    def failure(self) -> PublishFailed | None:
        """Return None once Kafka has the record, or why it has not."""
        failed = self._report.result()
        if failed is None or failed.code != "refused":
            return failed
        # Kafka refuses a whole batch, be it because of another record in it.
        return _report(self._sender.send_alone, self._record).result()


def _report(send: Callable[[OutgoingRecord], Report], record: OutgoingRecord) -> Report:
    try:
        return send(record)
    except PublishFailed as failed:
        report = Report()
        report.settle(failed)
        return report


def discard(
    found: Iterable[Found], reason: str, *, sender: Sender, topics: Topics, encoder: RecordEncoder, by: str
) -> int:
    """Note that nobody will do anything about these, and why; they stay where they are. Return how many.

    Raises OperatorError("redrive_refused").
    """
    count = 0
    for chunk in _chunks(found, CHUNK):
        trails = [step(each, "discarded", at_ms=_now_ms(), by=by, why=reason) for each in chunk]
        for sent in [_Sent(sender, outgoing(trail, topics, encoder)) for trail in trails]:
            if (failed := sent.failure()) is not None:
                raise _refused(failed) from failed
        count += len(chunk)
    return count


def _chunks(found: Iterable[Found], size: int) -> Iterator[list[Found]]:
    iterator = iter(found)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _refused(failed: PublishFailed) -> OperatorError:
    return OperatorError(
        "redrive_refused",
        f"Kafka has not taken a record ({failed}).",
        "See to the cluster and `kinguin-streams topics plan`, and run the same command again: what has a trail is not redriven.",
    )


def _now_ms() -> int:
    return round(time.time() * 1000)
