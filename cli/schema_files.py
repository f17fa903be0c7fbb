"""Schema versions from where a command line says: the shipped ones, or a folder of .avsc files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinguin_streams.telemetry.operator_error import OperatorError

if TYPE_CHECKING:
    from kinguin_streams.schemas.compatibility import CandidateVersion

SchemaFolder = Annotated[
    Path | None,
    typer.Option("--path", help="folder with <record>/<version>.avsc, instead of the shipped ones", show_default=False),
]


def candidates(folder: Path | None) -> "list[CandidateVersion]":
    """Return the versions in a folder; without one, the shipped ones. Raises OperatorError("no_schemas")."""
    from kinguin_streams.schemas.compatibility import CandidateVersion
    from kinguin_streams.schemas.versions import RECORD_NAMES, shipped

    if folder is not None:
        return _read(folder)
    return [
        CandidateVersion(record=record, version=schema.version, text=schema.text)
        for record in RECORD_NAMES
        for schema in shipped().versions(record)
    ]


def _read(folder: Path) -> "list[CandidateVersion]":
    from kinguin_streams.schemas.compatibility import CandidateVersion

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
