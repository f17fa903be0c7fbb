"""What was answered, line by line: the witness of every test that kills something.

A line is in the ledger before anybody counts the answer, so whatever was counted as acked can be looked for afterwards.
"""

import base64
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Protocol, Self

_LINE_BEGINS = b'{"number": '
_LONGEST_LINE = 1 << 20  # bytes; the planned bodies are under 1 KiB


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One attempt whose event may be in the log now.

    status: the HTTP status; None if the request went out and no answer came back.
    attempt: 1 for the first, 2 for the first retry.
    """

    number: int
    event: str
    store: str
    body: bytes = field(repr=False)
    status: int | None
    attempt: int

    @property
    def acked(self) -> bool:
        """True for a 2xx: the receiver owes us this one. Otherwise it is a "maybe": it may or may not have been kept."""
        return self.status is not None and 200 <= self.status < 300


class Ledger(Protocol):
    """Where the sender writes; called from several threads."""

    def record(self, entry: LedgerEntry) -> None:
        """Return when the entry is as durable as this ledger makes it."""
        ...


class MemoryLedger:
    """A ledger for a check within the same process."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []

    def record(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)  # one append is atomic


class FileLedger:
    """JSON lines, one an attempt: {"number", "event", "store", "body_base64", "status", "attempt"}. Appends to what is there.

    fsync: each line survives a power cut, at the price of one sync (about half a millisecond) an answer. Without it, each
    line survives the death of this process only.
    An unfinished last line, which nobody has counted, is cut off first.
    Raises OSError where the file cannot be opened or written, ValueError where its last line is of something else.
    """

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self._fsync = fsync
        self._lock = Lock()
        # Unbuffered: a line is with the operating system as soon as it is written.
        self._file = path.open("ab+", buffering=0)
        try:
            self._cut_unfinished_line(path)
        except BaseException:
            self._file.close()
            raise

    def record(self, entry: LedgerEntry) -> None:
        line = json.dumps(
            {
                "number": entry.number,
                "event": entry.event,
                "store": entry.store,
                "body_base64": base64.b64encode(entry.body).decode("ascii"),
                "status": entry.status,
                "attempt": entry.attempt,
            }
        )
        rest = memoryview(line.encode("ascii") + b"\n")
        with self._lock:
            while rest:  # a raw file may take a part only
                rest = rest[self._file.write(rest) :]
            if self._fsync:
                os.fsync(self._file.fileno())

    def _cut_unfinished_line(self, path: Path) -> None:
        end = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(max(0, end - _LONGEST_LINE))
        tail = self._file.read(end - start) or b""
        unfinished = tail[tail.rfind(b"\n") + 1 :]
        if not unfinished:
            return
        if unfinished[: len(_LINE_BEGINS)] != _LINE_BEGINS[: len(unfinished)]:
            raise ValueError(f"{path} is no ledger: it ends in {unfinished[:40]!r}")
        self._file.truncate(end - len(unfinished))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def read_ledger(path: Path) -> Iterator[LedgerEntry]:
    """Yield the entries in the order of writing.

    A last line without its newline is left out: its writer died over it, before anything was counted.
    Raises ValueError, naming the line, for anything else that is not an entry; OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
                yield LedgerEntry(
                    number=entry["number"],
                    event=entry["event"],
                    store=entry["store"],
                    body=base64.b64decode(entry["body_base64"], validate=True),
                    status=entry["status"],
                    attempt=entry["attempt"],
                )
            except (ValueError, KeyError, TypeError) as broken:
                raise ValueError(f"line {line_number} of {path} is not a ledger entry: {broken!r}") from broken


def acked_webhooks(entries: Iterable[LedgerEntry]) -> set[tuple[str, str, bytes]]:
    """Return the distinct (store, event, body) that got a 2xx at least once: what `witness.recompute` takes."""
    return {(entry.store, entry.event, entry.body) for entry in entries if entry.acked}
