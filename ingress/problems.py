"""Answers that are not 2xx: RFC 9457 problem details, all in one place. docs/http.md documents every type."""

from typing import Final, NamedTuple

import msgspec

from kinguin_streams.ingress.exchange import Answer

TYPE_PREFIX: Final = "urn:kinguin-streams:problem:"
CONTENT_TYPE: Final = "application/problem+json"


class Kind(NamedTuple):
    """What a problem type always says."""

    status: int
    title: str


KINDS: Final = {
    "unauthorized": Kind(401, "The request is not authenticated."),
    "unknown_store": Kind(404, "There is no such store."),
    "not_found": Kind(404, "Nothing is here; webhooks go to /webhooks/{store}."),
    "bad_request": Kind(400, "The request is not well-formed HTTP."),
    "method_not_allowed": Kind(405, "Only POST, GET and HEAD are answered here."),
    "body_too_large": Kind(413, "The body is larger than 65,536 bytes."),
    "invalid_webhook": Kind(422, "The payload can never become an event; it has been kept."),
    "unavailable": Kind(503, "The event cannot be kept now; send it again later."),
    "internal_error": Kind(500, "Something went wrong here; the event may not have been kept."),
}
"""By the last part of the type. The OpenAPI document is made of this table too."""


class Problem(Exception):
    """A refusal with its type and, where they say more, a detail and headers."""

    def __init__(self, code: str, *, detail: str | None = None, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.headers = headers


def invalid_webhook_detail(reason: str) -> str:
    """Return what a refused payload's problem says in `detail`: its reason code, and nothing of the payload."""
    return f"Reason: {reason}."


def details(code: str, detail: str | None, request_id: str) -> dict[str, object]:
    """Return the members of a problem's body."""
    problem: dict[str, object] = {"type": TYPE_PREFIX + code, "title": KINDS[code].title, "status": KINDS[code].status}
    if detail is not None:
        problem["detail"] = detail
    if code != "unauthorized":  # that body is always the same; the request's id is in its header
        problem["instance"] = f"urn:uuid:{request_id}"
    return problem


def answer(problem: Problem, request_id: str) -> Answer:
    """Return the problem as an answer, the same whatever the request accepts."""
    headers = (("Content-Type", CONTENT_TYPE), *problem.headers)
    body = msgspec.json.encode(details(problem.code, problem.detail, request_id))
    return Answer(KINDS[problem.code].status, headers, body)
