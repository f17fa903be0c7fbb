"""`kinguin-streams schemas register`: the step of a deployment that tells the registry of our schemas."""

from typing import Annotated

import typer

from kinguin_streams.cli.options import Json


def register(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would change, and change nothing")] = False,
    as_json: Json = False,
) -> None:
    """Register every shipped version under its topic's subject, oldest first, and set FULL_TRANSITIVE there.

    Run it before the processes that write a new version start. Running it again changes nothing. Exit 1 if the registry
    refuses, or holds a version under our subjects that this release does not know.
    """
    from kinguin_streams.cli import output, wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.cluster.registry_steps import Registration
    from kinguin_streams.schemas.versions import LEVEL

    settings = load()
    registration = Registration(settings.registry, wiring.topics(settings))
    plan = registration.plan()
    levels = []
    for level in plan.levels:
        why_not = None
        action = level.action
        if level.action == "set" and not dry_run:
            why_not = registration.set_level(level)
        levels.append(
            {
                "subject": level.subject,
                "level": LEVEL if why_not is None else level.before,
                "before": level.before,
                "action": _said(action, dry_run) if why_not is None else "refused",
                "detail": why_not,
            }
        )
    versions = [
        {
            "subject": step.subject,
            "record": step.schema.record,
            "version": step.schema.version,
            "id": registration.register(step) if step.action == "register" and not dry_run else step.schema_id,
            "action": _said(step.action, dry_run),
        }
        for step in plan.versions
    ]
    if as_json:
        output.result_json({"registry": registration.shown_url, "versions": versions, "levels": levels})
        return
    output.result_table(("subject", "record", "version", "id", "action"), versions)
    if not levels:
        output.talk(f"note: this registry has no compatibility levels; `schemas check` holds {LEVEL} without it")
    for row in levels:
        if row["action"] == "refused":
            output.talk(f"note: {row['subject']} stays at level {row['before'] or 'of the registry'}: {row['detail']}")
        elif row["action"] != "present":
            output.talk(
                f"{row['subject']}: compatibility level {row['before'] or 'of the registry'} -> {LEVEL} ({row['action']})"
            )


def _said(action: str, dry_run: bool) -> str:
    if action == "present":
        return action
    return f"would {action}" if dry_run else {"set": "set", "register": "registered"}[action]
