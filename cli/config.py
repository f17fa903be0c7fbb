"""`kinguin-streams config`: what is set, and whether it can be used."""

import typer

from kinguin_streams.cli.options import Json

app = typer.Typer(no_args_is_help=True, help="Show and check the settings.")


@app.command()
def show(as_json: Json = False) -> None:
    """Print every setting with its value, as the environment variable that sets it. Secrets are stars."""
    from kinguin_streams.cli import output
    from kinguin_streams.cli.settings import PREFIX, Settings, load, shown

    values = shown(load())
    if as_json:
        output.result_json(values)
        return
    for room, keys in values.items():
        fields = Settings.model_fields[room].annotation.model_fields  # type: ignore[union-attr]
        for key, value in keys.items():
            output.result(f"{PREFIX}{room.upper()}__{key.upper()}={_as_variable(value)}")
            if description := fields[key].description:
                output.result(f"    {description}")


@app.command()
def check(as_json: Json = False) -> None:
    """Read all settings, report every fault together, and say what is missing for which command. Exit 2 on a fault."""
    from kinguin_streams.cli import output
    from kinguin_streams.cli.settings import ConfigurationError, load
    from kinguin_streams.cluster.connection import consumer_config, new_client, producer_config
    from kinguin_streams.consumers.database import check_url
    from kinguin_streams.telemetry.operator_error import OperatorError

    settings = load()
    try:
        check_url(settings.state.url)  # not in the settings' own type: it takes half a second to import
    except OperatorError as refused:
        raise ConfigurationError((f"{refused.what} {refused.hint}",)) from refused
    notes = []
    if settings.kafka.bootstrap_servers:
        from confluent_kafka import Consumer, Producer

        # librdkafka alone knows its keys; the clients are dropped before they have connected.
        new_client(Producer, producer_config(settings.kafka, client_id="check"))
        new_client(Consumer, consumer_config(settings.kafka, group_id="check", client_id="check"))
    else:
        notes.append("KINGUIN_KAFKA__BOOTSTRAP_SERVERS is not set: commands use the local broker, and `up` starts it")
    if not settings.ingress.secrets:
        notes.append("KINGUIN_INGRESS__SECRETS is not set: `ingress` refuses to start; `up` makes a secret of its own")
    if as_json:
        output.result_json({"ok": True, "notes": notes})
        return
    output.result("the settings are usable")
    for note in notes:
        output.talk(f"note: {note}")


def _as_variable(value: object) -> str:
    import msgspec

    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
