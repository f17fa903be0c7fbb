"""The ledger file that crash tests trust."""

import json
import os
from pathlib import Path

import pytest

from kinguin_streams.simulator.ledger import FileLedger, LedgerEntry, acked_webhooks, read_ledger

ACKED = LedgerEntry(7, "order.status", "shop-2", b'{"orderId":"P1"}', 204, 2)
MAYBE = LedgerEntry(8, "product.update", "default", b"\xff\x00 not text", None, 1)


@pytest.mark.parametrize("fsync", [True, False])
def test_what_is_recorded_can_be_read_by_others_at_once(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "ledger.jsonl"
    with FileLedger(path, fsync=fsync) as ledger:
        ledger.record(ACKED)
        assert list(read_ledger(path)) == [ACKED]
        ledger.record(MAYBE)
        assert list(read_ledger(path)) == [ACKED, MAYBE]


def test_a_line_is_the_documented_object(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with FileLedger(path) as ledger:
        ledger.record(ACKED)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "number": 7,
            "event": "order.status",
            "store": "shop-2",
            "body_base64": "eyJvcmRlcklkIjoiUDEifQ==",
            "status": 204,
            "attempt": 2,
        }
    ]


def test_each_line_is_synced_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines_at_sync: list[int] = []
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setattr(os, "fsync", lambda _fd: lines_at_sync.append(len(path.read_bytes().splitlines())))
    with FileLedger(path, fsync=True) as ledger:
        ledger.record(ACKED)
        ledger.record(MAYBE)
    assert lines_at_sync == [1, 2]


def test_a_second_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for entry in (ACKED, MAYBE):
        with FileLedger(path) as ledger:
            ledger.record(entry)
    assert list(read_ledger(path)) == [ACKED, MAYBE]


def test_half_a_last_line_is_left_out_and_the_next_run_does_not_join_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with FileLedger(path) as ledger:
        ledger.record(ACKED)
        ledger.record(MAYBE)
    path.write_bytes(path.read_bytes()[:-5])
    assert list(read_ledger(path)) == [ACKED]
    with FileLedger(path) as ledger:
        ledger.record(MAYBE)
    assert list(read_ledger(path)) == [ACKED, MAYBE]


def test_a_file_that_is_no_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("first\nsecond, without an end")
    with pytest.raises(ValueError, match="no ledger"):
        FileLedger(path)
    assert path.read_text() == "first\nsecond, without an end"


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"number": 1}\n')
    with pytest.raises(ValueError, match="line 1 of"):
        list(read_ledger(path))


def test_only_a_2xx_is_owed() -> None:
    entries = [ACKED, ACKED, MAYBE, LedgerEntry(9, "order.status", "default", b"x", 503, 1)]
    assert acked_webhooks(entries) == {("shop-2", "order.status", b'{"orderId":"P1"}')}
