"""`kinguin-streams replay resume`: go on with a replay that was stopped, killed, or failed."""

from kinguin_streams.cli.options import Json
from kinguin_streams.cli.replay_options import StateUrl
from kinguin_streams.cli.replay_show import Name


def resume(name: Name, state_url: StateUrl = None, as_json: Json = False) -> None:
    """Go on from a receipt: what the target holds already is found there, each record gets into it once.

    Of a replay that is done, say so: exit 0. Exit codes are those of the command that began it. Refused while another
    process runs it, and when the topics, or of a projection the database, are not those of the plan any more.
    """
    from kinguin_streams.cli import replay_import, replay_running
    from kinguin_streams.cli.settings import load
    from kinguin_streams.replay import group_target, import_history, receipt
    from kinguin_streams.telemetry.logs import configure
    from kinguin_streams.telemetry.operator_error import OperatorError

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format)
    found = receipt.Receipt.open(receipt.find(settings.replay.receipts, name))
    kind = found.contents().plan.destination.kind
    if kind == import_history.KIND:
        replay_import.carry_on(settings, found, as_json=as_json)
    elif kind == group_target.KIND:
        raise OperatorError(
            "nothing_to_resume",
            "A group is moved at once or not at all.",
            "Look with `kinguin-streams replay show`, and move it again with `replay group`.",
        )
    else:
        replay_running.carry_on(settings, found, as_json=as_json)
