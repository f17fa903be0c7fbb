"""The documented webhooks, posted with curl's bytes, read back by programs that no one here wrote: kcat and Apache Avro."""

import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from avro.io import BinaryDecoder, DatumReader
from avro.schema import parse

from tests.commands import COMMAND, clean_environment
from tests.conftest import free_port

ROOT = Path(__file__).parent.parent
SECRET = "Zx81-independent-reader"
# As documented in 2021-03: header, body to the byte, and the file of its schema.
EXAMPLES = {
    "product.update": (
        b'{\n   "kinguinId": 1949,\n   "productId": "5c9b5f6b2539a4e8f172916a",\n'
        b'   "updatedAt": "2020-10-16T11:24:08+00:00"\n}'
    ),
    "order.complete": (
        b'{\n   "orderId": "PHS84FJAG5U",\n   "orderExternalId": "AL2FEEHOO2OHF",\n'
        b'   "updatedAt": "2020-10-16T11:24:08+00:00"\n}'
    ),
    "order.status": (
        b'{\n   "orderId": "PHS84FJAG5U",\n   "orderExternalId": "AL2FEEHOO2OHF",\n   "status": "canceled",\n'
        b'   "updatedAt": "2020-10-16T11:24:08+00:00"\n}'
    ),
}
KEYS = {"product.update": b"1949", "order.complete": b"PHS84FJAG5U", "order.status": b"PHS84FJAG5U"}

pytestmark = pytest.mark.kafka


@pytest.fixture
def webhooks(kafka: Any, topic_prefix: str) -> Iterator[str]:
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


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed (Debian: apt-get install kcat)")
@pytest.mark.parametrize("event", EXAMPLES)
def test_a_documented_webhook_is_read_back_by_kcat_and_decoded_by_apache_avro(
    event: str, webhooks: str, kafka: Any, topic_prefix: str
) -> None:
    headers = {"X-Event-Name": event, "X-Event-Secret": SECRET, "Content-Type": "aplication/json"}
    answer = urllib3.request("POST", webhooks, headers=headers, body=EXAMPLES[event])
    assert (answer.status, answer.data) == (204, b"")

    kcat = ["kcat", "-C", "-q", "-e", "-b", kafka.bootstrap_servers, "-t", f"{topic_prefix}.{event}"]
    # %R is a big-endian length; key, then headers, then the value's length and its bytes, to the end.
    out = subprocess.run([*kcat, "-f", "%k\n%h\n%R%s"], capture_output=True, check=True, timeout=60).stdout
    key, header_line, rest = out.split(b"\n", 2)
    value = rest[4:]
    assert int.from_bytes(rest[:4], "big") == len(value)

    newest = max((ROOT / "schemas" / "avro" / event).glob("*.avsc"), key=lambda file: int(file.stem))
    schema = parse(newest.read_text())
    record: Any = DatumReader(schema).read(BinaryDecoder(io.BytesIO(value[10:])))

    assert value[:2] == b"\xc3\x01"
    assert key == KEYS[event]
    sent = json.loads(EXAMPLES[event])
    assert record["raw"] == EXAMPLES[event]
    assert record["updatedAt"].isoformat() == "2020-10-16T11:24:08+00:00"
    assert {name: record[name] for name in sent if name != "updatedAt"} == {
        name: sent[name] for name in sent if name != "updatedAt"
    }
    given = dict(header.split("=", 1) for header in header_line.decode().split(","))
    assert given["ce_id"] == record["eventId"]
    assert given["ce_type"] == f"net.kinguin.{event}"
    assert given["content-type"] == "application/avro"
