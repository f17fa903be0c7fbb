"""What `up` shows while it runs: a table that changes in place on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from kinguin_streams.cli.output import talk
from kinguin_streams.consumers.reader import BusyProduct

PLAIN_LINE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """One look at the running stack. sent is None if nobody simulates."""

    sent: int | None
    received: int
    acked: int
    orders_by_status: Mapping[str, int]
    busiest_products: Sequence[BusyProduct]


class LiveView:
    """Shows numbers until it is closed."""

    def __init__(self) -> None:
        terminal = sys.stderr.isatty()
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True) if terminal else None
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, numbers: Numbers) -> None:
        """Show these numbers now, or leave them if the last line is only seconds old."""
        if self._live is not None:
            self._live.update(_table(numbers), refresh=True)
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + PLAIN_LINE_EVERY_S
            talk(_line(numbers))


def _line(numbers: Numbers) -> str:
    sent = "" if numbers.sent is None else f"sent {numbers.sent}, "
    orders = ", ".join(f"{count} {status}" for status, count in numbers.orders_by_status.items()) or "none yet"
    return f"{sent}in {numbers.received}, acked {numbers.acked}; orders: {orders}"


def _table(numbers: Numbers) -> Table:
    table = Table(title="kinguin-streams", title_justify="left", show_header=False, box=None, pad_edge=False)
    if numbers.sent is not None:
        table.add_row("sent", str(numbers.sent))
    table.add_row("events in", str(numbers.received))
    table.add_row("acknowledged", str(numbers.acked))
    for status, count in numbers.orders_by_status.items():
        table.add_row(f"orders {status}", str(count))
    for product in numbers.busiest_products:
        table.add_row(f"product {product.kinguin_id}", f"{product.changes} changes")
    return table
