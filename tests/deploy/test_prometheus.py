"""Alerts and dashboard: checked by Prometheus's own tool, and each name in them compared with what is really scraped."""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
import yaml  # type: ignore[import-untyped]

from tests.conftest import KafkaCluster
from tests.consumers.consuming_process import consuming
from tests.consumers.deliveries import order_status as consumed_status
from tests.consumers.kafka_streams import Streams, wait_until
from tests.deploy.proxies import ROOT, Backend, program, running_proxy
from tests.ingress.running_ingress import Connection, new_id, order_status, request_bytes, running_ingress, samples

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana" / "provisioning"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))["groups"] for rule in group["rules"]
]
DASHBOARDS: list[dict[str, Any]] = [
    json.loads(file.read_text("utf-8")) for file in sorted((GRAFANA / "dashboards").glob("*.json"))
]
PANELS: list[dict[str, Any]] = [panel for dashboard in DASHBOARDS for panel in dashboard["panels"]]
PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "datasource", "gridPos", "targets", "fieldConfig", "options"],
    "properties": {
        "type": {"enum": ["timeseries", "stat"]},
        "title": {"type": "string", "minLength": 1},
        "datasource": {"$ref": "#/$defs/datasource"},
        "gridPos": {
            "type": "object",
            "required": ["x", "y", "w", "h"],
            "properties": {
                "x": {"type": "integer", "minimum": 0, "maximum": 23},
                "y": {"type": "integer", "minimum": 0},
                "w": {"type": "integer", "minimum": 1, "maximum": 24},
                "h": {"type": "integer", "minimum": 1},
            },
            "additionalProperties": False,
        },
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["refId", "datasource", "expr", "legendFormat"],
                "properties": {
                    "refId": {"pattern": "^[A-Z]$"},
                    "datasource": {"$ref": "#/$defs/datasource"},
                    "expr": {"type": "string", "minLength": 1},
                    "legendFormat": {"type": "string"},
                },
                "additionalProperties": False,
            },
        },
        "fieldConfig": {"type": "object", "required": ["defaults", "overrides"]},
    },
}
DASHBOARD_SCHEMA = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "time", "templating"],
    "properties": {
        "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {"type": "array", "minItems": 1, "items": PANEL},
    },
    "$defs": {
        "datasource": {
            "type": "object",
            "required": ["type", "uid"],
            "properties": {"type": {"const": "prometheus"}, "uid": {"const": "prometheus"}},
            "additionalProperties": False,
        }
    },
}
"""What Grafana needs of a dashboard in a file, as far as these use it."""


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    """Run promtool and return what it said. Fails unless it is content."""
    done = subprocess.run(
        [program("promtool"), *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_takes_configuration_and_rules() -> None:
    said = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(RULES)} rules found" in said


def test_every_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", PROMETHEUS / "rules_test.yml")


def test_no_alert_is_without_such_a_test() -> None:
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text("utf-8"))["tests"]
    fired = {test["alertname"] for case in cases for test in case.get("alert_rule_test", ()) if test["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_urgent_it_is_and_has_its_paragraph_in_the_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    text = (ROOT / page).read_text("utf-8")
    headings = re.findall(r"^#{2,4} (.+)$", text, re.MULTILINE)
    assert anchor in {slug(heading) for heading in headings}
    assert f"`{rule['alert']}`" in text


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard["uid"])
def test_a_dashboard_has_the_form_that_grafana_reads_and_no_panel_covers_another(dashboard: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(DASHBOARD_SCHEMA).validate(dashboard)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    assert {dashboard["uid"] for dashboard in DASHBOARDS} == {"kinguin-ingress", "kinguin-consumers"}
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "dashboards" / "dashboards.yml").read_text("utf-8"))["providers"]
    assert (source["uid"], source["type"], source["url"]) == ("prometheus", "prometheus", "http://prometheus:9090")
    assert provider["options"]["path"] == "/etc/grafana/provisioning/dashboards"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_prometheus_can_read_every_expression_of_the_dashboards(panel: dict[str, Any], tmp_path: Path) -> None:
    rules = [
        {"record": "panel:expression", "expr": target["expr"].replace("$__rate_interval", "1m")}
        for target in panel["targets"]
    ]
    file = tmp_path / "rules.yml"
    file.write_text(
        yaml.safe_dump({"groups": [{"name": f"g{n}", "rules": [rule]} for n, rule in enumerate(rules)]}), "utf-8"
    )
    promtool("check", "rules", file)


# --- against a real scrape ---


@pytest.fixture(scope="module")
def scrapes(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """What an ingress and HAProxy say of themselves, once each outcome has happened."""
    folder = tmp_path_factory.mktemp("scrapes")
    with running_ingress(kafka.bootstrap_servers, f"t{uuid4().hex[:12]}", folder) as ingress:
        backend = Backend(ingress.port, ingress.admin_port)
        with running_proxy("haproxy", [backend, backend], folder / "haproxy") as proxy:
            requests = [
                ingress.webhook(order_status(new_id())),
                ingress.webhook(b"no json"),
                ingress.webhook(order_status(new_id()), secret="wrong"),
                ingress.webhook(b"{}", secret=None, event=None),
                ingress.webhook(b"", secret=None, event=None),
            ]
            connection = Connection(proxy.port, documented=False)
            assert [connection.exchange(request).status for request in requests] == [204, 202, 401, 401, 204]
            connection.close()
            assert proxy.metrics_port is not None
            metrics = Connection(proxy.metrics_port, documented=False)
            of_haproxy = metrics.exchange(request_bytes("GET", "/metrics", []), "GET").body.decode()
            metrics.close()
        yield ingress.admin("/metrics").body.decode(), of_haproxy


@pytest.fixture(scope="module")
def consumer_scrapes(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a consumer says of itself that has read good and bad records, and one that cannot go on."""
    streams = Streams(kafka.bootstrap_servers, f"t{uuid4().hex[:12]}").make()
    streams.write(consumed_status("processing"))
    streams.write_bytes("order.status", [b"no Avro"])
    found = []
    with consuming(streams, tmp_path_factory.mktemp("consumer")) as consumer:
        consumer.wait_for_metric("outbox_published_total", 1)
        wait_until(lambda: "lag_seconds order.status 0" in consumer.metrics(), "a look at the topics")
        found.append(consumer.ask("/metrics")[1])
    unmade = Streams(kafka.bootstrap_servers, f"{streams.prefix}.unmade")
    with consuming(unmade, tmp_path_factory.mktemp("stopped")) as consumer:
        consumer.wait_for_metric("stopped topic_missing", 1)
        found.append(consumer.ask("/metrics")[1])
    return found


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each metric of a PromQL expression with the labels that it is selected by, and those that it is summed by."""
    for name, labels in re.findall(r"\b((?:kinguin|haproxy)_\w+)(?:\{([^}]*)\})?", expression):
        yield name, dict(re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', labels))


EXPRESSIONS: Sequence[str] = [
    *(rule["expr"] for rule in RULES),
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
]
OF_THE_SCRAPER = {"job", "instance"}


@pytest.mark.kafka
def test_every_metric_in_alerts_and_dashboards_is_really_scraped(
    scrapes: tuple[str, str], consumer_scrapes: list[str]
) -> None:
    known: dict[str, set[str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for name, labels in (key for scrape in (*scrapes, *consumer_scrapes) for key in samples(scrape)):
        known.setdefault(name, set()).update(label for label, _ in labels)
        for label, value in labels:
            values.setdefault((name, label), set()).add(value)
    asked = {pair[0] for expression in EXPRESSIONS for pair in selectors(expression)}
    assert len(asked) > 15
    assert asked <= known.keys(), asked - known.keys()
    for expression in EXPRESSIONS:
        for name, selected in selectors(expression):
            assert selected.keys() <= known[name] | OF_THE_SCRAPER, (name, selected)
            for label, value in selected.items():
                found = values.get((name, label), set())
                # Kafka's and the disk's refusals cannot be had in passing; their names are in the documents.
                assert value in found or label == "reason", (name, label, value, found)
    by = {
        label
        for expression in EXPRESSIONS
        for group in re.findall(r"\bby \(([^)]*)\)", expression)
        for label in group.split(", ")
    }
    assert by <= set().union(*known.values())


@pytest.mark.kafka
def test_the_reasons_that_alerts_look_for_are_documented() -> None:
    texts = [(ROOT / "docs" / page).read_text("utf-8") for page in ("http.md", "consuming.md")]
    reasons = {reason for text in texts for reason in re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)}
    for expression in EXPRESSIONS:
        for _, labels in selectors(expression):
            if "reason" in labels:
                for pattern in labels["reason"].split("|"):
                    assert any(re.fullmatch(pattern, reason) for reason in reasons), pattern


@pytest.mark.kafka
def test_our_metrics_have_the_form_that_prometheus_recommends(
    scrapes: tuple[str, str], consumer_scrapes: list[str]
) -> None:
    for scrape in (scrapes[0], *consumer_scrapes):
        assert promtool("check", "metrics", stdin=scrape) == ""


@pytest.mark.kafka
def test_every_metric_of_a_consumer_is_in_the_document_and_no_other(consumer_scrapes: list[str]) -> None:
    scraped = {name for scrape in consumer_scrapes for name in re.findall(r"^# TYPE (\w+)", scrape, re.MULTILINE)}
    page = (ROOT / "docs" / "consuming.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `(kinguin_\w+)`", page, re.MULTILINE))
    assert documented == scraped
