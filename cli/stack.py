"""What `up` does, in order: own the folder, broker, topics, ingress, consumers, sender, live view, verdict, stop."""

import fcntl
import json
import math
import os
import random
import secrets as random_secrets
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

from kinguin_streams.cli import wiring
from kinguin_streams.cli.admin_port import balance, readiness, waiting_in_spool
from kinguin_streams.cli.children import Children
from kinguin_streams.cli.kafka import start_broker
from kinguin_streams.cli.live_view import LiveView, Numbers
from kinguin_streams.cli.output import talk
from kinguin_streams.cli.settings import Settings
from kinguin_streams.cli.verdict import judge, print_verdict
from kinguin_streams.cluster import local_broker
from kinguin_streams.cluster.connection import admin_config, consumer_config
from kinguin_streams.cluster.topic_admin import TopicAdmin, plan
from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.consumers import reader
from kinguin_streams.consumers.samples import SAMPLES
from kinguin_streams.ingress.listening import listen
from kinguin_streams.schemas.events import EVENT_NAMES
from kinguin_streams.simulator.ledger import FileLedger
from kinguin_streams.simulator.plan import DEFAULT_SPACING_S, plan_deliveries
from kinguin_streams.simulator.sender import Sender, SenderSettings, SendReport
from kinguin_streams.telemetry.logs import configure
from kinguin_streams.telemetry.operator_error import OperatorError

STORE = "default"
READY_TIMEOUT_S = 60.0
CATCH_UP_TIMEOUT_S = 60.0
VIEW_EVERY_S = 0.5
EXIT_INTERRUPTED = 130
# The first example of the sender's own document of 2021-03.
EXAMPLE = '{"kinguinId": 1949, "productId": "5c9b5f6b2539a4e8f172916a", "updatedAt": "2020-10-16T11:24:08+00:00"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What the sender is to do."""

    rate_per_s: float
    for_s: float | None
    seed: int | None
    duplicates: float
    disorder: float


class _Interrupt:
    """Ctrl-C and SIGTERM, noticed once and acted on where it is safe; a second one exits at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._notice)

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number


def run(settings: Settings, simulation: Simulation | None, *, as_json: bool) -> int:
    """Run the whole stack and return the exit code."""
    configure("WARNING", settings.log.format)
    data_dir = settings.local.data_dir.absolute()
    with ExitStack() as stack:
        stack.enter_context(_own(data_dir))
        # Now, not when the ingress finds out: by then Kafka would have been fetched and started.
        listen(settings.ingress.host, settings.ingress.port, "KINGUIN_INGRESS__PORT or --port").close()
        listen(
            settings.ingress.host, settings.ingress.admin_port, "KINGUIN_INGRESS__ADMIN_PORT or --admin-port"
        ).close()
        bootstrap_servers = stack.enter_context(_kafka(settings))
        settings = settings.model_copy(
            update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})}
        )
        _apply_topics(settings)
        interrupt = _Interrupt()
        secret, secrets_json = _secrets(settings, data_dir)
        children = stack.enter_context(
            Children(
                data_dir / "logs",
                {
                    "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
                    "KINGUIN_INGRESS__SECRETS": secrets_json,
                    "KINGUIN_INGRESS__PORT": str(settings.ingress.port),
                    "KINGUIN_INGRESS__ADMIN_PORT": str(settings.ingress.admin_port),
                    "KINGUIN_STATE__URL": settings.state.url,
                    "KINGUIN_CONSUMER__ADMIN_PORT": "0",  # both consumers have this environment, and there is one port
                    "KINGUIN_LOG__FORMAT": "json",
                },
            )
        )
        _start_children(settings, children, interrupt)
        talk(
            f"ready: webhooks at http://{settings.ingress.host}:{settings.ingress.port}/webhooks, logs in {data_dir / 'logs'}"
        )
        if simulation is None:
            return _stay_up(settings, children, interrupt, secret)
        return _simulate(settings, simulation, children, interrupt, secret, as_json=as_json)


def _stay_up(settings: Settings, children: Children, interrupt: _Interrupt, secret: str) -> int:
    talk("send the first example of the sender's documentation with:")
    talk(
        f"  curl -i http://{settings.ingress.host}:{settings.ingress.port}/webhooks -H 'X-Event-Name: product.update'"
        f" -H 'X-Event-Secret: {secret}' -H 'Content-Type: aplication/json' -d '{EXAMPLE}'"
    )
    talk("Ctrl-C stops everything; the data stay.")
    with LiveView() as view:
        while interrupt.number is None:
            children.check()
            looked_s = time.monotonic()
            view.show(_numbers(settings, None))
            # A look at a large state takes its time: it must not keep the machine from its work.
            time.sleep(max(VIEW_EVERY_S, 10 * (time.monotonic() - looked_s)))
    talk("stopping")
    return EXIT_INTERRUPTED if interrupt.number == signal.SIGINT else 0


def _simulate(
    settings: Settings, simulation: Simulation, children: Children, interrupt: _Interrupt, secret: str, *, as_json: bool
) -> int:
    data_dir = settings.local.data_dir.absolute()
    seed = random.SystemRandom().randrange(1, 1_000_000) if simulation.seed is None else simulation.seed
    now = datetime.now(UTC).replace(microsecond=0)
    if simulation.for_s is None:
        # The sender's clock keeps pace with ours: were it faster, its updatedAt would one day lie in the future.
        count, start, spacing_s = None, now, 1 / simulation.rate_per_s
    else:
        count = math.ceil(simulation.for_s * simulation.rate_per_s)
        start, spacing_s = now - timedelta(seconds=count * DEFAULT_SPACING_S), DEFAULT_SPACING_S
    ledger_file = data_dir / "simulator" / "ledger.jsonl"
    ledger_file.parent.mkdir(parents=True, exist_ok=True)
    topics_reader = TopicReader(
        consumer_config(settings.kafka, group_id="kinguin-streams.up", client_id="kinguin-streams-up")
    )
    names = [spec.name for spec in wiring.topics(settings).of_ingress.specs]
    begun = topics_reader.end_offsets(names)
    with FileLedger(ledger_file) as ledger:
        sender = Sender(
            SenderSettings(
                target=f"http://{settings.ingress.host}:{settings.ingress.port}",
                secret=secret,
                store=STORE,
                rate_per_s=simulation.rate_per_s,
            ),
            plan_deliveries(
                seed,
                start=start,
                count=count,
                duplicates=simulation.duplicates,
                disorder=simulation.disorder,
                spacing_s=spacing_s,
            ),
            total=count,
            ledger=ledger,
        )
        talk(f"simulating {simulation.rate_per_s:g} webhooks a second, seed {seed}")
        sender.start()
        with LiveView() as view:
            while not sender.wait(VIEW_EVERY_S):
                children.check()
                view.show(_numbers(settings, sender.report()))
                if interrupt.number is not None:
                    talk("stopping: requests in flight finish")
                    sender.stop()
                    sender.wait()
            caught_up = _catch_up(settings, topics_reader, children)
            view.show(_numbers(settings, sender.report()))
    children.stop("ingress")
    for projection in SAMPLES:
        children.stop(projection.name)
    verdict = judge(settings, topics_reader, sender.report(), begun, ledger_file, caught_up=caught_up)
    topics_reader.close()
    print_verdict(verdict, seed, as_json=as_json)
    if not verdict.adds_up:
        return 1
    return EXIT_INTERRUPTED if interrupt.number == signal.SIGINT else 0


def _catch_up(settings: Settings, topics_reader: TopicReader, children: Children) -> bool:
    """Return whether the state has every record that is in the topics now; waits for it, but not for ever."""
    deadline_s = time.monotonic() + CATCH_UP_TIMEOUT_S
    # What was answered from the spool is in no topic yet.
    while waiting_in_spool(settings.ingress.host, settings.ingress.admin_port) and time.monotonic() < deadline_s:
        children.check()
        time.sleep(0.1)
    topics = wiring.topics(settings)
    bounds = topics_reader.bounds([topics.name(event) for event in EVENT_NAMES])
    while time.monotonic() < deadline_s:
        children.check()
        if all(
            reader.stored_offsets(settings.state.url, projection.name).get(key, first) >= end
            for projection in SAMPLES
            for key, (first, end) in bounds.items()
            if topics.record(key[0]) in projection.events
        ):
            return True
        time.sleep(0.1)
    return False


def _numbers(settings: Settings, report: SendReport | None) -> Numbers:
    books = balance(settings.ingress.host, settings.ingress.admin_port)
    return Numbers(
        sent=None if report is None else report.sent,
        received=0 if books is None else books.received,
        acked=0 if books is None else books.acked + books.spooled,
        orders_by_status=reader.orders_by_status(settings.state.url),
        busiest_products=reader.busiest_products(settings.state.url, 5),
    )


def _start_children(settings: Settings, children: Children, interrupt: _Interrupt) -> None:
    children.start("ingress", ["ingress"])
    for projection in SAMPLES:
        children.start(projection.name, ["consume", projection.name])
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while True:
        children.check()
        ready, why = readiness(settings.ingress.host, settings.ingress.admin_port)
        if ready:
            return
        if interrupt.number is not None:
            raise KeyboardInterrupt
        if time.monotonic() > deadline_s:
            raise OperatorError(
                "not_ready", f"The ingress is not ready after {READY_TIMEOUT_S:g} s: {why}.", "See its log."
            )
        time.sleep(0.1)


@contextmanager
def _own(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for as long as this `up` lives. Raises OperatorError if it cannot be had."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "up.lock").open("a+")
    except OSError as error:
        raise OperatorError(
            "data_dir_not_writable",
            f"The data folder {data_dir} cannot be written: {error.strerror}.",
            "Make it writable, or set KINGUIN_LOCAL__DATA_DIR to another folder.",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise OperatorError(
                "data_dir_in_use",
                f"Another `up` (pid {lock.read().strip() or 'unknown'}) works in {data_dir}.",
                "Stop it with Ctrl-C, or give this one its own folder (KINGUIN_LOCAL__DATA_DIR) and ports.",
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _kafka(settings: Settings) -> Iterator[str]:
    """Yield bootstrap servers: the cluster that is set, a local broker that runs already, or one started for this `up`."""
    if settings.kafka.bootstrap_servers:
        talk(f"using Kafka at {settings.kafka.bootstrap_servers}")
        yield settings.kafka.bootstrap_servers
        return
    running = local_broker.find(settings.local)
    if running is not None:
        talk(f"using the local Kafka that runs already (pid {running.pid}); it stays up. `kafka stop` ends it")
        yield running.bootstrap_servers
        return
    broker = start_broker(settings.local)
    talk(f"Kafka listens on {broker.bootstrap_servers}; its log is {broker.log_file}")
    try:
        yield broker.bootstrap_servers
    finally:
        broker.stop()


def _apply_topics(settings: Settings) -> None:
    admin, topics = TopicAdmin(admin_config(settings.kafka)), wiring.topics(settings)
    steps = plan(topics, admin.describe(topics))
    admin.apply(steps)
    for step in steps:
        talk(f"topic {step.topic}: {step.action}: {step.detail}")


def _secrets(settings: Settings, data_dir: Path) -> tuple[str, str]:
    """Return the secret of the default store, and all secrets as JSON; makes one where none is set, and keeps it."""
    live = {
        store: [secret.get_secret_value() for secret in values] for store, values in settings.ingress.secrets.items()
    }
    if live and STORE not in live:
        raise OperatorError(
            "no_default_store",
            f'KINGUIN_INGRESS__SECRETS has no store "{STORE}", to which `up` sends.',
            f'Add one, or unset it: `up` then makes {{"{STORE}": ["…"]}} itself.',
        )
    if not live:
        file = data_dir / "secret"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(random_secrets.token_hex(16))  # 32 characters: the dashboard is said to take no more
        live = {STORE: [file.read_text().strip()]}
        talk(f"X-Event-Secret is {live[STORE][0]} (kept in {file})")
    return live[STORE][0], json.dumps(live)
