"""`kinguin-streams ingress`: take webhooks."""

from typing import Annotated

import typer


def ingress(
    host: Annotated[str | None, typer.Option(help="address to listen on", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="port of the webhooks", show_default="8080")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="port of /livez, /readyz, /metrics", show_default="8081")
    ] = None,
    on_invalid: Annotated[
        str | None, typer.Option(help="accept (202) or reject (422) an invalid payload", show_default="accept")
    ] = None,
) -> None:
    """Take Kinguin's webhooks at /webhooks/{store} and publish them; answer 204 once Kafka has them.

    Needs KINGUIN_INGRESS__SECRETS='{"default": ["the secret of the dashboard"]}' and the topics of `topics apply`. Run as
    many as you like behind a load balancer; they share nothing. SIGTERM finishes what is in flight and exits 0.
    """
    from kinguin_streams.cli import wiring
    from kinguin_streams.cli.settings import ConfigurationError, load
    from kinguin_streams.ingress.server import Server
    from kinguin_streams.telemetry.logs import configure

    settings = load(ingress={"host": host, "port": port, "admin_port": admin_port, "on_invalid": on_invalid})
    if not settings.ingress.secrets:
        raise ConfigurationError(
            ('KINGUIN_INGRESS__SECRETS: no secret is set; without one anybody could post. Set {"default": ["…"]}',)
        )
    configure(settings.log.level, settings.log.format)
    publisher = wiring.publisher(settings, client_id="kinguin-streams-ingress")
    server = Server(settings.ingress, publisher, wiring.topics(settings), wiring.encoder(settings))
    if server.run():
        raise typer.Exit(1)
