"""One HTTP request and its answer, as far as the ingress cares, whatever server they come through."""

from collections.abc import Callable
from typing import NamedTuple


class Asked(NamedTuple):
    """A request. Header names in small letters; values as latin-1 text, which is their bytes."""

    method: str
    path: str
    """Percent-decoded, without the query."""
    header: Callable[[str], str | None]
    """One that was sent twice is both values, joined by a comma."""
    body: bytes | None
    """None: it is larger than decide.MAX_BODY_BYTES, and was not read any further."""
    arrived_s: float
    """When its last byte was there, on the monotonic clock."""


class Answer(NamedTuple):
    """An answer, without what the server adds: Date, Content-Length, and whether the connection stays."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
