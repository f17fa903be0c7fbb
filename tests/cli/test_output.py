"""Results on stdout for pipes, talk on stderr for people."""

import io
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kinguin_streams.cli import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_results_and_talk_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    output.result("a result")
    output.talk("some talk")
    assert capsys.readouterr() == ("a result\n", "some talk\n")


def test_json_is_one_line_that_any_parser_reads(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "two\nlines \U0001f4e6", "none": None, "list": [1, 2.5, True]}
    output.result_json(value)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == value


def test_a_table_is_as_wide_as_its_cells_and_no_line_ends_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"store": "default", "orders": 12, "of": ["a", "b"]}, {"store": "s", "orders": None}]
    output.result_table(("store", "orders", "of"), rows)
    assert capsys.readouterr().out.splitlines() == ["store    orders  of", "default  12      a,b", "s        -       -"]


def test_an_empty_table_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    output.result_table(("store", "orders"), [])
    assert capsys.readouterr().out == "store  orders\n"


def test_without_a_terminal_progress_is_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: now_s))
    with output.progress("fetching") as update:
        for done in range(1, 41):
            now_s += 0.125  # 16 updates in each two seconds
            update(done, 40, "MB")
    assert capsys.readouterr() == ("", "fetching: 16/40 MB\nfetching: 32/40 MB\nfetching: 40/40 MB\n")


def test_on_a_terminal_progress_is_a_bar_that_goes_away_and_stdout_stays_clean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with output.progress("fetching") as update:
        update(1, 2, "first.jar")
        update(2, 2, "second.jar")
    assert "fetching" in terminal.getvalue()
    assert capsys.readouterr().out == ""
