"""Logs, metrics, headers and dead letters: what a request can put there, and what never gets there."""

import json
from collections import Counter

import pytest

from tests.ingress.running_ingress import (
    NEXT_SECRET,
    SECRET,
    Header,
    RunningIngress,
    new_id,
    order_status,
    request_bytes,
    samples,
    webhook_headers,
)

pytestmark = pytest.mark.kafka

HOSTILE = [
    b"order.status\\r\\nX-Injected: 1",
    b'"} {"event": "forged", "level": "critical"',
    b"\\u001b[31mred",
    b"\xc2\x9b31m",
    b"%0d%0aforged",
    b"${jndi:ldap://x}",
    b"order.status\ttab",
    b"<script>alert(1)</script>",
    "\u2028forged".encode(),
    b"\x85forged",
    b"x" * 4000,
]


@pytest.mark.parametrize("posts", [200, pytest.param(1_000, marks=pytest.mark.faults)])
def test_row_62_names_from_outside_forge_no_line_of_the_log(ingress: RunningIngress, posts: int) -> None:
    before = len(ingress.log_lines())
    names = [HOSTILE[number % len(HOSTILE)] + b"%d" % number for number in range(posts)]
    requests = [
        ingress.webhook(order_status(new_id()), event=name, headers=[("User-Agent", name), ("Content-Type", name)])
        for name in names
    ]
    assert {answer.status for answer in ingress.send_all(requests)} == {202}
    paths = [ingress.send(request_bytes("GET", b"/webhooks/" + name.split()[0][:50], [])).status for name in names[:22]]
    assert set(paths) <= {400, 404}
    lines = ingress.log_lines()  # every line is a JSON object, or this fails
    # One in a thousand of the others, the requests for strange paths here, has a line as well.
    added = Counter(line["event"] for line in lines[before:])
    assert added.pop("request", 0) <= 1
    assert added == {"invalid_webhook": posts}
    assert "\x1b" not in ingress.log_text()


def test_row_62_raw_line_breaks_and_escapes_in_a_header_are_no_header(ingress: RunningIngress) -> None:
    for value in (b"a\rb", b"a\nb", b"a\x1b[31mb", b"a\x00b"):
        headers: list[Header] = [*webhook_headers(b"order.status" + value, SECRET), ("Content-Length", "0")]
        assert ingress.send(request_bytes("POST", "/webhooks", headers)).status in (202, 400)
    ingress.log_lines()
    assert "\x1b" not in ingress.log_text()


def test_row_62_the_secret_is_in_no_log_metric_header_or_dead_letter(ingress: RunningIngress) -> None:
    headers: list[Header] = [("User-Agent", "a shop"), ("Cookie", f"s={SECRET}"), ("Authorization", f"Bearer {SECRET}")]
    answers = [
        ingress.post(order_status(new_id()), headers=headers),
        ingress.post(b"{", headers=headers),
        ingress.post(b"{", headers=headers, event=None),
        ingress.post(b"{", secret=NEXT_SECRET, event="x.y", headers=headers),
        ingress.post(order_status(new_id()), headers=headers, secret=SECRET + "x"),
        ingress.post(order_status(new_id()), headers=headers, path=f"/webhooks/{SECRET}"),
        ingress.post(order_status(new_id()), headers=headers, path=f"/webhooks?secret={SECRET}"),
        ingress.post(b"x" * 70_000, headers=headers),
    ]
    assert [answer.status for answer in answers] == [204, 202, 202, 202, 401, 404, 204, 413]
    letters = ingress.log.new("dead-letter")
    events = ingress.log.events()
    assert (len(letters), len(events)) == (3, 2)
    seen = [
        ingress.log_text().encode(),
        ingress.admin("/metrics").body,
        ingress.admin("/readyz?verbose").body,
        *(answer.body + json.dumps(dict(answer.headers)).encode() for answer in answers),
        *((kept.message.value() or b"") + repr(kept.message.headers()).encode() for kept in letters + events),
    ]
    for live in (SECRET, NEXT_SECRET):
        assert not any(live.encode() in text for text in seen)
    names = {name for kept in letters for name, _ in kept.record.headers}
    assert names == {"X-Event-Name", "Content-Type", "User-Agent"}


def test_row_63_event_names_from_outside_make_at_most_five_series(ingress: RunningIngress) -> None:
    before = ingress.metrics().keys()
    requests = [ingress.webhook(b"{}", event=f"event.{new_id()}") for _ in range(300)]
    assert {answer.status for answer in ingress.send_all(requests)} == {202}
    assert len(ingress.metrics().keys() - before) <= 5


def test_every_metric_name_says_its_unit_and_has_a_help_text(ingress: RunningIngress) -> None:
    text = ingress.admin("/metrics").body.decode()
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    helped = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP") and len(line.split()) > 3}
    assert families == helped
    assert all(name.startswith(("kinguin_ingress_", "kinguin_log_")) for name in families)
    assert all(not name.endswith("_created") for name, _ in samples(text))


def test_the_probes_answer_on_the_admin_port_only(ingress: RunningIngress) -> None:
    assert ingress.admin("/livez").status == 200
    verbose = ingress.admin("/readyz?verbose")
    assert verbose.status == 200
    assert [line.split(":")[0] for line in verbose.body.decode().splitlines()[:-1]] == [
        "[+] not_stopping",
        "[+] producer",
        "[+] topics",
        "[+] spool",
    ]
    assert ingress.admin("/webhooks").status == 404
