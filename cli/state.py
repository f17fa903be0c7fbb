"""`kinguin-streams state`: what the consumers have made of the events."""

import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinguin_streams.cli import output
from kinguin_streams.cli.durations import duration_s

if TYPE_CHECKING:
    from kinguin_streams.consumers.derived import Difference
    from kinguin_streams.consumers.order_state import Fact, OrderView
    from kinguin_streams.consumers.product_changes import Change
    from kinguin_streams.consumers.reader import ProductView

ROWS_UNDER_ONE_HEADING = 500

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Read the state that `kinguin-streams consume` keeps, at any time, also while consumers run.\n\n"
        "Times are the sender's updatedAt, in UTC. The database is KINGUIN_STATE__URL; only `verify` needs Kafka."
    ),
)
show = typer.Typer(no_args_is_help=True, help="Show one order or product, with the evidence for what is said.")
app.add_typer(show, name="show")
forget = typer.Typer(no_args_is_help=True, help="Delete the state of an order, in the database and in its topic.")
app.add_typer(forget, name="forget")


class What(StrEnum):
    orders = "orders"
    products = "products"


class Format(StrEnum):
    json = "json"
    table = "table"


class Per(StrEnum):
    hour = "hour"
    day = "day"


StateUrl = Annotated[
    str | None,
    typer.Option("--state-url", help="database of state and offsets", show_default="sqlite:///.data/state.db"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Store = Annotated[str, typer.Option("--store", help="name of the store")]


@app.command()
def dump(
    what: Annotated[What, typer.Argument(help="orders or products")],
    output_format: Annotated[
        Format, typer.Option("--format", help="json: one object a line, for machines; table: for people")
    ] = Format.table,
    state_url: StateUrl = None,
) -> None:
    """Print every order or product, by store and id, as of one instant.

    An order's fields: store, orderId, orderExternalId, status, updatedAt, completedAt, facts (their number),
    contradictions (codes), setAside (number of facts whose updatedAt cannot be believed), truncated.
    A product's: store, kinguinId, productId, updatedAt, changes, qty, textQty, price (EUR), cheapestOfferId, asOf (field
    to the time of its value), setAside. A field that no event carried is null.
    """
    from kinguin_streams.consumers import reader

    url = _url(state_url)
    lines: Iterator[dict[str, Any]]
    if what is What.orders:
        lines = map(_order_line, reader.order_views(url))
    else:
        lines = map(_product_line, reader.product_views(url))
    if output_format is Format.json:
        for line in lines:
            output.result_json(line)
    else:
        _print_table(lines)


@app.command("stuck")
def stuck_orders(
    after: Annotated[str, typer.Option("--after", help="how long without news, as in 12h, 2d")] = "2d",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object a line")] = False,
    state_url: StateUrl = None,
) -> None:
    """Print the orders that have been pending, processing or of an unknown status for long, the longest first.

    That an order is here does not say that something is wrong: a pre-order is processing until its release date, which may
    be months away, and no webhook tells a pre-order from another.
    """
    from kinguin_streams.consumers import reader

    url = _url(state_url)
    found = reader.stuck_orders(url, _now_ms(), round(duration_s(after) * 1000))
    rows = [{**_order_line(one.view), "waitsMs": one.waits_ms} for one in found]
    if as_json:
        for row in rows:
            output.result_json(row)
    else:
        shown = [{**row, "waits": _duration(row["waitsMs"])} for row in rows]
        output.result_table(["store", "orderId", "status", "updatedAt", "waits"], shown)


@app.command()
def windows(
    per: Annotated[Per, typer.Option("--per", help="length of a window")] = Per.hour,
    last: Annotated[str, typer.Option("--last", help="how far back, as in 24h, 30d")] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object a line")] = False,
    state_url: StateUrl = None,
) -> None:
    """Print how many product changes lie in each hour or day of the sender's time, late ones included.

    Windows without a change are left out.
    """
    from kinguin_streams.consumers import reader
    from kinguin_streams.consumers.product_changes import DAY_MS, HOUR_MS

    length_ms = HOUR_MS if per is Per.hour else DAY_MS
    since_ms = _now_ms() - round(duration_s(last) * 1000)
    found = reader.changes_per_window(_url(state_url), length_ms, since_ms)
    rows = [{"start": _time(item.start_ms), "changes": item.changes, "products": item.products} for item in found]
    if as_json:
        for row in rows:
            output.result_json(row)
    else:
        output.result_table(["start", "changes", "products"], rows)


@app.command()
def busiest(
    top: Annotated[int, typer.Option("--top", min=1, help="how many products")] = 10,
    last: Annotated[str | None, typer.Option("--last", help="only changes of this long, as in 24h, 30d")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object a line")] = False,
    state_url: StateUrl = None,
) -> None:
    """Print the products with the most changes, most first."""
    from kinguin_streams.consumers import reader

    since_ms = None if last is None else _now_ms() - round(duration_s(last) * 1000)
    found = reader.busiest_products(_url(state_url), top, since_ms)
    lines = [{"store": item.store, "kinguinId": item.kinguin_id, "changes": item.changes} for item in found]
    if as_json:
        for line in lines:
            output.result_json(line)
    else:
        output.result_table(["store", "kinguinId", "changes"], lines)


@show.command("order")
def show_order(
    order_id: Annotated[str, typer.Argument(help="orderId, as Kinguin sent it")],
    store: Store = "default",
    as_json: AsJson = False,
    state_url: StateUrl = None,
) -> None:
    """Say why an order is in its state: its facts, where each lies in Kafka, transitions and contradictions.

    Facts that were set aside have a reason: before_2018 (updatedAt is older than the sender's API) or after_receipt (it is
    more than a day later than its own delivery).

    Exits 1 if no event of this order has arrived.
    """
    from kinguin_streams.consumers import reader

    view = reader.order_view(_url(state_url), store, order_id)
    if view is None:
        output.talk(f"No event of order {order_id} of store {store} has taken effect.")
        raise typer.Exit(1)
    if as_json:
        output.result_json(_order_detail(view))
    else:
        _print_order(view)


@show.command("product")
def show_product(
    kinguin_id: Annotated[int, typer.Argument(help="kinguinId")],
    store: Store = "default",
    as_json: AsJson = False,
    state_url: StateUrl = None,
) -> None:
    """Show a product's latest known values, its changes per day and hour, and what changed from one to the next.

    Changes that were set aside have a reason: before_2018 (updatedAt is older than the sender's API) or after_receipt (it is
    more than a day later than its own delivery).

    Exits 1 if no change of this product has arrived.
    """
    from kinguin_streams.consumers import reader
    from kinguin_streams.consumers.product_changes import summarise

    changes = reader.changes_of(_url(state_url), store, kinguin_id)
    if not changes:
        output.talk(f"No change of product {kinguin_id} of store {store} has taken effect.")
        raise typer.Exit(1)
    view = reader.ProductView(store, kinguin_id, summarise(changes))
    detail = _product_detail(view, changes)
    if as_json:
        output.result_json(detail)
    else:
        _print_product(detail)


@app.command()
def verify(
    derived: Annotated[
        bool, typer.Option("--derived", help="compare the topics order.state and product.state with the database")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="put what differs into the outbox, for `consume` to tell it once more")
    ] = False,
    as_json: AsJson = False,
    state_url: StateUrl = None,
) -> None:
    """Say whether the derived topics tell what the database holds; also while consumers run.

    Exits 1 if anything differs. What is still in the outbox is on its way, and counts as waiting.
    Differences: missing (the topic does not have the key), older, newer (another revision than the database's), other (the
    same revision, another content), left_over (the database does not have the key), overtaken (an older record stands
    behind the right one, and compaction will keep the older).
    With --repair it exits 1 only if something is left that telling the states once more does not mend; whether that was
    told, another `verify` says once nothing waits.
    """
    from kinguin_streams.cli import wiring
    from kinguin_streams.cli.settings import load
    from kinguin_streams.cluster.connection import consumer_config
    from kinguin_streams.cluster.topic_reader import TopicReader
    from kinguin_streams.consumers import derived as derived_topics
    from kinguin_streams.consumers.samples import SAMPLES
    from kinguin_streams.telemetry.logs import configure

    if not derived:
        raise typer.BadParameter("say what to verify: --derived")
    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format)
    name = "kinguin-streams-verify"
    reader = TopicReader(consumer_config(wiring.kafka(settings), group_id=name, client_id=name))
    topics, decoder = wiring.topics(settings), wiring.decoder(settings)
    found: dict[str, dict[str, Any]] = {}
    left = 0
    try:
        for projection in SAMPLES:
            if projection.derived is not None:
                topic = topics.name(projection.derived)
                compared = derived_topics.verify(projection, settings.state, reader, topic, decoder)
                found[topic] = {
                    "keys": compared.keys,
                    "waiting": compared.waiting,
                    "differences": [_difference(each) for each in compared.differences],
                }
                unmended = compared.differences
                if repair:
                    unmended = derived_topics.repair(projection, settings.state, compared.differences)
                    found[topic]["queued"] = len(compared.differences) - len(unmended)
                left += len(unmended)
    finally:
        reader.close()
    if as_json:
        output.result_json(found)
    for topic, said in found.items():
        if not as_json and said["differences"]:
            output.result(topic)
            output.result_table(["key", "difference", "topic", "database"], said["differences"])
        output.talk(
            f"{topic}: {said['keys']} keys, {said['waiting']} waiting to be told, {len(said['differences'])} differ"
            + (f", {said['queued']} queued to be told once more" if repair else "")
        )
    if left:
        raise typer.Exit(1)


@forget.command("order")
def forget_order(
    order_id: Annotated[str, typer.Argument(help="orderId, as Kinguin sent it")],
    store: Store = "default",
    state_url: StateUrl = None,
) -> None:
    """Delete an order's state, and have `consume order-state` tell the topic order.state that it is gone.

    Its events stay in their topics. A rebuild in this database leaves out those that were received up to now. An event that
    comes later makes the order known again, by what has come since. Exits 1 if there is no such order.
    """
    from kinguin_streams.cli.settings import load
    from kinguin_streams.consumers.forgetting import forget_state
    from kinguin_streams.consumers.order_state import ORDER_STATE
    from kinguin_streams.consumers.projection import StateKey
    from kinguin_streams.telemetry.logs import configure

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format)
    if not forget_state(settings.state, ORDER_STATE, StateKey(store, order_id)):
        output.talk(f"No event of order {order_id} of store {store} has taken effect.")
        raise typer.Exit(1)
    output.talk(f"Order {order_id} of store {store} is forgotten; its events stay in their topics.")


@app.command()
def migrate(state_url: StateUrl = None) -> None:
    """Bring the database's tables to this version. Stop the consumers and copy the database first.

    A new database needs no such command: `consume` and `up` make it.
    """
    from kinguin_streams.cli.settings import load
    from kinguin_streams.consumers import database
    from kinguin_streams.telemetry.logs import configure

    settings = load(state={"url": state_url})
    configure(settings.log.level, settings.log.format)
    before, after = database.migrate(settings.state)
    output.talk(f"Schema version {after}; it was {before or 'none'}." if before != after else f"Already at {after}.")


def _url(state_url: str | None) -> str:
    from kinguin_streams.cli.settings import load

    return load(state={"url": state_url}).state.url


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _duration(length_ms: int) -> str:
    minutes = length_ms // 60_000
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    return f"{days}d {hours}h" if days else f"{hours}h {minutes}m"


def _difference(found: "Difference") -> dict[str, Any]:
    return {
        "key": found.key,
        "difference": found.code,
        "topic": found.in_topic and "{}.{}".format(*found.in_topic),
        "database": found.in_database and "{}.{}".format(*found.in_database),
    }


def _time(instant_ms: int | None) -> str | None:
    from kinguin_streams.schemas.instants import to_rfc3339

    return None if instant_ms is None else to_rfc3339(instant_ms)


def _order_line(view: "OrderView") -> dict[str, Any]:
    return {
        "store": view.store,
        "orderId": view.order_id,
        "orderExternalId": view.order_external_id,
        "status": view.status,
        "updatedAt": _time(view.updated_at_ms),
        "completedAt": _time(view.completed_at_ms),
        "facts": len(view.facts),
        "contradictions": sorted({contradiction.code for contradiction in view.contradictions}),
        "setAside": len(view.set_aside),
        "truncated": view.truncated,
    }


def _order_detail(view: "OrderView") -> dict[str, Any]:
    from kinguin_streams.consumers.order_state import time_in_status_ms

    # Of the status that it is in, up to now.
    spent = time_in_status_ms(view.facts, _now_ms())
    return {
        **_order_line(view),
        "transitions": [
            {"at": _time(change.fact.updated_at_ms), "before": change.before, "after": change.after}
            for change in view.transitions
        ],
        "timeInStatusMs": spent,
        "facts": [_fact(fact) for fact in view.facts],
        "contradictions": [
            {"code": pair.code, "earlier": _fact(pair.earlier), "later": _fact(pair.later)}
            for pair in view.contradictions
        ],
        "setAside": [_set_aside(fact) for fact in view.set_aside],
    }


def _fact(fact: "Fact") -> dict[str, Any]:
    return {
        "updatedAt": _time(fact.updated_at_ms),
        "status": fact.status,
        "receivedAt": _time(fact.seen.received_at_ms),
        "topic": fact.seen.topic,
        "partition": fact.seen.partition,
        "offset": fact.seen.offset,
    }


def _set_aside(fact: "Fact") -> dict[str, Any]:
    from kinguin_streams.consumers.plausible_time import implausible_because

    return {**_fact(fact), "reason": implausible_because(fact.updated_at_ms, fact.seen.received_at_ms)}


def _print_order(view: "OrderView") -> None:
    output.result(f"Order {view.order_id} of store {view.store}: {_why(view)}")
    output.result(f"External id: {view.order_external_id or 'none was sent'}")
    output.result(f"First completed: {_time(view.completed_at_ms) or 'never'}")
    facts = [_fact(fact) for fact in view.facts]
    columns = ["updatedAt", "status", "receivedAt", "topic", "partition", "offset"]
    output.result("\nFacts, the one that counts last" + (" (older ones were dropped)" if view.truncated else ""))
    output.result_table(columns, facts)
    output.result("\nTransitions")
    for change in view.transitions:
        output.result(f"{_time(change.fact.updated_at_ms)}  {change.before or '(first)'} → {change.after}")
    output.result("\nTime in each status, until now")
    for status, spent_ms in _order_detail(view)["timeInStatusMs"].items():
        output.result(f"{status}  {_duration(spent_ms)}")
    if view.contradictions:
        output.result("\nContradictions")
        for pair in view.contradictions:
            earlier, later = _fact(pair.earlier), _fact(pair.later)
            output.result(
                f"{pair.code}: {earlier['status']} at {earlier['updatedAt']}, {later['status']} at {later['updatedAt']}"
            )
    if view.set_aside:
        output.result("\nSet aside: their updatedAt cannot be believed")
        output.result_table([*columns, "reason"], [_set_aside(fact) for fact in view.set_aside])


def _why(view: "OrderView") -> str:
    if not view.facts:
        return "status unknown, because every fact was set aside"
    newest = view.facts[-1]
    equals = [fact.status for fact in view.facts[:-1] if fact.updated_at_ms == newest.updated_at_ms]
    reason = "the fact with the greatest updatedAt"
    if equals:
        reason = f"which outranks {', '.join(equals)} of the same updatedAt"
    seen = newest.seen
    return (
        f"{newest.status} since {_time(newest.updated_at_ms)}, {reason} "
        f"(record {seen.topic}/{seen.partition}/{seen.offset})"
    )


def _product_line(view: "ProductView") -> dict[str, Any]:
    known = view.summary.known
    # The sender's names; cheapestOfferId is a list under a singular name.
    names = {
        "product_id": "productId",
        "qty": "qty",
        "text_qty": "textQty",
        "price": "price",
        "cheapest_offer_ids": "cheapestOfferId",
    }
    return {
        "store": view.store,
        "kinguinId": view.kinguin_id,
        "productId": _value(known["product_id"].value) if "product_id" in known else None,
        "updatedAt": _time(view.summary.updated_at_ms),
        "changes": view.summary.changes,
        **{name: _value(known[field].value) if field in known else None for field, name in names.items()},
        "asOf": {name: _time(known[field].as_of_ms) for field, name in names.items() if field in known},
        "setAside": view.summary.set_aside,
    }


def _product_detail(view: "ProductView", changes: "Sequence[Change]") -> dict[str, Any]:
    from kinguin_streams.consumers.plausible_time import implausible_because
    from kinguin_streams.consumers.product_changes import differences

    return {
        **_product_line(view),
        "perDay": {_time(day_ms): number for day_ms, number in view.summary.per_day.items()},
        "perHour": {_time(hour_ms): number for hour_ms, number in view.summary.per_hour.items()},
        "differences": [
            {
                "updatedAt": _time(item.updated_at_ms),
                "field": item.field,
                "before": _value(item.before),
                "after": _value(item.after),
                "eventId": item.event_id,
            }
            for item in differences(changes)
        ],
        "setAsideChanges": [
            {
                "updatedAt": _time(item.updated_at_ms),
                "receivedAt": _time(item.received_at_ms),
                "topic": item.topic,
                "partition": item.partition,
                "offset": item.offset,
                "eventId": item.event_id,
                "reason": implausible_because(item.updated_at_ms, item.received_at_ms),
            }
            for item in sorted(changes, key=lambda item: (item.updated_at_ms, item.event_id))
            if item.set_aside
        ],
    }


def _print_product(detail: Mapping[str, Any]) -> None:
    output.result(
        f"Product {detail['kinguinId']} of store {detail['store']}: {detail['changes']} changes, the last at "
        f"{detail['updatedAt'] or '-'}"
    )
    output.result("\nLatest known values")
    rows = [{"field": name, "value": detail[name], "as of": as_of} for name, as_of in detail["asOf"].items()]
    output.result_table(["field", "value", "as of"], rows)
    output.result("\nChanges per day (UTC)")
    for day, number in detail["perDay"].items():
        output.result(f"{day[:10]}  {number}")
    output.result("\nWhat changed; a change need not show in a field")
    output.result_table(["updatedAt", "field", "before", "after"], detail["differences"])
    if detail["setAside"]:
        output.result(f"\n{detail['setAside']} changes were set aside: their updatedAt cannot be believed")
        columns = ["updatedAt", "receivedAt", "topic", "partition", "offset", "reason"]
        output.result_table(columns, detail["setAsideChanges"])


def _value(value: Any) -> Any:
    """Return a price as text without needless zeros, everything else as it is."""
    from decimal import Decimal

    return f"{value.normalize():f}" if isinstance(value, Decimal) else value


def _print_table(lines: Iterator[dict[str, Any]]) -> None:
    """Print in parts, each under its own heading, so that a large state does not have to fit into memory."""
    while part := list(islice(lines, ROWS_UNDER_ONE_HEADING)):
        columns = [column for column in part[0] if column != "asOf"]
        output.result_table(columns, part)
