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
    *,
    server: Annotated[str | None, typer.Option(help="waitress or granian", show_default="waitress")] = None,
    reuse_port: Annotated[
        bool | None,
        typer.Option("--reuse-port", help="share the port with other processes; each needs its own --admin-port"),
    ] = None,
) -> None:
    """Take Kinguin's webhooks at /webhooks/{store} and publish them; answer 204 once Kafka or the spool has them.

    Needs KINGUIN_INGRESS__SECRETS='{"default": ["the secret of the dashboard"]}' and the topics of `topics apply`. Run as
    many as you like behind a load balancer; they share nothing. While Kafka is away, events wait on disk under
    KINGUIN_SPOOL__PATH. SIGTERM finishes what is in flight and exits 0.
    """
    from kinguin_streams.cli import wiring
    from kinguin_streams.cli.settings import ConfigurationError, load
    from kinguin_streams.ingress.last_seen import LastSeenFile
    from kinguin_streams.ingress.proven import ProofFile
    from kinguin_streams.ingress.server import Server
    from kinguin_streams.ingress.spool import Spool
    from kinguin_streams.telemetry.logs import configure
    from kinguin_streams.telemetry.operator_error import OperatorError
    from kinguin_streams.telemetry.traces import traces

    given = {"host": host, "port": port, "admin_port": admin_port, "on_invalid": on_invalid}
    given |= {"server": server, "reuse_port": reuse_port}
    settings = load(ingress=given)
    if not settings.ingress.secrets:
        raise ConfigurationError(
            ('KINGUIN_INGRESS__SECRETS: no secret is set; without one anybody could post. Set {"default": ["…"]}',)
        )

    def read_secrets() -> dict[str, list[str]]:
        live = load(ingress=given).ingress.secrets
        return {store: [secret.get_secret_value() for secret in of_store] for store, of_store in live.items()}

    configure(settings.log.level, settings.log.format, in_background=True)
    encoder = wiring.encoder(settings)
    try:
        spool = Spool(settings.spool) if settings.spool.enabled else None
    except OperatorError as unusable:
        raise ConfigurationError((f"KINGUIN_SPOOL__PATH: {unusable}",)) from unusable
    publisher = wiring.publisher(settings, client_id="kinguin-streams-ingress")
    topics = wiring.topics(settings).of_ingress
    proof_file = last_seen_file = None
    if spool is not None:
        bootstrap_servers = wiring.kafka(settings).bootstrap_servers or ""
        names = [spec.name for spec in topics.specs]
        proof_file = ProofFile(settings.spool.path, bootstrap_servers, names, settings.spool.max_age_s)
        last_seen_file = LastSeenFile(settings.spool.path)
    process = Server(
        settings.ingress,
        publisher,
        topics,
        encoder,
        wiring.decoder(settings),
        spool,
        read_secrets,
        traces("kinguin-streams-ingress"),
        settings.log.request_every,
        proof_file,
        last_seen_file,
    )
    if code := process.run():
        raise typer.Exit(code)
