"""`kinguin-streams schemas check`: schema versions against each other, against the registry, against what is in the topics."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinguin_streams.cli.durations import duration_s
from kinguin_streams.cli.options import Json
from kinguin_streams.cli.schema_files import SchemaFolder

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings
    from kinguin_streams.cluster.schema_usage import Survey
    from kinguin_streams.schemas.compatibility import CandidateVersion, Finding
    from kinguin_streams.schemas.in_use import InUse, VersionInUse
    from kinguin_streams.schemas.registered import RegistryReport

DAY_S = 86_400.0


def check(
    path: SchemaFolder = None,
    against_registry: Annotated[
        bool, typer.Option("--against-registry", help="also against every version registered for our topics")
    ] = False,
    against_topics: Annotated[
        bool, typer.Option("--against-topics", help="also against the schemas that records in the topics really have")
    ] = False,
    since: Annotated[
        float | None,
        typer.Option(
            parser=duration_s,
            metavar="DURATION",
            help="of the topics, only the last e.g. 30d or 12h; default: all, as a consumer that starts anew reads all",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every version against every earlier one: FULL_TRANSITIVE, and what changes meaning unseen.

    Offline, unless told otherwise. Exit 0 if all may be released, 1 with the field, the reader and the reason otherwise.
    A warning alone does not fail: a type that this package cannot encode yet is one.
    """
    from kinguin_streams.cli import output
    from kinguin_streams.cli.schema_files import candidates as read_candidates
    from kinguin_streams.cli.settings import load
    from kinguin_streams.schemas.codec_gaps import codec_gaps
    from kinguin_streams.schemas.compatibility import check as check_versions
    from kinguin_streams.schemas.compatibility import check_released
    from kinguin_streams.schemas.versions import shipped

    if since is not None and not against_topics:
        raise typer.BadParameter("it is about the topics: give --against-topics too", param_hint="--since")
    candidates = read_candidates(path)
    findings = [*check_versions(candidates), *check_released(candidates, shipped()), *codec_gaps(candidates)]
    answer: dict[str, Any] = {"checked": len(candidates), "findings": findings}
    report: RegistryReport | None = None
    usage: InUse | None = None
    if against_registry or against_topics:
        from kinguin_streams.schemas.in_use import shown_time

        settings = load()
        _say_what_has_no_topic(candidates, settings)
        if against_registry:
            report = _against_registry(candidates, settings)
            findings += report.findings
            answer["registry"] = {"versions": report.versions}
        if against_topics:
            # Kafka takes a time below zero for a special request, and answers most with "API version not supported".
            since_ms = None if since is None else max(0, round((time.time() - since) * 1000))
            found = _survey(settings, since_ms)
            usage = _in_use(candidates, settings, found)
            findings += usage.findings
            answer["topics"] = {
                "since": None if since_ms is None else shown_time(since_ms),
                "missing": found.missing,
                "records": sum(each.records for each in found.seen),
                "versions": [_row(version) for version in usage.versions],
            }
    if as_json:
        output.result_json(answer)
    else:
        if report is not None:
            _print_registry(report)
        if usage is not None:
            _print_usage(usage, since)
        for finding in findings:
            output.result(_line(finding))
        output.talk(f"{len(candidates)} versions checked, {len(findings)} findings")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def _say_what_has_no_topic(candidates: "Sequence[CandidateVersion]", settings: "Settings") -> None:
    from kinguin_streams.cli import output, wiring

    records = {spec.record for spec in wiring.topics(settings).specs}
    for record in sorted({candidate.record for candidate in candidates} - records):
        output.talk(f"note: no topic holds {record}, so there is nothing to check it against but its own versions")


def _against_registry(candidates: "Sequence[CandidateVersion]", settings: "Settings") -> "RegistryReport":
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.registry_survey import RegistrySurvey
    from kinguin_streams.schemas.registered import compare

    registry = RegistrySurvey(settings.registry, wiring.topics(settings))
    return compare(candidates, registry.registered(), registry.levels())


def _survey(settings: "Settings", since_ms: int | None) -> "Survey":
    from kinguin_streams.cli import output, wiring
    from kinguin_streams.cluster.connection import consumer_config
    from kinguin_streams.cluster.schema_usage import survey
    from kinguin_streams.cluster.topic_reader import TopicReader
    from kinguin_streams.telemetry.operator_error import OperatorError

    topics = [spec.name for spec in wiring.topics(settings).specs]
    name = "kinguin-streams-schemas"
    reader = TopicReader(consumer_config(wiring.kafka(settings), group_id=name, client_id=name))
    try:
        with output.progress("reading headers") as update:
            found = survey(reader, topics, since_ms, lambda done, total: update(done, total, "records"))
    finally:
        reader.close()
    if len(found.missing) == len(topics):
        raise OperatorError(
            "no_topics",
            f"None of our topics is on this cluster: {', '.join(topics)}.",
            "Check KINGUIN_TOPICS__PREFIX and KINGUIN_KAFKA__BOOTSTRAP_SERVERS, or make them with `topics apply`.",
        )
    for topic in found.missing:
        output.talk(f"note: there is no topic {topic}")
    return found


def _in_use(candidates: "Sequence[CandidateVersion]", settings: "Settings", found: "Survey") -> "InUse":
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.registry_survey import RegistrySurvey
    from kinguin_streams.schemas.in_use import schema_id_of, versions_in_use
    from kinguin_streams.schemas.versions import shipped

    topics = wiring.topics(settings)
    ids = {schema_id for each in found.seen if (schema_id := schema_id_of(each.header)) is not None}
    texts = None
    if ids and settings.registry.url is not None:
        texts = RegistrySurvey(settings.registry, topics).texts(sorted(ids))
    return versions_in_use(found.seen, topics, shipped(), candidates, texts)


def _row(version: "VersionInUse") -> dict[str, Any]:
    from kinguin_streams.schemas.in_use import shown_time

    return {
        "topic": version.topic,
        "record": version.record,
        "version": version.version,
        "records": version.records,
        "single_object": version.single_object,
        "first": None if version.first_at_ms is None else shown_time(version.first_at_ms),
        "last": None if version.last_at_ms is None else shown_time(version.last_at_ms),
    }


def _print_registry(report: "RegistryReport") -> None:
    from kinguin_streams.cli import output

    for version in report.versions:
        ids = ", ".join(map(str, version.schema_ids))
        output.result(
            f"{version.record} version {version.version}: {f'registered, id {ids}' if ids else 'not registered yet'}"
        )


def _print_usage(usage: "InUse", since_s: float | None) -> None:
    from kinguin_streams.cli import output

    rows = [_row(version) for version in usage.versions if version.records]
    if rows:
        output.result_table(("topic", "version", "records", "first", "last"), rows)
    window = "" if since_s is None else f" in the last {_duration(since_s)}"
    for version in usage.versions:
        if not version.records:
            output.result(f"{version.topic}: nothing{window} uses version {version.version}")


def _duration(seconds: float) -> str:
    for unit, length_s in (("days", DAY_S), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length_s and seconds % length_s == 0:
            return f"{seconds / length_s:g} {unit}"
    return f"{seconds:g} seconds"


def _line(finding: "Finding") -> str:
    version = "" if finding.version is None else f" version {finding.version}"
    whose = {"registry": "registered ", "released": "released "}.get(finding.source, "")
    against = "" if finding.against is None else f" against {whose}version {finding.against}"
    warning = "warning: " if finding.severity == "warning" else ""
    return f"{warning}{finding.record}{version}{against}: {finding.kind}: {finding.message}"
