"""A replay's receipt: what was planned, how far it is, what came of it. A file of JSON lines that only ever grows.

Every line is on the disk before anybody acts on it. A process that dies in the middle of one leaves a line without its end,
and that one is cut: it stood for nothing yet. Who writes holds an flock, so that a replay has one owner.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from kinguin_streams.replay.checksum import Tally
from kinguin_streams.replay.plan import Plan, State
from kinguin_streams.schemas.instants import to_rfc3339
from kinguin_streams.telemetry.operator_error import OperatorError

SUFFIX = ".jsonl"
_AT_REST = frozenset({"interrupted", "written", "ended", "proof"})
Positions = Mapping[tuple[str, int], int]
"""(topic, partition) to the next offset that is to be read."""
Mark = dict[str, Any]
"""Where a target stood when all that it had been given was durable, as JSON. Only the target reads it, but for DEAD_LETTERED."""
DEAD_LETTERED: Final = "dead_lettered"
"""In the mark of a consumer: how many of the records that it was given have become dead letters."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Everything before `positions` has been read, and what was selected of it is durable in the target."""

    positions: dict[str, int]
    """"topic/partition" to the next offset."""
    written: Tally = Tally()
    filtered: Tally = Tally()
    vanished: Tally = Tally()
    """Of the written: what the source has lost since, found in the target by a replay that was resumed."""
    mark: Mark = {}

    def offsets(self) -> dict[tuple[str, int], int]:
        """Return the positions by topic and partition."""
        return {split_partition(name): offset for name, offset in self.positions.items()}


def partition_name(topic: str, partition: int) -> str:
    """Return e.g. "kinguin.order.status/3"."""
    return f"{topic}/{partition}"


def split_partition(name: str) -> tuple[str, int]:
    """Return what partition_name was made of. No topic's name has a slash."""
    topic, _, partition = name.rpartition("/")
    return topic, int(partition)


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Records of a window that could not be read: offsets from `start` up to `end`."""

    topic: str
    partition: int
    start: int
    end: int
    why: str = "retention was faster than the replay"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was found by reading the target back, beside what was written."""

    written: Tally
    found: Tally
    target: str

    @property
    def holds(self) -> bool:
        """Whether the target holds exactly what was written, each record once."""
        return self.written == self.found


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a receipt says."""

    path: Path
    plan: Plan
    state: State
    checkpoint: Checkpoint | None = None
    gaps: tuple[Gap, ...] = ()
    undecodable: int = 0
    proof: Proof | None = None
    failure: str | None = None
    runs: int = 0
    """How often it was begun or resumed."""
    at_rest: bool = False
    """Nothing was given to the target after the last checkpoint: its process came to an end by itself, or was asked to."""


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    kind: str
    at: str = ""
    plan: Plan | None = None
    checkpoint: Checkpoint | None = None
    gap: Gap | None = None
    proof: Proof | None = None
    undecodable: int = 0
    why: str | None = None
    process_id: int = 0


class Receipt:
    """A receipt that this process owns, until it is closed or the process ends."""

    def __init__(self, path: Path, file_descriptor: int) -> None:
        self.path = path
        self._fd = file_descriptor

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> Self:
        """Make a receipt whose first line is the plan. Raises OperatorError("receipt_not_writable")."""
        path = folder / f"{plan.replay_id}{SUFFIX}"
        with _writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            receipt = cls(path, fd)
            receipt._append(_Line(kind="plan", at=_now(), plan=plan))
            _sync_folder(folder)
        return receipt

    @classmethod
    def open(cls, path: Path) -> Self:
        """Take over a receipt that nobody owns, and cut a last line that was never finished.

        Raises OperatorError: "no_receipt", "receipt_owned" while its process lives, "receipt_not_writable".
        """
        with _writing(path):
            try:
                fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise _no_receipt(path) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise OperatorError(
                    "receipt_owned",
                    f"Another process is running the replay of {path}.",
                    "Let it finish, or stop it; a process that was killed owns nothing.",
                ) from error
            content = path.read_bytes()
            whole = len(content) - len(_torn(content))
            if whole < len(content):
                os.ftruncate(fd, whole)
                os.fsync(fd)
        return cls(path, fd)

    def contents(self) -> Contents:
        """Return what it says so far."""
        return read(self.path)

    def begun(self) -> None:
        """Note that a process begins, or goes on, with it."""
        self._append(_Line(kind="begun", at=_now(), process_id=os.getpid()))

    def checkpoint(self, checkpoint: Checkpoint, undecodable: int = 0) -> None:
        """Note progress."""
        self._append(_Line(kind="checkpoint", at=_now(), checkpoint=checkpoint, undecodable=undecodable))

    def gap(self, gap: Gap) -> None:
        """Note that retention was faster."""
        self._append(_Line(kind="gap", at=_now(), gap=gap))

    def interrupted(self) -> None:
        """Note that somebody stopped it; the last checkpoint is where it goes on."""
        self._append(_Line(kind="interrupted", at=_now()))

    def failed(self, why: str) -> None:
        """Note why it stopped."""
        self._append(_Line(kind="failed", at=_now(), why=why))

    def written(self) -> None:
        """Note that the last checkpoint is the end: what is left is the proof."""
        self._append(_Line(kind="written", at=_now()))

    def ended(self) -> None:
        """Note that it is done, of a target that cannot be read back."""
        self._append(_Line(kind="ended", at=_now()))

    def proven(self, proof: Proof) -> None:
        """Note what reading back has found."""
        self._append(_Line(kind="proof", at=_now(), proof=proof))

    def _append(self, line: _Line) -> None:
        with _writing(self.path):
            data = msgspec.json.encode(line) + b"\n"
            while data:  # a full disk may take a part: the rest raises, and the part is cut by whoever comes next
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)

    def close(self) -> None:
        """Give it up; another process may take it over."""
        os.close(self._fd)


def read(path: Path) -> Contents:
    """Return what a receipt says, also of a replay that is running. Changes nothing.

    Raises OperatorError: "no_receipt", "receipt_damaged" if a line other than a torn last one is none of ours.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise _no_receipt(path) from error
    found: dict[str, Any] = {}
    gaps: list[Gap] = []
    runs = undecodable = 0
    state: State = "interrupted"
    at_rest = False
    for number, line in enumerate(content.removesuffix(_torn(content)).splitlines(), start=1):
        try:
            said = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise OperatorError(
                "receipt_damaged",
                f"{path}: line {number} is no line of a receipt: {error}.",
                "Restore the file from a backup, or make the replay anew; what it has written carries its replay-id.",
            ) from error
        at_rest = said.kind in _AT_REST
        match said.kind:
            case "begun":
                runs += 1
                state = "interrupted"
            case "failed":
                state, found["failure"] = "failed", said.why
            case "interrupted":
                state = "interrupted"
            case "written":
                state = "written"
            case "ended":
                state = "done"
            case "proof":
                state = "done" if said.proof is not None and said.proof.holds else "differs"
        if said.gap is not None:
            gaps.append(said.gap)
        if said.checkpoint is not None:
            undecodable = said.undecodable
        found |= {
            name: value
            for name, value in (("plan", said.plan), ("checkpoint", said.checkpoint), ("proof", said.proof))
            if value is not None
        }
    if "plan" not in found:
        raise OperatorError(
            "receipt_empty",
            f"{path} holds no plan: its process died before it wrote anything, here or to the target.",
            "Remove the file and make the replay anew.",
        )
    return Contents(
        path=path, state=state, gaps=tuple(gaps), runs=runs, undecodable=undecodable, at_rest=at_rest, **found
    )


def find(folder: Path, name: str) -> Path:
    """Return the receipt that a person means: a path, a replay's id, or the first characters of the only such one.

    Raises OperatorError: "no_receipt", "receipt_ambiguous".
    """
    if os.sep in name or name.endswith(SUFFIX):
        path = Path(name)
        return path if path.exists() or not (folder / name).exists() else folder / name
    found = sorted(folder.glob(f"{_literal(name)}*{SUFFIX}"))
    if len(found) > 1:
        raise OperatorError(
            "receipt_ambiguous", f"{len(found)} receipts in {folder} begin with {name}.", "Give more of the id."
        )
    if not found:
        raise _no_receipt(folder / f"{name}{SUFFIX}")
    return found[0]


def _literal(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _torn(content: bytes) -> bytes:
    """Return what is left of a last line that was not written to its end."""
    if not content:
        return b""
    last = content[content.rfind(b"\n", 0, len(content) - 1) + 1 :]
    try:
        msgspec.json.decode(last, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return last
    return b"" if last.endswith(b"\n") else last


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(
            "receipt_not_writable",
            f"The receipt {path} cannot be written: {error.strerror or error}.",
            "Free space, or set KINGUIN_REPLAY__RECEIPTS to a folder on a disk with room. What was noted before holds.",
        ) from error


def _no_receipt(path: Path) -> OperatorError:
    return OperatorError(
        "no_receipt",
        f"There is no receipt {path}.",
        "`ls` the folder of KINGUIN_REPLAY__RECEIPTS; --execute prints it.",
    )


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _now() -> str:
    return to_rfc3339(round(time.time() * 1000))
