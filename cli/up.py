"""`kinguin-streams up`: everything on this machine, in one command."""

from typing import Annotated

import typer


def up(
    *,
    simulate: Annotated[
        float | None,
        typer.Option(help="also run a sender that behaves like Kinguin, at so many webhooks a second", min=0.1),
    ] = None,
    duration: Annotated[
        str | None, typer.Option("--for", help="how long the sender sends, e.g. 30s or 5m; then stop everything")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="of the sender: the same seed sends the same lives of orders", show_default="random"),
    ] = None,
    duplicates: Annotated[float, typer.Option(help="share of webhooks sent twice", min=0, max=1)] = 0.1,
    disorder: Annotated[float, typer.Option(help="share of webhooks that arrive late", min=0, max=1)] = 0.2,
    port: Annotated[int | None, typer.Option(help="port of the webhooks", show_default="8080")] = None,
    admin_port: Annotated[int | None, typer.Option(help="port of the probes", show_default="8081")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary of --simulate as one JSON object")] = False,
) -> None:
    """Start Kafka, the ingress and both consumers here, and watch webhooks become state.

    The first time, Apache Kafka is fetched (45 MB); after that nothing is. Data, logs and state stay in .data/
    (KINGUIN_LOCAL__DATA_DIR); a second `up` goes on with them. With KINGUIN_KAFKA__BOOTSTRAP_SERVERS set, that cluster is
    used and none is started. Without --simulate it stays up until Ctrl-C and prints the curl line that sends a webhook.

    With --simulate, the end is a summary and a verdict: exit 0 only if every webhook sent was acknowledged, every
    acknowledged one is in its topic, and the state equals what an independent program works out from what was sent.
    """
    from kinguin_streams.cli.durations import duration_s
    from kinguin_streams.cli.settings import load
    from kinguin_streams.cli.stack import Simulation, run

    if duration is not None and simulate is None:
        raise typer.BadParameter("goes with --simulate", param_hint="--for")
    if as_json and simulate is None:
        raise typer.BadParameter("goes with --simulate: without it there is no summary", param_hint="--json")
    for_s = None if duration is None else duration_s(duration, "--for")
    settings = load(ingress={"port": port, "admin_port": admin_port})
    simulation = None
    if simulate is not None:
        simulation = Simulation(rate_per_s=simulate, for_s=for_s, seed=seed, duplicates=duplicates, disorder=disorder)
    code = run(settings, simulation, as_json=as_json)
    if code:
        raise typer.Exit(code)
