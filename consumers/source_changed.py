"""The errors of a consumer whose progress is that in records which are not there any more. Pure: one wording for all."""

from dataclasses import dataclass

from kinguin_streams.telemetry.operator_error import OperatorError

REBUILD_HINT = (
    "Make the state anew with `kinguin-streams replay rebuild NAME`, which lets readers have the old one meanwhile, or set "
    "KINGUIN_STATE__URL to a new database."
)


@dataclass(frozen=True, slots=True)
class SourceHints:
    """What to do then. topic_replaced: with `{topic}` where its name belongs."""

    cluster_changed: str
    topic_replaced: str


STATE_HINTS = SourceHints(REBUILD_HINT, REBUILD_HINT)


def group_hints(group_id: str) -> SourceHints:
    """Return the hints for a consumer whose progress is what its group has committed."""
    return SourceHints(
        "Start the consumer again if this is the right cluster: it goes on where its group has come to there.",
        "To handle what the new one holds from its beginning: `kinguin-streams replay group "
        f"{group_id} {{topic}} --from earliest --execute`; or give the App another name.",
    )


def cluster_changed(before: str, now: str, hints: SourceHints = STATE_HINTS) -> OperatorError:
    """Return the error for a consumer that has read another cluster."""
    return OperatorError(
        "cluster_changed", f"What was read so far is of the Kafka cluster {before}; this one is {now}.",
        hints.cluster_changed,
    )  # fmt: skip


def topic_replaced(topic: str, before: str, now: str, hints: SourceHints = STATE_HINTS) -> OperatorError:
    """Return the error for a consumer that has read a topic of this name that is gone."""
    return OperatorError(
        "topic_replaced",
        f"The topic {topic} was deleted and made anew: what was read so far is of its predecessor ({before}; now {now}).",
        hints.topic_replaced.format(topic=topic),
    )
