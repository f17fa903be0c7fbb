"""Since when each store has been silent, kept beside the spool: a restart breaks no silence.

Counted from its start only, a store would never be silent for six hours where ingresses restart more often than that.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from kinguin_streams.ingress.left_behind import LeftBehind
from kinguin_streams.schemas.events import StoreName

FILE_NAME: Final = "last-seen.json"
WRITE_EVERY_S: Final = 60.0
STOP_S: Final = 0.5
"""How long a stop waits for the last write: on a disk that hangs it is given up."""
_FORMAT: Final = 1

SilentSince = Mapping[tuple[StoreName, str], float]
"""Store and event to the last one, or to when somebody began to wait for the first one. Seconds since 1970."""


class _Content(msgspec.Struct, frozen=True, kw_only=True):
    format: int = _FORMAT
    silent_since_ms: dict[str, dict[str, Annotated[int, msgspec.Meta(ge=0)]]]
    """By store and event."""


class LastSeenFile:
    """The file, and a thread that writes it: a disk that hangs keeps nobody else waiting.

    Processes that share a folder share it: the youngest of each counts.
    """

    def __init__(self, folder: Path) -> None:
        self._file = LeftBehind(folder / FILE_NAME, _Content, "last_seen")
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self) -> SilentSince:
        """Return what earlier processes knew; nothing if there is no file that can be read."""
        return {
            (StoreName(store), event): at_ms / 1000
            for store, of_store in self._on_disk().items()
            for event, at_ms in of_store.items()
        }

    def write(self, now: SilentSince) -> None:
        """Note it, if that is news. A store that is not named any more is forgotten."""
        before = self._on_disk()
        youngest: dict[str, dict[str, int]] = {}
        for (store, event), at_s in now.items():
            at_ms = max(round(at_s * 1000), before.get(store, {}).get(event, 0))
            youngest.setdefault(store, {})[event] = at_ms
        if youngest != before:
            self._file.write(_Content(silent_since_ms=youngest))

    def _on_disk(self) -> dict[str, dict[str, int]]:
        content = self._file.read()
        if content is None or content.format != _FORMAT:
            return {}
        now_ms = time.time_ns() // 1_000_000
        # What is from the future was written by another clock: silence is not negative, and the youngest would stay for ever.
        return {
            store: {event: at_ms for event, at_ms in of_store.items() if at_ms <= now_ms}
            for store, of_store in content.silent_since_ms.items()
        }

    def start(self, silent_since: Callable[[], SilentSince]) -> None:
        """Begin to write what it returns, once a minute."""
        self._thread = threading.Thread(target=self._keep, args=(silent_since,), name="last-seen", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write it once more, and end."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _keep(self, silent_since: Callable[[], SilentSince]) -> None:
        ends = False
        while not ends:
            ends = self._ends.wait(WRITE_EVERY_S)
            self.write(silent_since())
