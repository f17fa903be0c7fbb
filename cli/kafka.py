"""`kinguin-streams kafka`: the one-node Apache Kafka of this machine."""

from typing import TYPE_CHECKING

import typer

from kinguin_streams.cli.options import Json

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.cluster.kafka_jars import JarProgress
    from kinguin_streams.cluster.local_broker import LocalBroker
    from kinguin_streams.cluster.settings import LocalSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Run a real one-node Apache Kafka on this machine, without Docker or Java. "
    "Its data stays in KINGUIN_LOCAL__DATA_DIR (.data), and it listens on 127.0.0.1 only.",
)


@app.command()
def start(as_json: Json = False) -> None:
    """Start the broker in the background, and return once clients can use it.

    The first time, Apache Kafka is fetched (45 MB); after that no network is needed. If it runs already, say so: exit 0.
    """
    from kinguin_streams.cli.output import talk
    from kinguin_streams.cluster import local_broker

    settings = _settings()
    broker = local_broker.find(settings.local)
    if broker is not None:
        talk("Kafka runs already")
    else:
        broker = start_broker(settings.local)
        talk("Kafka is up; `kinguin-streams kafka stop` ends it")
    _say_if_unused(settings)
    _report(broker, as_json)


@app.command()
def stop(as_json: Json = False) -> None:
    """Stop the broker, whoever started it. Topics and records stay. If none runs, say so: exit 0."""
    from kinguin_streams.cli.output import result_json, talk
    from kinguin_streams.cluster import local_broker

    settings = _settings()
    broker = local_broker.find(settings.local, answers_within_s=None)
    if broker is None:
        talk(f"no Kafka runs on {settings.local.data_dir}")
    elif broker.stop():
        talk(f"Kafka (pid {broker.pid}) has stopped")
    else:
        talk(f"Kafka (pid {broker.pid}) did not stop by itself and was killed; no acknowledged record is lost")
    if as_json:
        result_json({"running": False, "stopped_pid": broker.pid if broker else None})


@app.command()
def status(as_json: Json = False) -> None:
    """Say whether the broker runs and where it is. Exit 0 if it runs and answers, 1 if not."""
    from kinguin_streams.cli.output import result_json, talk
    from kinguin_streams.cluster import local_broker

    settings = _settings()
    broker = local_broker.find(settings.local)
    if broker is None:
        talk(f"no Kafka runs on {settings.local.data_dir}; `kinguin-streams kafka start` starts one")
        if as_json:
            result_json({"running": False})
        raise typer.Exit(1)
    _say_if_unused(settings)
    _report(broker, as_json)


def _settings() -> "Settings":
    from kinguin_streams.cli.settings import load
    from kinguin_streams.telemetry.logs import configure

    settings = load()
    configure("WARNING", settings.log.format)  # what the log would tell at INFO, these commands say themselves
    return settings


def start_broker(settings: "LocalSettings") -> "LocalBroker":
    """Start the local broker, showing what is fetched. Raises OperatorError as local_broker.start does."""
    from kinguin_streams.cli.output import progress, talk
    from kinguin_streams.cluster import local_broker

    talk("starting Apache Kafka")
    with progress("fetching Apache Kafka") as update:

        def report(fetched: "JarProgress") -> None:
            update(fetched.jars_done, fetched.jars_total, fetched.note)

        return local_broker.start(settings, report=report)


def _say_if_unused(settings: "Settings") -> None:
    from kinguin_streams.cli.output import talk

    if settings.kafka.bootstrap_servers:
        talk(
            f"note: the other commands use KINGUIN_KAFKA__BOOTSTRAP_SERVERS={settings.kafka.bootstrap_servers}, not it"
        )


def _report(broker: "LocalBroker", as_json: bool) -> None:
    from kinguin_streams.cli.output import result, result_json

    values = {
        "bootstrap_servers": broker.bootstrap_servers,
        "pid": broker.pid,
        "cluster_id": broker.cluster_id,
        "data_dir": str(broker.data_dir),
        "log_file": str(broker.log_file),
    }
    if as_json:
        result_json({"running": True, **values})
        return
    for name, value in values.items():
        result(f"{name:18} {value}")
