"""Whether the ingress may be sent requests: each check by name, refreshed by a thread of its own."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from kinguin_streams.cluster.publisher import KafkaPublisher, PublishFailed
from kinguin_streams.schemas.topics import Topics

log = structlog.get_logger()

ASK_EVERY_S = 5.0
ASK_EVERY_S_WHILE_UNREADY = 0.5
METADATA_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold."""

    ok: bool
    detail: str


class Readiness:
    """Asks Kafka through the real producer, so that "ready" means: this very process can publish to every topic."""

    def __init__(self, publisher: KafkaPublisher, topics: Topics) -> None:
        self._publisher = publisher
        self._names = [spec.name for spec in topics.specs]
        self._kafka = Check(ok=False, detail="not asked yet")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_asking, name="readiness", daemon=True)
        self._thread.start()

    def stopping(self) -> None:
        """Be unready from now on: the process has been told to stop."""
        self._stopping.set()

    def checks(self) -> Mapping[str, Check]:
        """Return every check by name."""
        fatal = self._publisher.fatal
        return {
            "not_stopping": Check(
                ok=not self._stopping.is_set(), detail="stopping" if self._stopping.is_set() else "serving"
            ),
            "producer": Check(ok=fatal is None, detail=fatal or "usable"),
            "topics": self._kafka,
        }

    def _keep_asking(self) -> None:
        while True:
            before = self._kafka
            self._kafka = self._ask()
            if self._kafka.ok != before.ok or not (before.ok or before.detail == self._kafka.detail):
                log.info("readiness", ready=self._kafka.ok, detail=self._kafka.detail)
            if self._stopping.wait(ASK_EVERY_S if self._kafka.ok else ASK_EVERY_S_WHILE_UNREADY):
                return

    def _ask(self) -> Check:
        for name in self._names:
            try:
                self._publisher.partitions(name, METADATA_TIMEOUT_S)
            except PublishFailed as failed:
                return Check(ok=False, detail=str(failed))
        return Check(ok=True, detail=f"{len(self._names)} topics known")
