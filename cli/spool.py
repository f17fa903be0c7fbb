"""`kinguin-streams spool`: what waits on disk for Kafka: seen, drained by hand, taken elsewhere."""

import base64
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinguin_streams.cli.options import Json

if TYPE_CHECKING:
    from kinguin_streams.cluster.publisher import KafkaPublisher
    from kinguin_streams.ingress.spool_file import Contents
    from kinguin_streams.telemetry.operator_error import OperatorError

app = typer.Typer(no_args_is_help=True, help="See and empty the events that wait on disk for Kafka.")

Folder = Annotated[
    Path | None, typer.Option("--path", help="spool folder", show_default="KINGUIN_SPOOL__PATH", file_okay=False)
]


@app.command()
def status(path: Folder = None, as_json: Json = False) -> None:
    """Show each spool file: how many events, how large, how old, and whether a living process owns it. Changes nothing."""
    from kinguin_streams.cli import output
    from kinguin_streams.ingress.spool_file import is_owned
    from kinguin_streams.schemas.instants import to_rfc3339

    rows = []
    for file, contents in _files(path)[0].items():
        rows.append(
            {
                "file": str(file),
                "owned": is_owned(file),
                "events": contents.records - contents.refused,
                "refused": contents.refused,
                "bytes": contents.bytes,
                "oldest": None if contents.oldest_ms is None else to_rfc3339(contents.oldest_ms),
            }
        )
    if as_json:
        output.result_json({"events": sum(int(str(row["events"])) for row in rows), "files": rows})
    else:
        output.result_table(("file", "owned", "events", "refused", "bytes", "oldest"), rows)


@app.command()
def drain(
    path: Folder = None,
    timeout_s: Annotated[float, typer.Option(help="give up after so many seconds", min=0)] = 300.0,
    as_json: Json = False,
) -> None:
    """Bring what no living process owns into Kafka: for the volume of an ingress that does not come back.

    Exit 0 once nothing is left of them: each is in its topic or, where that refuses it for good, a dead letter, and every
    file could be read. 1 otherwise. Files that a living ingress owns are left to it.
    """
    from kinguin_streams.cli import output, wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.ingress.breaker import Breaker
    from kinguin_streams.ingress.drain import Drain
    from kinguin_streams.ingress.refusals import Refusals
    from kinguin_streams.ingress.spool import Spool
    from kinguin_streams.telemetry.logs import configure

    settings = load(spool={"path": path})
    configure(settings.log.level, settings.log.format)
    readable, unreadable = _files(path)
    if not readable:
        _end_drained(0, dead_lettered=0, left=0, refused=0, unreadable=unreadable, as_json=as_json)
        return
    topics = wiring.topics(settings)
    refusals = Refusals(topics=topics, decoder=wiring.decoder(settings), encoder=wiring.dead_letter_encoder(settings))
    publisher = wiring.publisher(settings, client_id="kinguin-streams-spool-drain")
    spool = Spool(settings.spool)
    at_first = spool.unsettled
    breaker = Breaker()
    drainer = Drain(spool, publisher, breaker, settings.ingress.queue_records, refusals)
    any_topic = topics.name("order.status")
    drainer.start()
    deadline_s = time.monotonic() + timeout_s
    with output.progress("draining") as update:
        while spool.unsettled and time.monotonic() < deadline_s:
            update(at_first - spool.unsettled, at_first, "")
            time.sleep(0.1)
            if breaker.state == "open" and _answers(publisher, any_topic):
                breaker.answered()
    drainer.stop(0)
    publisher.close(timeout_s=5)
    contents, unreadable = spool.contents, unreadable | spool.unreadable
    spool.close()
    left = contents.records - contents.refused
    _end_drained(
        drainer.drained,
        dead_lettered=drainer.dead_lettered.total(),
        left=left,
        refused=contents.refused,
        unreadable=unreadable,
        as_json=as_json,
    )


def _answers(publisher: "KafkaPublisher", topic: str) -> bool:
    """Return whether Kafka answers a question about a topic, be it that there is none."""
    from kinguin_streams.cluster.publisher import PublishFailed, TopicMissing

    try:
        publisher.partitions(topic, 1.0)
    except TopicMissing:
        return True
    except PublishFailed:
        return False
    return True


def _end_drained(
    drained: int, *, dead_lettered: int, left: int, refused: int, unreadable: frozenset[Path], as_json: bool
) -> None:
    """Say it, and exit with 1 unless all is in Kafka."""
    from kinguin_streams.cli import output

    if as_json:
        counts = {"drained": drained, "dead_lettered": dead_lettered, "left": left, "refused": refused}
        output.result_json({**counts, "unreadable": len(unreadable)})
    else:
        output.result(
            f"{drained} events drained, {dead_lettered} made dead letters, {left} left, {refused} refused by Kafka, "
            f"{len(unreadable)} files unreadable"
        )
    if left or refused or unreadable:
        raise typer.Exit(1)


@app.command()
def retry(path: Folder = None, as_json: Json = False) -> None:
    """Let events that Kafka has refused wait for it again, once the cause is mended: a topic's max.message.bytes, say.

    A living ingress is asked to do so with its own files, and does within ten seconds, then sends them. What nobody owns
    is sent by the next ingress that starts here, or by `spool drain`. What Kafka refuses again becomes a dead letter, or is
    kept as before if it refuses that too.
    """
    from kinguin_streams.cli import output
    from kinguin_streams.ingress.spool_file import FileTaken, SpoolFailed, SpoolFile, asked_retry_of

    retried = asked = 0
    for file, contents in _files(path)[0].items():
        refused = contents.refused
        if not refused:
            continue
        try:
            with SpoolFile(file) as mine:
                retried += mine.retry()
        except FileTaken:
            try:
                asked_retry_of(file).touch(mode=0o600)
            except OSError as error:
                raise _not_retried(file, error) from error
            asked += refused
        except (OSError, sqlite3.Error, SpoolFailed) as error:
            raise _not_retried(file, error) from error
    if as_json:
        output.result_json({"retried": retried, "asked": asked})
    elif retried or asked:
        output.result(f"{retried} events wait for Kafka again, and a living ingress was asked to retry {asked}")
    else:
        output.result("Kafka has refused nothing that is here")


def _not_retried(file: Path, error: Exception) -> "OperatorError":
    from kinguin_streams.telemetry.operator_error import OperatorError

    return OperatorError(
        "spool_not_writable",
        f"{file} cannot be changed: {error}.",
        "Run this as the user of the ingress, on a disk with room. What was refused is kept as it was.",
    )


@app.command()
def export(path: Folder = None) -> None:
    """Write every event as one JSON object a line, whoever owns its file, those that Kafka refused included.

    topic, key, value and headers (base64), timestampMs, spooledAtMs, refused, file. Changes nothing.
    """
    from kinguin_streams.cli import output
    from kinguin_streams.ingress.spool_file import read_only

    for file in _files(path)[0]:
        for spooled in read_only(file):
            output.result_json(
                {
                    "file": str(file),
                    "topic": spooled.record.topic,
                    "key": base64.b64encode(spooled.record.key).decode(),
                    "value": base64.b64encode(spooled.record.value).decode(),
                    "headers": [[name, base64.b64encode(value).decode()] for name, value in spooled.record.headers],
                    "timestampMs": spooled.record.timestamp_ms,
                    "spooledAtMs": spooled.spooled_at_ms,
                    "refused": spooled.refused,
                }
            )


def _files(path: Path | None) -> tuple[dict[Path, "Contents"], frozenset[Path]]:
    """Return what is in the files of the folder, and those that cannot be read; says what is wrong with them."""
    from kinguin_streams.cli import output
    from kinguin_streams.cli.settings import load
    from kinguin_streams.ingress.spool import survey
    from kinguin_streams.telemetry.operator_error import OperatorError

    folder = path or load().spool.path
    if not folder.is_dir():
        raise OperatorError(
            "no_spool",
            f"There is no folder {folder}.",
            "Give the folder with the *.spool files: --path, or KINGUIN_SPOOL__PATH.",
        )
    readable, unreadable = survey(folder)
    for file, error in unreadable.items():
        output.talk(f"{file} cannot be read: {error}")
    return readable, frozenset(unreadable)
