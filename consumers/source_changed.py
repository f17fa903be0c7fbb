"""The errors of state that stands on records which are not there any more. Pure, so that store and loop say the same."""

from kinguin_streams.telemetry.operator_error import OperatorError

REBUILD_HINT = (
    "Make the state anew with `kinguin-streams replay rebuild NAME`, which lets readers have the old one meanwhile, or set "
    "KINGUIN_STATE__URL to a new database."
)


def cluster_changed(before: str, now: str) -> OperatorError:
    """Return the error for state that was made from another cluster."""
    return OperatorError(
        "cluster_changed", f"The state was made from the Kafka cluster {before}; this one is {now}.", REBUILD_HINT
    )


def topic_replaced(topic: str, before: str, now: str) -> OperatorError:
    """Return the error for state that was made from a topic of this name that is gone."""
    return OperatorError(
        "topic_replaced",
        f"The topic {topic} was deleted and made anew: the state stands on its predecessor ({before}; now {now}).",
        REBUILD_HINT,
    )
