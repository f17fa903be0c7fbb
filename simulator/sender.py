"""Sends planned deliveries over HTTP the way Kinguin does: retries on anything but 2xx, and gives up on a bad endpoint.

Retries wait beside the stream, not in it: while one webhook waits for its next attempt the following ones go out, so a
retry arrives late and out of order, as it would from the real sender.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count as count_from
from threading import Condition, Thread
from types import MappingProxyType

import urllib3

from kinguin_streams.simulator.ledger import Ledger, LedgerEntry
from kinguin_streams.simulator.plan import Delivery

# "A couple of times at appropriate intervals" is all that is documented: these waits are a guess.
GUESSED_RETRY_WAITS_S = (1.0, 2.0, 5.0, 15.0, 30.0)

# More than this many webhooks waiting for a retry, and new ones wait too: what is kept in memory stays bounded.
_MOST_WAITING = 1000

_STORE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderSettings:
    """Where and how to send.

    target: base URL of the receiver; webhooks go to <target>/webhooks/<store>.
    rate_per_s: first attempts a second, 0 for as fast as possible. Retries come on top.
    for_s: no first attempt after this many seconds; retries still go out.
    retry_waits_s: the pause before each retry, so as many retries as there are pauses.
    disable_after: failed deliveries (retries used up) one after another that make the sender disable the endpoint. That it
        may do so is documented, the number is a guess.
    Raises ValueError, with a sentence for a person.
    """

    target: str
    secret: str = field(repr=False)
    store: str = "default"
    rate_per_s: float = 0.0
    for_s: float | None = None
    clients: int = 8
    timeout_s: float = 10.0
    retry_waits_s: tuple[float, ...] = GUESSED_RETRY_WAITS_S
    disable_after: int = 50

    def __post_init__(self) -> None:
        try:
            url = urllib3.util.parse_url(self.target)
        except urllib3.exceptions.LocationParseError:
            url = urllib3.util.Url()
        if url.scheme not in ("http", "https") or not url.host or url.query is not None or url.fragment is not None:
            raise ValueError(f"The target {self.target!r} is not a URL like http://127.0.0.1:8080.")
        if not _STORE_NAME.fullmatch(self.store):
            raise ValueError(
                f"The store {self.store!r} is not 1 to 32 of a-z, 0-9 and -, beginning with a letter or digit."
            )
        if re.search(r"[\r\n\0]", self.secret):
            raise ValueError("The secret has a line break or a NUL in it, and cannot be sent in a header.")
        if not 0 <= self.rate_per_s < float("inf"):
            raise ValueError(f"The rate is a number of deliveries a second, 0 for no limit, not {self.rate_per_s}.")
        if self.clients < 1:
            raise ValueError(f"At least one client is needed to send, not {self.clients}.")
        if self.disable_after < 1:
            raise ValueError(f"An endpoint is disabled after 1 or more failed deliveries, not {self.disable_after}.")
        if any(wait < 0 for wait in self.retry_waits_s):
            raise ValueError(f"A pause before a retry cannot be negative: {self.retry_waits_s}.")


@dataclass(frozen=True, slots=True)
class SendReport:
    """What has become of the deliveries so far.

    sent: deliveries attempted at least once = acked + dropped + those still in flight or waiting for a retry.
    dropped: given up: retries used up, endpoint disabled, or stopped while waiting for a retry.
    not_sent: never attempted, because the endpoint was disabled or the sender stopped (known when the total is).
    answers: attempts by HTTP status. no_answer: attempts without any. Their sum is `attempts` when nothing is in flight.
    """

    sent: int
    acked: int
    attempts: int
    dropped: int
    not_sent: int
    answers: Mapping[int, int]
    no_answer: int
    disabled: bool
    stopped: bool

    @property
    def all_sent_acked(self) -> bool:
        """Whether what was sent was acked, although it may have been cut short on request."""
        return self.acked == self.sent and not self.disabled

    @property
    def all_acked(self) -> bool:
        """Whether everything that was planned was sent and acked."""
        return self.all_sent_acked and self.not_sent == 0 and not self.stopped


class Sender:
    """One run over one plan. `start`, then `wait` and `report` from any thread, `stop` to end early; or `run` for it all.

    total: how many deliveries there are, if known; for `SendReport.not_sent`.
    """

    def __init__(
        self,
        settings: SenderSettings,
        deliveries: Iterable[Delivery],
        *,
        total: int | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._settings = settings
        self._total = total
        self._ledger = ledger
        self._path = (urllib3.util.parse_url(settings.target).path or "").rstrip("/") + f"/webhooks/{settings.store}"
        self._pool = urllib3.connectionpool.connection_from_url(settings.target, maxsize=settings.clients, block=True)

        # Everything below is read and written under this condition.
        self._changed = Condition()
        self._upcoming: Iterator[Delivery] = iter(deliveries)
        self._next: Delivery | None = None
        self._exhausted = False
        self._waiting: list[tuple[float, int, Delivery, int]] = []  # due, tie break, delivery, attempt
        self._tie_break = count_from()
        self._in_flight = 0
        self._started_s = 0.0
        self._failed_in_a_row = 0
        self._sent = self._acked = self._attempts = self._dropped = self._no_answer = 0
        self._answers: dict[int, int] = {}
        self._disabled = self._stopped = False
        self._fault: BaseException | None = None
        self._threads: list[Thread] = []

    def run(self) -> SendReport:
        """Send everything; return the final report."""
        self.start()
        self.wait()
        return self.report()

    def start(self) -> None:
        self._started_s = time.monotonic()
        for number in range(self._settings.clients):
            thread = Thread(target=self._work, name=f"sender-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return True once the last attempt is over, False if that takes longer than `timeout_s`.

        Raises what stopped the sender, if that was not an answer: OSError when the ledger cannot be written.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                return False
        # Ctrl-C inside start() leaves a thread that runs and is in no list; its request is in flight all the same.
        with self._changed:
            while self._in_flight and self._fault is None:
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    return False
                self._changed.wait(None if deadline_s is None else deadline_s - time.monotonic())
        self._pool.close()
        if self._fault is not None:
            raise self._fault
        return True

    def stop(self) -> None:
        """Start nothing more; requests in flight finish and are counted. Returns at once: `wait` for them."""
        with self._changed:
            if self._exhausted and not self._waiting and not self._in_flight:
                return  # nothing is cut short
            self._stopped = True
            self._drop_waiting()
            self._changed.notify_all()

    def report(self) -> SendReport:
        """Return the counts of this moment."""
        with self._changed:
            over = self._disabled or self._stopped
            return SendReport(
                sent=self._sent,
                acked=self._acked,
                attempts=self._attempts,
                dropped=self._dropped,
                not_sent=self._total - self._sent if over and self._total is not None else 0,
                answers=MappingProxyType(dict(sorted(self._answers.items()))),
                no_answer=self._no_answer,
                disabled=self._disabled,
                stopped=self._stopped,
            )

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                delivery, attempt = taken
                status, certainly_lost = self._post(delivery)
                # Before it is counted: whoever reads the counts may then rely on the ledger.
                if self._ledger is not None and not certainly_lost:
                    entry = LedgerEntry(
                        delivery.number, delivery.event, self._settings.store, delivery.body, status, attempt
                    )
                    self._ledger.record(entry)
                self._settle(delivery, attempt, status)
        except BaseException as fault:  # noqa: BLE001 - handed to the thread that waits
            with self._changed:
                self._fault = self._fault or fault
                self._stopped = True
                self._changed.notify_all()

    def _take(self) -> tuple[Delivery, int] | None:
        """Return the next delivery and its attempt when it is due; None when there is nothing more to do."""
        with self._changed:
            while not (self._stopped or self._disabled):
                now_s = time.monotonic()
                if self._waiting and self._waiting[0][0] <= now_s:
                    _, _, delivery, attempt = heappop(self._waiting)
                    return self._taken(delivery, attempt)
                due_s = [self._waiting[0][0]] if self._waiting else []
                if len(self._waiting) < _MOST_WAITING and (first := self._peek(now_s)) is not None:
                    rate = self._settings.rate_per_s
                    first_due_s = self._started_s + self._sent / rate if rate else now_s
                    if first_due_s <= now_s:
                        self._next = None
                        self._sent += 1
                        return self._taken(first, 1)
                    due_s.append(first_due_s)
                if not due_s and not self._in_flight:
                    self._changed.notify_all()
                    return None
                # Without a due time: a request in flight may yet need a retry.
                self._changed.wait(min(due_s) - now_s if due_s else None)
            return None

    def _taken(self, delivery: Delivery, attempt: int) -> tuple[Delivery, int]:
        self._in_flight += 1
        self._attempts += 1
        return delivery, attempt

    def _peek(self, now_s: float) -> Delivery | None:
        """Return the next delivery that was not attempted yet; None if there is none, or the time for them is over."""
        if self._settings.for_s is not None and now_s - self._started_s >= self._settings.for_s:
            self._exhausted = True
            self._next = None
        if self._next is None and not self._exhausted:
            self._next = next(self._upcoming, None)
            self._exhausted = self._next is None
        return self._next

    def _post(self, delivery: Delivery) -> tuple[int | None, bool]:
        """Return (status or None, whether the receiver can certainly not have kept it)."""
        try:
            answer = self._pool.urlopen(
                "POST",
                self._path,
                body=delivery.body,
                headers={
                    "X-Event-Name": delivery.event,
                    # HTTP headers are bytes and the standard library writes them as latin-1: this sends UTF-8.
                    "X-Event-Secret": self._settings.secret.encode("utf-8").decode("latin-1"),
                    "Content-Type": "aplication/json",  # so spelled in every version of the documents
                    "User-Agent": urllib3.util.SKIP_HEADER,
                    "Accept-Encoding": urllib3.util.SKIP_HEADER,
                },
                retries=False,
                redirect=False,
                timeout=self._settings.timeout_s,
            )
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError):
            return None, True
        except urllib3.exceptions.HTTPError:
            return None, False
        # A 5xx may come from a receiver that stopped waiting for its broker: the record can land afterwards.
        return answer.status, not (200 <= answer.status < 300 or answer.status >= 500)

    def _settle(self, delivery: Delivery, attempt: int, status: int | None) -> None:
        """Count an attempt that is over, and decide what follows from it."""
        with self._changed:
            self._in_flight -= 1
            if status is None:
                self._no_answer += 1
            else:
                self._answers[status] = self._answers.get(status, 0) + 1
            if status is not None and 200 <= status < 300:
                self._acked += 1
                self._failed_in_a_row = 0
            elif self._stopped or self._disabled:
                self._dropped += 1
            elif attempt <= len(self._settings.retry_waits_s):
                due_s = time.monotonic() + self._settings.retry_waits_s[attempt - 1]
                heappush(self._waiting, (due_s, next(self._tie_break), delivery, attempt + 1))
                self._changed.notify()
            else:
                self._dropped += 1
                self._failed_in_a_row += 1
                if self._failed_in_a_row >= self._settings.disable_after:
                    self._disabled = True
                    self._drop_waiting()
            if not self._in_flight or self._disabled:
                self._changed.notify_all()

    def _drop_waiting(self) -> None:
        self._dropped += len(self._waiting)
        self._waiting.clear()
