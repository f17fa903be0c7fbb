"""What one writes first: Falcon on waitress, and `flush()` after each record. Validates JSON; writes it as it came.

python benchmarks/peers/flushing.py PORT
"""

import hmac
import os
import sys
from datetime import datetime

import falcon
import msgspec
import waitress
from confluent_kafka import Producer


class Order(msgspec.Struct):
    """A webhook's body."""

    orderId: str  # noqa: N815
    status: str
    updatedAt: datetime  # noqa: N815
    orderExternalId: str | None = None  # noqa: N815


producer = Producer(
    {"bootstrap.servers": os.environ["BENCH_BOOTSTRAP"], "acks": "all", "enable.idempotence": True, "linger.ms": 0}
)
decode = msgspec.json.Decoder(Order).decode


class Webhooks:
    """Publishes, and waits for everything that is in the producer's queue."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer that somebody is here."""
        resp.status = falcon.HTTP_204

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 204 once the queue is empty."""
        if not hmac.compare_digest(req.get_header("X-Event-Secret") or "", os.environ["BENCH_SECRET"]):
            raise falcon.HTTPUnauthorized
        body = req.bounded_stream.read()
        producer.produce(os.environ["BENCH_TOPIC"], body, decode(body).orderId)
        if producer.flush(10):
            raise falcon.HTTPServiceUnavailable
        resp.status = falcon.HTTP_204


app = falcon.App()
app.add_route("/webhooks", Webhooks())
waitress.serve(app, host="127.0.0.1", port=int(sys.argv[1]), connection_limit=1000, backlog=1024, _quiet=True)
