"""One line a request at most, and not for every one."""

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kinguin_streams.ingress.exchange import Asked
from kinguin_streams.ingress.ledger import Entry
from kinguin_streams.ingress.request_log import RequestLog
from tests.conftest import KafkaCluster
from tests.ingress.running_ingress import new_id, order_status, running_ingress

ASKED = Asked("POST", "/webhooks", lambda _name: None, b"", 0.0)


@pytest.mark.parametrize(("every", "lines"), [(1, 10), (5, 2), (0, 0)])
def test_of_requests_that_went_well_every_nth_is_logged(every: int, lines: int) -> None:
    requests = RequestLog(every)
    with capture_logs() as logged:
        for _ in range(10):
            requests.ended(ASKED, Entry("order.status", "acked", ""), 204, "an-id")
    assert len(logged) == lines


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        (Entry("order.status", "dead_lettered", "malformed_json"), 202),
        (Entry("order.status", "refused", "spool_full"), 503),
        (Entry("other", "refused", "internal_error"), 500),
    ],
)
def test_what_has_had_a_line_of_its_own_gets_no_second_one(entry: Entry, status: int) -> None:
    with capture_logs() as logged:
        RequestLog(1).ended(ASKED, entry, status, "an-id")
    assert logged == []


@pytest.mark.kafka
def test_a_line_says_what_became_of_the_request_and_nothing_that_was_in_it(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, log__request_every=1) as ingress:
        order_id = new_id()
        answers = [ingress.post(order_status(order_id)), ingress.post(b"{}", secret="wrong-secret-1")]
        answers.append(ingress.post(b"{"))
    by_id = {line["request_id"]: line for line in ingress.log_lines() if "request_id" in line}
    acked, refused, invalid = (by_id[answer.headers["x-request-id"]] for answer in answers)
    assert (acked["event"], acked["event_name"], acked["outcome"], acked["status"]) == (
        "request",
        "order.status",
        "acked",
        204,
    )
    assert acked["duration_ms"] >= 0
    assert (refused["event"], refused["outcome"], refused["reason"]) == ("request", "refused", "wrong_secret")
    assert invalid["event"] == "invalid_webhook"
    told = json.dumps([acked, refused, invalid])
    assert order_id not in told
    assert "wrong-secret-1" not in told
