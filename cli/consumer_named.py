"""A consumer by the name that commands take: a sample's, or where one of the user's own is."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinguin_streams.consumers.loading import Loadable
    from kinguin_streams.consumers.projection import Projection


def consumer(what: str) -> "Loadable":
    """Return the App or projection. Raises OperatorError("consumer_target"), and as loading.load does."""
    from kinguin_streams.consumers import loading
    from kinguin_streams.consumers.samples import SAMPLES
    from kinguin_streams.telemetry.operator_error import OperatorError

    samples = {sample.name: sample for sample in SAMPLES}
    if what in samples:
        return samples[what]
    if ":" not in what and not what.endswith(".py"):
        raise OperatorError(
            "consumer_target",
            f"There is no consumer {what!r}.",
            f"Name {' or '.join(samples)}, or one of your own as in `kinguin-streams consume my_consumer.py:app`.",
        )
    return loading.load(what)


def projection(what: str) -> "Projection":
    """Return the projection. Raises as `consumer` does, and OperatorError("not_a_projection") for an App."""
    from kinguin_streams.consumers.app import App
    from kinguin_streams.telemetry.operator_error import OperatorError

    found = consumer(what)
    if isinstance(found, App):
        raise OperatorError(
            "not_a_projection",
            f"{found.name} has handlers and no state that could be rebuilt.",
            "Let its handlers see old records again with `kinguin-streams replay consumer`, or move its group with "
            "`replay group`.",
        )
    return found
