"""Answers that are not 2xx: RFC 9457 problem details, all in one place. docs/http.md documents every type."""

from typing import Final, NamedTuple

import falcon
import msgspec

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
    "internal_error": Kind(500, "Something went wrong here; the event has not been kept."),
}
"""By the last part of the type. The OpenAPI document is made of this table too."""


class Problem(falcon.HTTPError):
    """A refusal with its type and, where they say more, a detail and headers."""

    def __init__(self, code: str, *, detail: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(KINDS[code].status, headers=headers)
        self.problem_code = code
        self.problem_detail = detail


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


def serialize(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    """Write the problem as the body, whatever the request accepts: Falcon's own would answer XML to `Accept: text/xml`."""
    code = error.problem_code if isinstance(error, Problem) else _code_of(error)
    detail = error.problem_detail if isinstance(error, Problem) else None
    resp.status = KINDS[code].status  # of Falcon's own errors: the nearest of ours, so that body and status agree
    resp.data = msgspec.json.encode(details(code, detail, req.context.request_id))
    resp.content_type = CONTENT_TYPE


def _code_of(error: falcon.HTTPError) -> str:
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        return "method_not_allowed"
    return "internal_error" if error.status_code >= 500 else "bad_request"
