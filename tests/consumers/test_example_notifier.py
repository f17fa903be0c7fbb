"""examples/order_completed_notifier.py against a shop that is a real HTTP server, and a real Kafka."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kinguin_streams.cli import settings
from kinguin_streams.consumers import loading
from kinguin_streams.consumers.app import App
from tests.conftest import KafkaCluster
from tests.consumers.deliveries import order_complete
from tests.consumers.kafka_streams import Streams
from tests.consumers.running_handlers import running_app

pytestmark = pytest.mark.kafka

EXAMPLE = Path(__file__).parents[2] / "examples" / "order_completed_notifier.py"


class Shop:
    """Takes notifications. answers: path to the statuses that it gives, one a request, the last one from then on."""

    def __init__(self) -> None:
        self.answers: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str, object]] = []
        """Path, Idempotency-Key and body, in the order of arrival."""
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                shop.requests.append((self.path, self.headers["Idempotency-Key"], body))
                left = shop.answers.get(self.path, [204])
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None: ...  # noqa: A002 - its name there

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shop = Shop()
    monkeypatch.setenv("SHOP_URL", shop.url)
    yield shop
    shop.close()


@pytest.fixture
def streams(kafka: KafkaCluster, topic_prefix: str) -> Streams:
    return Streams(kafka.bootstrap_servers, topic_prefix).make()


@pytest.fixture
def notifier() -> App:
    app = loading.load(f"{EXAMPLE}:app")
    assert isinstance(app, App)
    return app


def test_a_shop_hears_of_every_completed_order_and_repetitions_have_one_key(
    streams: Streams, shop: Shop, notifier: App
) -> None:
    first, second = order_complete(order_id="A/B"), order_complete(order_id="C", external_id=None)
    streams.write(first, second, first)
    with running_app(streams, notifier) as running:
        running.catch_up(streams.ends("order.complete"))
    assert sorted(shop.requests, key=str) == sorted(
        [
            ("/orders/A%2FB/completed", first.event_id, {"orderId": "A/B", "orderExternalId": "AL2FEEHOO2OHF"}),
            ("/orders/A%2FB/completed", first.event_id, {"orderId": "A/B", "orderExternalId": "AL2FEEHOO2OHF"}),
            ("/orders/C/completed", second.event_id, {"orderId": "C", "orderExternalId": None}),
        ],
        key=str,
    )
    assert streams.dead_letters() == []


def test_a_shop_that_is_away_is_asked_again_and_one_that_refuses_gets_a_dead_letter(
    streams: Streams, shop: Shop, notifier: App
) -> None:
    shop.answers = {"/orders/AWAY/completed": [503, 429, 204], "/orders/UNKNOWN/completed": [404]}
    away, unknown = order_complete(order_id="AWAY"), order_complete(order_id="UNKNOWN")
    streams.write(away, unknown)
    with running_app(streams, notifier) as running:
        running.catch_up(streams.ends("order.complete"))
    assert [key for path, key, _ in shop.requests if "AWAY" in path] == [away.event_id] * 3
    [letter] = streams.dead_letters()
    assert (letter.reason, letter.detail, letter.consumer) == (
        "shop_refuses",
        "404 Not Found",
        "order-completed-notifier",
    )


def test_the_example_is_under_forty_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40


def test_the_command_takes_the_setting_that_the_example_asks_for(shop: Shop) -> None:
    """A variable of ours that is no setting is refused, and stopped the documented command before."""
    settings.load()
