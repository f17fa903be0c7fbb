"""Logs: one event a line on stderr; JSON for machines, columns for a terminal."""

import atexit
import logging
import os
import queue
import sys
import threading
import time
from typing import Final, Literal

import structlog

LogFormat = Literal["auto", "json", "console"]

QUEUE_LINES: Final = 10_000
FLUSH_S: Final = 1.0
"""How long the end of the process waits for a reader of stderr."""
_RETRY_S: Final = 0.05


class Background(logging.Handler):
    """Writes lines to a file descriptor on a thread of its own; what does not fit into the queue is dropped and counted.

    Measured: a pipe that nobody reads takes 64 KiB, some two hundred lines. Then whoever logs waits for ever; in an event loop
    that is every client, while probes on other threads see nothing.
    """

    def __init__(self, descriptor: int, queue_lines: int = QUEUE_LINES) -> None:
        """descriptor: it is written to directly. A buffered stream has a lock, which a blocked thread would take to the grave."""
        super().__init__()
        self._descriptor = descriptor
        self._queue_lines = queue_lines
        # Its put, unlike queue.Queue's, may be interrupted by a signal handler that logs too.
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._taken = self._refused = 0  # by those who log, under the handler's lock
        self._done = self._lost = self._told = 0  # by the thread
        threading.Thread(target=self._write, name="log", daemon=True).start()
        atexit.register(self.wait_written, FLUSH_S)

    @property
    def dropped(self) -> int:
        """Lines that nobody will read."""
        return self._refused + self._lost

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; never waits."""
        if self._lines.qsize() >= self._queue_lines:
            self._refused += 1
            return
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 - as in logging's own handlers: a line that cannot be made stops nobody
            self._refused += 1
            return
        self._taken += 1
        self._lines.put(line)

    def wait_written(self, timeout_s: float) -> bool:
        """Wait until all that was taken is written, and return whether it is."""
        until_s = time.monotonic() + timeout_s
        while self._done < self._taken:
            if time.monotonic() >= until_s:
                return False
            time.sleep(0.005)
        return True

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode("utf-8", "backslashreplace")

    def _write(self) -> None:
        while True:
            if not self._put_out(self._lines.get()):
                self._lost += 1
            elif self.dropped > self._told and self._lines.qsize() <= self._queue_lines // 2:
                self._tell(self.dropped)
            self._done += 1

    def _tell(self, dropped: int) -> None:
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "log_lines_dropped", None, None)
        record.__dict__.update(lines=dropped - self._told, hint="whoever reads stderr is too slow")
        if self._put_out(self._line(record)):
            self._told = dropped

    def _put_out(self, line: bytes) -> bool:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # somebody who shares the pipe has made it so
                time.sleep(_RETRY_S)
            except OSError:  # nobody reads it any more, or its disk is full
                return False
        return True


def lines_dropped() -> int:
    """Return how many lines of this process's log were dropped."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, Background))


def configure(level: str = "INFO", log_format: LogFormat = "auto", *, in_background: bool = False) -> None:
    """Send structlog's and the standard library's logs to stderr.

    level: a name of the standard library's levels. log_format: "auto" is JSON unless stderr is a terminal.
    Every line has timestamp (UTC, ISO 8601), level, logger, event. A newline or escape in a value stays inside its JSON
    string, so nobody can forge a line. in_background: nobody waits for whoever reads stderr, and lines may be dropped: for
    processes that serve.
    """
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = Background(sys.stderr.fileno()) if in_background else logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns for every request that waits for a thread
