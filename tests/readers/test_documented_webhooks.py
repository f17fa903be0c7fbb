"""The documented webhooks, posted over HTTP to an ingress that runs as users run it, read back by kcat and Apache Avro."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from tests.commands import COMMAND, clean_environment
from tests.conftest import KafkaCluster, free_port
from tests.readers import programs, toolchains, witness
from tests.readers.corpus import Webhook

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
SECRET = "Zx81-documented-webhooks"

pytestmark = pytest.mark.kafka


@pytest.fixture
def webhooks(kafka: KafkaCluster, topic_prefix: str) -> Iterator[str]:
    """URL of a running ingress."""
    port, admin_port = free_port(), free_port()
    settings = {
        "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KINGUIN_TOPICS__PREFIX": topic_prefix,
        "KINGUIN_INGRESS__SECRETS": json.dumps({"default": [SECRET]}),
        "KINGUIN_INGRESS__PORT": str(port),
        "KINGUIN_INGRESS__ADMIN_PORT": str(admin_port),
    }
    environment = clean_environment(settings)
    subprocess.run([*COMMAND, "topics", "apply"], env=environment, check=True, timeout=60)
    with subprocess.Popen([*COMMAND, "ingress"], env=environment, stderr=subprocess.DEVNULL) as ingress:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                if urllib3.request("GET", f"http://127.0.0.1:{admin_port}/readyz", retries=False).status == 200:
                    break
            except urllib3.exceptions.HTTPError:
                assert ingress.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/webhooks"
        ingress.terminate()


def test_a_documented_webhook_posted_over_http_is_read_back_by_kcat_and_apache_avro(
    webhooks: str, kafka: KafkaCluster, topic_prefix: str
) -> None:
    toolchains.kcat()
    sent = [
        Webhook(store="default", event=event, version=version, body=body, received_after_ms=0, traceparent=None)
        for event, version in (("product.update", 3), ("order.status", 1), ("order.complete", 1))
        for body in [(EXAMPLES / event / "1" / "documented.json").read_bytes()]
    ]
    for webhook in sent:
        headers = {"X-Event-Name": webhook.event, "X-Event-Secret": SECRET, "Content-Type": "aplication/json"}
        answer = urllib3.request("POST", webhooks, headers=headers, body=webhook.body)
        assert (answer.status, answer.data) == (204, b"")

    command = [*programs.python("kcat_reader"), kafka.bootstrap_servers, "single-object", str(programs.SCHEMAS)]
    found = programs.read(command, [f"{topic_prefix}.{webhook.event}" for webhook in sent])

    expected = witness.expected(sent, topic_prefix, base_ms=0)
    assert found.keys() == expected.keys()
    for position, record in found.items():
        assert time.time() * 1_000 - 60_000 < record["timestamp"] < time.time() * 1_000
        assert record["value"].pop("receivedAt") == str(record.pop("timestamp"))
        del expected[position]["timestamp"], expected[position]["value"]["receivedAt"]
    assert found == expected
