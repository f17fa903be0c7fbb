"""`kinguin-streams replay`: planned, carried out, resumed and proven; each subcommand in a file of its own."""

import typer

from kinguin_streams.cli import (
    replay_consumer,
    replay_file,
    replay_group,
    replay_import,
    replay_rebuild,
    replay_resume,
    replay_show,
    replay_topic,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Replay records: every command shows a plan, --execute carries it out, and a receipt says what came of it. "
    "Ctrl-C, a crash or kill -9 lose nothing: `replay resume` goes on.",
)
app.command("topic", no_args_is_help=True)(replay_topic.topic)
app.command("consumer", no_args_is_help=True)(replay_consumer.consumer)
app.command("group", no_args_is_help=True)(replay_group.group)
app.command("undo", no_args_is_help=True)(replay_group.undo)
app.command("import", no_args_is_help=True)(replay_import.import_)
app.command("rebuild", no_args_is_help=True)(replay_rebuild.rebuild)
app.command("file", no_args_is_help=True)(replay_file.file)
app.command("show", no_args_is_help=True)(replay_show.show)
app.command("resume", no_args_is_help=True)(replay_resume.resume)
