"""Whether what `up` has simulated adds up: what was sent, what the topics hold, what the state says."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Message

from kinguin_streams.cli import wiring
from kinguin_streams.cli.children import environment_with
from kinguin_streams.cli.output import result, result_json, talk
from kinguin_streams.cli.settings import Settings
from kinguin_streams.cluster.topic_reader import TopicReader
from kinguin_streams.consumers import reader
from kinguin_streams.simulator.ledger import LedgerEntry, read_ledger
from kinguin_streams.simulator.sender import SendReport
from kinguin_streams.simulator.witness import compare, expected_event_id, recompute
from kinguin_streams.telemetry.operator_error import OperatorError


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether it all adds up, and the numbers that say so."""

    report: SendReport
    published: Mapping[str, int]
    lost: int
    """Webhooks that were acknowledged and are not in their topic."""
    differences: tuple[str, ...]
    caught_up: bool
    orders_by_status: Mapping[str, int]
    products: int

    @property
    def state_matches(self) -> bool:
        """Whether the state equals the independent recomputation."""
        return self.caught_up and not self.differences

    @property
    def adds_up(self) -> bool:
        """Whether all was acknowledged, kept, and is in the state."""
        # Ctrl-C is one way to end it, and no failure: what had been sent until then must add up.
        return self.report.all_sent_acked and self.lost == 0 and self.state_matches


def judge(
    settings: Settings,
    topics_reader: TopicReader,
    report: SendReport,
    begun: Mapping[tuple[str, int], int],
    ledger_file: Path,
    *,
    caught_up: bool,
) -> Verdict:
    """Compare what was sent, by this run and earlier ones of this folder, with the topics and with the state."""
    topics = wiring.topics(settings).of_ingress
    end = topics_reader.end_offsets([spec.name for spec in topics.specs])
    published = {spec.name: 0 for spec in topics.specs}
    kept: set[str] = set()
    for message in topics_reader.read({}, end):
        topic = str(message.topic())
        kept.add(_header(message, "ce_id"))
        published[topic] += int(message.offset() or 0) >= begun.get((topic, int(message.partition() or 0)), 0)
    entries = list(read_ledger(ledger_file))
    acked = [entry for entry in entries if entry.acked]
    # An attempt that got no answer may have landed: what the topics say of it is what the state must say.
    landed = [entry for entry in entries if entry.acked or _id(entry) in kept]
    orders, products = _dump(settings, "orders"), _dump(settings, "products")
    expected = recompute((entry.store, entry.event, entry.body) for entry in landed)
    return Verdict(
        report=report,
        published=published,
        lost=len({_id(entry) for entry in acked} - kept),
        differences=tuple(str(difference) for difference in compare(expected, orders, products)),
        caught_up=caught_up,
        orders_by_status=reader.orders_by_status(settings.state.url),
        products=len(products),
    )


def _header(message: Message, wanted: str) -> str:
    headers: Any = message.headers() or ()
    return next((value.decode() for name, value in headers if name == wanted), "")


def _id(entry: LedgerEntry) -> str:
    return expected_event_id(entry.store, entry.event, entry.body)


def _dump(settings: Settings, table: str) -> list[dict[str, Any]]:
    """Return the state as anybody would get it: through the command line."""
    command = [sys.executable, "-m", "kinguin_streams", "state", "dump", table, "--format", "json"]
    environment = environment_with({"KINGUIN_STATE__URL": settings.state.url})
    dump = subprocess.run(command, capture_output=True, check=False, env=environment)
    if dump.returncode != 0:
        raise OperatorError(
            "dump_failed", f"`state dump {table}` failed.", dump.stderr.decode(errors="replace").strip()
        )
    return [json.loads(line) for line in dump.stdout.splitlines()]


def print_verdict(verdict: Verdict, seed: int, *, as_json: bool) -> None:
    report = verdict.report
    for difference in verdict.differences[:10]:
        talk(f"difference: {difference}")
    if as_json:
        result_json(
            {
                "sent": report.sent,
                "acked": report.acked,
                "published": verdict.published,
                "orders_by_status": verdict.orders_by_status,
                "products": verdict.products,
                "state_matches": verdict.state_matches,
                "lost": verdict.lost,
                "attempts": report.attempts,
                "seed": seed,
                "adds_up": verdict.adds_up,
            }
        )
        return
    lines = [
        f"sent               {report.sent} webhooks in {report.attempts} attempts",
        f"acknowledged       {report.acked}"
        + ("" if report.acked == report.sent else f", {report.sent - report.acked} not"),
        f"lost               {verdict.lost}",
        *(f"records            {count} in {topic}" for topic, count in verdict.published.items()),
        "orders             "
        + (", ".join(f"{n} {status}" for status, n in verdict.orders_by_status.items()) or "none"),
        f"products           {verdict.products}",
        "state              "
        + (
            "equals the independent recomputation"
            if verdict.state_matches
            else f"DIFFERS from the independent recomputation in {len(verdict.differences)} places"
            if verdict.caught_up
            else "is BEHIND the topics: the consumers did not catch up"
        ),
        "it all adds up" if verdict.adds_up else "it does NOT add up",
    ]
    result("\n".join(lines))
