"""`kinguin-streams state`: what people and scripts read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kinguin_streams.cli import state
from kinguin_streams.cli.main import run
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.schemas.events import Event, StoreName
from tests.consumers.databases import STATUS_TOPIC, advance, state_settings
from tests.consumers.deliveries import START_MS, at, order_complete, order_status, product_update, received


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # no kinguin-streams.toml of the developer's
    monkeypatch.setenv("KINGUIN_STATE__URL", state_settings(tmp_path).url)
    return tmp_path


def fill(folder: Path, projection: Projection, *events: Event) -> None:
    with capture_logs():
        store = StateStore(state_settings(folder), projection)
    store.apply([received(event, offset) for offset, event in enumerate(events)], [advance("any", None, len(events))])
    store.close()


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Any]:
    assert run(list(arguments)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_dump_orders_is_one_object_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(
        folder,
        ORDER_STATE,
        order_status("canceled", 2),
        order_complete(2),
        order_status("processing", 1, order_id="B", external_id=None, store=StoreName("another")),
        order_status("processing", order_id="C", updated_at_ms=0),
    )
    assert lines(capsys, "state", "dump", "orders", "--format", "json") == [
        {
            "store": "another",
            "orderId": "B",
            "orderExternalId": None,
            "status": "processing",
            "updatedAt": "2024-01-01T00:01:00.000Z",
            "completedAt": None,
            "facts": 1,
            "contradictions": [],
            "setAside": 0,
            "truncated": False,
        },
        {
            "store": "default",
            "orderId": "C",
            "orderExternalId": None,
            "status": None,
            "updatedAt": None,
            "completedAt": None,
            "facts": 0,
            "contradictions": [],
            "setAside": 1,
            "truncated": False,
        },
        {
            "store": "default",
            "orderId": "PHS84FJAG5U",
            "orderExternalId": "AL2FEEHOO2OHF",
            "status": "canceled",
            "updatedAt": "2024-01-01T00:02:00.000Z",
            "completedAt": "2024-01-01T00:02:00.000Z",
            "facts": 2,
            "contradictions": ["two_outcomes_at_once"],
            "setAside": 0,
            "truncated": False,
        },
    ]


def test_dump_products_is_one_object_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(
        folder,
        PRODUCT_CHANGES,
        product_update(1, qty=5, price="9.900000", offers=("a",)),
        product_update(2, qty=4),
        product_update(0, kinguin_id=7, received_at_ms=START_MS - 10**9),
    )
    assert lines(capsys, "state", "dump", "products", "--format", "json") == [
        {
            "store": "default",
            "kinguinId": 7,
            "productId": None,
            "updatedAt": None,
            "changes": 0,
            "qty": None,
            "textQty": None,
            "price": None,
            "cheapestOfferId": None,
            "asOf": {},
            "setAside": 1,
        },
        {
            "store": "default",
            "kinguinId": 1949,
            "productId": "5c9b5f6b2539a4e8f172916a",
            "updatedAt": "2024-01-01T00:02:00.000Z",
            "changes": 2,
            "qty": 4,
            "textQty": None,
            "price": "9.9",
            "cheapestOfferId": ["a"],
            "asOf": {
                "productId": "2024-01-01T00:02:00.000Z",
                "qty": "2024-01-01T00:02:00.000Z",
                "price": "2024-01-01T00:01:00.000Z",
                "cheapestOfferId": "2024-01-01T00:01:00.000Z",
            },
            "setAside": 0,
        },
    ]


def test_a_table_repeats_its_heading_so_that_it_need_not_fit_into_memory(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(folder, ORDER_STATE, *(order_status("processing", order_id=f"O{n:04}") for n in range(501)))
    assert run(["state", "dump", "orders"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed].count("store") == 2
    assert len(printed) == 501 + 2


def test_show_order_answers_why(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(
        folder,
        ORDER_STATE,
        order_status("completed", 2),
        order_status("processing", 1),
        order_status("refunded", 2),
        order_status("on_hold", updated_at_ms=0),
    )
    assert run(["state", "show", "order", "PHS84FJAG5U"]) == 0
    text = capsys.readouterr().out
    assert "refunded since 2024-01-01T00:02:00.000Z, which outranks completed of the same updatedAt" in text
    assert f"(record {STATUS_TOPIC}/0/2)" in text
    assert "processing → completed" in text
    assert "two_outcomes_at_once" in text
    assert "on_hold" in text.split("Set aside")[1]

    monkeypatch.setattr(state, "_now_ms", lambda: at(62))
    [detail] = lines(capsys, "state", "show", "order", "PHS84FJAG5U", "--json")
    assert detail["facts"][-1] == {
        "updatedAt": "2024-01-01T00:02:00.000Z",
        "status": "refunded",
        "receivedAt": "2024-01-01T00:02:05.000Z",
        "topic": STATUS_TOPIC,
        "partition": 0,
        "offset": 2,
    }
    assert [change["after"] for change in detail["transitions"]] == ["processing", "completed", "refunded"]
    assert detail["timeInStatusMs"] == {"processing": 60_000, "completed": 0, "refunded": 3_600_000}
    assert [(fact["status"], fact["reason"]) for fact in detail["setAside"]] == [("on_hold", "before_2018")]


def test_show_order_says_when_every_fact_was_set_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(folder, ORDER_STATE, order_status("completed", updated_at_ms=0))
    assert run(["state", "show", "order", "PHS84FJAG5U"]) == 0
    text = capsys.readouterr().out
    assert "every fact was set aside" in text
    assert "before_2018" in text


def test_show_product_tells_values_counts_and_differences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(folder, PRODUCT_CHANGES, product_update(1, qty=5, price="9.9"), product_update(70, qty=4), product_update(0, received_at_ms=0))  # fmt: skip
    [detail] = lines(capsys, "state", "show", "product", "1949", "--json")
    assert (detail["changes"], detail["setAside"]) == (2, 1)
    assert detail["perDay"] == {"2024-01-01T00:00:00.000Z": 2}
    assert detail["perHour"] == {"2024-01-01T00:00:00.000Z": 1, "2024-01-01T01:00:00.000Z": 1}
    [difference] = detail["differences"]
    assert (difference["field"], difference["before"], difference["after"]) == ("qty", 5, 4)
    [aside] = detail["setAsideChanges"]
    assert (aside["updatedAt"], aside["offset"], aside["reason"]) == ("2024-01-01T00:00:00.000Z", 2, "after_receipt")
    assert run(["state", "show", "product", "1949"]) == 0
    text = capsys.readouterr().out
    assert "2 changes, the last at 2024-01-01T01:10:00.000Z" in text
    assert "1 changes were set aside" in text
    assert "after_receipt" in text


def test_busiest_counts_changes_that_can_be_believed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aside = [product_update(minute, kinguin_id=7, received_at_ms=0) for minute in range(5)]
    fill(folder, PRODUCT_CHANGES, product_update(1), product_update(2), product_update(1, kinguin_id=7), *aside)
    assert lines(capsys, "state", "busiest", "--top", "1", "--json") == [
        {"store": "default", "kinguinId": 1949, "changes": 2}
    ]
    assert run(["state", "busiest"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["default", "1949", "2"]


def test_stuck_orders_are_those_still_open_the_longest_first(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(
        folder,
        ORDER_STATE,
        order_status("processing", 10, order_id="WAITS"),
        order_status("pending", 0, order_id="WAITS-LONGER"),
        order_status("on_hold", 5, order_id="UNKNOWN-STATUS"),
        order_status("processing", 60, order_id="NEWS"),
        order_status("processing", 0, order_id="DONE"),
        order_status("completed", 1, order_id="DONE"),
        order_status("out_of_stock", 0, order_id="GIVEN-UP"),
        order_status("processing", order_id="SET-ASIDE", updated_at_ms=0),
    )
    monkeypatch.setattr(state, "_now_ms", lambda: at(100))
    found = lines(capsys, "state", "stuck", "--after", "1h", "--json")
    assert [one["orderId"] for one in found] == ["WAITS-LONGER", "UNKNOWN-STATUS", "WAITS"]
    assert found[0]["waitsMs"] == 100 * 60_000
    assert run(["state", "stuck", "--after", "95m"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "default  WAITS-LONGER  pending  2024-01-01T00:00:00.000Z  1h 40m"
    ]


def test_windows_count_by_the_senders_time_late_ones_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = product_update(50, received_at_ms=at(60 * 24 * 9))
    fill(folder, PRODUCT_CHANGES, product_update(70), product_update(75, kinguin_id=7), late, product_update(0, received_at_ms=0))  # fmt: skip
    monkeypatch.setattr(state, "_now_ms", lambda: at(120))
    assert lines(capsys, "state", "windows", "--json") == [
        {"start": "2024-01-01T00:00:00.000Z", "changes": 1, "products": 1},
        {"start": "2024-01-01T01:00:00.000Z", "changes": 2, "products": 2},
    ]
    assert lines(capsys, "state", "windows", "--last", "1h", "--json") == [
        {"start": "2024-01-01T01:00:00.000Z", "changes": 2, "products": 2}
    ]
    assert run(["state", "windows", "--per", "day"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["2024-01-01T00:00:00.000Z", "3", "2"]


def test_busiest_may_count_the_last_days_only(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [product_update(minute, kinguin_id=7) for minute in range(5)]
    fill(folder, PRODUCT_CHANGES, *old, product_update(70))
    monkeypatch.setattr(state, "_now_ms", lambda: at(120))
    [found] = lines(capsys, "state", "busiest", "--last", "1h", "--json")
    assert (found["kinguinId"], found["changes"]) == (1949, 1)


def test_a_duration_that_is_none_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["state", "stuck", "--after", "soon"]) == 2
    assert "soon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "order", "NONE"], "No event of order NONE of store default has taken effect."),
        (["show", "order", "PHS84FJAG5U", "--store", "other"], "of store other"),
        (["show", "product", "1"], "No change of product 1 of store default has taken effect."),
    ],
)
def test_what_is_not_there_exits_1_with_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    fill(folder, ORDER_STATE, order_status("processing"))
    assert run(["state", *arguments]) == 1
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    "arguments", [["dump", "orders"], ["dump", "products", "--format", "json"], ["show", "order", "A"]]
)
def test_a_state_that_nobody_made_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(["state", *arguments]) == 1
    assert str(folder / "state.db") in capsys.readouterr().err
    assert not (folder / "state.db").exists()


def test_migrate_makes_a_database_and_then_has_nothing_to_do(folder: Path) -> None:
    for says in ("it was none", "Already at"):
        migrated = subprocess.run(
            [sys.executable, "-m", "kinguin_streams", "state", "migrate"], capture_output=True, text=True, check=True, cwd=folder
        )  # fmt: skip
        assert says in migrated.stderr
        assert migrated.stdout == ""


def test_the_command_line_names_another_database(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(folder, ORDER_STATE, order_status("processing"))
    assert run(["state", "dump", "orders", "--state-url", f"sqlite:///{folder}/other.db"]) == 1
    assert "other.db" in capsys.readouterr().err
