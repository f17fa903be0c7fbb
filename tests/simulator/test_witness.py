"""The independent witness, on cases worked out by hand."""

import json
from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import pytest

from kinguin_streams.simulator.plan import plan_deliveries
from kinguin_streams.simulator.witness import (
    Difference,
    Expected,
    Webhook,
    compare,
    expected_event_id,
    foreign_keys,
    recompute,
)

START = datetime(2026, 11, 24, 15, 0, tzinfo=UTC)
NOON_MS = 1_602_849_600_000  # 2020-10-16T12:00:00Z


def status(said: str, at: str = "12:00:00", order: str = "P1", store: str = "default", **more: object) -> Webhook:
    payload = {"orderId": order, **more, "status": said, "updatedAt": f"2020-10-16T{at}+00:00"}
    return store, "order.status", json.dumps(payload).encode()


def complete(at: str = "12:00:00", order: str = "P1", **more: object) -> Webhook:
    return (
        "default",
        "order.complete",
        json.dumps({"orderId": order, **more, "updatedAt": f"2020-10-16T{at}+00:00"}).encode(),
    )


def product(at: str = "12:00:00", product_id: str = "5c9b", kinguin_id: int = 1949, **more: object) -> Webhook:
    payload = {"kinguinId": kinguin_id, "productId": product_id, **more, "updatedAt": f"2020-10-16T{at}+00:00"}
    return "default", "product.update", json.dumps(payload).encode()


def the_order(*sent: Webhook) -> dict[str, Any]:
    return recompute(sent).orders["default", "P1"]


def test_the_event_id_is_the_documented_hash() -> None:
    # printf 'kinguin-event/1\0default\0order.status\0{}' | sha256sum | cut -c1-32
    assert expected_event_id("default", "order.status", b"{}") == "0f3d604ce6982e0914c52f3e5b9e1afb"


@pytest.mark.parametrize(
    ("sent", "wins", "at_ms"),
    [
        pytest.param([status("processing")], "processing", NOON_MS, id="one fact"),
        pytest.param(
            [status("canceled"), status("processing", "12:00:01")], "processing", NOON_MS + 1000, id="newer wins"
        ),
        pytest.param([status("processing"), status("completed")], "completed", NOON_MS, id="on a tie the outcome wins"),
        pytest.param([status("processing"), status("on_hold")], "on_hold", NOON_MS, id="unknown is over processing"),
        pytest.param([status("on_hold"), status("error")], "error", NOON_MS, id="error is over unknown"),
        pytest.param([status("out_of_stock"), status("completed")], "completed", NOON_MS, id="completed is over error"),
        pytest.param([status("completed"), status("canceled")], "canceled", NOON_MS, id="canceled is over completed"),
        pytest.param([status("canceled"), status("refunded")], "refunded", NOON_MS, id="refunded is over canceled"),
        pytest.param([status("pending"), status("processing")], "processing", NOON_MS, id="on equal ranks the text"),
        pytest.param([status("zzz"), status("aaa")], "zzz", NOON_MS, id="on two unknown ones the text"),
        pytest.param([complete(), status("processing")], "completed", NOON_MS, id="order.complete is completed"),
        pytest.param([complete(), status("canceled")], "canceled", NOON_MS, id="order.complete is not above canceled"),
        pytest.param(
            [complete(), complete("12:00:02"), status("completed")], "completed", NOON_MS + 2000, id="told twice"
        ),
        pytest.param(
            [status("completed"), status("refunded", "12:00:00.000")],
            "refunded",
            NOON_MS,
            id="forms of one instant tie",
        ),
        pytest.param(
            [status("refunded", "12:00:00.0001"), status("completed", "12:00:00.0009")],
            "refunded",
            NOON_MS,
            id="instants within one millisecond tie",
        ),
    ],
)
def test_the_winner_is_the_greatest_fact_in_any_order(sent: list[Webhook], wins: str, at_ms: int) -> None:
    for arrival in permutations([*sent, sent[0]]):
        assert the_order(*arrival) == {"status": wins, "updatedAt": at_ms, "orderExternalId": None}


def test_an_offset_is_part_of_the_instant() -> None:
    body = b'{"orderId":"P1","status":"completed","updatedAt":"2020-10-16T14:30:00.5+02:30"}'
    assert the_order(("default", "order.status", body))["updatedAt"] == NOON_MS + 500


@pytest.mark.parametrize(
    ("sent", "external_id"),
    [
        pytest.param([status("processing", orderExternalId="A"), complete("12:00:01")], "A", id="missing later on"),
        pytest.param([status("processing", orderExternalId=None)], None, id="null only"),
        pytest.param(
            [status("processing", "12:00:02", orderExternalId="A"), complete(orderExternalId="B")], "A", id="the newer"
        ),
        pytest.param(
            [status("processing", orderExternalId="A"), complete(orderExternalId="B")], "B", id="on a tie the greater"
        ),
    ],
)
def test_the_external_id_is_the_newest_that_is_not_null(sent: list[Webhook], external_id: str | None) -> None:
    for arrival in permutations(sent):
        assert the_order(*arrival)["orderExternalId"] == external_id


def test_the_same_order_id_in_two_stores_is_two_orders() -> None:
    orders = recompute([status("completed"), status("canceled", store="shop-2")]).orders
    assert {key: order["status"] for key, order in orders.items()} == {
        ("default", "P1"): "completed",
        ("shop-2", "P1"): "canceled",
    }


def test_a_product_counts_distinct_changes_and_keeps_the_newest() -> None:
    sent = [
        product("12:00:02", "new"),
        product("12:00:01", "old"),
        product("12:00:01", "old", qty=1),
        product("12:00:01", "old"),
    ]
    expected = {("default", 1949): {"productId": "new", "updatedAt": NOON_MS + 2000, "changes": 3}}
    for arrival in permutations(sent):
        assert recompute(arrival).products == expected


def test_on_a_tie_the_products_greater_event_id_wins() -> None:
    tied = [product(product_id=name) for name in ("a", "b", "c", "d")]
    greatest = max(tied, key=lambda sent: expected_event_id(*sent))
    winner = json.loads(greatest[2])["productId"]
    assert recompute(tied).products["default", 1949] == {"productId": winner, "updatedAt": NOON_MS, "changes": 4}


def test_topics_hold_each_event_once() -> None:
    sent = [status("completed"), complete(), complete(), product()]
    assert recompute(sent).topics == {
        event: {expected_event_id(*one) for one in sent if one[1] == event}
        for event in ("order.status", "order.complete", "product.update")
    }


def test_what_the_plan_breaks_is_refused_and_nothing_else() -> None:
    deliveries = list(plan_deliveries(3, start=START, count=5000, broken=0.1))
    broken = {expected_event_id("default", d.event, d.body) for d in deliveries if d.kind == "broken"}
    expected = recompute([("default", d.event, d.body) for d in deliveries])
    assert expected.refused == broken
    whole = {(d.event, d.body) for d in deliveries if d.kind != "broken"}
    assert sum(len(ids) for ids in expected.topics.values()) == len(whole)


def test_the_plan_and_the_witness_agree_on_what_happened() -> None:
    occurrences = {d.occurrence for d in plan_deliveries(4, start=START, count=5000) if d.occurrence}
    expected = recompute([("default", o.event, o.body) for o in occurrences])
    newest: dict[str, int] = {}
    for o in occurrences:
        newest[o.subject] = max(newest.get(o.subject, 0), o.updated_at_ms)
    stated = {order_id: row["updatedAt"] for (_, order_id), row in expected.orders.items()}
    stated |= {str(kinguin_id): row["updatedAt"] for (_, kinguin_id), row in expected.products.items()}
    assert stated == newest


# --- comparing with a dump ---

ORDER = {
    "store": "default",
    "orderId": "P1",
    "orderExternalId": "A",
    "status": "completed",
    "updatedAt": "2020-10-16T12:00:00.000Z",
}
PRODUCT = {
    "store": "default",
    "kinguinId": 1949,
    "productId": "5c9b",
    "updatedAt": "2020-10-16T12:00:00.000Z",
    "changes": 1,
}


def expected_of_dump() -> Expected:
    return recompute([status("completed", orderExternalId="A"), product()])


def test_a_dump_that_is_right_has_no_difference_whatever_else_it_says() -> None:
    assert compare(expected_of_dump(), [{**ORDER, "truncated": False}], [PRODUCT]) == []


@pytest.mark.parametrize(
    ("field", "found", "expected"),
    [
        ("status", "canceled", "completed"),
        ("orderExternalId", None, "A"),
        ("updatedAt", "2020-10-16T12:00:00.001Z", "2020-10-16T12:00:00.000Z"),
        ("updatedAt", None, "2020-10-16T12:00:00.000Z"),
    ],
)
def test_a_wrong_field_of_an_order_is_named(field: str, found: object, expected: object) -> None:
    assert compare(expected_of_dump(), [{**ORDER, field: found}], [PRODUCT]) == [
        Difference("orders", "default", "P1", field, expected, found)
    ]


@pytest.mark.parametrize(
    ("field", "found", "expected"),
    [("changes", 2, 1), ("changes", True, 1), ("changes", 1.0, 1), ("productId", "x", "5c9b")],
)
def test_a_wrong_field_of_a_product_is_named(field: str, found: object, expected: object) -> None:
    assert compare(expected_of_dump(), [ORDER], [{**PRODUCT, field: found}]) == [
        Difference("products", "default", "1949", field, expected, found)
    ]


def test_a_field_a_row_and_a_row_too_many_are_missed() -> None:
    without_status = {name: value for name, value in ORDER.items() if name != "status"}
    differences = compare(expected_of_dump(), [without_status, ORDER], [])
    assert [(d.table, d.field) for d in differences] == [("orders", "status"), ("orders", "row"), ("products", "row")]
    assert str(differences[0]) == "orders default/P1: status is 'nothing', must be 'completed'"


def test_a_product_id_as_text_is_another_product() -> None:
    (difference,) = compare(expected_of_dump(), [ORDER], [{**PRODUCT, "kinguinId": "1949"}])
    assert (difference.field, difference.found) == ("row", "nothing")


def test_keys_that_were_never_sent_are_foreign_and_no_difference() -> None:
    orders = [ORDER, {**ORDER, "orderId": "P2"}, {**ORDER, "store": "shop-2"}]
    products = [PRODUCT, {**PRODUCT, "kinguinId": 1}]
    assert compare(expected_of_dump(), orders, products) == []
    assert foreign_keys(expected_of_dump(), orders, products) == 3
