"""`kinguin-streams schemas`: the contract, listed and checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinguin_streams.cli import schemas_export, schemas_register
from kinguin_streams.cli.options import Json

if TYPE_CHECKING:
    from kinguin_streams.schemas.compatibility import CandidateVersion

app = typer.Typer(no_args_is_help=True, help="List the Avro schemas, and check every version against all earlier ones.")
app.command("register")(schemas_register.register)
app.command("export")(schemas_export.export)


@app.command("list")
def list_versions(as_json: Json = False) -> None:
    """List every schema version with its topic, its fingerprint on the wire, and whether it is the one that is written."""
    from kinguin_streams.cli import output, wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.schemas.versions import RECORD_NAMES, shipped

    settings = load()
    topics = wiring.topics(settings)
    rows = [
        {
            "record": record,
            "version": schema.version,
            "topic": topics.name(record),
            "fingerprint": schema.fingerprint.hex(),
            "written": schema.version == settings.schemas.write.get(record, shipped().newest(record).version),
        }
        for record in RECORD_NAMES
        for schema in shipped().versions(record)
    ]
    if as_json:
        output.result_json({"schemas": rows})
    else:
        output.result_table(("record", "version", "topic", "fingerprint", "written"), rows)


@app.command()
def check(
    path: Annotated[
        Path | None,
        typer.Option(
            help="folder with <record>/<version>.avsc to check instead of the shipped ones", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every version against every earlier one, offline: FULL_TRANSITIVE, and what changes meaning unseen.

    Exit 0 if all may be released, 1 with the field, the versions and the reason otherwise.
    """
    from kinguin_streams.cli import output
    from kinguin_streams.schemas.compatibility import check as check_versions

    candidates = _shipped() if path is None else _read(path)
    findings = check_versions(candidates)
    if as_json:
        output.result_json({"checked": len(candidates), "findings": findings})
    else:
        for finding in findings:
            against = "" if finding.against is None else f" against version {finding.against}"
            output.result(f"{finding.record} version {finding.version}{against}: {finding.kind}: {finding.message}")
        output.talk(f"{len(candidates)} versions checked, {len(findings)} findings")
    if findings:
        raise typer.Exit(1)


def _shipped() -> "list[CandidateVersion]":
    from kinguin_streams.schemas.compatibility import CandidateVersion
    from kinguin_streams.schemas.versions import RECORD_NAMES, shipped

    return [
        CandidateVersion(record=record, version=schema.version, text=schema.text)
        for record in RECORD_NAMES
        for schema in shipped().versions(record)
    ]


def _read(folder: Path) -> "list[CandidateVersion]":
    from kinguin_streams.schemas.compatibility import CandidateVersion
    from kinguin_streams.telemetry.operator_error import OperatorError

    hint = "Schemas are files <record>/<version>.avsc in UTF-8, versions counting from 1."
    files = sorted(folder.glob("*/*.avsc"))
    misnamed = [file for file in files if not file.stem.isdecimal()]
    if not files or misnamed:
        what = f"{misnamed[0]} is not named <version>.avsc." if misnamed else f"There is no schema in {folder}."
        raise OperatorError("no_schemas", what, hint)
    try:
        return [CandidateVersion(record=f.parent.name, version=int(f.stem), text=f.read_text("utf-8")) for f in files]
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError("no_schemas", f"A schema in {folder} cannot be read: {error}.", hint) from error
