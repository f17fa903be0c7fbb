"""`kinguin-streams topics`: the declared topics against the cluster's."""

from typing import TYPE_CHECKING

import typer

from kinguin_streams.cli.options import Json

if TYPE_CHECKING:
    from kinguin_streams.cluster.topic_admin import Step, TopicAdmin
    from kinguin_streams.schemas.topics import Topics

app = typer.Typer(no_args_is_help=True, help="Compare the declared topics with the cluster's, and make them agree.")


@app.command()
def plan(as_json: Json = False) -> None:
    """Say what `apply` would do; change nothing. Exit 0 if the cluster agrees, 1 if something is to be done."""
    admin, topics = _admin()
    steps = _plan(admin, topics)
    _report(steps, as_json, done=False)
    if any(step.action != "warn" for step in steps):
        raise typer.Exit(1)


@app.command()
def apply(as_json: Json = False) -> None:
    """Create what is missing and set what differs. Never deletes a topic, never removes a partition."""
    admin, topics = _admin()
    steps = _plan(admin, topics)
    admin.apply(steps)
    _report(steps, as_json, done=True)


def _admin() -> "tuple[TopicAdmin, Topics]":
    from kinguin_streams.cli import wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.cluster.connection import admin_config
    from kinguin_streams.cluster.topic_admin import TopicAdmin

    settings = load()
    return TopicAdmin(admin_config(wiring.kafka(settings))), wiring.topics(settings)


def _plan(admin: "TopicAdmin", topics: "Topics") -> "tuple[Step, ...]":
    from kinguin_streams.cluster.topic_admin import plan as plan_steps

    return plan_steps(topics, admin.describe(topics))


def _report(steps: "tuple[Step, ...]", as_json: bool, *, done: bool) -> None:
    from kinguin_streams.cli import output

    if as_json:
        rows = [{"topic": step.topic, "action": step.action, "detail": step.detail} for step in steps]
        output.result_json({"applied": done, "steps": rows})
        return
    for step in steps:
        output.result(f"{step.action:15} {step.topic}: {step.detail}")
    changes = sum(step.action != "warn" for step in steps)
    if changes == 0:
        output.talk("the topics are as declared")
    else:
        output.talk(
            f"{changes} changes made"
            if done
            else f"{changes} changes to make; `kinguin-streams topics apply` makes them"
        )
