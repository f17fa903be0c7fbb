"""`kinguin-streams schemas`: the contract, listed, checked, compared, registered and exported."""

import typer

from kinguin_streams.cli import schemas_check, schemas_diff, schemas_export, schemas_register
from kinguin_streams.cli.options import Json

app = typer.Typer(
    no_args_is_help=True,
    help="List the Avro schemas; check them against each other, the registry and the topics; register and export them.",
)
app.command("check")(schemas_check.check)
app.command("diff")(schemas_diff.diff)
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
