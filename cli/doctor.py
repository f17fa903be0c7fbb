"""`kinguin-streams doctor`: is everything as it should be, and if not, what to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import typer

from kinguin_streams.cli.options import Json

if TYPE_CHECKING:
    from kinguin_streams.cli.settings import Settings

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str


def doctor(as_json: Json = False) -> None:
    """Look at settings, ingress, registry, Kafka, topics and state, and say what is wrong and what to do. Exit 1 if anything fails.

    The ingress's books must balance: received = in flight + acked + spooled + dead-lettered + refused + pings. What does not run is
    a warning, since this machine may run only some of the parts.
    """
    from kinguin_streams.cli import output
    from kinguin_streams.cli.settings import load
    from kinguin_streams.telemetry.logs import configure

    settings = load()
    configure(settings.log.level, settings.log.format)  # to stderr: stdout is for what was found
    found = []
    for diagnosis in _look(settings):
        found.append(diagnosis)
        if not as_json:
            output.result(f"{diagnosis.state:4}  {diagnosis.name}: {diagnosis.detail}")
    if as_json:
        output.result_json({"ok": all(one.state != "fail" for one in found), "checks": found})
    if any(one.state == "fail" for one in found):
        raise typer.Exit(1)


def _look(settings: "Settings") -> Iterator[Diagnosis]:
    yield Diagnosis("settings", "ok", "usable; `config show` lists them")
    yield from _ingress(settings)
    yield from _registry(settings)
    yield from _kafka(settings)


def _registry(settings: "Settings") -> Iterator[Diagnosis]:
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.registry_steps import Registration, contradicted_ids
    from kinguin_streams.schemas.versions import LEVEL, shipped
    from kinguin_streams.telemetry.operator_error import OperatorError

    if settings.registry.url is None:
        return
    topics = wiring.topics(settings)
    try:
        registration = Registration(settings.registry, topics)
        plan = registration.plan()
        contradicted = contradicted_ids(settings.registry, topics)
    except OperatorError as error:
        # Known ids go on without it, so that a consumer's health check must not fail as long as it is away.
        state: State = "warn" if error.code == "registry_away" else "fail"
        yield Diagnosis("registry", state, str(error))
        return
    yield Diagnosis("registry", "ok", f"{registration.shown_url}, {len(plan.versions)} versions asked for")
    for reason in contradicted:
        yield Diagnosis("registry ids", "fail", reason)
    for step in plan.versions:
        if step.action == "register":
            newest = shipped().newest(step.schema.record).version
            written = step.schema.version == settings.schemas.write.get(step.schema.record, newest)
            detail = f"{step.schema.record} version {step.schema.version} is not registered; run `schemas register`"
            yield Diagnosis(f"subject {step.subject}", "fail" if written else "warn", detail)
    for level in plan.levels:
        if level.action == "set":
            detail = f"compatibility level {level.before or 'of the registry'}; `schemas register` sets {LEVEL}"
            yield Diagnosis(f"level of {level.subject}", "warn", detail)


def _kafka(settings: "Settings") -> Iterator[Diagnosis]:
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import admin_config
    from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
    from kinguin_streams.telemetry.operator_error import OperatorError

    topics = wiring.topics(settings)
    try:
        kafka = wiring.kafka(settings)
        cluster = TopicAdmin(admin_config(kafka)).describe(topics)
    except OperatorError as error:
        yield Diagnosis("kafka", "fail", str(error))
        return
    yield Diagnosis(
        "kafka", "ok", f"{kafka.bootstrap_servers}, {cluster.brokers} brokers, cluster {cluster.cluster_id}"
    )
    steps = plan(topics, cluster)
    for step in steps:
        state: State = "fail" if step.action == "create" else "warn"
        yield Diagnosis(f"topic {step.topic}", state, f"{step.action}: {step.detail}; `topics apply` mends what it can")
    if not steps:
        yield Diagnosis("topics", "ok", "as declared")
    yield from _state(settings)


def _state(settings: "Settings") -> Iterator[Diagnosis]:
    from kinguin_streams.cli import wiring
    from kinguin_streams.cluster.connection import consumer_config
    from kinguin_streams.cluster.topic_reader import TopicReader
    from kinguin_streams.consumers import reader
    from kinguin_streams.consumers.samples import SAMPLES

    topics = wiring.topics(settings)
    topic_reader = TopicReader(
        consumer_config(wiring.kafka(settings), group_id="kinguin-streams.doctor", client_id="kinguin-streams-doctor")
    )
    for projection in SAMPLES:
        bounds = topic_reader.bounds([topics.name(event) for event in projection.events])
        stored = reader.stored_offsets(settings.state.url, projection.name)
        # What retention has taken is not there to be read: a new state is not behind by it.
        behind = sum(max(0, end - max(stored.get(key, 0), first)) for key, (first, end) in bounds.items())
        state: State = "ok" if behind == 0 else "warn"
        yield Diagnosis(f"state of {projection.name}", state, f"{behind} records behind the topics")
    topic_reader.close()


def _ingress(settings: "Settings") -> Iterator[Diagnosis]:
    from kinguin_streams.cli.admin_port import balance, readiness, secrets_used, silence
    from kinguin_streams.schemas.instants import to_rfc3339

    host, port = settings.ingress.host, settings.ingress.admin_port
    books = balance(host, port)
    if books is None:
        yield Diagnosis("ingress", "warn", f"none answers on the admin port {host}:{port}")
        return
    ready, why = readiness(host, port)
    odd = "[!]" in why
    yield Diagnosis("ingress", "fail" if not ready else "warn" if odd else "ok", why.replace("\n", "; "))
    columns = (
        f"received {books.received} = in flight {books.in_flight} + acked {books.acked} + spooled {books.spooled} + "
        f"dead-lettered {books.dead_lettered} + refused {books.refused} + pings {books.pings}"
    )
    yield from _spool(settings)
    yield Diagnosis("ledger", "ok" if books.balances else "fail", columns)
    for use in secrets_used(host, port):
        used = None if use.last_used_s is None else to_rfc3339(int(use.last_used_s * 1000))
        detail = "never used since the ingress started" if used is None else f"last used {used}"
        yield Diagnosis(f"secret {use.secret} of {use.store}", "ok", detail)
    for store, events in silence(host, port).items():
        quiet = min(events.values()) > settings.ingress.silence_s
        detail = ", ".join(f"{event} {seconds:.0f} s" for event, seconds in events.items())
        detail = f"since the last event, or the ingress's start: {detail}"
        if quiet:
            detail += "; is the endpoint still enabled in the dashboard?"
        yield Diagnosis(f"silence of {store}", "warn" if quiet else "ok", detail)


def _spool(settings: "Settings") -> Iterator[Diagnosis]:
    from kinguin_streams.ingress.spool import survey
    from kinguin_streams.ingress.spool_file import is_owned

    if not settings.spool.enabled:
        yield Diagnosis(
            "spool", "warn", "off: while Kafka is away the sender gets 503, and disables the endpoint in the end"
        )
        return
    orphans = waiting = refused = 0
    readable, failed = survey(settings.spool.path)
    unreadable = [f"{path}: {error}" for path, error in failed.items()]
    for path, contents in readable.items():
        waiting += contents.records - contents.refused
        refused += contents.refused
        orphans += 0 if is_owned(path) else contents.records
    state: State = "fail" if refused or unreadable else "warn" if waiting else "ok"
    detail = f"{waiting} events wait for Kafka in {settings.spool.path}"
    if orphans:
        detail += f", {orphans} of them of no living process: an ingress takes them over, or `spool drain` does"
    if refused:
        detail += f"; {refused} that Kafka refuses: `spool export` shows them, `spool retry` has them tried again"
    if unreadable:
        detail += f"; {len(unreadable)} files cannot be read: {'; '.join(unreadable)}"
    yield Diagnosis("spool", state, detail)
