"""Answers that are not 2xx: RFC 9457 problem details, all in one place. docs/http.md documents every type."""

from typing import Final

import falcon
import msgspec

TYPE_PREFIX: Final = "urn:kinguin-streams:problem:"
TITLES: Final = {
    "unauthorized": "The request is not authenticated.",
    "unknown_store": "There is no such store.",
    "not_found": "Nothing is here; webhooks go to /webhooks/{store}.",
    "bad_request": "The request is not well-formed HTTP.",
    "method_not_allowed": "Only POST, GET and HEAD are answered here.",
    "body_too_large": "The body is larger than 65,536 bytes.",
    "invalid_webhook": "The payload can never become an event; it has been kept.",
    "unavailable": "The event cannot be kept now; send it again later.",
    "internal_error": "Something went wrong here; the event has not been kept.",
}


class Problem(falcon.HTTPError):
    """A refusal with its status, its type and, where they say more, a detail and headers."""

    def __init__(
        self, status: str, code: str, *, detail: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, headers=headers)
        self.problem_code = code
        self.problem_detail = detail


def serialize(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    """Write the problem as the body, whatever the request accepts: Falcon's own would answer XML to `Accept: text/xml`."""
    code = error.problem_code if isinstance(error, Problem) else _code_of(error)
    problem: dict[str, object] = {
        "type": TYPE_PREFIX + code,
        "title": TITLES.get(code, error.title or "The request was refused."),
        "status": resp.status_code,
    }
    if isinstance(error, Problem) and error.problem_detail is not None:
        problem["detail"] = error.problem_detail
    if code != "unauthorized":  # that body is always the same; the request's id is in its header
        problem["instance"] = f"urn:uuid:{req.context.request_id}"
    resp.data = msgspec.json.encode(problem)
    resp.content_type = "application/problem+json"


def _code_of(error: falcon.HTTPError) -> str:
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        return "method_not_allowed"
    return "internal_error" if error.status_code >= 500 else "bad_request"
