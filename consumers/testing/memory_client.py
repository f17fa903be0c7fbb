"""Members of consumer groups of the Kafka in memory: what confluent_kafka.Consumer does, as far as the loop relies on it.

A group moves only when its members call consume(), as in Kafka. Eager members give everything up at each change and get
their new share when all have done so; incremental ones give up and take only what differs.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    OFFSET_STORED,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from kinguin_streams.consumers.batch import TopicPart
from kinguin_streams.consumers.client import OnPartitions
from kinguin_streams.consumers.testing.memory_log import Log, MemoryMessage

_FROM_COMMITTED: Final = (OFFSET_STORED, OFFSET_INVALID)


class Group:
    """Who is in it, and what they have committed. Partitions are shared out as by the range assignor, topic by topic."""

    def __init__(self, partitions: Callable[[str], tuple[TopicPart, ...]]) -> None:
        """partitions: of a topic."""
        self._partitions = partitions
        self.members: list[MemoryClient] = []
        self.committed: dict[TopicPart, int] = {}
        """Outlives its topic: a real group's may, or may not."""
        self.metadata: dict[TopicPart, str] = {}
        """What was committed with the offset."""
        self.round = 0
        """Grows with each change of membership."""

    def join(self, member: "MemoryClient") -> None:
        """Take a member in."""
        self.members.append(member)
        self.round += 1

    def leave(self, member: "MemoryClient") -> None:
        """Let a member go, or throw it out: it has not been heard of for too long."""
        if member in self.members:
            self.members.remove(member)
            self.round += 1

    def share(self, member: "MemoryClient") -> frozenset[TopicPart]:
        """Return the partitions that a member is to have."""
        parts: list[TopicPart] = []
        for topic in member.topics:
            of_topic = self._partitions(topic)
            takers = [other for other in self.members if topic in other.topics]
            place, each, more = takers.index(member), *divmod(len(of_topic), len(takers))
            start = place * each + min(place, more)
            parts += of_topic[start : start + each + (place < more)]
        return frozenset(parts)

    def all_are_in_this_round(self) -> bool:
        """Return whether every member has noticed the last change, and given up what it had."""
        return all(member.round == self.round for member in self.members)


class MemoryClient:
    """A ConsumerClient."""

    def __init__(self, log: Callable[[TopicPart], Log | None], group: Group, config: Mapping[str, Any]) -> None:
        """log: of a partition. config: of it `auto.offset.reset` and how partitions are assigned matter."""
        self._log = log
        self._group = group
        self._reset = str(config.get("auto.offset.reset", "latest"))
        self._is_incremental = config.get("group.protocol") == "consumer" or "cooperative" in str(
            config.get("partition.assignment.strategy", "")
        )
        self.topics: tuple[str, ...] = ()
        self.round = -1
        self.at_most: int | None = None
        """Most records that one consume() returns, whatever it asks for."""
        self.is_idle = False
        """The last consume() had nothing to return, and nothing to tell."""
        self.before_commit: Callable[[], None] | None = None
        """Called when it is about to commit, and before anything is: the process may die there."""
        self.commits_fail = False
        """Kafka takes no commit, as while the group's coordinator is away."""
        self.commits_wait = False
        """Commits that are not waited for stay in the client, and the last one is taken first once this is over. Measured with a
        broker that restarted (librdkafka 2.16): of two that waited for the group's coordinator, the older was taken last."""
        self.after_commit: Callable[[], None] | None = None
        """The same when it has committed, and does not know yet."""
        self._owned: frozenset[TopicPart] = frozenset()
        self._positions: dict[TopicPart, int] = {}
        self._paused: set[TopicPart] = set()
        self._on_commit: Callable[[KafkaError | None, list[TopicPartition]], None] | None = config.get("on_commit")
        self._waiting: list[list[TopicPartition]] = []
        self._reports: list[tuple[KafkaError | None, list[TopicPartition]]] = []
        self._is_cut_off = False
        self._is_closed = False
        self._awaits_share = False

    # What the test does to it

    def cut_off(self) -> None:
        """Let the group give this member up, while the member itself notices nothing until `reconnect`."""
        self._is_cut_off = True
        self._group.leave(self)

    def reconnect(self) -> None:
        """Let it notice, at its next consume(), that it has lost its partitions."""
        self._is_cut_off = False

    # What the loop does

    def subscribe(
        self, topics: list[str], *, on_assign: OnPartitions, on_revoke: OnPartitions, on_lost: OnPartitions
    ) -> None:
        """Join the group, in the next consume()."""
        self._refuse_if_closed()
        self.topics = tuple(topics)
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost
        self._group.join(self)

    def consume(self, num_messages: int, timeout: float) -> list[MemoryMessage]:  # noqa: ARG002 - nothing to wait for
        """Return the next records, in the order of arrival, at once. Partitions come and go within this call."""
        self._refuse_if_closed()
        while self._waiting and not self.commits_wait:
            self._commit_and_report(self._waiting.pop())
        reports, self._reports = self._reports, []
        if self._on_commit is not None:
            for error, offsets in reports:
                self._on_commit(error, offsets)
        has_news = not self._is_cut_off and self.topics != () and self._rebalance()
        messages = self._fetch(num_messages if self.at_most is None else min(num_messages, self.at_most))
        self.is_idle = not has_news and not messages
        return messages

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Read these partitions from these offsets, and no others. A partition that was paused stays so."""
        self._refuse_if_closed()
        self._positions = {}
        self.incremental_assign(partitions)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        """Read these partitions too."""
        self._refuse_if_closed()
        for partition in partitions:
            part = TopicPart(partition.topic, partition.partition)
            self._positions[part] = partition.offset

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        """Read these partitions no more."""
        self._refuse_if_closed()
        for part in _parts(partitions):
            self._positions.pop(part, None)

    def pause(self, partitions: list[TopicPartition]) -> None:
        """Return nothing of them until `resume`."""
        self._refuse_if_closed()
        self._paused.update(_parts(partitions))

    def resume(self, partitions: list[TopicPartition]) -> None:
        """Go on with them after the last record that was returned."""
        self._refuse_if_closed()
        self._paused.difference_update(_parts(partitions))

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition] | None:
        """Commit for the group. Of a member that the group has given up nothing is taken.

        Who waits for it is told by KafkaException, who does not by on_commit, in a later consume().
        """
        self._refuse_if_closed()
        if self.before_commit is not None:
            self.before_commit()
        if not asynchronous:
            error = self._take_commit(offsets)
            if error is not None:
                raise KafkaException(error)
        elif self.commits_wait:
            self._waiting.append(offsets)
            return None
        else:
            self._commit_and_report(offsets)
        if self.after_commit is not None:
            self.after_commit()
        return None if asynchronous else offsets

    def committed(self, partitions: list[TopicPartition], timeout: float = 0) -> list[TopicPartition]:  # noqa: ARG002
        """Return the group's committed offsets with their metadata; OFFSET_INVALID where it has none."""
        self._refuse_if_closed()
        group = self._group
        return [
            TopicPartition(*part, group.committed.get(part, OFFSET_INVALID), metadata=group.metadata.get(part, ""))
            for part in _parts(partitions)
        ]

    def close(self) -> None:
        """Give the partitions up, and leave the group."""
        self._refuse_if_closed()
        self._give_up(self._owned, self._on_revoke if self.topics else None)
        self._group.leave(self)
        self._is_closed = True

    # The group

    def _commit_and_report(self, offsets: list[TopicPartition]) -> None:
        self._reports.append((self._take_commit(offsets), offsets))

    def _take_commit(self, offsets: list[TopicPartition]) -> KafkaError | None:
        """Return why the group has not taken them."""
        if self not in self._group.members:
            return KafkaError(KafkaError.UNKNOWN_MEMBER_ID, "the group has given this member up")
        if self.commits_fail:
            return KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE, "the group's coordinator is away")
        for partition in offsets:
            part = TopicPart(partition.topic, partition.partition)
            self._group.committed[part] = partition.offset
            self._group.metadata[part] = partition.metadata or ""
        return None

    def _rebalance(self) -> bool:
        """Notice what has become of the group; return whether there was anything to notice."""
        before = self.round, self._owned
        if self not in self._group.members:
            self._give_up(self._owned, self._on_lost)
            self._group.join(self)
        if self.round != self._group.round:
            share = self._group.share(self)
            self._give_up(self._owned - share if self._is_incremental else self._owned, self._on_revoke)
            self.round = self._group.round
            self._awaits_share = True
        if self._awaits_share and self._group.all_are_in_this_round():
            self._awaits_share = False
            share = self._group.share(self)
            new = share - self._owned
            self._owned = share
            self._take(new)
        return before != (self.round, self._owned)

    def _give_up(self, parts: frozenset[TopicPart], tell: OnPartitions | None) -> None:
        if not parts:
            return
        if tell is not None:
            tell(self, [TopicPartition(*part) for part in sorted(parts)])
        self._owned -= parts
        for part in parts:
            self._positions.pop(part, None)

    def _take(self, parts: frozenset[TopicPart]) -> None:
        before = dict(self._positions)
        unset = [TopicPartition(*part) for part in sorted(parts)]
        self._on_assign(self, unset)
        if self._positions == before:  # the callback has left it to the client
            self.incremental_assign(unset)

    # Records

    def _fetch(self, most: int) -> list[MemoryMessage]:
        found: list[MemoryMessage] = []
        ready: dict[TopicPart, Log] = {}
        for part in sorted(self._positions.keys() - self._paused):
            log = self._log(part)
            fault = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"no {part.topic}") if log is None else None
            if log is not None and not self._settle(part, log):
                fault = KafkaError(KafkaError._AUTO_OFFSET_RESET, f"no offset {self._positions[part]} in {part}")
            if fault is not None:
                found.append(MemoryMessage(part, self._positions.pop(part), error=fault))
            elif log is not None:
                ready[part] = log
        while len(found) < most:
            heads = [log.records[at] for part, log in ready.items() if (at := self._positions[part]) < log.end]
            if not heads:
                break
            record = min(heads, key=lambda head: head.arrival)
            part = TopicPart(record.topic(), record.partition())
            self._positions[part] += 1
            ready[part].read_to = max(ready[part].read_to, self._positions[part])
            found.append(record)
        return found

    def _settle(self, part: TopicPart, log: Log) -> bool:
        """Make an offset of a partition's position; return whether the partition has that offset."""
        position = self._positions[part]
        if position in _FROM_COMMITTED:
            position = self._group.committed.get(part, OFFSET_INVALID)
        known = {OFFSET_BEGINNING: log.low, OFFSET_END: log.end}
        reset = {"earliest": log.low, "smallest": log.low, "latest": log.end, "largest": log.end}
        position = known.get(position, position)
        if not log.low <= position <= log.end:
            if self._reset not in reset:
                return False
            position = reset[self._reset]
        self._positions[part] = position
        return True

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError("Consumer closed")


def _parts(partitions: Iterable[TopicPartition]) -> list[TopicPart]:
    return [TopicPart(partition.topic, partition.partition) for partition in partitions]
