"""`kinguin-streams consume WHAT`: run a sample, or a consumer of the user's own."""

from typing import Annotated

import typer


def consume(
    what: Annotated[
        str,
        typer.Argument(
            metavar="order-state|product-changes|FILE.py:NAME|MODULE:NAME",
            help="a sample, or an App or a projection of your own",
            show_default=False,
        ),
    ],
    state_url: Annotated[
        str | None,
        typer.Option(
            "--state-url",
            help="database of a projection's state and offsets",
            show_default="sqlite:///.data/state.db",
        ),
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option("--admin-port", help="port of /livez, /readyz, /metrics; 0: none", show_default="0")
    ] = None,
) -> None:
    """Run a consumer: a projection, which keeps a state up to date, or an App, whose handlers are called.

    order-state keeps the status of every order with the evidence for it, product-changes every distinct change of every
    product; read both with `kinguin-streams state`. State and offsets are stored together (KINGUIN_STATE__URL), so
    killing a projection loses nothing and counts nothing twice.

    An App's handlers are called at least once for each record, in the order of each partition; one that fails is tried
    again (KINGUIN_CONSUMER__HANDLER_ATTEMPTS), then its record is dead-lettered.

    A record that nobody can read goes to the dead-letter topic; a record of a schema that is not known here yet makes
    its partition wait. Stops on SIGTERM (exit 0) or Ctrl-C (130) after the batch or the handler in hand; on a second one
    at once, as if killed.
    """
    from kinguin_streams.cli import consumer_named, running
    from kinguin_streams.cli.settings import load
    from kinguin_streams.telemetry.logs import configure

    settings = load(state={"url": state_url}, consumer={"admin_port": admin_port})
    configure(settings.log.level, settings.log.format, in_background=True)
    raise typer.Exit(running.run(consumer_named.consumer(what), settings))
