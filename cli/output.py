"""What commands print: results on stdout, talk on stderr. The only place that prints."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

PLAIN_LINE_EVERY_S = 2.0
ProgressUpdate = Callable[[int, int, str], None]


def talk(message: str) -> None:
    """Print a line for the person at the keyboard."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def result(text: str) -> None:
    """Print a result."""
    print(text, flush=True)  # noqa: T201


def result_json(value: object) -> None:
    """Print a result as one JSON object on one line."""
    result(msgspec.json.encode(value).decode())


def result_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows under headings, as wide as they need; None as a dash."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max([len(column), *(len(line[i]) for line in cells)]) for i, column in enumerate(columns)]
    for line in [list(columns), *cells]:
        result("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@contextmanager
def progress(description: str) -> Iterator[ProgressUpdate]:
    """Yield update(done, total, note): a bar where stderr is a terminal, a plain line every two seconds elsewhere."""
    if not sys.stderr.isatty():
        yield _plain_progress(description)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None, note="")

        def update(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def _plain_progress(description: str) -> ProgressUpdate:
    last_s = time.monotonic()

    def update(done: int, total: int, note: str) -> None:
        nonlocal last_s
        if done >= total or time.monotonic() - last_s >= PLAIN_LINE_EVERY_S:
            last_s = time.monotonic()
            talk(f"{description}: {done}/{total} {note}".rstrip())

    return update
