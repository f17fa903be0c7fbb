"""`kinguin-streams replay show`: what a receipt says, also of a replay that is running."""

from typing import Annotated

import typer

from kinguin_streams.cli.options import Json

Name = Annotated[
    str,
    typer.Argument(
        metavar="RECEIPT", help="a receipt's file, or the first characters of its replay's id", show_default=False
    ),
]


def show(name: Name, as_json: Json = False) -> None:
    """Show what a replay has done: read, written, filtered, and its proof. Changes nothing.

    Exit 0 whatever it says; the state is one of interrupted (or running), failed, written, done, differs.
    """
    from kinguin_streams.cli import replay_running
    from kinguin_streams.cli.settings import load
    from kinguin_streams.replay import receipt

    settings = load()
    replay_running.show(receipt.read(receipt.find(settings.replay.receipts, name)), as_json=as_json)
