"""`kinguin-streams replay resume`: go on with a replay that was stopped, killed, or failed."""

from kinguin_streams.cli.options import Json
from kinguin_streams.cli.replay_show import Name


def resume(name: Name, as_json: Json = False) -> None:
    """Go on from a receipt: what the target holds already is found there, each record gets into it once.

    Of a replay that is done, say so: exit 0. Exit codes are those of the command that began it. Refused while another
    process runs it, and when the topics are not those of the plan any more.
    """
    from kinguin_streams.cli import replay_running
    from kinguin_streams.cli.settings import load
    from kinguin_streams.replay import receipt
    from kinguin_streams.telemetry.logs import configure

    settings = load()
    configure(settings.log.level, settings.log.format)
    path = receipt.find(settings.replay.receipts, name)
    replay_running.carry_on(settings, receipt.Receipt.open(path), as_json=as_json)
