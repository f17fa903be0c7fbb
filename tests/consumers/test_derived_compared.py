"""Topic and database are compared by digests: they tell apart whatever differs, and a large state fits into memory."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from kinguin_streams.consumers import derived
from kinguin_streams.consumers.derived import Comparison, Difference
from kinguin_streams.consumers.derived_records import DIGEST_BYTES, digest
from kinguin_streams.consumers.generations import Swapped
from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import Projection
from kinguin_streams.consumers.relay import Relay
from kinguin_streams.consumers.settings import StateSettings
from kinguin_streams.consumers.store import StateStore
from kinguin_streams.schemas.codec import Decoder, Encoder
from kinguin_streams.schemas.events import Derived, OrderStateRecord, ProductStateRecord, StoreName
from kinguin_streams.schemas.outgoing import outgoing
from kinguin_streams.schemas.topics import topics
from tests.consumers.databases import PRODUCT_TOPIC, STATUS_TOPIC, advance
from tests.consumers.deliveries import order_status, product_update, received
from tests.consumers.test_generations import BUGGY, EVENTS, MENDED, built, swap
from tests.consumers.test_outbox import Kept, Log, states, tell_all

ORDER = OrderStateRecord(
    store=StoreName("shop"),
    order_id="A",
    generation=1,
    revision=2,
    received_at_ms=30,
    order_external_id="E",
    status="completed",
    updated_at_ms=20,
    completed_at_ms=20,
    facts=((10, "processing", "t", 0, 1, 15), (20, "completed", "t", 0, 2, 30)),
    truncated=False,
    transitions=((10, None, "processing"), (20, "processing", "completed")),
    contradictions=(("two_outcomes_at_once", 20, "completed", 20, "refunded"),),
    set_aside=0,
    set_aside_truncated=False,
)
PRODUCT = ProductStateRecord(
    store=StoreName("shop"),
    kinguin_id=1949,
    generation=1,
    revision=2,
    received_at_ms=30,
    updated_at_ms=20,
    last_event_id="e",
    changes=3,
    set_aside=0,
    product_id="p",
    product_id_as_of_ms=20,
    qty=1,
    qty_as_of_ms=20,
    text_qty=1,
    text_qty_as_of_ms=20,
    price=Decimal("5.79"),
    price_as_of_ms=20,
    cheapest_offer_ids=("a", "b"),
    cheapest_offer_id_as_of_ms=20,
)


def changed(value: Any) -> Iterator[Any]:
    """Yield values that differ from this one in one place only."""
    match value:
        case None:
            yield "x"
        case bool():
            yield not value
        case int() | Decimal():
            yield value + 1
        case str():
            yield value + "x"
        case tuple():
            for place, part in enumerate(value):
                yield from ((*value[:place], other, *value[place + 1 :]) for other in changed(part))


def others(record: Derived) -> Iterator[tuple[str, Derived]]:
    """Yield records that differ from this one in one place, with the field that it is in."""
    for name in {field.name for field in msgspec.structs.fields(record)} - {"generation", "revision"}:
        value = getattr(record, name)
        shorter = [value[:-1]] if isinstance(value, tuple) else []
        for other in [*changed(value), *shorter]:
            yield name, msgspec.structs.replace(record, **{name: other})


@pytest.mark.parametrize("record", [ORDER, PRODUCT], ids=["order", "product"])
def test_records_that_differ_in_one_place_have_different_digests(record: Derived) -> None:
    told = {digest(other): name for name, other in others(record)}
    assert len(told) == len(list(others(record)))
    assert digest(record) not in told
    assert {"generation", "revision", *told.values()} == {field.name for field in msgspec.structs.fields(record)}
    assert {len(each) for each in told} == {DIGEST_BYTES}


def test_records_that_say_the_same_have_one_digest_wherever_they_come_from() -> None:
    elsewhere = msgspec.structs.replace(PRODUCT, generation=2, revision=1, price=Decimal("5.790000"))
    assert digest(elsewhere) == digest(PRODUCT)
    for record in (ORDER, PRODUCT):
        again = Decoder().decode(Encoder().encode(record))
        assert isinstance(again, Derived)
        assert digest(again) == digest(record)


@dataclass
class LogReader:
    """A topic in memory, behind the methods of cluster.topic_reader.TopicReader that `verify` calls."""

    log: Log
    meanwhile: Callable[[], None] = lambda: None
    """What others do between the first look at the database and the look at the topic."""

    def end_offsets(self, asked: list[str]) -> dict[tuple[str, int], int]:
        self.meanwhile()
        return {(topic, 0): len(self.log.kept) for topic in asked}

    def read(self, start: Any, end: dict[tuple[str, int], int]) -> Iterator[Kept]:
        assert start == {}
        yield from self.log.kept[: sum(end.values())]


def verified(settings: StateSettings, log: Log, projection: Projection = ORDER_STATE) -> Comparison:
    return derived.verify(projection, settings, LogReader(log), "topic", Decoder())  # type: ignore[arg-type]


def told(settings: StateSettings, projection: Projection = ORDER_STATE) -> Log:
    """Return what a relay tells that begins now, and ends when it has told all that waits."""
    log = Log()
    relay = Relay(projection, state=settings, topics=topics(), encoder=Encoder(), sender=log)
    tell_all(relay)
    relay.stop()
    return log


def test_one_other_fact_of_an_order_at_the_same_revision_is_noticed(
    settings: StateSettings, orders: StateStore
) -> None:
    batch = [received(order_status(status, minute), minute) for minute, status in enumerate(("pending", "completed"))]
    orders.apply([*batch, received(order_status("pending", order_id="B"), 2)], [advance(STATUS_TOPIC, None, 3)])
    log = told(settings)
    assert verified(settings, log) == Comparison(2, 0, ())
    state = states(orders)["default:PHS84FJAG5U"]
    assert isinstance(state, OrderStateRecord)
    first, last = state.facts
    stranger = msgspec.structs.replace(state, facts=((first[0], "processing", *first[2:]), last))
    log.send(outgoing(stranger, topics(), Encoder()))
    position = state.generation, state.revision
    other = Difference("default:PHS84FJAG5U", "other", position, position)
    assert verified(settings, log) == Comparison(2, 0, (other,))


def test_a_price_of_a_product_is_the_same_in_the_topic_and_in_the_database(
    settings: StateSettings, products: StateStore
) -> None:
    batch = [received(product_update(1, price="5.79"), 0), received(product_update(1, price="100", kinguin_id=2), 1)]
    products.apply(batch, [advance(PRODUCT_TOPIC, None, 2)])
    log = told(settings, PRODUCT_CHANGES)
    assert verified(settings, log, PRODUCT_CHANGES) == Comparison(2, 0, ())
    state = states(products, PRODUCT_CHANGES)["default:1949"]
    log.send(outgoing(msgspec.structs.replace(state, price=Decimal("5.8")), topics(), Encoder()))
    [difference] = verified(settings, log, PRODUCT_CHANGES).differences
    assert (difference.key, difference.code) == ("default:1949", "other")


def test_a_rebuild_that_goes_live_while_the_topic_is_read_makes_no_difference(settings: StateSettings) -> None:
    """The one order that it changes is at revision 1 before and after."""
    store = StateStore(settings, BUGGY)
    store.apply(EVENTS, [advance(STATUS_TOPIC, None, 3)])
    store.close()
    log = told(settings, BUGGY)
    build = built(settings, MENDED, EVENTS, 3, STATUS_TOPIC)

    def go_live() -> None:
        assert swap(settings, MENDED, build) == Swapped(before=1, generation=2, told=1, vanished=0)
        log.kept += told(settings, MENDED).kept

    reader = LogReader(log, go_live)
    assert derived.verify(ORDER_STATE, settings, reader, "topic", Decoder()) == Comparison(2, 0, ())  # type: ignore[arg-type]
    assert derived.newest(log.kept, Decoder())["default:B"][:2] == (2, 1)  # type: ignore[arg-type]


def test_comparing_takes_no_more_memory_for_orders_with_more_facts(
    settings: StateSettings, orders: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 20 facts each, whole records take 18 KB an order, of topic and database together."""
    monkeypatch.setattr("kinguin_streams.consumers.derived_states.ROWS_IN_MEMORY", 10)
    keys, facts = 300, 20
    batch = [
        received(order_status(f"s{number % 3}", number % facts, order_id=f"O{number // facts}"), number)
        for number in range(keys * facts)
    ]
    orders.apply(batch, [advance(STATUS_TOPIC, None, len(batch))])
    log = told(settings)
    assert verified(settings, log) == Comparison(
        keys, 0, ()
    )  # also fills what is kept for good, as compiled statements
    tracemalloc.start()
    try:
        assert verified(settings, log) == Comparison(keys, 0, ())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes / keys < 2_000
