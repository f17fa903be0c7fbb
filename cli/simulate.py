"""`kinguin-streams simulate`: a sender that behaves like Kinguin, against any receiver."""

import math
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinguin_streams.cli.durations import duration_s

if TYPE_CHECKING:
    from kinguin_streams.simulator.sender import Sender, SenderSettings, SendReport

DEFAULT_DURATION = "30s"
# With no limit on the rate, nobody knows how many deliveries fit into --for: more than this a second never do.
_MOST_PER_S = 5000
_UPDATE_EVERY_S = 0.2
_WHICH_LEDGER = "Name a new file, or the ledger of an earlier run, on a disk with room."


def simulate(
    *,
    target: Annotated[
        str | None,
        typer.Option(
            help="base URL of the receiver; webhooks go to URL/webhooks/STORE. Default: the ingress of the settings",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    store: Annotated[str, typer.Option(help="which store the webhooks are of")] = "default",
    secret: Annotated[
        str | None,
        typer.Option(
            help="what X-Event-Secret says. Default: the store's first secret in the settings. "
            "Better in the environment than here, where `ps` shows it",
            envvar="KINGUIN_SIMULATE_SECRET",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="deliveries a second, 0 for as fast as it is answered; retries come on top", min=0)
    ] = 50,
    duration: Annotated[
        str | None,
        typer.Option(
            "--for",
            help=f"how long to send, e.g. 30s, 2m, 1h: that many times the rate. Default: {DEFAULT_DURATION}",
            metavar="DURATION",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="how many deliveries to send, instead of --for", min=1, show_default=False)
    ] = None,
    seed: Annotated[
        int, typer.Option(help="the same seed and the same --start send the same bytes in the same order")
    ] = 1,
    start: Annotated[
        str | None,
        typer.Option(
            help="instant before the first updatedAt, e.g. 2026-11-24T15:00:00Z. Default: so that the last is about now",
            metavar="INSTANT",
            show_default=False,
        ),
    ] = None,
    duplicates: Annotated[
        float, typer.Option(help="share of deliveries that are copies of earlier ones", min=0, max=1)
    ] = 0.1,
    disorder: Annotated[
        float, typer.Option(help="share of events that arrive later than they should", min=0, max=1)
    ] = 0.2,
    broken: Annotated[
        float,
        typer.Option(
            help="share of deliveries that no receiver can understand, to fill the dead letters", min=0, max=1
        ),
    ] = 0.0,
    clients: Annotated[int, typer.Option(help="requests in flight at once", min=1, max=256)] = 8,
    retries: Annotated[
        str,
        typer.Option(
            help="pause before each retry of a delivery that got no 2xx; empty for no retry", metavar="DURATIONS"
        ),
    ] = "1s,2s,5s,15s,30s",
    disable_after: Annotated[
        int, typer.Option(help="give up on the endpoint after so many failed deliveries one after another", min=1)
    ] = 50,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="file that gets a JSON line for every delivery that was acked, or may have been kept, synced to disk "
            "before it is counted; appended to if it exists",
            metavar="FILE",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the summary as one JSON object")] = False,
) -> None:
    """Send webhooks the way Kinguin does.

    Product changes and the lives of orders, in the payloads of 2021, 2022 and 2024, with disorder, duplicates, and retries
    of whatever is not answered 2xx. An endpoint that fails too often is disabled: the rest is not sent.

    Exits 0 only if everything planned was sent and acked, 1 if not, 130 after Ctrl-C (requests in flight finish first).

    Example: kinguin-streams simulate --target http://127.0.0.1:8080 --rate 0 --count 20000 --ledger acked.jsonl
    """
    from datetime import UTC, timedelta

    from kinguin_streams.cli.output import result, result_json, talk
    from kinguin_streams.simulator.ledger import FileLedger
    from kinguin_streams.simulator.plan import DEFAULT_SPACING_S, plan_deliveries
    from kinguin_streams.simulator.sender import Sender
    from kinguin_streams.telemetry.operator_error import OperatorError

    if count is not None and duration is not None:
        raise typer.BadParameter("give --count or --for, not both")
    for_s = None
    if count is None:
        seconds = duration_s(duration or DEFAULT_DURATION, "--for")
        if seconds <= 0:
            raise typer.BadParameter("has to be longer than nothing", param_hint="--for")
        # With a rate the number is exact, whatever the receiver's speed; without one, only the clock ends it.
        if rate == 0:
            for_s = seconds
        count = math.ceil(seconds * (rate or _MOST_PER_S))
    started_at = (
        _instant(start)
        if start
        else datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=count * DEFAULT_SPACING_S)
    )
    settings = _sender_settings(
        target=target,
        store=store,
        secret=secret,
        rate=rate,
        for_s=for_s,
        clients=clients,
        retries=retries,
        disable_after=disable_after,
    )
    try:
        deliveries = plan_deliveries(
            seed, start=started_at, count=count, duplicates=duplicates, disorder=disorder, broken=broken
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

    talk(f"sending to {settings.target.rstrip('/')}/webhooks/{store}")
    talk(f"the same bytes again: --seed {seed} --start {started_at.isoformat()}, and the same shares")
    with ExitStack() as closing:
        try:
            file = closing.enter_context(FileLedger(ledger, fsync=True)) if ledger else None
        except (OSError, ValueError) as error:
            raise OperatorError("bad_ledger", f"The ledger cannot be opened: {error}.", _WHICH_LEDGER) from error
        sender = Sender(settings, deliveries, total=count if for_s is None else None, ledger=file)
        try:
            interrupted = _run_watched(sender, count, for_s)
        except OSError as error:  # only a ledger raises it: what the network does is an answer, or none
            raise OperatorError("bad_ledger", f"The ledger cannot be written: {error}.", _WHICH_LEDGER) from error
    report = sender.report()
    if json:
        result_json({**_summary(report), "seed": seed, "start": started_at.isoformat()})
    else:
        result(_sentences(report))
    if interrupted:
        raise typer.Exit(130)
    if not report.all_acked:
        raise typer.Exit(1)


def _run_watched(sender: "Sender", count: int, for_s: float | None) -> bool:
    """Run the sender to its end with a live view; return whether Ctrl-C ended it."""
    import signal
    import threading
    import time

    from kinguin_streams.cli.output import progress, talk

    with progress("simulate") as update:
        began_s = time.monotonic()

        def show() -> None:
            report = sender.report()
            settled = report.acked + report.dropped
            done, total = (settled, count) if for_s is None else (int(time.monotonic() - began_s), math.ceil(for_s))
            refused = sum(times for status, times in report.answers.items() if not 200 <= status < 300)
            update(done, total, f"{report.acked} acked, {refused + report.no_answer} attempts refused or unanswered")

        # A handler, not KeyboardInterrupt: that one can be raised in the middle of starting a thread.
        asked_to_stop = threading.Event()
        before = signal.signal(signal.SIGINT, lambda _number, _frame: asked_to_stop.set())
        try:
            sender.start()
            while not sender.wait(_UPDATE_EVERY_S):
                show()
                if asked_to_stop.is_set():
                    talk("stopping: requests in flight finish")
                    sender.stop()
        finally:
            signal.signal(signal.SIGINT, before)
        show()
    return sender.report().stopped


def _sender_settings(
    *,
    target: str | None,
    store: str,
    secret: str | None,
    rate: float,
    for_s: float | None,
    clients: int,
    retries: str,
    disable_after: int,
) -> "SenderSettings":
    from kinguin_streams.simulator.sender import SenderSettings
    from kinguin_streams.telemetry.operator_error import OperatorError

    if target is None or secret is None:
        from kinguin_streams.cli.settings import load

        ingress = load().ingress
        if target is None:
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ingress.host, ingress.host)  # noqa: S104 - listened on, not ours
            target = f"http://[{host}]:{ingress.port}" if ":" in host else f"http://{host}:{ingress.port}"
        if secret is None:
            secrets = ingress.secrets.get(store, ())
            if not secrets:
                raise OperatorError(
                    "no_secret",
                    f"There is no secret for the store {store}.",
                    "Set KINGUIN_SIMULATE_SECRET, or KINGUIN_INGRESS__SECRETS as for the ingress.",
                )
            secret = secrets[0].get_secret_value()
    try:
        return SenderSettings(
            target=target,
            secret=secret,
            store=store,
            rate_per_s=rate,
            for_s=for_s,
            clients=clients,
            retry_waits_s=tuple(duration_s(pause, "--retries") for pause in retries.split(",") if pause.strip()),
            disable_after=disable_after,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no instant like 2026-11-24T15:00:00Z", param_hint="--start") from error
    if instant.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no offset from UTC; add Z", param_hint="--start")
    return instant


def _summary(report: "SendReport") -> dict[str, object]:
    return {
        "sent": report.sent,
        "acked": report.acked,
        "attempts": report.attempts,
        "dropped": report.dropped,
        "not_sent": report.not_sent,
        "answers": {str(status): times for status, times in report.answers.items()},
        "no_answer": report.no_answer,
        "disabled": report.disabled,
    }


def _sentences(report: "SendReport") -> str:
    answers = ", ".join(f"{times} x {status}" for status, times in report.answers.items()) or "none"
    lines = [
        f"sent {report.sent}, acked {report.acked}, dropped {report.dropped}, not sent {report.not_sent}",
        f"attempts {report.attempts}; answers: {answers}; without an answer {report.no_answer}",
    ]
    if report.disabled:
        lines.append("the endpoint was disabled after too many failed deliveries: Kinguin would be silent from here on")
    return "\n".join(lines)
