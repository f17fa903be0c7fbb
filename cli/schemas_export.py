"""`kinguin-streams schemas export`: the contract as files, for whoever does not use this package."""

import json
from collections.abc import Mapping
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from kinguin_streams.cli.options import Json
from kinguin_streams.telemetry.operator_error import OperatorError

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.schemas.asyncapi import Cluster

DISTRIBUTION = "kinguin-streams"
INDEX_FILE = "index.json"
STDOUT = Path("-")


class Format(StrEnum):
    """What can be exported."""

    AVSC = "avsc"
    ASYNCAPI = "asyncapi"
    OPENAPI = "openapi"


def export(
    wanted: Annotated[
        Format,
        typer.Option(
            "--format",
            help="avsc: every Avro schema as shipped, and an index; asyncapi: the topics, as AsyncAPI 3.0; "
            "openapi: the ingress, as OpenAPI 3.1",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="for avsc a folder, which is made; for the documents a file, a folder that exists, or - for stdout"
        ),
    ] = STDOUT,
    as_json: Json = False,
) -> None:
    """Write the contract as files. Documents are JSON, and show the topics, ports and addresses that are configured.

    Existing files of the same names are written over, others are left alone.
    """
    from kinguin_streams.cli import output as cli_output
    from kinguin_streams.cli.settings import load

    settings = load()
    if wanted is Format.AVSC:
        if output == STDOUT:
            raise typer.BadParameter("--format avsc writes many files: give --output a folder")
        written = _write(output, _avsc_files(settings))
    else:
        text = _document_text(_openapi(settings) if wanted is Format.OPENAPI else _asyncapi(settings))
        if output == STDOUT:
            cli_output.result(text.rstrip("\n"))
            return
        folder, name = (output, f"{wanted}.json") if output.is_dir() else (output.parent, output.name)
        written = _write(folder, {name: text.encode()})
    if as_json:
        cli_output.result_json({"format": wanted, "files": [str(path) for path in written]})
    else:
        cli_output.talk(f"{len(written)} files written to {output}" if len(written) > 1 else f"{written[0]} written")


def _write(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files, by their path inside the folder."""
    written = [folder / name for name in contents]
    try:
        for path, content in zip(written, contents.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise OperatorError(
            "cannot_write",
            f"Cannot write {error.filename}: {error.strerror}.",
            "Give --output a path that can be written.",
        ) from error
    return written


def _document_text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _avsc_files(settings: "Settings") -> dict[str, bytes]:
    """Return <record>/<version>.avsc, byte for byte as shipped, and an index of what is in each and where it goes."""
    from kinguin_streams.cli import wiring
    from kinguin_streams.schemas.versions import RECORD_NAMES, shipped

    topics = wiring.topics(settings)
    contents: dict[str, bytes] = {}
    schemas = []
    for record in RECORD_NAMES:
        written = settings.schemas.write.get(record, shipped().newest(record).version)
        for schema in shipped().versions(record):
            file = f"{record}/{schema.version}.avsc"
            contents[file] = schema.text.encode()
            schemas.append(
                {
                    "file": file,
                    "record": record,
                    "version": schema.version,
                    "topic": topics.name(record),
                    "fingerprint": schema.fingerprint.hex(),
                    "written": schema.version == written,
                }
            )
    declared = [
        {
            "topic": spec.name,
            "record": spec.record,
            "key": spec.key,
            "partitions": spec.partitions,
            "config": spec.config,
        }
        for spec in topics.specs
    ]
    return contents | {INDEX_FILE: _document_text({"schemas": schemas, "topics": declared}).encode()}


def _openapi(settings: "Settings") -> dict[str, Any]:
    from kinguin_streams.ingress.openapi import document

    ingress = settings.ingress
    return document(version=version(DISTRIBUTION), port=ingress.port, admin_port=ingress.admin_port)


def _asyncapi(settings: "Settings") -> dict[str, Any]:
    from kinguin_streams.cli import wiring
    from kinguin_streams.consumers.samples import SAMPLES
    from kinguin_streams.schemas.asyncapi import Reader, document

    readers = [
        Reader(
            name=sample.name,
            group_id=settings.consumer.group_id(sample.name),
            records=sample.events,
            derived=sample.derived,
        )
        for sample in SAMPLES
    ]
    return document(
        version=version(DISTRIBUTION),
        topics=wiring.topics(settings),
        readers=readers,
        cluster=_cluster(settings),
        written=settings.schemas.write,
    )


def _cluster(settings: "Settings") -> "Cluster":
    from kinguin_streams.schemas.asyncapi import Cluster

    servers = (settings.kafka.bootstrap_servers or "").split(",")
    protocol = str(settings.kafka.config.get("security.protocol", ""))
    url = settings.registry.url
    return Cluster(
        bootstrap_servers=tuple(server.strip() for server in servers if server.strip()),
        encrypted=protocol.upper().endswith("SSL"),
        registry_url=None if url is None else _without_secrets(url),
    )


def _without_secrets(url: str) -> str:
    """Return the address alone: a document goes to many, and a registry's URL may hold a password or a token."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
