"""The watch for silence and for failures: who is quiet, how many fail, and that readiness does not follow."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kinguin_streams.ingress.ledger import Ledger
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.vigil import LEAST_REQUESTS, WINDOW_S, Vigil
from kinguin_streams.schemas.events import EVENT_NAMES, StoreName
from tests.conftest import KafkaCluster, OwnKafka
from tests.ingress.faults import stalled
from tests.ingress.running_ingress import assert_balanced, new_id, order_status, running_ingress, samples, wait_until
from tests.ingress.test_faulty_parts import Taken, application, post

SHOP = StoreName("shop")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def vigil(clock: Clock, registry: CollectorRegistry) -> Vigil:
    secrets = Secrets({"shop": ["s1"], "other": ["s2"]})
    return Vigil(secrets, registry, silence_s=60, failure_budget=0.05, now_s=clock)


def test_a_store_is_quiet_once_no_event_of_any_kind_has_come_for_long_enough(vigil: Vigil, clock: Clock) -> None:
    clock.now_s += 59
    vigil.came(SHOP, "order.status")
    assert vigil.warnings() == []
    clock.now_s += 30
    (warning,) = vigil.warnings()
    assert warning.startswith("store other: no event for 89 s")
    clock.now_s += 31
    assert len(vigil.warnings()) == 2
    vigil.came(SHOP, "product.update")
    assert len(vigil.warnings()) == 1


def test_seconds_of_silence_count_from_the_start_and_for_each_kind_of_event(
    vigil: Vigil, clock: Clock, registry: CollectorRegistry
) -> None:
    clock.now_s += 10
    vigil.came(SHOP, "order.status")
    vigil.came(SHOP, "made-up")  # makes no series
    clock.now_s += 5
    silence = {
        labels: value
        for (name, labels), value in samples(generate_latest(registry).decode()).items()
        if name == "kinguin_ingress_silence_seconds"
    }
    assert len(silence) == 2 * len(EVENT_NAMES)
    assert silence[("event", "order.status"), ("store", "shop")] == 5
    assert silence[("event", "order.complete"), ("store", "shop")] == 15


def test_failures_are_warned_of_above_the_budget_and_forgotten_after_the_window(
    vigil: Vigil, clock: Clock, registry: CollectorRegistry
) -> None:
    vigil.came(SHOP, "order.status")
    vigil.came(StoreName("other"), "order.status")
    for _ in range(LEAST_REQUESTS - 1):
        vigil.answered(failed=True)
    assert vigil.warnings() == []  # too few to say anything
    for _ in range(19 * LEAST_REQUESTS):
        vigil.answered(failed=False)
    assert vigil.warnings() == []
    vigil.answered(failed=True)
    vigil.answered(failed=True)
    (warning,) = vigil.warnings()
    assert warning.startswith("21 of 401 requests of the last 300 s failed")
    assert samples(generate_latest(registry).decode())["kinguin_ingress_failure_ratio", ()] == pytest.approx(21 / 401)
    clock.now_s += WINDOW_S + 11
    assert vigil.failing() == (0, 0)
    assert samples(generate_latest(registry).decode())["kinguin_ingress_failure_ratio", ()] == 0


@pytest.mark.kafka
def test_silence_is_in_readyz_and_in_the_metrics_and_does_not_change_readiness(
    kafka: KafkaCluster, topic_prefix: str, tmp_path: Path
) -> None:
    with running_ingress(
        kafka.bootstrap_servers, topic_prefix, tmp_path, silence_s=0.5, on_invalid="reject"
    ) as running:
        wait_until(
            lambda: "[!] store shop-2: no event for" in running.admin("/readyz?verbose").body.decode(), 5, "words"
        )
        assert running.admin("/readyz").status == 200
        assert "[!] store shop-2" in running.admin("/readyz").body.decode()
        running.post(order_status(new_id()), secret="wrong")
        metrics = running.metrics()
        of_status = (("event", "order.status"), ("store", "default"))
        assert metrics["kinguin_ingress_silence_seconds", of_status] > 0.5  # who has no secret breaks no silence
        running.post(order_status(new_id()))
        metrics = running.metrics()
        assert metrics["kinguin_ingress_silence_seconds", of_status] < 0.5
        assert metrics["kinguin_ingress_failure_ratio", ()] == 0  # nor is a 401 a failure of the sender's
        assert running.post(b"{").status == 422
        assert running.metrics()["kinguin_ingress_failure_ratio", ()] == 0.5  # what is kept, but refused, is one


def test_content_that_is_too_much_for_us_is_a_failure_of_the_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("kinguin_streams.ingress.decide.read_event", fails)
    ledger = Ledger()
    assert post(application(Taken(), ledger)).status == 500
    assert samples(generate_latest(ledger.registry).decode())["kinguin_ingress_failure_ratio", ()] == 1


def test_a_fault_of_ours_is_a_failure_of_the_senders() -> None:
    ledger = Ledger()
    assert post(application(Taken(RuntimeError("ours")), ledger)).status == 500
    assert samples(generate_latest(ledger.registry).decode())["kinguin_ingress_failure_ratio", ()] == 1


@pytest.mark.kafka
def test_failures_beyond_the_budget_are_in_readyz_and_in_the_metrics(
    own_kafka: OwnKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = {"spool__enabled": False, "failure_budget": 0.1}
    with running_ingress(own_kafka.bootstrap_servers, topic_prefix, tmp_path, **settings) as running:
        webhooks = [running.webhook(order_status(new_id())) for _ in range(LEAST_REQUESTS)]
        assert {answer.status for answer in running.send_all(webhooks)} == {204}
        with stalled(own_kafka.broker):
            assert {answer.status for answer in running.send_all(webhooks)} == {503}
            words = running.admin("/readyz?verbose").body.decode()
            assert f"[!] {LEAST_REQUESTS} of {2 * LEAST_REQUESTS} requests of the last 300 s failed" in words
            metrics = running.metrics()
            assert metrics["kinguin_ingress_failure_ratio", ()] == 0.5
            assert metrics["kinguin_ingress_failure_budget_ratio", ()] == 0.1
            assert_balanced(metrics)
