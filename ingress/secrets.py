"""Whom the ingress believes: live secrets per store, compared in constant time on bytes."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from kinguin_streams.schemas.events import StoreName


class Secrets:
    """The live secrets of every store; holds digests only."""

    def __init__(self, secrets: Mapping[str, Iterable[str]]) -> None:
        """secrets: store to its live secrets, several while one is being rotated."""
        self._digests = {
            StoreName(store): tuple(_digest(secret.encode()) for secret in live) for store, live in secrets.items()
        }

    @property
    def stores(self) -> frozenset[StoreName]:
        """The stores that have a secret: all that exist."""
        return frozenset(self._digests)

    def accept(self, store: StoreName, presented: bytes) -> bool:
        """Return whether these are exactly the bytes of a live secret of the store.

        Digests of equal length are compared, all of them each time: the time taken tells nothing about the secret, its
        length, or which of several matched. Bytes, since hmac.compare_digest raises on a str that is not ASCII.
        """
        digest = _digest(presented)
        matches = [hmac.compare_digest(digest, live) for live in self._digests[store]]
        return any(matches)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
