"""The id of an event is part of the contract: ids made by yesterday's replica must equal today's."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinguin_streams.schemas.event_id import event_id
from kinguin_streams.schemas.events import EVENT_NAMES, EventName, StoreName

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"

# (printf 'kinguin-event/1\0default\0order.status\0'; cat schemas/examples/order.status/1/documented.json) | sha256sum | cut -c-32
PINNED = [
    ("default", "product.update", "e1a6caef4af5d5f02d40b7f87ab61e55"),
    ("default", "order.status", "50d406bffa5122019e45b0f4352a2c31"),
    ("default", "order.complete", "e47e7ac772b105ffd7a0d3f543b9c0f2"),
    ("shop-2", "order.status", "74e66bae82ae57c26b8ef7a1ce2b3f91"),
]


@pytest.mark.parametrize(("store", "event", "expected"), PINNED)
def test_ids_of_the_published_examples_never_change(store: str, event: EventName, expected: str) -> None:
    body = (EXAMPLES / event / "1" / "documented.json").read_bytes()
    assert event_id(StoreName(store), event, body) == expected


def test_a_body_is_bytes_whatever_they_are() -> None:
    # printf 'kinguin-event/1\0default\0order.status\0\xff\0\n' | sha256sum
    assert event_id(StoreName("default"), "order.status", b"\xff\x00\n") == "185138bca26d8bf776ae84d8c0bfaf5d"
    # printf 'kinguin-event/1\0default\0order.status\0{}' | sha256sum
    assert event_id(StoreName("default"), "order.status", b"{}") == "0f3d604ce6982e0914c52f3e5b9e1afb"


@given(
    st.tuples(st.sampled_from(["a", "b-1"]), st.sampled_from(EVENT_NAMES), st.binary(max_size=20)),
    st.tuples(st.sampled_from(["a", "b-1"]), st.sampled_from(EVENT_NAMES), st.binary(max_size=20)),
)
def test_two_ids_are_equal_only_if_store_event_and_body_are(
    one: tuple[str, EventName, bytes], other: tuple[str, EventName, bytes]
) -> None:
    first, second = (event_id(StoreName(store), event, body) for store, event, body in (one, other))
    assert (first == second) == (one == other)
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")
