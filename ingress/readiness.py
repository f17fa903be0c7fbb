"""Whether the ingress may be sent requests: each check by name, refreshed by a thread of its own."""

import threading
import time
from collections.abc import Mapping

import structlog

from kinguin_streams.cluster.publisher import KafkaPublisher, PublishFailed, TopicMissing
from kinguin_streams.ingress.keeper import Keeper
from kinguin_streams.ingress.proven import Proof, ProofFile
from kinguin_streams.ingress.vigil import Vigil
from kinguin_streams.schemas.topics import Topics
from kinguin_streams.telemetry.admin_server import Check

log = structlog.get_logger()

ASK_EVERY_S = 5.0
ASK_EVERY_S_WHILE_AWAY = 0.5
METADATA_TIMEOUT_S = 2.0


class Readiness:
    """Asks Kafka through the real producer, so that "ready" means: this very process can publish to every topic.

    Once it has proven that, neither Kafka being away nor a topic that is deleted makes it unready as long as the spool takes
    events: every other process behind the same balancer would be unready too, and the sender would find nobody. For the same
    reason a process that starts while Kafka is away goes by what an earlier one has proven, if it left a proof beside the
    spool.
    """

    def __init__(
        self, publisher: KafkaPublisher, topics: Topics, keeper: Keeper, vigil: Vigil, proof_file: ProofFile | None
    ) -> None:
        """proof_file: None where there is no spool; then nothing is taken on anybody's word."""
        self._publisher = publisher
        self._vigil = vigil
        self._keeper = keeper
        self._proven = self._answered = False
        self._proof_file = proof_file
        self._earlier: Proof | None = None if proof_file is None else proof_file.read()
        self._names = [spec.name for spec in topics.specs]
        self._kafka = Check(ok=False, detail="not asked yet")
        self._missing: tuple[str, ...] = ()
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
            "topics": self._topics(),
            "spool": self._spool(),
        }

    def _topics(self) -> Check:
        kafka, spool = self._kafka, self._keeper.spool
        if kafka.ok and self._missing and spool is not None and (trouble := spool.trouble()) is not None:
            return Check(ok=False, detail=f"{kafka.detail}, which takes none: {trouble}")
        return kafka

    def _spool(self) -> Check:
        spool = self._keeper.spool
        if spool is None:
            return Check(ok=True, detail="off: 503 while Kafka is away")
        trouble = spool.trouble()
        if trouble is None:
            return Check(ok=True, detail=f"{spool.waiting} events wait for Kafka")
        # A disk that is full matters only while the disk is needed; one that lies is to be replaced in any case.
        return Check(ok=self._keeper.breaker.state == "closed" and spool.is_trusted, detail=trouble)

    def warnings(self) -> list[str]:
        """Return what an operator should look at, though requests may be sent."""
        missing = [f"topics: {name} is missing; its events go to the spool" for name in self._missing]
        earlier = self._earlier  # once: the thread that asks lets go of it when Kafka is back
        if earlier is None or not self.by_earlier_proof:
            return [*missing, *self._vigil.warnings()]
        unproven = (
            f"topics: not seen by this process, as Kafka was away at its start; an earlier one saw them at "
            f"{earlier.seen}. Events go to the spool"
        )
        return [unproven, *self._vigil.warnings()]

    @property
    def missing(self) -> int:
        """How many of the topics the cluster says it does not have."""
        return len(self._missing)

    @property
    def by_earlier_proof(self) -> bool:
        """Whether it is ready only because an earlier process has seen the topics."""
        return self._kafka.ok and not self._proven

    @property
    def _spools_meanwhile(self) -> bool:
        """Whether what Kafka does not take now may wait: this process has seen the topics, and there is a spool."""
        return self._proven and self._keeper.spool is not None

    def _keep_asking(self) -> None:
        while True:
            before = self._kafka
            try:
                self._kafka = self._ask()
            except Exception as error:  # without this thread Kafka would be away for ever
                log.exception("readiness_failed")
                self._kafka = self._unknown(error)
            if self._kafka.ok != before.ok or not (before.ok or before.detail == self._kafka.detail):
                log.info("readiness", ready=self._kafka.ok, detail=self._kafka.detail)
            if self._stopping.wait(ASK_EVERY_S if self._answered else ASK_EVERY_S_WHILE_AWAY):
                return

    def _unknown(self, error: Exception) -> Check:
        return Check(ok=self._spools_meanwhile, detail=f"could not be asked about: {type(error).__name__}")

    def _ask(self) -> Check:
        """Ask about every topic. An answer also tells the breaker that Kafka may be tried again."""
        self._answered = False
        try:
            found, missing = self._find()
        except PublishFailed as failed:
            if self._spools_meanwhile:
                return Check(ok=True, detail=f"{failed}; events go to the spool")
            if self._earlier is not None and self._keeper.spool is not None:
                return self._believe(self._earlier, failed)
            return Check(ok=False, detail=str(failed))
        self._note_missing(tuple(missing))
        if missing:
            # Kafka is there: the events of the other topics need not wait until these are. And what this process has seen
            # itself beats what another one saw before.
            self._earlier = None
            self._keeper.breaker.answered()
            why = "; ".join(missing.values())
            if self._spools_meanwhile:
                return Check(ok=True, detail=f"{why}; events go to the spool")
            return Check(ok=False, detail=why)
        if self._proof_file is not None:
            self._note(self._proof_file, found)
        self._answered = self._proven = True
        self._keeper.breaker.answered()
        return Check(ok=True, detail=f"{len(self._names)} topics known")

    def _find(self) -> tuple[dict[str, int], dict[str, str]]:
        """Return the number of partitions of each topic that is there, and what is said of each that is not."""
        found, missing = {}, {}
        for name in self._names:
            try:
                found[name] = self._publisher.partitions(name, METADATA_TIMEOUT_S)
            except TopicMissing as error:
                missing[name] = str(error)
        return found, missing

    def _note_missing(self, missing: tuple[str, ...]) -> None:
        before, self._missing = self._missing, missing
        if missing and missing != before:
            log.error("topics_missing", topics=list(missing), hint="kinguin-streams topics apply")
        elif before and not missing:
            log.info("topics_found", topics=list(before))

    def _believe(self, earlier: Proof, failed: PublishFailed) -> Check:
        # Nobody has to find out by waiting in vain what is known already.
        self._keeper.breaker.waited_in_vain(time.monotonic())
        if not self._kafka.ok:
            hint = "ready by what an earlier process has seen; events go to the spool until Kafka is back"
            log.warning("topics_not_seen_yet", seen_before=earlier.seen, cluster=earlier.cluster_id, hint=hint)
        return Check(ok=True, detail=f"{failed}; seen by an earlier process at {earlier.seen}; events go to the spool")

    def _note(self, proof_file: ProofFile, found: Mapping[str, int]) -> None:
        cluster_id = self._publisher.cluster_id or ""
        if self._earlier is not None and self._earlier.cluster_id != cluster_id:
            hint = "what was spooled for the one before is drained into this one"
            log.warning("another_cluster", before=self._earlier.cluster_id, now=cluster_id, hint=hint)
        self._earlier = None
        proof_file.write(cluster_id, found)
