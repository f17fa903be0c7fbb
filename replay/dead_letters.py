"""Dead letters with what has become of them: what is asked of them, and groups of them. Pure but for reading the topics.

Dead letters are never changed. Their life is in a topic of its own, compacted by their ids: see trail.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, get_args

import msgspec
from confluent_kafka import Message

from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.replay.schema_unknown import schema_unknown
from kinguin_streams.schemas.codec import Decoder, RegistryNeeded, UndecodableRecord, UnknownSchema
from kinguin_streams.schemas.events import DeadLetter, DeadLetterTrail
from kinguin_streams.telemetry.operator_error import OperatorError

LetterState = Literal["new", "refused", "redriven", "parked", "discarded"]
"""new: nobody has done anything about it. refused: redriven in vain, to be tried again. The others end its life."""
STATES: Final[tuple[LetterState, ...]] = get_args(LetterState)
OPEN_STATES: Final[tuple[LetterState, ...]] = ("new", "refused")
DAY_MS: Final = 86_400_000
AGES: Final = (("an hour", 3_600_000), ("a day", DAY_MS), ("a week", 7 * DAY_MS), ("a month", 30 * DAY_MS))


class Found(NamedTuple):
    """A dead letter, where it lies, and its trail: None if nobody has done anything about it.

    copies: other records of its id: the same failure came before. is_other_body: an earlier dead letter has its id and
    another body.
    """

    letter: DeadLetter
    partition: int
    offset: int
    trail: DeadLetterTrail | None
    copies: int = 0
    is_other_body: bool = False

    @property
    def id(self) -> str:
        """What it and its trail go by: the dead letter's own id, but for another body with part of the body's hash.

        A consumer's id is that of a position, and a topic that was made anew has another record there.
        """
        letter = self.letter
        return f"{letter.dead_letter_id}-{letter.body_sha256[:16]}" if self.is_other_body else letter.dead_letter_id

    @property
    def state(self) -> str:
        """One of STATES, or what a later version calls it.

        A consumer's dead letter that came after what was done about it is new again: its id is that of its position, which the
        consumer has failed at once more. An ingress's is not: the event of the same bytes is there.
        """
        if self.trail is None or (self.letter.origin == "consumer" and self.letter.failed_at_ms > self.trail.at_ms):
            return "new"
        return self.trail.state

    @property
    def attempts(self) -> int:
        """How often it was redriven since it was new."""
        return 0 if self.trail is None or self.state == "new" else self.trail.attempts


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: those that are all of this. Empty: any. ids: beginnings of ids, any one of them."""

    ids: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    origin: Literal["ingress", "consumer"] | None = None
    states: tuple[str, ...] = ()
    since_ms: int | None = None
    until_ms: int | None = None

    def means(self, found: Found) -> bool:
        """Return whether this one is meant."""
        letter = found.letter
        return (
            (not self.ids or found.id.startswith(self.ids))
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.consumers or letter.consumer in self.consumers)
            and (not self.events or letter.event in self.events)
            and (not self.stores or letter.store in self.stores)
            and (self.origin is None or letter.origin == self.origin)
            and (not self.states or found.state in self.states)
            and (self.since_ms is None or letter.failed_at_ms >= self.since_ms)
            and (self.until_ms is None or letter.failed_at_ms < self.until_ms)
        )


class Group(msgspec.Struct, kw_only=True):
    """Dead letters that are alike, each by its newest record. copies: the other records: the same failure came before."""

    origin: str
    consumer: str | None
    reason: str
    event: str | None
    state: str
    age: str
    count: int = 0
    copies: int = 0
    oldest_ms: int = 0
    newest_ms: int = 0
    example: str = ""


def read_trails(reader: TopicReader, topic: str, decoder: Decoder) -> dict[str, DeadLetterTrail]:
    """Return the newest trail of each dead letter; none if there is no such topic yet.

    Raises OperatorError as TopicReader does, and "schema_unknown".
    """
    trails: dict[str, DeadLetterTrail] = {}
    for message in reader.read({}, reader.end_offsets([topic])):
        trail = _decoded(message, decoder)
        if isinstance(trail, DeadLetterTrail):
            known = trails.get(trail.dead_letter_id)
            # Written by one command at a time, but two may run: the longer life counts.
            if known is None or (trail.at_ms, trail.attempts) >= (known.at_ms, known.attempts):
                trails[trail.dead_letter_id] = trail
    return trails


def read_letters(
    reader: TopicReader, topic: str, decoder: Decoder, trails: Mapping[str, DeadLetterTrail]
) -> Iterator[Found]:
    """Yield every dead letter record up to the end of the topic as it is now. Raises as read_trails does."""
    places = (
        (letter, message.partition() or 0, message.offset() or 0)
        for message in reader.read({}, reader.end_offsets([topic]))
        if isinstance(letter := _decoded(message, decoder), DeadLetter)
    )
    return with_trails(places, trails)


def with_trails(
    places: Iterable[tuple[DeadLetter, int, int]], trails: Mapping[str, DeadLetterTrail]
) -> Iterator[Found]:
    """Yield each with its trail. places: dead letter, partition, offset; those of one id in the order of the topic."""
    first_bodies: dict[str, str] = {}
    for letter, partition, offset in places:
        is_other = (
            letter.origin == "consumer"  # the ingress's ids are made of the bodies
            and first_bodies.setdefault(letter.dead_letter_id, letter.body_sha256) != letter.body_sha256
        )
        found = Found(letter, partition, offset, None, is_other_body=is_other)
        yield found._replace(trail=trails.get(found.id))


class _Newest(NamedTuple):
    """The newest record of an id. at: its time and place. records: of the id, so far."""

    at: tuple[int, int, int]
    is_meant: bool
    records: int


def once_each(records: Callable[[], Iterable[Found]], asked: Asked) -> tuple[int, Iterator[Found]]:
    """Return how many dead letters are meant, and them: each by its newest record, which alone says whether it is new again.

    records: reads them all; called twice, so that their bodies need not be kept.
    Raises OperatorError("no_dead_letter") for an id with which none begins, whatever else was asked for: it is a slip of the pen.
    """
    newest: dict[str, _Newest] = {}
    unknown = set(asked.ids)
    for each in records():
        id_, at = each.id, _at(each)
        if unknown:
            unknown -= {start for start in unknown if id_.startswith(start)}
        known = newest.get(id_)
        if known is None or at > known.at:
            newest[id_] = _Newest(at, asked.means(each), 1 if known is None else known.records + 1)
        else:
            newest[id_] = known._replace(records=known.records + 1)
    if unknown:
        raise _no_dead_letter(min(unknown))
    meant = {each.at: each.records - 1 for each in newest.values() if each.is_meant}
    return len(meant), (each._replace(copies=meant[_at(each)]) for each in records() if _at(each) in meant)


def _at(found: Found) -> tuple[int, int, int]:
    return found.letter.failed_at_ms, found.partition, found.offset


def grouped(found: Iterable[Found], now_ms: int) -> list[Group]:
    """Return groups by origin, consumer, reason, event, state and age, the largest first. found: each once."""
    groups: dict[tuple[object, ...], Group] = {}
    for each in found:
        letter = each.letter
        age = age_of(letter.failed_at_ms, now_ms)
        key = (letter.origin, letter.consumer, letter.reason, letter.event, each.state, age)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(
                origin=letter.origin,
                consumer=letter.consumer,
                reason=letter.reason,
                event=letter.event,
                state=each.state,
                age=age,
                oldest_ms=letter.failed_at_ms,
                example=each.id,
            )
        group.count += 1
        group.copies += each.copies
        group.oldest_ms = min(group.oldest_ms, letter.failed_at_ms)
        group.newest_ms = max(group.newest_ms, letter.failed_at_ms)
    return sorted(groups.values(), key=lambda group: (-group.count, group.reason, group.oldest_ms))


def age_of(failed_at_ms: int, now_ms: int) -> str:
    """Return e.g. "under a day"."""
    for name, limit_ms in AGES:
        if now_ms - failed_at_ms < limit_ms:
            return f"under {name}"
    return "older"


def the_one(found: Sequence[Found], start: str) -> Found:
    """Return the dead letter whose id begins so. Raises OperatorError("no_dead_letter") or ("dead_letter_ambiguous")."""
    ids = {each.id: each for each in found}
    if start in ids:
        return ids[start]
    if not ids:
        raise _no_dead_letter(start)
    if len(ids) > 1:
        raise OperatorError(
            "dead_letter_ambiguous",
            f"{len(ids)} dead letters have ids that begin with {start}.",
            "Give more of the id.",
        )
    return found[0]


def _no_dead_letter(start: str) -> OperatorError:
    return OperatorError(
        "no_dead_letter",
        f"There is no dead letter whose id begins with {start}.",
        "`kinguin-streams dead-letters list` has an example of each kind.",
    )


def _decoded(message: Message, decoder: Decoder) -> object:
    value = message.value()
    if value is None:
        return None
    try:
        return decoder.decode(value)
    except UndecodableRecord:
        return None  # whoever wrote it there was none of ours
    except (UnknownSchema, RegistryNeeded) as error:
        raise schema_unknown(message.topic() or "", message.partition() or 0, message.offset() or 0, error) from error
