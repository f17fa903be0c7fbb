"""The spool: a folder of files, one of them this process's own, the others left behind by processes that have died.

Who starts, or looks around later, takes over every file whose owner is gone: its lock is free. Processes may so share a
folder, and what one leaves behind another drains.
"""

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import structlog
import uuid_utils.compat

from kinguin_streams.cluster.durable_file import sync_folder
from kinguin_streams.cluster.publisher import Report
from kinguin_streams.ingress.settings import SpoolSettings
from kinguin_streams.ingress.spool_file import (
    CLOSE_WAIT_S,
    SUFFIX,
    Contents,
    FileTaken,
    Spooled,
    SpoolFailed,
    SpoolFile,
    asked_retry_of,
    look,
)
from kinguin_streams.schemas.outgoing import OutgoingRecord
from kinguin_streams.telemetry.operator_error import OperatorError

log = structlog.get_logger()

ADOPT_EVERY_S: Final = 10.0
OPEN_AGAIN_AFTER_S: Final = 5.0
"""When a file that could not be opened is tried again: a lack of descriptors or of room is over some day."""
# Filesystems that a restart of the machine, or of the container, empties.
VOLATILE: Final = frozenset({"tmpfs", "ramfs", "overlay", "aufs"})
# For each file, after one whose disk hangs.
_CLOSE_AT_LEAST_S: Final = 0.2
_EMPTY: Final = Contents(records=0, bytes=0, oldest_ms=None, refused=0)


class Spool:
    """What one process keeps on disk for Kafka. Safe to use from any thread."""

    def __init__(self, settings: SpoolSettings) -> None:
        """Open the folder, take over what nobody owns, and prove that it can be written.

        Raises OperatorError("spool_unusable") or ("spool_not_durable").
        """
        self._settings = settings
        self._adopted: list[SpoolFile] = []
        self._unreadable: dict[Path, float] = {}
        """Until when each is left alone: for ever, if it is no database."""
        self._changing = threading.Lock()
        self.arrived = threading.Event()
        """Set when there may be something to drain."""
        try:
            _make_folder(settings.path)
            _check_durable(settings)
            self._own = self._choose_own()
        except (OSError, sqlite3.Error) as error:
            raise OperatorError(
                "spool_unusable",
                f"The spool folder {settings.path} cannot be used: {error}.",
                "Set KINGUIN_SPOOL__PATH to a folder that this user can write, or KINGUIN_SPOOL__ENABLED=false.",
            ) from error
        self.adopt()
        if self.contents.records:
            log.warning("spool_has_leftovers", records=self.contents.records, path=str(settings.path))
            self.arrived.set()

    @property
    def timeout_s(self) -> float:
        """How long a request waits for the disk."""
        return self._settings.timeout_s

    @property
    def max_bytes(self) -> int:
        """Beyond how many bytes no event is taken."""
        return self._settings.max_bytes

    @property
    def contents(self) -> Contents:
        """What waits in all files of this process."""
        found = _EMPTY
        for file in self.files():
            more = file.contents
            times = [at_ms for at_ms in (found.oldest_ms, more.oldest_ms) if at_ms is not None]
            found = Contents(
                records=found.records + more.records,
                bytes=found.bytes + more.bytes,
                oldest_ms=min(times, default=None),
                refused=found.refused + more.refused,
            )
        return found

    @property
    def waiting(self) -> int:
        """How many records wait for Kafka, without those that it has refused."""
        contents = self.contents
        return contents.records - contents.refused

    @property
    def unsettled(self) -> int:
        """How many records wait for Kafka, or for becoming a dead letter."""
        return self.waiting + sum(file.due_dead_letters for file in self.files() if file.failure is None)

    @property
    def unreadable(self) -> frozenset[Path]:
        """The files that could not be taken over, and those of this process that cannot be read on."""
        return frozenset({*self._unreadable, *(file.path for file in self.files() if file.failure is not None)})

    @property
    def is_trusted(self) -> bool:
        """Whether no write has failed in a way after which the disk may say what it likes."""
        return self._own.failure is None

    def trouble(self) -> str | None:
        """Return why no event can be taken now, or None if one can."""
        if self._own.failure is not None:
            return self._own.failure
        contents = self._own.contents
        if contents.bytes >= self._settings.max_bytes:
            return f"{contents.bytes} bytes are spooled, and KINGUIN_SPOOL__MAX_BYTES is {self._settings.max_bytes}"
        age_s = 0.0 if contents.oldest_ms is None else time.time() - contents.oldest_ms / 1000
        if age_s > self._settings.max_age_s:
            return f"the oldest event has waited for {age_s:.0f} s, longer than KINGUIN_SPOOL__MAX_AGE_S"
        if not self._own.has_reserve:
            return f"the disk under {self._settings.path} is full"
        return None

    def append(self, record: OutgoingRecord, report: Report | None = None) -> "Future[int]":
        """Begin to put the record on disk; return what is done once it is there. Raises SpoolFailed, and so may that.

        report: what Kafka is still to say about this record, if it has been handed over already. Delivered after all, it
        is dropped; else it is drained like the others.
        """
        trouble = self.trouble()
        if trouble is not None:
            raise SpoolFailed("failed" if self._own.failure else "full", trouble)
        file = self._own
        done = file.append(record, self.timeout_s, awaited=report is not None)
        done.add_done_callback(lambda appended: self._appended(file, appended, report))
        return done

    def _appended(self, file: SpoolFile, appended: "Future[int]", report: Report | None) -> None:
        if appended.exception() is not None:
            return
        spooled_id = appended.result()
        if report is None:
            self.arrived.set()
        else:
            report.add_done_callback(lambda late: self._report_came(file, spooled_id, late))

    def _report_came(self, file: SpoolFile, spooled_id: int, late: Report) -> None:
        file.report_came(spooled_id, delivered=late.result() is None)
        self.arrived.set()

    def files(self) -> list[SpoolFile]:
        """Return the files of this process, those of the dead first: they are older."""
        with self._changing:
            return [*self._adopted, self._own]

    def oldest(self, count: int, held_up: Collection[str] = ()) -> tuple[SpoolFile, list[Spooled]] | None:
        """Return the oldest records of the first file that has any waiting. One that cannot be read holds up no other.

        held_up: topics whose records are passed over.
        """
        for file in self.files():
            with contextlib.suppress(SpoolFailed):
                if file.failure is None and (waiting := file.oldest(count, held_up)):
                    return file, waiting
        return None

    def adopt(self) -> None:
        """Take over every file that nobody owns, and give back those of them that are empty by now."""
        while (file := self._take_over_one()) is not None:
            self._adopt(file)
        with self._changing:
            drained = [file for file in self._adopted if file.contents.records == 0]
            self._adopted = [file for file in self._adopted if file not in drained]
        for file in drained:
            file.close()

    def _adopt(self, file: SpoolFile) -> None:
        with self._changing:
            self._adopted.append(file)
        log.warning("spool_file_adopted", path=str(file.path), records=file.contents.records)
        self.arrived.set()

    def _choose_own(self) -> SpoolFile:
        """Return an empty file, an old one if there is one: by its age or size another might take nothing more."""
        while (file := self._take_over_one()) is not None:
            if file.contents.records == 0:
                return file
            self._adopt(file)
        try:
            return SpoolFile(_new_path(self._settings.path))
        except (OSError, sqlite3.Error):
            # A full disk has no room for another, and still has to be drained.
            if not self._adopted:
                raise
            return self._adopted.pop()

    def retry_where_asked(self) -> None:
        """Let wait for Kafka again what it has refused, in the files of this process where an operator asks for that."""
        for file in self.files():
            asked = asked_retry_of(file.path)
            if not asked.exists():
                continue
            try:
                # First: a retry that Kafka refuses again must not be repeated for ever.
                asked.unlink()
                retried = file.retry()
            except (OSError, SpoolFailed) as error:
                log.error("spool_not_retried", path=str(file.path), error=str(error))
                continue
            log.warning("spool_retried", path=str(file.path), records=retried)
            self.arrived.set()

    def _take_over_one(self) -> SpoolFile | None:
        for path in spool_paths(self._settings.path):
            if time.monotonic() < self._unreadable.get(path, 0.0):
                continue
            try:
                file = SpoolFile(path)
            except FileTaken:
                continue  # by a living process, or by this one
            except (OSError, sqlite3.Error) as error:
                if path not in self._unreadable:  # once
                    hint = "the file is left as it is; `kinguin-streams spool export` may still read it"
                    log.error("spool_file_unreadable", path=str(path), error=str(error), hint=hint)
                is_none = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB
                self._unreadable[path] = math.inf if is_none else time.monotonic() + OPEN_AGAIN_AFTER_S
            else:
                self._unreadable.pop(path, None)
                return file
        return None

    def close(self) -> None:
        """Give all files back; those with nothing in them are deleted. Ends in time, whatever the disk does."""
        until_s = time.monotonic() + CLOSE_WAIT_S
        for file in self.files():
            file.close(max(_CLOSE_AT_LEAST_S, until_s - time.monotonic()))
        left = self.contents
        if left.records:
            log.warning("spool_left", records=left.records, path=str(self._settings.path))


def _make_folder(folder: Path) -> None:
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for each in new:
        sync_folder(each.parent)


def spool_paths(folder: Path) -> Iterator[Path]:
    """Yield the spool files of a folder, whoever owns them."""
    yield from sorted(folder.glob(f"*{SUFFIX}"))


def survey(folder: Path) -> tuple[dict[Path, Contents], dict[Path, sqlite3.Error]]:
    """Return what is in each spool file of a folder, whoever owns it, and what is wrong with those that cannot be read."""
    readable: dict[Path, Contents] = {}
    unreadable: dict[Path, sqlite3.Error] = {}
    for path in spool_paths(folder):
        try:
            readable[path] = look(path)
        except sqlite3.Error as error:
            unreadable[path] = error
    return readable, unreadable


def _new_path(folder: Path) -> Path:
    return folder / f"{uuid_utils.compat.uuid7()}{SUFFIX}"


def _check_durable(settings: SpoolSettings) -> None:
    kind = _filesystem(settings.path.resolve(), _mounts())
    if kind not in VOLATILE:
        return
    if settings.require_durable:
        raise OperatorError(
            "spool_not_durable",
            f"The spool folder {settings.path} is on {kind}: a restart would lose what was acknowledged.",
            "Mount a volume there and set KINGUIN_SPOOL__PATH to it, or set KINGUIN_SPOOL__REQUIRE_DURABLE=false.",
        )
    log.warning("spool_not_durable", path=str(settings.path), filesystem=kind, hint="a restart may empty it")


def _mounts() -> Mapping[Path, str]:
    """Return where which kind of filesystem is mounted; nothing where the system does not say."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields = [line.split(" ") for line in lines]
    return {Path(where.replace("\\040", " ")): kind for _, where, kind, *_ in fields}


def _filesystem(path: Path, mounts: Mapping[Path, str]) -> str | None:
    return next((mounts[above] for above in (path, *path.parents) if above in mounts), None)
