"""What becomes of the thread that asks Kafka when something fails that nobody has thought of."""

from typing import Any

from kinguin_streams.ingress.breaker import Breaker
from kinguin_streams.ingress.keeper import Keeper
from kinguin_streams.ingress.ledger import Ledger
from kinguin_streams.ingress.readiness import Readiness
from kinguin_streams.ingress.secrets import Secrets
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.schemas.topics import topics
from tests.ingress.running_ingress import SECRET, wait_until


class FailsOnce:
    """Stands for a client that raises what is no answer about a topic, and then answers."""

    fatal = None
    cluster_id = "c"

    def __init__(self) -> None:
        self.asked = 0

    def partitions(self, _topic: str, _timeout_s: float) -> int:
        self.asked += 1
        if self.asked == 1:
            raise KeyError("k.order.status")
        return 2


def test_an_error_of_any_kind_does_not_keep_kafka_away_for_ever() -> None:
    publisher: Any = FailsOnce()
    breaker = Breaker()
    assert breaker.waited_in_vain(10.0)
    secrets = Secrets({"default": [SECRET]})
    vigil = Vigil(secrets, Ledger().registry, silence_s=3600, failure_budget=0.01)
    keeper = Keeper(publisher, None, ack_wait_s=1, spool_timeout_s=1, breaker=breaker)
    readiness = Readiness(publisher, topics(), keeper, vigil, None)
    try:
        wait_until(lambda: breaker.state == "half_open", 5, "a breaker that lets somebody try")
        wait_until(lambda: readiness.checks()["topics"].ok, 5, "topics that are known")
    finally:
        readiness.stopping()
