"""Tell a shop's own system of every completed order: SHOP_URL=https://… kinguin-streams consume examples/order_completed_notifier.py:app

Kafka delivers at least once, and so does this: the shop sees one Idempotency-Key for all deliveries of an event.
"""

import os
from http import HTTPStatus
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import msgspec

from kinguin_streams.consumers.app import App, Context, Reject
from kinguin_streams.schemas.events import OrderComplete

# The shop has understood and will not take it: coming again would not help. 408 and 429 ask for just that.
FINAL = {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.UNPROCESSABLE_ENTITY}

app = App("order-completed-notifier")


@app.on(OrderComplete)
def notify(event: OrderComplete, context: Context) -> None:
    """Put the fact there; returning means done, raising means again, Reject means a dead letter."""
    url = f"{os.environ['SHOP_URL']}/orders/{quote(event.order_id, safe='')}/completed"
    body = msgspec.json.encode({"orderId": event.order_id, "orderExternalId": event.order_external_id})
    headers = {"Content-Type": "application/json", "Idempotency-Key": context.event_id}
    try:
        with urlopen(Request(url, body, headers, method="PUT"), timeout=10):  # noqa: S310 - our own setting
            pass
    except HTTPError as answer:
        if answer.code in FINAL:
            raise Reject("shop_refuses", f"{answer.code} {answer.reason}") from answer
        raise
