"""`kinguin-streams schemas diff`: what changed between two versions, for whoever reads the data."""

from typing import TYPE_CHECKING, Annotated

import typer

from kinguin_streams.cli.options import Json
from kinguin_streams.cli.schema_files import SchemaFolder
from kinguin_streams.telemetry.operator_error import OperatorError

if TYPE_CHECKING:
    from kinguin_streams.schemas.schema_diff import SchemaDiff


def diff(
    record: Annotated[str, typer.Argument(help="e.g. product.update")],
    old: Annotated[int | None, typer.Argument(help="default: the one before NEW", show_default=False)] = None,
    new: Annotated[int | None, typer.Argument(help="default: the newest", show_default=False)] = None,
    path: SchemaFolder = None,
    as_json: Json = False,
) -> None:
    """Say what changed from one version of a record to another, and what a reader of either sees of the other's records."""
    from kinguin_streams.cli import output
    from kinguin_streams.cli.schema_files import candidates
    from kinguin_streams.schemas.compatibility import why_unreadable
    from kinguin_streams.schemas.schema_diff import diff as diff_texts

    everything = candidates(path)
    texts = {candidate.version: candidate.text for candidate in everything if candidate.record == record}
    if not texts:
        raise OperatorError(
            "unknown_record",
            f"There is no record {record}.",
            f"There are {', '.join(sorted({candidate.record for candidate in everything}))}.",
        )
    newer = max(texts) if new is None else new
    older = max((version for version in texts if version < newer), default=newer) if old is None else old
    for version in (older, newer):
        if version not in texts:
            raise OperatorError(
                "unknown_version",
                f"{record} has no version {version}.",
                f"It has {', '.join(map(str, sorted(texts)))}.",
            )
        if (why := why_unreadable(texts[version])) is not None:
            raise OperatorError(
                "unreadable_schema", f"{record} version {version} is {why}.", "`schemas check` says more of the others."
            )
    if older == newer:
        raise OperatorError(
            "one_version",
            f"There is nothing to compare version {newer} of {record} with.",
            "Name two different versions, as in `schemas diff product.update 1 3`.",
        )
    found = diff_texts(texts[older], texts[newer])
    if as_json:
        output.result_json(
            {
                "record": record,
                "old": older,
                "new": newer,
                "changes": found.changes,
                "old_reader": found.old_reader,
                "new_reader": found.new_reader,
            }
        )
    else:
        _print(record, older, newer, found)


def _print(record: str, old: int, new: int, found: "SchemaDiff") -> None:
    from kinguin_streams.cli import output

    output.result(f"{record} version {old} -> {new}")
    for change in found.changes:
        where = change.field or "the record"
        if change.before is None or change.after is None:
            sign = "-" if change.after is None else "+"
            what = "" if change.change in ("added", "removed") else f" {change.change}"
            output.result(f"  {sign} {where}{what}: {change.before if change.after is None else change.after}")
        else:
            output.result(f"  ~ {where} {change.change}: {change.before} -> {change.after}")
    for reader, writer, sees in ((old, new, found.old_reader), (new, old, found.new_reader)):
        output.result(f"a reader of version {reader}, of records of version {writer}:")
        for line in sees or ("all of it",):
            output.result(f"  {line}")
