"""A derived topic read back, and compared with the database that it was told from."""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.consumers import database, outbox
from kinguin_streams.consumers.batch import Message
from kinguin_streams.consumers.derived_records import Digested, digest, digested
from kinguin_streams.consumers.derived_states import every_state
from kinguin_streams.consumers.live_rows import live_generation
from kinguin_streams.consumers.projection import Projection, StateKey
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.telling_again import tell_again
from kinguin_streams.schemas.codec import Decoder
from kinguin_streams.schemas.events import Derived
from kinguin_streams.schemas.outgoing import GENERATION_HEADER, REVISION_HEADER

ALL_KEYS = 2**31

Content = TypeVar("Content", Derived, bytes)


class Told(NamedTuple, Generic[Content]):
    """What a derived topic says of a key. content: its record, or the digest of it; None: it was forgotten."""

    generation: int
    revision: int
    content: Content | None
    is_last: bool = True
    """Whether no record of an earlier revision stands behind it, which compaction would keep in its place."""


class Difference(msgspec.Struct, frozen=True):
    """Topic and database do not agree on a key, though nothing of it is on its way.

    missing: the topic does not tell it. older: the topic tells an earlier revision, with another content if a rebuild lies
    between the two. newer: the topic tells a revision that the database has not come to. other: the same revision, another
    content. left_over: the database has no such key. overtaken: the topic tells it right, but an earlier revision stands
    behind, which compaction will keep in its place.
    """

    key: str
    code: Literal["missing", "older", "newer", "other", "left_over", "overtaken"]
    in_topic: tuple[int, int] | None
    """(generation, revision)"""
    in_database: tuple[int, int] | None


class Comparison(msgspec.Struct, frozen=True):
    """keys: in the database. waiting: of them, or forgotten ones, still in the outbox, so that nothing was compared."""

    keys: int
    waiting: int
    differences: tuple[Difference, ...]


def newest(messages: Iterable[Message], decoder: Decoder) -> dict[str, Told[Derived]]:
    """Return the greatest (generation, revision) of each key, tombstones included.

    Raises what Decoder.decode raises, and ValueError for a record that is no state.
    """
    return _newest(messages, decoder, lambda record: record)


def newest_digests(messages: Iterable[Message], decoder: Decoder) -> dict[str, Told[bytes]]:
    """Return the same with each record's digest: all records of a topic may not fit into memory. Raises as `newest`."""
    return _newest(messages, decoder, digest)


def _newest(
    messages: Iterable[Message], decoder: Decoder, content: Callable[[Derived], Content]
) -> dict[str, Told[Content]]:
    found: dict[str, Told[Content]] = {}
    for message in messages:
        key = (message.key() or b"").decode()
        generation, revision, record = _told(message, decoder)
        if key not in found or (generation, revision) >= found[key][:2]:
            found[key] = Told(generation, revision, None if record is None else content(record))
        else:
            found[key] = found[key]._replace(is_last=False)
    return found


def read_derived(reader: TopicReader, topic: str, decoder: Decoder) -> dict[str, Derived]:
    """Return the record of each key that the topic now has: the table that it stands for. Raises as `newest` does."""
    told = newest(reader.read({}, reader.end_offsets([topic])), decoder)
    return {key: each.content for key, each in told.items() if each.content is not None}


def compare(
    states: Mapping[str, Digested], waiting: frozenset[str], told: Mapping[str, Told[bytes]]
) -> tuple[Difference, ...]:
    """Return what differs, by key. states: the database's; waiting: keys of the outbox; told: the topic's."""
    differences: list[Difference] = []
    for key in sorted((states.keys() | told.keys()) - waiting):
        state, topics = states.get(key), told.get(key)
        at_state = None if state is None else state[:2]
        at_topic = None if topics is None else topics[:2]
        if state is None or at_state is None:
            if topics is not None and topics.content is not None:
                differences.append(Difference(key, "left_over", at_topic, None))
            elif topics is not None and not topics.is_last:
                differences.append(Difference(key, "overtaken", at_topic, None))
        elif topics is None or at_topic is None:
            differences.append(Difference(key, "missing", None, at_state))
        elif at_topic < at_state:
            if topics.generation < state.generation and topics.content == state.digest:
                continue  # a rebuild tells what has become different, and nothing else
            differences.append(Difference(key, "older", at_topic, at_state))
        elif at_topic > at_state:
            differences.append(Difference(key, "newer", at_topic, at_state))
        elif topics.content != state.digest:
            differences.append(Difference(key, "other", at_topic, at_state))
        elif not topics.is_last:
            differences.append(Difference(key, "overtaken", at_topic, at_state))
    return tuple(differences)


def repair(
    projection: Projection, settings: StateSettings, differences: Iterable[Difference]
) -> tuple[Difference, ...]:
    """Queue what differs, so that the relay tells it once more, above all that the topic says; return what that mends not.

    Nothing outranks a record of a later generation than the database's, and a key that is none of ours is not told.
    Raises OperatorError as tell_again does.
    """
    generation = _live_generation(settings, projection)
    told: dict[StateKey, int] = {}
    left: list[Difference] = []
    for difference in differences:
        store, colon, id_ = difference.key.partition(":")
        in_topic = difference.in_topic or (0, 0)
        if generation is None or in_topic[0] > generation or not (store and colon and id_):
            left.append(difference)
        else:
            told[StateKey(store, id_)] = in_topic[1] if in_topic[0] == generation else 0
    tell_again(settings, projection, told)
    return tuple(left)


def verify(
    projection: Projection, settings: StateSettings, reader: TopicReader, topic: str, decoder: Decoder
) -> Comparison:
    """Compare the topic with the database, also while consumers write both.

    The database is read first: what it has told by then is in the topic. What the topic tells beyond that is compared with
    the database once more. Raises OperatorError as database.open_for_reading and TopicReader do, and as `newest`.
    """
    states, waiting = _database(projection, settings)
    told = newest_digests(reader.read({}, reader.end_offsets([topic])), decoder)
    differences = compare(states, waiting, told)
    if any(difference.code in ("newer", "left_over", "overtaken") for difference in differences):
        doubtful = {difference.key for difference in differences}
        later, still_waiting = _database(projection, settings, doubtful)
        moved_on = {key for key in doubtful if later.get(key) != states.get(key)}
        moved_on |= still_waiting
        differences = tuple(difference for difference in differences if difference.key not in moved_on)
    return Comparison(keys=len(states), waiting=len(waiting), differences=differences)


def _live_generation(settings: StateSettings, projection: Projection) -> int | None:
    engine = database.open_for_reading(settings)
    try:
        with database.explained(settings), engine.connect() as connection:
            return live_generation(connection, projection.name)
    finally:
        engine.dispose()


def _database(
    projection: Projection, settings: StateSettings, only: Container[str] | None = None
) -> tuple[dict[str, Digested], frozenset[str]]:
    """Return the states, or those of some keys, and every key that waits in the outbox."""
    engine = database.open_for_reading(settings)
    try:
        with database.explained(settings), engine.connect() as connection:
            generation = live_generation(connection, projection.name)
            if generation is None:
                return {}, frozenset()
            queued = outbox.peek(connection, projection.name, generation, ALL_KEYS)
            waiting = frozenset(row.key.in_topic for row in queued)
            del queued  # while consumers catch up it has nearly every key
            states = {
                key.in_topic: digested(state)
                for key, state in every_state(connection, projection, generation)
                if only is None or key.in_topic in only
            }
    finally:
        engine.dispose()
    return states, waiting


def _told(message: Message, decoder: Decoder) -> tuple[int, int, Derived | None]:
    value = message.value()
    if value is None:
        headers = dict(message.headers() or ())
        try:
            return int(headers[GENERATION_HEADER] or b""), int(headers[REVISION_HEADER] or b""), None
        except (KeyError, ValueError) as error:
            raise ValueError(f"{_where(message)}: a tombstone that does not say its generation and revision") from error
    record = decoder.decode(value)
    if not isinstance(record, Derived):
        raise ValueError(f"{_where(message)}: a {record.record_name} is no state")
    return record.generation, record.revision, record


def _where(message: Message) -> str:
    return f"{message.topic()}/{message.partition()}/{message.offset()}"
