"""What the simulated sender plans to send."""

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice
from typing import Any

import pytest

from kinguin_streams.simulator.plan import Delivery, Occurrence, plan_deliveries

START = datetime(2026, 11, 24, 15, 0, tzinfo=UTC)
START_MS = 1_795_532_400_000


def planned(seed: int = 1, count: int = 4000, start: datetime = START, **knobs: float) -> list[Delivery]:
    return list(plan_deliveries(seed, start=start, count=count, **knobs))


PLAN = planned(count=20_000)


def occurrences() -> list[Occurrence]:
    return sorted({d.occurrence for d in PLAN if d.occurrence is not None}, key=lambda occurrence: occurrence.number)


def payload(of: Delivery | Occurrence) -> dict[str, Any]:
    decoded = json.loads(of.body)
    assert isinstance(decoded, dict)
    return decoded


def by_order() -> dict[str, list[Occurrence]]:
    lives: dict[str, list[Occurrence]] = {}
    for occurrence in occurrences():
        if occurrence.event != "product.update":
            lives.setdefault(occurrence.subject, []).append(occurrence)
    return lives


def test_the_same_seed_and_start_send_the_same_bytes_in_the_same_order() -> None:
    assert planned(seed=7, broken=0.05) == planned(seed=7, broken=0.05)


def test_the_first_thousand_bodies_of_a_seed_never_change() -> None:
    digest = hashlib.sha256()
    for delivery in islice(PLAN, 1000):
        digest.update(delivery.event.encode() + b"\0" + delivery.body + b"\0")
    assert digest.hexdigest() == "1aa6507db98332d7f8e49fcdabd1b6f58fa6215e9f8d8e209916406f2e9405b8"


def test_a_longer_plan_begins_with_the_shorter_one() -> None:
    assert planned(count=100) == PLAN[:100]
    assert list(islice(plan_deliveries(1, start=START), 100)) == PLAN[:100]


def test_a_start_is_an_instant_whatever_its_offset() -> None:
    assert planned(count=50, start=START.astimezone(timezone(timedelta(hours=9)))) == PLAN[:50]


@pytest.mark.parametrize(
    ("seed", "start"),
    [pytest.param(2, START, id="another seed"), pytest.param(1, START + timedelta(milliseconds=1), id="another start")],
)
def test_two_runs_share_no_order_and_no_product(seed: int, start: datetime) -> None:
    other = {d.occurrence.subject for d in planned(seed=seed, start=start) if d.occurrence is not None}
    assert not other & {occurrence.subject for occurrence in occurrences()}


def test_disorder_and_copies_do_not_change_what_happens() -> None:
    calm = [d.occurrence for d in planned(count=3000, duplicates=0, disorder=0)]
    assert calm == occurrences()[:3000]


def test_without_disorder_and_copies_each_event_comes_once_in_the_order_of_time() -> None:
    numbers = [d.occurrence.number for d in planned(duplicates=0, disorder=0) if d.occurrence is not None]
    assert numbers == list(range(4000))
    times = [occurrence.updated_at_ms for occurrence in occurrences() if occurrence.era != "2021"]
    assert times == sorted(times)


def test_the_share_of_copies_is_the_one_asked_for() -> None:
    assert Counter(d.kind for d in PLAN)["copy"] / len(PLAN) == pytest.approx(0.1, abs=0.01)


def test_a_copy_is_byte_equal_to_a_delivery_before_it() -> None:
    before: set[tuple[str, bytes]] = set()
    for delivery in PLAN:
        if delivery.kind == "copy":
            assert (delivery.event, delivery.body) in before
        before.add((delivery.event, delivery.body))


def test_the_share_of_late_events_is_the_one_asked_for() -> None:
    first = [d for d in PLAN if d.kind == "first"]
    assert sum(d.displaced_by > 0 for d in first) / len(first) == pytest.approx(0.2, abs=0.01)


def test_a_late_event_is_overtaken_by_as_many_as_it_says() -> None:
    number_sent_before = 0
    latest = -1
    for delivery in planned(duplicates=0, disorder=0.01):
        assert delivery.occurrence is not None
        if delivery.displaced_by:
            assert delivery.occurrence.number + delivery.displaced_by >= latest
            assert delivery.occurrence.number < latest
        else:
            latest = delivery.occurrence.number
        number_sent_before += 1
    assert number_sent_before == 4000


def test_everything_may_be_late() -> None:
    deliveries = planned(count=1000, duplicates=0, disorder=1)
    assert all(1 <= d.displaced_by <= 200 for d in deliveries)


def test_nothing_is_broken_unless_asked_for() -> None:
    assert not [d for d in PLAN if d.kind == "broken"]


def test_broken_deliveries_are_all_different_and_of_every_fault() -> None:
    broken = [d for d in planned(broken=0.05) if d.kind == "broken"]
    assert len(broken) / 4000 == pytest.approx(0.05, abs=0.015)
    assert len({d.body for d in broken}) == len(broken)
    faults: Counter[str] = Counter()
    for delivery in broken:
        try:
            said = payload(delivery)
        except ValueError:
            faults["not json"] += 1
            continue
        if delivery.event == "order.shipped":
            faults["unknown event"] += 1
        elif "orderId" not in said:
            faults["no orderId"] += 1
        elif said["updatedAt"] == "yesterday":
            faults["no time"] += 1
        else:
            assert datetime.fromisoformat(said["updatedAt"]).tzinfo is None
            faults["no offset"] += 1
    assert min(faults.values()) > 10
    assert len(faults) == 5


@pytest.mark.parametrize(
    ("era", "fields"),
    [
        pytest.param("2021", {"kinguinId", "productId", "updatedAt"}, id="2021 names the product only"),
        pytest.param(
            "2022",
            {"kinguinId", "productId", "qty", "price", "cheapestOfferId", "updatedAt"},
            id="2022 adds quantities, price and offers",
        ),
        pytest.param(
            "2024", {"kinguinId", "productId", "qty", "cheapestOfferId", "updatedAt"}, id="2024 drops the price"
        ),
    ],
)
def test_a_product_update_has_the_fields_of_its_year(era: str, fields: set[str]) -> None:
    of_era = [payload(o) for o in occurrences() if o.event == "product.update" and o.era == era]
    assert len(of_era) > 1000
    assert {frozenset(said) - {"textQty"} for said in of_era} == {frozenset(fields)}
    with_text = sum("textQty" in said for said in of_era) / len(of_era)
    assert with_text == 0 if era == "2021" else 0.6 < with_text < 0.8
    for said in of_era:
        assert isinstance(said["kinguinId"], int)
        assert len(said["productId"]) == 24
        if era != "2021":
            assert 0 <= said.get("textQty", 0) <= said["qty"]
            assert all(len(offer) == 24 for offer in said["cheapestOfferId"])
    if era == "2022":
        assert {type(said["price"]) for said in of_era} == {int, float}
    if era != "2021":
        assert {len(said["cheapestOfferId"]) for said in of_era} == {0, 1, 2}


def test_updated_at_is_written_as_in_its_year_and_says_the_instant_of_the_occurrence() -> None:
    for occurrence in occurrences():
        text = payload(occurrence)["updatedAt"]
        assert len(text) == len(
            "2020-10-16T11:24:08+00:00" if occurrence.era == "2021" else "2022-02-14T11:24:08.123+00:00"
        )
        assert text.endswith("+00:00")
        assert datetime.fromisoformat(text).timestamp() * 1000 == pytest.approx(occurrence.updated_at_ms, abs=0.01)


def test_updated_at_grows_from_the_start_by_the_spacing() -> None:
    times = [occurrence.updated_at_ms for occurrence in occurrences()]
    assert min(times) >= START_MS
    assert max(times) - START_MS == pytest.approx(len(times) * 100, rel=0.1)


def test_an_order_event_has_the_documented_fields() -> None:
    for life in by_order().values():
        for occurrence in life:
            said = payload(occurrence)
            assert said["orderId"] == occurrence.subject
            assert said.get("status") == occurrence.status
            assert set(said) - {"orderExternalId", "status"} == {"orderId", "updatedAt"}
            assert ("status" in said) == (occurrence.event == "order.status")


def test_the_external_id_is_there_or_null_or_missing_or_new() -> None:
    said = [payload(o) for life in by_order().values() for o in life]
    kinds = Counter(type(one["orderExternalId"]).__name__ if "orderExternalId" in one else "missing" for one in said)
    assert min(kinds["str"], kinds["NoneType"], kinds["missing"]) > 500
    texts = {one["orderExternalId"] for one in said if one.get("orderExternalId")}
    assert any("/" in text for text in texts)
    assert any(not text.isascii() for text in texts)
    assert any(text.endswith("-2") for text in texts)


def test_bodies_look_like_php_wrote_them() -> None:
    assert all(b" " not in d.body.replace(b"Zam\\u00f3wienie \\u2116", b"") for d in PLAN)
    assert any(b'"orderExternalId":"2026\\/' in d.body for d in PLAN)


def test_every_completion_is_told_twice() -> None:
    for life in by_order().values():
        completed = [o for o in life if o.status == "completed"]
        complete = [o for o in life if o.event == "order.complete"]
        # The end of the plan may fall between the two.
        assert abs(len(completed) - len(complete)) <= 1
    told = Counter(o.status or o.event for life in by_order().values() for o in life)
    assert told["completed"] == pytest.approx(told["order.complete"], rel=0.02)


def test_orders_end_in_every_documented_way() -> None:
    statuses = Counter(o.status for life in by_order().values() for o in life)
    for status in ("pending", "processing", "completed", "canceled", "refunded", "out_of_stock", "error"):
        assert statuses[status] >= 20
    assert min(statuses[unknown] for unknown in ("on_hold", "partially_completed", "dispatched")) > 5
    eras = {o.era for life in by_order().values() for o in life if o.status in ("pending", "out_of_stock", "error")}
    assert eras == {"2021"}


def test_some_facts_of_an_order_share_one_updated_at() -> None:
    ties: Counter[frozenset[str]] = Counter()
    for life in by_order().values():
        at: dict[int, set[str]] = {}
        for occurrence in life:
            at.setdefault(occurrence.updated_at_ms, set()).add(occurrence.status or "order.complete")
        ties.update(frozenset(together) for together in at.values() if len(together) > 1)
    assert ties[frozenset({"completed", "order.complete"})] > 500
    assert sum(n for tied, n in ties.items() if {"completed", "canceled"} <= tied) > 5
    assert sum(n for tied, n in ties.items() if {"completed", "refunded"} <= tied) > 5
    assert sum(n for tied, n in ties.items() if {"processing", "completed"} <= tied) > 50


def test_a_few_products_change_far_more_often_than_the_rest() -> None:
    changes = Counter(o.subject for o in occurrences() if o.event == "product.update")
    assert len(changes) > 240
    assert changes.most_common(1)[0][1] > 8 * sorted(changes.values())[len(changes) // 2]


def test_two_changes_of_one_product_in_one_second_of_the_2021_form_can_be_byte_equal() -> None:
    bodies = Counter(o.body for o in occurrences() if o.event == "product.update" and o.era == "2021")
    assert bodies.most_common(1)[0][1] > 1


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        pytest.param({"duplicates": -0.1}, "duplicates", id="a share below zero"),
        pytest.param({"disorder": 1.5}, "disorder", id="a share over one"),
        pytest.param({"broken": float("nan")}, "broken", id="a share that is no number"),
        pytest.param({"broken": 0.6, "duplicates": 0.6}, "over 1", id="shares over one together"),
        pytest.param({"spacing_s": 0}, "spacing_s", id="no time between occurrences"),
    ],
)
def test_senseless_plans_are_refused_at_once(knobs: dict[str, float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        plan_deliveries(1, start=START, **knobs)  # type: ignore[arg-type]


def test_a_start_without_offset_and_a_negative_count_are_refused() -> None:
    with pytest.raises(ValueError, match="offset"):
        plan_deliveries(1, start=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="negative"):
        plan_deliveries(1, start=START, count=-1)
