"""Options that several subcommands have."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
