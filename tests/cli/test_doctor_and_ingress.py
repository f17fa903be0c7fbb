"""`kinguin-streams doctor` asks a running ingress: when each secret was last used, who is silent, whether the books balance."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kinguin_streams.ingress.secrets import name_of
from tests.commands import run
from tests.conftest import KafkaCluster
from tests.ingress.running_ingress import new_id, order_status, running_ingress

SECRETS = '{"default": ["used-x7", "unused-x8"], "shop-2": ["other-x9"]}'


def diagnoses(environment: dict[str, str]) -> tuple[dict[str, tuple[str, str]], str]:
    """Return what doctor found, name to state and detail, and all that it printed."""
    done = run(environment, "doctor", "--json")
    found = {check["name"]: (check["state"], check["detail"]) for check in json.loads(done.stdout)["checks"]}
    return found, done.stdout + done.stderr


@pytest.mark.kafka
def test_doctor_says_of_each_secret_when_it_was_last_used_and_of_each_store_how_long_it_has_been_silent(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    settings = {"secrets": SECRETS, "silence_s": 0.2}
    with running_ingress(kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as running:
        assert running.post(order_status(new_id()), secret="used-x7").status == 204
        environment = {
            "KINGUIN_INGRESS__PORT": str(running.port),
            "KINGUIN_INGRESS__ADMIN_PORT": str(running.admin_port),
            "KINGUIN_INGRESS__SILENCE_S": "3600",
            "KINGUIN_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "KINGUIN_TOPICS__PREFIX": topic_prefix,
            "KINGUIN_LOCAL__DATA_DIR": str(tmp_path / ".data"),
        }
        found, printed = diagnoses(environment)
        state, detail = found[f"secret {name_of('used-x7')} of default"]
        used = datetime.fromisoformat(detail.removeprefix("last used "))
        assert (state, abs(datetime.now(UTC) - used) < timedelta(minutes=1)) == ("ok", True)
        never = ("ok", "never used since the ingress started")
        assert found[f"secret {name_of('unused-x8')} of default"] == never
        assert found[f"secret {name_of('other-x9')} of shop-2"] == never
        assert not re.search(r"used-x7|unused-x8|other-x9", printed)
        assert found["ledger"][0] == "ok"
        assert "received 1 = in flight 0 + acked 1 +" in found["ledger"][1]
        for store in ("default", "shop-2"):
            state, detail = found[f"silence of {store}"]
            assert state == "ok"
            assert {"product.update", "order.status", "order.complete"} == set(re.findall(r"(\S+) \d+ s", detail))
        assert "[!] store shop-2" in found["ingress"][1]
        quiet, _ = diagnoses({**environment, "KINGUIN_INGRESS__SILENCE_S": "0.1"})
        assert quiet["silence of shop-2"][0] == "warn"
        assert "is the endpoint still enabled in the dashboard?" in quiet["silence of shop-2"][1]


@contextmanager
def admin_port_that_says(metrics: str) -> Iterator[int]:
    """Serve these metrics, as an ingress with a fault of ours would."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.encode() if self.path == "/metrics" else b"ready\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("in_flight", "state"), [(2, "ok"), (1, "fail")])
def test_doctor_fails_if_the_ledger_does_not_balance(tmp_path: Path, in_flight: int, state: str) -> None:
    metrics = f"""\
# TYPE kinguin_ingress_received counter
kinguin_ingress_received_total 5
# TYPE kinguin_ingress_requests counter
kinguin_ingress_requests_total{{event="order.status",outcome="acked"}} 2
kinguin_ingress_requests_total{{event="order.status",outcome="spooled"}} 1
# TYPE kinguin_ingress_in_flight gauge
kinguin_ingress_in_flight {in_flight}
"""
    with admin_port_that_says(metrics) as port:
        found, _ = diagnoses(
            {
                "KINGUIN_INGRESS__ADMIN_PORT": str(port),
                "KINGUIN_LOCAL__DATA_DIR": str(tmp_path),
            }
        )
    assert found["ledger"][0] == state


def test_doctor_names_a_spool_file_that_cannot_be_read_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.spool").write_bytes(b"this was never a database" * 100)
    with admin_port_that_says("") as port:
        found, _ = diagnoses(
            {
                "KINGUIN_INGRESS__ADMIN_PORT": str(port),
                "KINGUIN_LOCAL__DATA_DIR": str(tmp_path),
                "KINGUIN_SPOOL__PATH": str(tmp_path),
            }
        )
    state, detail = found["spool"]
    assert state == "fail"
    assert f"1 files cannot be read: {tmp_path / 'a.spool'}" in detail
    assert "ledger" in found
