"""Plans: what is read from topics or files, and whether a topic may take it. Asks the cluster, and changes nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kinguin_streams.replay import file_source, topic_target, windows
from kinguin_streams.replay.file_source import FileSource, SourceFile
from kinguin_streams.replay.filters import Filters
from kinguin_streams.replay.plan import Destination, PaceLimit, Plan, Selection, Window
from kinguin_streams.replay.run import Source
from kinguin_streams.replay.survey import Count, Survey, TopicFacts, count
from kinguin_streams.replay.topic_target import Timestamp
from kinguin_streams.replay.windows import Bounds
from kinguin_streams.telemetry.operator_error import OperatorError

MakeSource = Callable[[Sequence[Window]], Source]
MakeFilters = Callable[[Selection, Sequence[Window]], Filters]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for, of any target. now_ms: when; what `-7d` counted back from.

    exact: count what is selected by reading all of it. files: what is read instead of Kafka; of these topics, if any is named.
    """

    topics: tuple[str, ...]
    since: Bounds
    until: Bounds
    now_ms: int
    selection: Selection = Selection()
    pace: PaceLimit = PaceLimit()
    exact: bool = False
    files: tuple[SourceFile, ...] = ()


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The half of a plan that is about the source. sampled_oldest_ms: of the records that were looked at.

    topics: of files, their names and how many partitions they had, and nothing else. counts: if they were counted.
    """

    windows: tuple[Window, ...]
    topics: tuple[TopicFacts, ...]
    identity: dict[str, str]
    warnings: tuple[str, ...]
    sampled_oldest_ms: int | None = None
    counts: dict[tuple[str, int], Count] | None = None


class Planner:
    """Makes plans against one cluster."""

    def __init__(self, survey: Survey, make_source: MakeSource, make_filters: MakeFilters) -> None:
        """make_source, make_filters: for windows that are to be read through, where an upper bound does not do."""
        self._survey, self._make_source, self._make_filters = survey, make_source, make_filters

    def reading(self, wanted: Wanted) -> Reading:
        """Return what is read. Raises NoSuchPartition, OperatorError: "topic_missing", "kafka_unreachable"."""
        if wanted.files:
            return self._reading_files(wanted)
        facts = self._survey.topics(wanted.topics)
        windows.refuse_unknown((wanted.since, wanted.until), (each.partitions for each in facts.values()))
        times = () if wanted.selection.event_time else wanted.since.times_ms
        made = windows.windows(
            self._survey.partitions(wanted.topics, times),
            wanted.since,
            wanted.until,
            event_time=wanted.selection.event_time,
        )
        made, oldest_ms = self._survey.sampled(made)
        reading = Reading(
            windows=made,
            topics=tuple(facts[name] for name in wanted.topics),
            identity=self._survey.identity(facts),
            warnings=tuple(windows.warnings(made)),
            sampled_oldest_ms=oldest_ms,
        )
        return self.counted(reading, wanted) if wanted.exact else reading

    def _reading_files(self, wanted: Wanted) -> Reading:
        counts = file_source.partition_counts(wanted.files)
        windows.refuse_unknown((wanted.since, wanted.until), counts.values())
        made = windows.windows(
            file_source.partition_facts(wanted.files),
            wanted.since,
            wanted.until,
            event_time=wanted.selection.event_time,
        )
        made, oldest_ms = file_source.sampled(wanted.files, made)
        reading = Reading(
            windows=tuple(msgspec.structs.replace(window, gone=0) for window in made),  # nothing deletes from files
            topics=tuple(
                TopicFacts(name=name, topic_id="", partitions=partitions, config={})
                for name, partitions in counts.items()
            ),
            identity=file_source.identity(wanted.files),
            warnings=tuple(file_source.warnings(wanted.files)),
            sampled_oldest_ms=oldest_ms,
        )
        return self.counted(reading, wanted) if wanted.exact else reading

    def counted(self, reading: Reading, wanted: Wanted) -> Reading:
        """Return the same with exact counts."""
        source = FileSource(wanted.files, reading.windows) if wanted.files else self._make_source(reading.windows)
        try:
            counts = count(source, self._make_filters(wanted.selection, reading.windows))
        finally:
            source.close()
        exact = tuple(
            msgspec.structs.replace(window, exact_records=found.records, bytes=found.bytes)
            for window in reading.windows
            for found in [counts.get((window.topic, window.partition)) or Count()]
        )
        return msgspec.structs.replace(reading, windows=exact, counts=counts)

    def copy(
        self,
        replay_id: str,
        wanted: Wanted,
        target: str,
        *,
        timestamp: Timestamp = "keep",
        force: bool = False,
    ) -> Plan:
        """Return the plan of a copy into a topic.

        Raises OperatorError as `reading` does, "source_mixed", and for a target that must not be written to:
        topic_target.refuse and refuse_too_old. Where neither the window nor a sample says how old the oldest selected record is, all are read.
        """
        if not wanted.topics:
            refuse_mixed(wanted.files, target)
        into = self._survey.topics((target,))[target]
        sources = {} if wanted.files else self._survey.topics(wanted.topics)
        topic_target.refuse(into, {name: facts.topic_id for name, facts in sources.items()}, timestamp, force=force)
        reading = self.reading(wanted)
        if timestamp == "keep":
            reading = self._not_too_old(reading, wanted, into)
        return Plan(
            replay_id=replay_id,
            made_at_ms=wanted.now_ms,
            windows=reading.windows,
            source_files=tuple(str(file.path) for file in wanted.files),
            source_identity=reading.identity,
            selection=wanted.selection,
            pace=wanted.pace,
            warnings=reading.warnings + tuple(topic_target.warnings(into, reading.topics)),
            destination=Destination(
                kind="topic",
                name=target,
                options=copy_options(into, reading.topics, timestamp),
                identity=self._survey.identity({target: into}),
            ),
        )

    def _not_too_old(self, reading: Reading, wanted: Wanted, into: TopicFacts) -> Reading:
        if topic_target.time_limit_ms(into) is None:
            return reading
        no_older_ms = _no_older_than(reading.windows, wanted.selection)
        if no_older_ms is not None and not topic_target.is_too_old(into, no_older_ms, wanted.now_ms):
            return reading
        if self._make_filters(wanted.selection, reading.windows).passes_all:
            topic_target.refuse_too_old(into, reading.sampled_oldest_ms, wanted.now_ms)
        counted = reading if reading.counts is not None else self.counted(reading, wanted)
        oldest = [one.oldest_ms for one in (counted.counts or {}).values() if one.oldest_ms is not None]
        topic_target.refuse_too_old(into, min(oldest, default=None), wanted.now_ms)
        return counted


def files_of(files: Sequence[SourceFile], topics: Sequence[str]) -> tuple[SourceFile, ...]:
    """Return the files of these topics, all where none is named. Raises OperatorError("source_empty") for one without any."""
    there = {file.name.topic for file in files}
    for topic in topics:
        if topic not in there:
            raise OperatorError(
                "source_empty",
                f"The files of --source hold nothing of {topic}; they hold {', '.join(sorted(there))}.",
                "Name a topic as the files are named: TOPIC.PARTITION.OFFSET.avro or .jsonl.",
            )
    return tuple(file for file in files if not topics or file.name.topic in topics)


def refuse_mixed(files: Sequence[SourceFile], target: str) -> None:
    """Raise OperatorError("source_mixed") for files of several topics, where nobody has said which go into the target.

    A folder holds all topics of an export, and the proof of a copy of all of them into one would hold.
    """
    there = sorted({file.name.topic for file in files})
    if there[1:]:
        raise OperatorError(
            "source_mixed",
            f"The files hold {', '.join(there)}: all of them would go into {target}.",
            f"Name what is to go there: `replay topic {target} {target if target in there else there[0]} --source …`.",
        )


def copy_options(into: TopicFacts, sources: Sequence[TopicFacts], timestamp: Timestamp) -> dict[str, Any]:
    """Return Destination.options of a topic: what TopicTarget is made of, besides connections."""
    return {
        "timestamp": timestamp,
        "partitions": into.partitions,
        "max_record_bytes": int(into.config.get("max.message.bytes", "1048588")),
        "same_partition": [facts.name for facts in sources if facts.partitions == into.partitions],
        "compacted": topic_target.is_compacted(into),
    }


def _no_older_than(made: Sequence[Window], selection: Selection) -> int | None:
    """Return an instant that no selected record's time is before, None if the windows have none."""
    if selection.event_time:
        return None
    times = [window.from_ms for window in made if window.records]
    known = [instant for instant in times if instant is not None]
    return min(known, default=None) if len(known) == len(times) else None
