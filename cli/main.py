"""The command `kinguin-streams`: names the subcommands, and turns errors into sentences and exit codes."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kinguin_streams.cli import (
    config,
    consume,
    consumers,
    dead_letters,
    doctor,
    ingress,
    kafka,
    replay,
    schemas,
    simulate,
    spool,
    state,
    topics,
    up,
)
from kinguin_streams.cli.lifeline import tie_to_parent
from kinguin_streams.cli.mistakes import EXIT_FAILED, told

app = typer.Typer(
    name="kinguin-streams",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Kinguin's webhooks as Kafka streams: take them, keep them, turn them into state.\n\n"
        "Start with `kinguin-streams up --simulate 50 --for 30s`: it needs nothing but this package. "
        "Settings come from the command line, KINGUIN_* variables and kinguin-streams.toml, in this order; "
        "`kinguin-streams config show` lists them. Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted."
    ),
)
app.command("up")(up.up)
app.command("ingress")(ingress.ingress)
app.add_typer(spool.app, name="spool")
app.command("consume", no_args_is_help=True)(consume.consume)
app.add_typer(consumers.app, name="consumers")
app.command("simulate")(simulate.simulate)
app.add_typer(state.app, name="state")
app.add_typer(replay.app, name="replay")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(kafka.app, name="kafka")
app.add_typer(topics.app, name="topics")
app.add_typer(schemas.app, name="schemas")
app.add_typer(config.app, name="config")
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from kinguin_streams.cli.output import result

        result(version("kinguin-streams"))
        raise typer.Exit


@app.callback()
def root(
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="TOML file to read instead of ./kinguin-streams.toml", show_default=False),
    ] = None,
    _version_wanted: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Remember the configuration file, for this process and those it starts."""
    if config_file is not None:
        from kinguin_streams.cli.settings import CONFIG_FILE_VARIABLE

        os.environ[CONFIG_FILE_VARIABLE] = str(config_file.absolute())


def main() -> None:
    """Run the command line and exit with its code."""
    tie_to_parent()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Return the exit code of a command line. Mistakes of the user's end in one or two lines on stderr."""
    try:
        with told():
            app(arguments)  # prints usage errors itself, and ends in SystemExit: 2 for those, 130 when interrupted
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else EXIT_FAILED
    except BrokenPipeError:
        # Whoever read our output has gone (`… | head`); Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return 0
