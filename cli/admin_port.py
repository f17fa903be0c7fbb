"""What a running ingress says of itself on its admin port."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinguin_streams.ingress.ledger import Balance

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

TIMEOUT_S = 2.0
_COLUMNS = {
    "acked": "acked",
    "spooled": "spooled",
    "dead_lettered": "dead_lettered",
    "refused": "refused",
    "ping": "pings",
}


def readiness(host: str, port: int) -> tuple[bool, str]:
    """Return whether the ingress is ready, and what it says; (False, why) if nobody answers."""
    import urllib3

    try:
        answer = urllib3.request("GET", f"http://{host}:{port}/readyz?verbose", timeout=TIMEOUT_S, retries=False)
    except urllib3.exceptions.HTTPError as error:
        return False, f"nothing answers on {host}:{port} ({type(error).__name__})"
    return answer.status == 200, answer.data.decode().strip()


def balance(host: str, port: int) -> Balance | None:
    """Return the ingress's books as its metrics show them, or None if nobody answers."""
    scrape = _scrape(host, port)
    return None if scrape is None else parse_balance(scrape)


def waiting_in_spool(host: str, port: int) -> int | None:
    """Return how many events the ingress has on disk for Kafka, or None if nobody answers or there is no spool."""
    scrape = _scrape(host, port)
    if scrape is None:
        return None
    waiting = [sample.value for sample in _samples(scrape) if sample.name == "kinguin_ingress_spool_events"]
    return int(waiting[0]) if waiting else None


@dataclass(frozen=True, slots=True)
class LastUse:
    """When a secret was last used, by an ingress's metrics."""

    store: str
    secret: str
    """Its hashed name."""
    last_used_s: float | None
    """Seconds since 1970; None: not since the ingress started."""


def secrets_used(host: str, port: int) -> list[LastUse]:
    """Return the last use of every live secret; nothing if nobody answers."""
    return [
        LastUse(sample.labels["store"], sample.labels["secret"], sample.value or None)
        for sample in _samples(_scrape(host, port) or "")
        if sample.name == "kinguin_ingress_secret_last_used_timestamp_seconds"
    ]


def silence(host: str, port: int) -> dict[str, dict[str, float]]:
    """Return store to event to seconds since the last one, or since it is waited for; nothing if nobody answers."""
    found: dict[str, dict[str, float]] = {}
    for sample in _samples(_scrape(host, port) or ""):
        if sample.name == "kinguin_ingress_silence_seconds":
            found.setdefault(sample.labels["store"], {})[sample.labels["event"]] = sample.value
    return found


def parse_balance(metrics: str) -> Balance:
    """Return the books in a scrape."""
    ended = dict.fromkeys(_COLUMNS.values(), 0)
    received = in_flight = 0
    for sample in _samples(metrics):
        match sample.name:
            case "kinguin_ingress_received_total":
                received = int(sample.value)
            case "kinguin_ingress_in_flight":
                in_flight = int(sample.value)
            case "kinguin_ingress_requests_total":
                ended[_COLUMNS[sample.labels["outcome"]]] += int(sample.value)
    return Balance(received=received, in_flight=in_flight, **ended)


def _scrape(host: str, port: int) -> str | None:
    import urllib3

    try:
        answer = urllib3.request("GET", f"http://{host}:{port}/metrics", timeout=TIMEOUT_S, retries=False)
    except urllib3.exceptions.HTTPError:
        return None
    return answer.data.decode() if answer.status == 200 else None


def _samples(metrics: str) -> "Iterator[Sample]":
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(metrics):
        yield from family.samples
