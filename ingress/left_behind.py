"""A small file beside the spool, by which a process tells the next one what it knows. Never a reason not to serve."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog

from kinguin_streams.cluster.durable_file import replace_whole

log = structlog.get_logger()

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class LeftBehind(Generic[T]):
    """What is in the file, as JSON. kind: its type. named: how lines of the log call it."""

    path: Path
    kind: type[T]
    named: str

    def read(self) -> T | None:
        """Return what an earlier process has written. None if there is nothing, or, with a line in the log, nothing readable."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=self.kind)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning(f"{self.named}_unreadable", path=str(self.path), error=str(error))
            return None

    def write(self, content: T) -> None:
        """Return once it is on disk, whole. If the disk does not take it, the log says so, and what was there stays."""
        try:
            replace_whole(self.path, msgspec.json.encode(content) + b"\n")
        except OSError as error:
            log.warning(f"{self.named}_not_written", path=str(self.path), error=str(error))
