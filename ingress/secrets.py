"""Whom the ingress believes: live secrets per store, compared in constant time on bytes, and when each was last used."""

import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kinguin_streams.schemas.events import StoreName


@dataclass(slots=True)
class _Live:
    """A secret that is believed. Its text is not kept."""

    digest: bytes
    name: str
    last_used_s: float | None = None


@dataclass(frozen=True, slots=True)
class SecretUse:
    """When a secret was last presented. Tells which one may be taken out after a rotation."""

    store: StoreName
    name: str
    """Eight hex digits that stand for the secret and tell nothing of it."""
    last_used_s: float | None
    """Seconds since 1970; None: not since this process started."""


class Secrets:
    """The live secrets of every store; holds digests only. Safe to use from any thread."""

    def __init__(self, secrets: Mapping[str, Iterable[str]]) -> None:
        """secrets: store to its live secrets, several while one is being rotated."""
        self._live: Mapping[StoreName, tuple[_Live, ...]] = {}
        self.replace(secrets)

    def replace(self, secrets: Mapping[str, Iterable[str]]) -> bool:
        """Believe these from now on, and no other; return whether that is a change. What is kept keeps its last use."""
        before = {(store, live.digest): live for store, all_of in self._live.items() for live in all_of}
        now = {
            StoreName(store): tuple(_Live(_digest(secret.encode()), name_of(secret)) for secret in of_store)
            for store, of_store in secrets.items()
        }
        # One assignment: a request sees the old ones or the new ones, never some of each.
        self._live = {
            store: tuple(before.get((store, live.digest), live) for live in all_of) for store, all_of in now.items()
        }
        return {(store, live.digest) for store, all_of in now.items() for live in all_of} != before.keys()

    @property
    def stores(self) -> frozenset[StoreName]:
        """The stores that have a secret: all that exist."""
        return frozenset(self._live)

    def has(self, store: StoreName) -> bool:
        """Return whether there is such a store."""
        return store in self._live

    def accept(self, store: StoreName, presented: bytes) -> bool:
        """Return whether these are exactly the bytes of a live secret of the store.

        Digests of equal length are compared, all of them each time: the time taken tells nothing about the secret, its
        length, or which of several matched. Bytes, since hmac.compare_digest raises on a str that is not ASCII.
        """
        digest = _digest(presented)
        matches = [live for live in self._live.get(store, ()) if hmac.compare_digest(digest, live.digest)]
        for live in matches:
            live.last_used_s = time.time()
        return bool(matches)

    def uses(self) -> list[SecretUse]:
        """Return when each live secret was last used."""
        return [
            SecretUse(store, live.name, live.last_used_s) for store, all_of in self._live.items() for live in all_of
        ]


def name_of(secret: str) -> str:
    """Return what stands for a secret where people look: a hash of its own, so that it helps nobody to guess it."""
    return hashlib.sha256(b"kinguin-secret-name\0" + secret.encode()).hexdigest()[:8]


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
