"""Which records are replayed, decided on their headers where those say it, else on the decoded value."""

from typing import Any

import pytest

from kinguin_streams.replay.filters import Filters, condition
from kinguin_streams.replay.plan import Selection
from kinguin_streams.replay.record import Record
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import OrderStatus, StoreName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import topics

AT_MS = 1_767_225_600_000
ENCODER = Encoder()


def order_status(
    order: str = "O1",
    status: str = "completed",
    store: str = "default",
    *,
    offset: int = 0,
    at_ms: int = AT_MS,
    with_headers: bool = True,
) -> Record:
    body = f"{order} {status} {at_ms}".encode()
    event = OrderStatus(
        event_id=event_id(StoreName(store), "order.status", body),
        store=StoreName(store),
        received_at_ms=AT_MS + 1_000,
        raw=body,
        order_id=order,
        order_external_id=None,
        status=status,
        updated_at_ms=at_ms,
    )
    sent = outgoing(event, topics(), ENCODER)
    headers = sent.headers if with_headers else ()
    return Record(sent.topic, 0, offset, sent.timestamp_ms, sent.key, sent.value, headers)


def undecoded(_value: bytes | None) -> Any:
    raise AssertionError("this could be told without decoding")


def passes(record: Record, times: Any = None, **selected: Any) -> bool:
    kept, dropped = Filters(Selection(**selected), times or {}, Decoder().decode).split([record])
    assert len(kept) + len(dropped) == 1
    return bool(kept)


@pytest.mark.parametrize("with_headers", [True, False], ids=["by its headers", "by its value"])
def test_event_and_store_are_found_either_way(with_headers: bool) -> None:
    record = order_status(store="shop-2", with_headers=with_headers)
    assert passes(record, events=("order.status",), stores=("default", "shop-2"))
    assert not passes(record, events=("product.update",))
    assert not passes(record, stores=("default",))


def test_nothing_is_decoded_where_headers_say_it() -> None:
    selection = Selection(events=("order.status",), stores=("default",), keys=("O1",), distinct=10)
    kept, _ = Filters(selection, {("t", 0): (0, None)}, undecoded).split([order_status()])
    assert len(kept) == 1


def test_key_and_headers_are_compared_byte_for_byte() -> None:
    record = order_status("O1")
    assert passes(record, keys=("O2", "O1"))
    assert not passes(record, keys=("O",))
    assert passes(record, headers=(("ce_subject", "O1"), ("ce_specversion", "1.0")))
    assert not passes(record, headers=(("ce_subject", "O1"), ("ce_specversion", "2.0")))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('status == "completed"', True),
        ("status == completed", True),
        ("status=='completed'", True),
        ('status != "completed"', False),
        ('status > "b"', True),
        ("orderExternalId == null", True),
        ("orderExternalId != null", False),
        ("orderExternalId < 5", False),
        ('updatedAt >= "2026-01-01T00:00:00Z"', True),
        ('updatedAt < "2026-01-01"', False),
        ("qty > 1", False),  # an order has none
        ("status < 5", False),
    ],
)
def test_a_condition_compares_a_field_of_the_schema(text: str, holds: bool) -> None:
    assert passes(order_status(), where=(text,)) is holds


@pytest.mark.parametrize(
    "text", ["status", "status = 1", "statuss == 1", "status == [1]", "price > x", "updatedAt > x"]
)
def test_a_condition_that_can_never_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"condition|field|compared|time"):
        condition(text)


def test_a_record_that_a_filter_cannot_look_into_is_left_out_and_counted() -> None:
    filters = Filters(Selection(where=("status == completed",)), {}, Decoder().decode)
    kept, dropped = filters.split([Record("t", 0, 0, AT_MS, b"k", b"\xff\xff", ()), order_status()])
    assert ([len(kept), len(dropped)], filters.undecodable) == ([1, 1], 1)


@pytest.mark.parametrize(
    ("limits", "kept"), [((AT_MS, None), 1), ((AT_MS + 1_001, None), 0), ((None, AT_MS + 1_000), 0)]
)
def test_times_are_the_records_own(limits: Any, kept: int) -> None:
    assert passes(order_status(), {("kinguin.order.status", 0): limits}) is bool(kept)


@pytest.mark.parametrize("with_headers", [True, False])
def test_with_event_time_they_are_updated_at(with_headers: bool) -> None:
    record = order_status(at_ms=5_000, with_headers=with_headers)
    limits = {("kinguin.order.status", 0): (5_000, 5_001)}
    assert passes(record, limits, event_time=True)
    assert not passes(record, limits)


def test_of_one_event_id_the_first_passes() -> None:
    filters = Filters(Selection(distinct=10), {}, Decoder().decode)
    records = [
        order_status("O1", offset=0),
        order_status("O2", offset=1),
        order_status("O1", offset=2, with_headers=False),
    ]
    kept, dropped = filters.split(records)
    assert ([record.offset for record in kept], [record.offset for record in dropped]) == ([0, 1], [2])


def test_distinct_remembers_so_many_and_no_more() -> None:
    filters = Filters(Selection(distinct=2), {}, Decoder().decode)
    assert len(filters.split([order_status(order) for order in ("A", "B", "C", "A")])[0]) == 4


def test_distinct_lets_through_what_is_no_event() -> None:
    filters = Filters(Selection(distinct=2), {}, Decoder().decode)
    nobody = [Record("t", 0, offset, AT_MS, None, None, ()) for offset in range(3)]
    assert len(filters.split(nobody)[0]) == 3
