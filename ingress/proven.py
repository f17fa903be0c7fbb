"""What an earlier process of this folder has proven: that these topics are in this Kafka. Kept beside the spool.

An ingress that starts while Kafka is away cannot ask. If it were unready until Kafka is back, although its spool could take
every event, an outage in which all ingresses are restarted would leave the sender nobody, and it disables the endpoint.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from kinguin_streams.ingress.left_behind import LeftBehind
from kinguin_streams.schemas.instants import to_rfc3339

log = structlog.get_logger()

FILE_NAME: Final = "topics-proven.json"
REWRITE_EVERY_S: Final = 600.0
"""How old the file of a process that asks every few seconds may be."""
_FORMAT: Final = 1


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """That topics were there: in which Kafka, with how many partitions, and when this was last seen."""

    format: int = _FORMAT
    cluster_id: str
    bootstrap_servers: str
    partitions: dict[str, int]
    """Topic to its number of partitions."""
    proven_at_ms: int

    @property
    def seen(self) -> str:
        """When, in RFC 3339."""
        return to_rfc3339(self.proven_at_ms)


def why_not(
    proof: Proof, *, bootstrap_servers: str, topics: Sequence[str], max_age_s: float, now_ms: int
) -> str | None:
    """Return why a proof does not count for a process with these settings, or None if it does.

    A proof from the future is as old as the clocks differ.
    """
    if proof.format != _FORMAT:
        return f"its format is {proof.format}, and {_FORMAT} is read here"
    if _set(proof.bootstrap_servers) != _set(bootstrap_servers):
        return f"it is of the Kafka at {proof.bootstrap_servers}"
    if missing := sorted(set(topics) - proof.partitions.keys()):
        return f"it does not name {', '.join(missing)}"
    age_s = abs(now_ms - proof.proven_at_ms) / 1000
    if age_s > max_age_s:
        return f"it is {age_s:.0f} s old, and KINGUIN_SPOOL__MAX_AGE_S is {max_age_s:g}"
    return None


def _set(bootstrap_servers: str) -> frozenset[str]:
    return frozenset(server.strip() for server in bootstrap_servers.split(","))


@dataclass
class ProofFile:
    """The proof on disk, for one process. Processes that share a folder share it: the last one to write wins."""

    folder: Path
    bootstrap_servers: str
    topics: Sequence[str]
    max_age_s: float
    now_s: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._file = LeftBehind(self.folder / FILE_NAME, Proof, "topics_proof")
        self._written: Proof | None = None

    def read(self) -> Proof | None:
        """Return what an earlier process has proven, if it counts for this one. Says in the log why it does not."""
        proof = self._file.read()
        if proof is None:
            return None
        reason = why_not(
            proof,
            bootstrap_servers=self.bootstrap_servers,
            topics=self.topics,
            max_age_s=self.max_age_s,
            now_ms=self._now_ms(),
        )
        if reason is not None:
            log.warning("topics_proof_not_counted", path=str(self._file.path), reason=reason)
            return None
        return proof

    def write(self, cluster_id: str, partitions: Mapping[str, int]) -> None:
        """Note what this process has just seen, on disk when it returns. Not each time: only news, or once in a while.

        A disk that does not take it costs a later process its start during an outage, and nothing else.
        """
        proof = Proof(
            cluster_id=cluster_id,
            bootstrap_servers=self.bootstrap_servers,
            partitions=dict(partitions),
            proven_at_ms=self._now_ms(),
        )
        before = self._written
        if before is not None and self._is_fresh(before, proof):
            return
        self._file.write(proof)
        self._written = proof

    def _is_fresh(self, before: Proof, now: Proof) -> bool:
        age_s = abs(now.proven_at_ms - before.proven_at_ms) / 1000
        same = msgspec.structs.replace(before, proven_at_ms=now.proven_at_ms) == now
        return same and age_s < min(REWRITE_EVERY_S, self.max_age_s / 4)

    def _now_ms(self) -> int:
        return int(self.now_s() * 1000)
