"""What a running ingress says of itself on its admin port."""

from kinguin_streams.ingress.ledger import Balance

TIMEOUT_S = 2.0
_COLUMNS = {"acked": "acked", "dead_lettered": "dead_lettered", "refused": "refused", "ping": "pings"}


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
    import urllib3

    try:
        answer = urllib3.request("GET", f"http://{host}:{port}/metrics", timeout=TIMEOUT_S, retries=False)
    except urllib3.exceptions.HTTPError:
        return None
    return parse_balance(answer.data.decode()) if answer.status == 200 else None


def parse_balance(metrics: str) -> Balance:
    """Return the books in a scrape."""
    from prometheus_client.parser import text_string_to_metric_families

    ended = dict.fromkeys(_COLUMNS.values(), 0)
    received = in_flight = 0
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            match sample.name:
                case "kinguin_ingress_received_total":
                    received = int(sample.value)
                case "kinguin_ingress_in_flight":
                    in_flight = int(sample.value)
                case "kinguin_ingress_requests_total":
                    ended[_COLUMNS[sample.labels["outcome"]]] += int(sample.value)
    return Balance(received=received, in_flight=in_flight, **ended)
