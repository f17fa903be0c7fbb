"""Dead letters on their way again: through today's validator, or back to the consumer that failed.

The order is the guarantee: first the effect (an event confirmed by Kafka, or the consumer's own), then the trail. A crash in
between redrives once more: an event has the same id, a projection knows that it has taken the record in, a handler is called
again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Protocol

import msgspec
import structlog

from kinguin_streams.cluster.publisher import PublishFailed, Report
from kinguin_streams.consumers.app import App
from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.handler_effect import HandlerEffect
from kinguin_streams.consumers.live_rows import LANE
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.settings import ConsumerSettings
from kinguin_streams.consumers.store import Advance, LostPartition, PartitionSource, StateStore
from kinguin_streams.ingress.decide import Accepted, Delivery, validated
from kinguin_streams.replay.as_message import sorted_out
from kinguin_streams.replay.consumer_target import ConsumerTarget
from kinguin_streams.replay.dead_letters import Found
from kinguin_streams.replay.pace import Pace
from kinguin_streams.replay.plan import PaceLimit
from kinguin_streams.replay.record import Record
from kinguin_streams.replay.run import Watch
from kinguin_streams.replay.trail import after_redrive, step
from kinguin_streams.schemas.codec import Decoder, RecordEncoder
from kinguin_streams.schemas.events import DeadLetter, DeadLetterTrail, Event, RecordName, StoreName
from kinguin_streams.schemas.instants import to_rfc3339
from kinguin_streams.schemas.outgoing import OutgoingRecord, outgoing
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

CHUNK: Final = 500
ORIGIN: Final = b"dead-letter"
NO_BREAKER: Final = 1_000_000


class Sender(Protocol):
    """What a redrive needs of cluster.publisher.KafkaPublisher."""

    def send(self, record: OutgoingRecord) -> Report:
        """Return what will be the record's delivery report; raises PublishFailed if it is not taken."""
        ...


class Redriver(Protocol):
    """Lets one dead letter's record take effect again."""

    def redrive(self, found: Found) -> str | None:
        """Return None once it has, or why it was refused. Raises OperatorError for what is no affair of this one."""
        ...

    def forget(self, found: Found) -> None:
        """The trail has it: nothing need be remembered of it."""
        ...

    def close(self) -> None:
        """Let go of the consumer."""
        ...


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
            replay_id=found.letter.dead_letter_id,
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
        self._decoder, self._expected = decoder, expected

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
            log.info(
                "redriven_before", dead_letter_id=found.letter.dead_letter_id
            )  # and killed before the trail said so
        return None

    def forget(self, found: Found) -> None:
        """Drop the note: the trail says it now."""
        self._store.close_lane(self._lane(found))

    def close(self) -> None:
        """Close the state."""
        self._store.close()

    def _lane(self, found: Found) -> str:
        return f"{LANE}{found.letter.dead_letter_id}"


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
        """Redrive these, each id once. Raises OperatorError("redrive_refused") if Kafka does not take something."""
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
        outcomes: list[tuple[Found, str | None, Redriver | None]] = []
        reports: list[Report] = []
        for each in chunk:
            if each.letter.origin == "ingress":
                outcomes.append((each, self._through_validator(each, reports), None))
                continue
            redriver = self._redriver_of(each.letter.consumer or "")
            if redriver is None:
                self._counts["skipped"] += 1
                continue
            outcomes.append((each, redriver.redrive(each), redriver))
        self._settle(reports)
        trails: list[Report] = []
        for each, refusal, _ in outcomes:
            state = after_redrive(each, refusal, self._most_attempts)
            self._counts[state] += 1
            self._note(
                step(each, state, at_ms=_now_ms(), by=self._by, why=refusal, redrive_id=self._redrive_id), trails
            )
        self._settle(trails)
        for each, _, redriver in outcomes:
            if redriver is not None:
                redriver.forget(each)

    def _through_validator(self, found: Found, reports: list[Report]) -> str | None:
        event = judged(found.letter, _now_ms())
        if isinstance(event, str):
            return event
        record = outgoing(event, self._topics, self._encoder)
        headers = (
            *record.headers,
            ("origin", ORIGIN),
            ("origin-time", to_rfc3339(found.letter.failed_at_ms).encode()),
            ("replay-id", self._redrive_id.encode()),
            ("dead-letter-id", found.letter.dead_letter_id.encode()),
        )
        self._send(msgspec.structs.replace(record, headers=headers), reports)
        return None

    def _note(self, trail: DeadLetterTrail, reports: list[Report]) -> None:
        self._send(outgoing(trail, self._topics, self._encoder), reports)

    def _send(self, record: OutgoingRecord, reports: list[Report]) -> None:
        try:
            reports.append(self._sender.send(record))
        except PublishFailed as failed:
            raise _refused(failed) from failed

    def _settle(self, reports: Sequence[Report]) -> None:
        for report in reports:
            if (failed := report.result()) is not None:
                raise _refused(failed)


def discard(
    found: Iterable[Found], reason: str, *, sender: Sender, topics: Topics, encoder: RecordEncoder, by: str
) -> int:
    """Note that nobody will do anything about these, and why; they stay where they are. Return how many.

    Raises OperatorError("redrive_refused").
    """
    count = 0
    for chunk in _chunks(found, CHUNK):
        reports: list[Any] = []
        for each in chunk:
            trail = step(each, "discarded", at_ms=_now_ms(), by=by, why=reason)
            try:
                reports.append(sender.send(outgoing(trail, topics, encoder)))
            except PublishFailed as failed:
                raise _refused(failed) from failed
        for report in reports:
            if (failed_report := report.result()) is not None:
                raise _refused(failed_report)
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
