"""The simulated sender against real HTTP."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kinguin_streams.simulator.ledger import LedgerEntry, MemoryLedger, acked_webhooks
from kinguin_streams.simulator.plan import Delivery, plan_deliveries
from kinguin_streams.simulator.sender import Sender, SenderSettings

START = datetime(2026, 11, 24, 15, 0, tzinfo=UTC)


@dataclass
class Receiver:
    """A real HTTP server that answers as told. answer(body, how often this body has come, this time included) → status, or
    None to hang up without an answer."""

    url: str = ""
    answer: Callable[[bytes, int], int | None] = lambda _body, _times: 204
    requests: list[tuple[str, Message, bytes]] = field(default_factory=list)
    connections: int = 0
    most_at_once: int = 0

    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.requests]


@contextmanager
def receiving(receiver: Receiver) -> Iterator[Receiver]:
    lock = threading.Lock()
    times: Counter[bytes] = Counter()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with lock:
                receiver.connections += 1

        def do_POST(self) -> None:
            nonlocal at_once
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                receiver.requests.append((self.path, self.headers, body))
                times[body] += 1
                nth = times[body]
                at_once += 1
                receiver.most_at_once = max(receiver.most_at_once, at_once)
            status = receiver.answer(body, nth)
            with lock:
                at_once -= 1
            if status is None:
                self.close_connection = True
                return
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Length", "0")
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver()) as it:
        yield it


def plan(count: int) -> list[Delivery]:
    return list(plan_deliveries(1, start=START, count=count, duplicates=0))


def settings(url: str, **more: object) -> SenderSettings:
    fast: dict[str, object] = {"secret": "s3cret", "retry_waits_s": (0.01, 0.02), "timeout_s": 5.0, "clients": 4}
    return SenderSettings(target=url, **{**fast, **more})  # type: ignore[arg-type]


def test_a_webhook_has_the_documented_headers_and_hardly_any_other(receiver: Receiver) -> None:
    (delivery,) = plan(1)
    report = Sender(settings(receiver.url, store="shop-2"), [delivery], total=1).run()
    ((path, headers, body),) = receiver.requests
    assert (path, body) == ("/webhooks/shop-2", delivery.body)
    assert {name: value for name, value in headers.items() if name not in ("Host", "Content-Length")} == {
        "X-Event-Name": delivery.event,
        "X-Event-Secret": "s3cret",
        "Content-Type": "aplication/json",
    }
    assert report.all_acked
    assert (report.sent, report.acked, report.attempts, dict(report.answers)) == (1, 1, 1, {204: 1})


def test_a_target_may_have_a_path_and_a_secret_may_be_any_text(receiver: Receiver) -> None:
    Sender(settings(receiver.url + "/kinguin/", secret="hasło-№"), plan(1)).run()
    ((path, headers, _),) = receiver.requests
    assert path == "/kinguin/webhooks/default"
    assert headers["X-Event-Secret"].encode("latin-1").decode("utf-8") == "hasło-№"


def test_everything_is_sent_once_over_few_connections(receiver: Receiver) -> None:
    deliveries = plan(300)
    report = Sender(settings(receiver.url), deliveries).run()
    assert sorted(receiver.bodies()) == sorted(d.body for d in deliveries)
    assert receiver.connections <= 4
    assert (report.acked, report.attempts) == (300, 300)


def test_as_many_requests_are_in_flight_as_there_are_clients(receiver: Receiver) -> None:
    meeting = threading.Barrier(3, timeout=5)  # passes only if three are there at once

    def answer(_body: bytes, _times: int) -> int:
        meeting.wait()
        return 204

    receiver.answer = answer
    assert Sender(settings(receiver.url, clients=3), plan(9)).run().all_acked
    assert receiver.most_at_once == 3


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_any_2xx_is_success(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _body, _times: status
    report = Sender(settings(receiver.url), plan(3)).run()
    assert (report.all_acked, dict(report.answers)) == (True, {status: 3})


@pytest.mark.parametrize("status", [302, 400, 401, 410, 422, 500, 503])
def test_any_other_answer_is_retried_with_the_same_bytes(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _body, times: status if times < 3 else 204
    deliveries = plan(5)
    report = Sender(settings(receiver.url), deliveries).run()
    assert Counter(receiver.bodies()) == {d.body: 3 for d in deliveries}
    assert {path for path, _, _ in receiver.requests} == {"/webhooks/default"}
    assert report.all_acked
    assert (report.sent, report.attempts, dict(report.answers)) == (5, 15, {204: 5, status: 10})


def test_no_answer_is_retried(receiver: Receiver) -> None:
    receiver.answer = lambda _body, times: None if times == 1 else 204
    report = Sender(settings(receiver.url), plan(4)).run()
    assert (report.acked, report.no_answer, report.attempts) == (4, 4, 8)


def test_a_slow_answer_is_no_answer(receiver: Receiver) -> None:
    let_go = threading.Event()

    def answer(_body: bytes, times: int) -> int:
        if times == 1:
            let_go.wait(5)
        return 204

    receiver.answer = answer
    ledger = MemoryLedger()
    report = Sender(settings(receiver.url, timeout_s=0.2), plan(1), ledger=ledger).run()
    let_go.set()
    assert (report.acked, report.no_answer) == (1, 1)
    assert [(entry.status, entry.attempt, entry.acked) for entry in ledger.entries] == [
        (None, 1, False),
        (204, 2, True),
    ]


def test_a_webhook_that_waits_for_its_retry_does_not_hold_up_the_others(receiver: Receiver) -> None:
    deliveries = plan(20)
    receiver.answer = lambda body, times: 500 if body == deliveries[0].body and times == 1 else 204
    Sender(settings(receiver.url, clients=1, retry_waits_s=(0.3,)), deliveries).run()
    assert receiver.bodies() == [d.body for d in deliveries] + [deliveries[0].body]


def test_a_delivery_is_dropped_when_its_retries_are_used_up(receiver: Receiver) -> None:
    deliveries = plan(6)
    receiver.answer = lambda body, _times: 500 if body == deliveries[2].body else 204
    report = Sender(settings(receiver.url), deliveries, total=6).run()
    assert receiver.bodies().count(deliveries[2].body) == 3
    assert (report.sent, report.acked, report.dropped, report.not_sent) == (6, 5, 1, 0)
    assert not report.disabled
    assert not report.all_acked


def test_an_endpoint_that_fails_too_often_in_a_row_is_disabled(receiver: Receiver) -> None:
    receiver.answer = lambda _body, _times: 503
    sender = Sender(settings(receiver.url, clients=1, retry_waits_s=(), disable_after=5), plan(40), total=40)
    report = sender.run()
    assert report.disabled
    assert (report.sent, report.dropped, report.not_sent) == (5, 5, 35)
    assert len(receiver.requests) == 5


def test_webhooks_that_wait_for_a_retry_are_dropped_when_the_endpoint_is_disabled(receiver: Receiver) -> None:
    deliveries = plan(40)
    receiver.answer = lambda _body, _times: 503
    sender = Sender(settings(receiver.url, clients=4, retry_waits_s=(0.05,), disable_after=3), deliveries, total=40)
    report = sender.run()
    assert report.disabled
    assert (report.acked, report.sent, report.dropped) == (0, report.dropped, report.sent)
    assert report.sent + report.not_sent == 40


def test_one_success_starts_the_count_of_failures_anew(receiver: Receiver) -> None:
    deliveries = plan(40)
    good = {d.body for d in deliveries[4::5]}
    receiver.answer = lambda body, _times: 204 if body in good else 500
    report = Sender(settings(receiver.url, clients=1, retry_waits_s=(), disable_after=5), deliveries, total=40).run()
    assert not report.disabled
    assert (report.acked, report.dropped) == (8, 32)


def test_nobody_listening_is_a_failure_that_leaves_no_maybe() -> None:
    with receiving(Receiver()) as gone:
        pass
    ledger = MemoryLedger()
    report = Sender(settings(gone.url, disable_after=2, clients=1), plan(10), total=10, ledger=ledger).run()
    assert (report.disabled, report.acked, report.no_answer) == (True, 0, report.attempts)
    assert ledger.entries == []


def test_the_ledger_has_the_answer_before_it_is_counted(receiver: Receiver) -> None:
    counted_when_recorded: list[int] = []

    class Looking(MemoryLedger):
        def record(self, entry: LedgerEntry) -> None:
            super().record(entry)
            counted_when_recorded.append(sender.report().acked)

    ledger = Looking()
    deliveries = plan(10)
    sender = Sender(settings(receiver.url, clients=1), deliveries, ledger=ledger)
    sender.run()
    assert counted_when_recorded == list(range(10))
    assert acked_webhooks(ledger.entries) == {("default", d.event, d.body) for d in deliveries}


def test_the_ledger_keeps_what_may_have_landed_and_not_what_cannot(receiver: Receiver) -> None:
    answers: dict[int, int | None] = {1: 401, 2: 503, 3: None, 4: 204}
    receiver.answer = lambda _body, times: answers[times]
    ledger = MemoryLedger()
    (delivery,) = plan(1)
    Sender(settings(receiver.url, retry_waits_s=(0.0, 0.0, 0.0), store="shop"), [delivery], ledger=ledger).run()
    assert ledger.entries == [
        LedgerEntry(0, delivery.event, "shop", delivery.body, status, attempt)
        for status, attempt in [(503, 2), (None, 3), (204, 4)]
    ]


def test_a_ledger_that_cannot_be_written_stops_the_sender_and_says_why(receiver: Receiver) -> None:
    class Full(MemoryLedger):
        def record(self, entry: LedgerEntry) -> None:
            if len(self.entries) == 3:
                raise OSError(28, "No space left on device")
            super().record(entry)

    sender = Sender(settings(receiver.url), plan(500), ledger=Full())
    with pytest.raises(OSError, match="No space"):
        sender.run()
    assert sender.report().acked == 3


def test_stop_finishes_what_is_in_flight_and_starts_nothing_more(receiver: Receiver) -> None:
    arrived, let_go = threading.Semaphore(0), threading.Event()

    def answer(_body: bytes, _times: int) -> int:
        arrived.release()
        let_go.wait(5)
        return 204

    receiver.answer = answer
    sender = Sender(settings(receiver.url, clients=2), plan(100), total=100)
    sender.start()
    assert arrived.acquire(timeout=5)
    assert arrived.acquire(timeout=5)
    sender.stop()
    assert not sender.wait(0.05)
    let_go.set()
    assert sender.wait(5)
    report = sender.report()
    assert (report.sent, report.acked, report.not_sent, report.stopped) == (2, 2, 98, True)
    assert not report.all_acked


def test_stop_gives_up_what_waits_for_a_retry(receiver: Receiver) -> None:
    receiver.answer = lambda _body, _times: 500
    sender = Sender(settings(receiver.url, retry_waits_s=(60.0,)), plan(3), total=3)
    sender.start()
    deadline_s = time.monotonic() + 5
    while sum(sender.report().answers.values()) < 3 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    sender.stop()
    assert sender.wait(5)
    assert (sender.report().sent, sender.report().dropped, sender.report().acked) == (3, 3, 0)


def test_what_fails_after_stop_is_dropped_and_not_retried(receiver: Receiver) -> None:
    arrived, let_go = threading.Event(), threading.Event()

    def answer(_body: bytes, _times: int) -> int:
        arrived.set()
        let_go.wait(5)
        return 503

    receiver.answer = answer
    sender = Sender(settings(receiver.url, clients=1), plan(3), total=3)
    sender.start()
    assert arrived.wait(5)
    sender.stop()
    let_go.set()
    assert sender.wait(5)
    report = sender.report()
    assert (report.sent, report.dropped, report.not_sent, report.attempts) == (1, 1, 2, 1)


def test_stop_after_the_end_changes_nothing(receiver: Receiver) -> None:
    sender = Sender(settings(receiver.url), plan(3), total=3)
    sender.run()
    sender.stop()
    assert sender.report().all_acked


def test_the_rate_is_kept(receiver: Receiver) -> None:
    began_s = time.monotonic()
    Sender(settings(receiver.url, rate_per_s=100.0), plan(41)).run()
    assert time.monotonic() - began_s >= 0.4


def test_a_sender_without_rate_ends_by_the_clock(receiver: Receiver) -> None:
    endless = plan_deliveries(1, start=START)
    began_s = time.monotonic()
    report = Sender(settings(receiver.url, for_s=0.3), endless).run()
    assert time.monotonic() - began_s >= 0.3
    assert report.all_acked
    assert report.sent == len(receiver.requests)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        pytest.param({"target": "127.0.0.1:8080"}, "URL", id="a target without scheme"),
        pytest.param({"target": "ftp://host"}, "URL", id="a target of another protocol"),
        pytest.param({"target": "http://host:99999"}, "URL", id="a port there cannot be"),
        pytest.param({"target": "http://host/?a=b"}, "URL", id="a query"),
        pytest.param({"store": "Shop"}, "store", id="a store with capitals"),
        pytest.param({"store": "../admin"}, "store", id="a store that leaves its path"),
        pytest.param({"secret": "a\r\nX: y"}, "secret", id="a secret that would be two headers"),
        pytest.param({"rate_per_s": -1.0}, "rate", id="a negative rate"),
        pytest.param({"rate_per_s": float("nan")}, "rate", id="a rate that is no number"),
        pytest.param({"clients": 0}, "client", id="nobody to send"),
        pytest.param({"disable_after": 0}, "disabled", id="disabled before the first failure"),
        pytest.param({"retry_waits_s": (-1.0,)}, "negative", id="a retry before the attempt"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], what: str) -> None:
    wrong = dict(wrong)
    with pytest.raises(ValueError, match=what):
        settings(str(wrong.pop("target", "http://127.0.0.1:1")), **wrong)


def test_the_secret_is_not_in_the_settings_text() -> None:
    assert "s3cret" not in repr(settings("http://127.0.0.1:1"))


def test_a_body_is_not_in_the_ledger_entrys_text(tmp_path: Path) -> None:
    assert "PHS84" not in repr(LedgerEntry(1, "order.status", "default", b"PHS84", 204, 1))
