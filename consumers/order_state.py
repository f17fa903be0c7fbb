"""Order state: the facts of an order, and everything that follows from them. Pure.

A fact is a distinct (updatedAt, status). The set of facts is the same for any order of arrival, any duplicates and any
copy of the topics; status, transitions, completion and contradictions are functions of that set, worked out when read.
Where and when a fact was first seen is kept beside it as evidence.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from kinguin_streams.consumers.plausible_time import is_plausible
from kinguin_streams.consumers.projection import FoldProjection, Received, StateKey
from kinguin_streams.schemas.events import COMPLETED, OrderComplete, OrderStatus

OrderEvent = OrderStatus | OrderComplete

MAX_FACTS: Final = 64
MAX_SET_ASIDE: Final = 16

OPEN_RANK: Final = 0
OUTCOME_RANK: Final = 3
UNKNOWN_RANK: Final = 1
# The sender has documented four sets of statuses in 25 months. Of two facts with one updatedAt, the one of higher rank
# counts: an outcome beats work in progress, and what takes the outcome back beats the outcome.
RANKS: Final = {
    "pending": OPEN_RANK,
    "processing": OPEN_RANK,
    "out_of_stock": 2,
    "error": 2,
    COMPLETED: OUTCOME_RANK,
    "canceled": 4,
    "refunded": 5,
}


class Position(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """A record in Kafka, and when the ingress received it. The smallest of several is kept."""

    topic: str
    partition: int
    offset: int
    received_at_ms: int


class Fact(msgspec.Struct, frozen=True, gc=False):
    """The order had this status from this instant on: the sender's word."""

    updated_at_ms: int = msgspec.field(name="at")
    status: str
    seen: Position


class ExternalId(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """The shop's own id, with the updatedAt of the event that carried it: the greatest counts."""

    updated_at_ms: int
    value: str


class OrderState(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """What is stored. Facts are ordered, the one that counts first."""

    facts: tuple[Fact, ...] = ()
    truncated: bool = False
    """More than MAX_FACTS distinct facts arrived; the ones that count most are kept."""
    external_id: ExternalId | None = None
    set_aside: tuple[Fact, ...] = ()
    """Facts of deliveries whose updatedAt cannot be believed, see plausible_time.py. May overlap with facts."""
    set_aside_truncated: bool = False


def rank(updated_at_ms: int, status: str) -> tuple[int, int, str]:
    """Return what facts are compared by: greatest updatedAt, then the outcome's rank, then the text."""
    return updated_at_ms, RANKS.get(status, UNKNOWN_RANK), status


def order_key(event: OrderEvent) -> StateKey:
    """Return the key of an order event."""
    return StateKey(event.store, event.order_id)


def fold(state: OrderState | None, received: Received[OrderEvent]) -> OrderState:
    """Return the state with one more delivery; the same object if it says nothing new."""
    event = received.event
    if state is None:
        state = _NO_STATE
    at_ms = event.updated_at_ms
    fact = Fact(
        at_ms,
        event.status,
        Position(received.topic, received.partition, received.offset, event.received_at_ms),
    )
    if not is_plausible(event):
        aside = _with(state.set_aside, fact)
        truncated = state.set_aside_truncated or len(aside) > MAX_SET_ASIDE
        aside = aside[:MAX_SET_ASIDE]
        if (aside, truncated) == (state.set_aside, state.set_aside_truncated):
            return state
        return msgspec.structs.replace(state, set_aside=aside, set_aside_truncated=truncated)
    kept, truncated, carried = state.facts, state.truncated, state.external_id
    # Most events are the newest of their order, and need not be compared with every fact.
    facts = (fact, *kept) if not kept or kept[0].updated_at_ms < at_ms else _with(kept, fact)
    if len(facts) > MAX_FACTS:
        facts, truncated = facts[:MAX_FACTS], True
    external_id = event.order_external_id
    if external_id is not None and (carried is None or (carried.updated_at_ms, carried.value) < (at_ms, external_id)):
        carried = ExternalId(at_ms, external_id)
    elif truncated == state.truncated and (facts is kept or facts == kept):
        return state
    return OrderState(
        facts=facts,
        truncated=truncated,
        external_id=carried,
        set_aside=state.set_aside,
        set_aside_truncated=state.set_aside_truncated,
    )


def _with(facts: tuple[Fact, ...], fact: Fact) -> tuple[Fact, ...]:
    """Return the facts with one more, perhaps one too many.

    Cutting the last one off keeps the greatest of all that ever arrived, whatever the order: a fact that was cut off is
    below every kept one, and stays so when it comes again.
    """
    place = len(facts)
    its_rank = rank(fact.updated_at_ms, fact.status)
    for i, kept in enumerate(facts):
        if kept.updated_at_ms == fact.updated_at_ms and kept.status == fact.status:
            return facts if kept.seen <= fact.seen else (*facts[:i], fact, *facts[i + 1 :])
        if rank(kept.updated_at_ms, kept.status) < its_rank:
            place = i
            break
    return (*facts[:place], fact, *facts[place:])


def without_evidence(state: OrderState) -> tuple[object, ...]:
    """Return the state without its evidence: equal for any order, duplicates and copies of the same deliveries."""
    known, aside = (
        tuple((fact.updated_at_ms, fact.status) for fact in some) for some in (state.facts, state.set_aside)
    )
    return known, state.truncated, state.external_id, aside, state.set_aside_truncated


_NO_STATE = OrderState()

ORDER_STATE = FoldProjection(
    name="order-state",
    version=1,
    events=("order.status", "order.complete"),
    state_type=OrderState,
    key=order_key,
    fold=fold,
    derived="order.state",
    facts=without_evidence,
    unused=("event_id", "raw"),
)


class Transition(msgspec.Struct, frozen=True):
    """The status changed. before is None for the first fact that is kept."""

    before: str | None
    after: str
    fact: Fact


class Contradiction(msgspec.Struct, frozen=True):
    """Two facts that cannot both be the whole truth.

    two_outcomes_at_once: both are outcomes (completed, canceled, refunded), with one updatedAt.
    open_after_outcome: the later one says pending or processing, after the earlier one was an outcome.
    """

    code: Literal["two_outcomes_at_once", "open_after_outcome"]
    earlier: Fact
    later: Fact


class OrderView(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an order. Facts are ordered by time, the one that counts last."""

    store: str
    order_id: str
    order_external_id: str | None
    status: str | None
    """None if every fact was set aside."""
    updated_at_ms: int | None
    completed_at_ms: int | None
    facts: tuple[Fact, ...]
    truncated: bool
    transitions: tuple[Transition, ...]
    contradictions: tuple[Contradiction, ...]
    set_aside: tuple[Fact, ...]
    set_aside_truncated: bool


def view(key: StateKey, state: OrderState) -> OrderView:
    """Return what the stored facts say."""
    facts = in_order(state.facts)
    return OrderView(
        store=key.store,
        order_id=key.id,
        order_external_id=None if state.external_id is None else state.external_id.value,
        status=status(facts),
        updated_at_ms=facts[-1].updated_at_ms if facts else None,
        completed_at_ms=completed_at_ms(facts),
        facts=facts,
        truncated=state.truncated,
        transitions=transitions(facts),
        contradictions=contradictions(facts),
        set_aside=set_aside(state),
        set_aside_truncated=state.set_aside_truncated,
    )


def in_order(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """Return the facts by time, those of one instant by rank: the last one counts. The functions below expect this."""
    return tuple(sorted(facts, key=lambda fact: rank(fact.updated_at_ms, fact.status)))


def status(facts: Sequence[Fact]) -> str | None:
    """Return the status now, or None without facts."""
    return facts[-1].status if facts else None


def completed_at_ms(facts: Sequence[Fact]) -> int | None:
    """Return when the order was first completed. It may have been refunded since: `completed` ends nothing."""
    return next((fact.updated_at_ms for fact in facts if fact.status == COMPLETED), None)


def transitions(facts: Sequence[Fact]) -> tuple[Transition, ...]:
    """Return the changes of status; a fact that repeats the status before it is none."""
    found: list[Transition] = []
    for fact in facts:
        before = found[-1].after if found else None
        if fact.status != before:
            found.append(Transition(before, fact.status, fact))
    return tuple(found)


def contradictions(facts: Sequence[Fact]) -> tuple[Contradiction, ...]:
    """Return the pairs of facts that contradict each other, each later fact once, with the nearest earlier one."""
    found: list[Contradiction] = []
    outcome: Fact | None = None
    for fact in facts:
        its_rank = RANKS.get(fact.status, UNKNOWN_RANK)
        if outcome is not None and its_rank >= OUTCOME_RANK and outcome.updated_at_ms == fact.updated_at_ms:
            found.append(Contradiction("two_outcomes_at_once", outcome, fact))
        # Work in progress with the outcome's own updatedAt comes before it in this order, and contradicts nothing.
        if outcome is not None and its_rank == OPEN_RANK:
            found.append(Contradiction("open_after_outcome", outcome, fact))
        if its_rank >= OUTCOME_RANK:
            outcome = fact
    return tuple(found)


def time_in_status_ms(facts: Sequence[Fact], until_ms: int) -> dict[str, int]:
    """Return how long the order was in each status, up to until_ms for the status it is in; never below 0."""
    spent: dict[str, int] = {}
    changes = transitions(facts)
    ends = [change.fact.updated_at_ms for change in changes[1:]] + [until_ms]
    for change, end_ms in zip(changes, ends, strict=False):
        spent[change.after] = spent.get(change.after, 0) + max(0, end_ms - change.fact.updated_at_ms)
    return spent


def set_aside(state: OrderState) -> tuple[Fact, ...]:
    """Return the facts that no delivery shows as plausible, by time.

    The sender's retry of one body may be implausible when it first arrives and plausible a day later.
    """
    known = {(fact.updated_at_ms, fact.status) for fact in state.facts}
    return in_order([fact for fact in state.set_aside if (fact.updated_at_ms, fact.status) not in known])
