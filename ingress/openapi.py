"""The ingress as an OpenAPI 3.1 document, made of what the ingress itself runs on. Pure, but for the package's own files.

Paths, methods, statuses, reason codes, payload types, limits and problem types are those of the modules that act on
them; only the sentences are written here.
"""

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, Final

import msgspec

from kinguin_streams.ingress import admin, answering, problems
from kinguin_streams.ingress.decide import INVALID_REASONS, MAX_BODY_BYTES
from kinguin_streams.ingress.listening import BACKSTOP_BODY_BYTES, MAX_HEADER_BYTES
from kinguin_streams.ingress.payloads import OrderCompletePayload, OrderStatusPayload, ProductUpdatePayload
from kinguin_streams.schemas.events import EVENT_NAMES, STORE_NAME, EventName
from kinguin_streams.schemas.versions import shipped

Json = dict[str, Any]

PAYLOADS: Final[Mapping[EventName, type[msgspec.Struct]]] = {
    "product.update": ProductUpdatePayload,
    "order.status": OrderStatusPayload,
    "order.complete": OrderCompletePayload,
}
SENDERS_CONTENT_TYPE: Final = "aplication/json"
"""As the sender's documents spell it, in every version."""
# From schemas/examples: what the sender documents, and what its documents leave open.
_EXAMPLES: Final[Mapping[EventName, tuple[tuple[str, str], ...]]] = {
    "product.update": (
        ("1/documented", "as documented in 2021-03"),
        ("2/indented", "as documented in 2022-02, with quantities, a price and offers"),
        ("3/compact", "as documented in 2024-05, without a price"),
        ("2/price_as_text", "a price in quotes is taken as well"),
    ),
    "order.status": (
        ("1/documented", "as documented in 2021-03"),
        ("1/milliseconds", "with milliseconds, as since 2022-02"),
        ("1/external_id_absent", "without orderExternalId, which is optional when ordering"),
        ("1/unknown_status", "a status that nobody has documented is no fault"),
    ),
    "order.complete": (
        ("1/documented", "as documented in 2021-03"),
        ("1/milliseconds", "with milliseconds, as since 2022-02"),
    ),
}
_REQUEST_ID: Final = "019bd1a7-3c5e-7b1a-9f00-5e3c8d2a4b6c"


def document(*, version: str, port: int, admin_port: int) -> Json:
    """Return the document as JSON values. version: of the package. The ports are where this very process listens."""
    webhooks = f"http://{{host}}:{port}"
    probes = f"http://{{host}}:{admin_port}"
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "kinguin-streams ingress",
            "version": version,
            "summary": "Takes Kinguin's webhooks, keeps every one of them, and answers only then.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [_server(webhooks, "webhooks; behind a proxy, its address")],
        "tags": [
            {"name": "webhooks", "description": "What the sender calls."},
            {"name": "operations", "description": "What orchestrators and operators call, on the admin port."},
        ],
        "paths": {
            answering.PATHS[0]: _webhooks_path("DefaultStore", f"the store named `{answering.DEFAULT_STORE}`", []),
            answering.PATHS[1]: _webhooks_path("Store", "a store", [{"$ref": "#/components/parameters/Store"}]),
            **_admin_paths(_server(probes, "admin port; not for the public")),
        },
        "components": {
            "schemas": _schemas(),
            "parameters": _parameters(),
            "headers": _headers(),
            "responses": _responses(),
            "examples": _examples(),
            "securitySchemes": {
                "EventSecret": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Event-Secret",
                    "description": "Byte for byte one of the store's live secrets: the one of the sender's dashboard. "
                    "Sent twice, it is none.",
                }
            },
        },
    }


_DESCRIPTION: Final = f"""\
One webhook is one POST. 204 means that Kafka's in-sync replicas, or the fsynced spool, have the event; 202 that the payload can
never become an event and was kept there byte for byte as a dead letter, with the reason code in `{answering.FAULT_HEADER}`.
With `KINGUIN_INGRESS__ON_INVALID=reject` it is 422 instead of 202, and kept as well. What is not kept is never answered 2xx,
but for requests that hold nothing: `GET`, `HEAD`, and a POST with neither a body nor `X-Event-Name` nor `X-Event-Secret`
(perhaps the dashboard's TEST URL button) are answered 204.

Which schema a body must match depends on the header `X-Event-Name`, which OpenAPI cannot say: the body is any of the three, the
schema's title names its event, and a body of another event than the header's is a fault like any other. Further properties
are no fault: they are kept. The content type is not looked at (the sender spells it `{SENDERS_CONTENT_TYPE}`), but for a `charset`
other than UTF-8 or US-ASCII.

What JSON Schema cannot say either: ids and `status` are at most 1,024 bytes of UTF-8, not characters; no object may have a key
twice, at any depth; a number such as `1.0` is no integer here; nesting ends at about 1,000 levels; `updatedAt` must be an
instant within the years 1 to 9999 in UTC.

The checks come in this order: 404, 405, 413, ping, 401, then content. No answer is ever a redirect or 410. Answers as
`text/plain` are the server's own, to what is not HTTP or too much of it, before the application sees the request.
"""


def _server(url: str, description: str) -> Json:
    return {"url": url, "description": description, "variables": {"host": {"default": "127.0.0.1"}}}


# --- webhooks ---


def _webhooks_path(name: str, whose: str, parameters: list[Json]) -> Json:
    content = {
        "schema": {"$ref": "#/components/schemas/Webhook"},
        "examples": {example: {"$ref": f"#/components/examples/{example}"} for example in _examples()},
    }
    path: Json = {"parameters": parameters} if parameters else {}
    path["get"] = _ping(f"ping{name}", whose)
    path["head"] = _ping(f"head{name}", whose)
    path["post"] = {
        "operationId": f"receive{name}Webhook",
        "summary": f"One webhook of {whose}.",
        "tags": ["webhooks"],
        "security": [{"EventSecret": []}],
        "parameters": [
            {"$ref": f"#/components/parameters/{name}"} for name in ("EventName", "Encoding", "Traceparent")
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {MAX_BODY_BYTES:,} bytes of JSON in UTF-8, of any content type. "
            "Which of the three it must be is what `X-Event-Name` says.",
            # Not */*, which would promise that YAML or XML of the same shape is taken.
            "content": dict.fromkeys(("application/json", SENDERS_CONTENT_TYPE), content),
        },
        "responses": _referred(("204", "202", "400", "401", "404", "413", "422", "431", "500", "501", "503")),
    }
    others = _referred(("400", "404", "405", "413", "431", "500", "501"))
    return path | {"x-other-methods": {"description": "Every other method on this path.", "responses": others}}


def _ping(operation_id: str, whose: str) -> Json:
    return {
        "operationId": operation_id,
        "summary": f"Whether somebody takes webhooks of {whose}.",
        "description": "Needs no secret, keeps nothing, and is counted as a ping.",
        "tags": ["webhooks"],
        "security": [],
        "responses": {
            "204": {"$ref": "#/components/responses/Ping"},
            **_referred(("400", "404", "413", "431", "500", "501")),
        },
    }


def _referred(statuses: Iterable[str]) -> Json:
    return {status: {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _parameters() -> Json:
    return {
        "Store": {
            "name": "store",
            "in": "path",
            "required": True,
            "description": "A store with a secret in `KINGUIN_INGRESS__SECRETS`.",
            "schema": {"type": "string", "pattern": f"^{STORE_NAME.pattern}$"},
            "example": answering.DEFAULT_STORE,
        },
        "EventName": {
            "name": "X-Event-Name",
            "in": "header",
            "required": True,
            "description": "What happened, in exactly this spelling. It decides which schema the body must match.",
            "schema": {"type": "string", "enum": list(EVENT_NAMES)},
        },
        "Encoding": {
            "name": "Content-Encoding",
            "in": "header",
            "description": "Nothing but `identity`, or empty: a compressed body is kept, but it is a fault.",
            "schema": {"type": "string", "enum": ["identity", ""]},
        },
        "Traceparent": {
            "name": "traceparent",
            "in": "header",
            "description": "W3C Trace Context, passed on to the record. One that is not valid is dropped without a word.",
            "schema": {"type": "string"},
            "example": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        },
    }


def _headers() -> Json:
    return {
        "RequestId": {
            "description": "Names this request in our log. A UUID of our own.",
            "required": True,
            "schema": {"type": "string", "format": "uuid"},
            "example": _REQUEST_ID,
        },
        "Fault": {
            "description": "Why this payload can never become an event: the dead letter's reason code.",
            "required": True,
            "schema": {"type": "string", "enum": _reasons()},
        },
        "RetryAfter": {
            "description": "Seconds after which to send it again.",
            "required": True,
            "schema": {"type": "integer", "const": answering.RETRY_AFTER_S},
        },
        "Allow": {
            "description": "The methods that are answered here.",
            "required": True,
            "schema": {"type": "string", "const": ", ".join(answering.METHODS)},
        },
        "Challenge": {
            "description": "Which header is missing or wrong.",
            "required": True,
            "schema": {"type": "string", "const": answering.CHALLENGE},
        },
    }


def _responses() -> Json:
    invalid = "The secret is right, but this can never become an event. It has been kept as a dead letter, in Kafka or in the spool"
    return {
        "204": _answer(
            "Kafka's in-sync replicas, or the fsynced spool, have the event. Or nothing was sent, and nothing is kept: no body "
            "and neither `X-Event-Name` nor `X-Event-Secret`."
        ),
        "Ping": _answer("Somebody is here."),
        "202": _answer(
            f"{invalid} (`KINGUIN_INGRESS__ON_INVALID=accept`, the default).", {answering.FAULT_HEADER: "Fault"}
        ),
        "422": _problem(
            f"{invalid}, as with 202 (`KINGUIN_INGRESS__ON_INVALID=reject`). Sending it again does not help.",
            ["invalid_webhook"],
            {answering.FAULT_HEADER: "Fault"},
            detail=problems.invalid_webhook_detail("invalid_field"),
        ),
        "401": _problem(
            "The secret is wrong, empty or missing, or there is a body but neither of the two headers. Always the same body.",
            ["unauthorized"],
            {"WWW-Authenticate": "Challenge"},
        ),
        "404": _problem("There is no such store, or no such path.", ["unknown_store", "not_found"]),
        "405": _problem("Another method.", ["method_not_allowed"], {"Allow": "Allow"}),
        "413": _or_the_server(
            _problem(
                f"The body is over {MAX_BODY_BYTES:,} bytes. As `text/plain`: {BACKSTOP_BODY_BYTES:,} bytes or more.",
                ["body_too_large"],
            )
        ),
        "400": _or_the_server(
            _problem("What is not HTTP: a broken request line, header or `Content-Length`.", ["bad_request"])
        ),
        "431": _of_the_server(f"More than {MAX_HEADER_BYTES:,} bytes of request line and headers."),
        "501": _of_the_server("Another `Transfer-Encoding` than `chunked`."),
        "503": _problem(
            "Neither Kafka nor the spool has confirmed the event, or too many others wait. It may still land: sent again, it has the same event id.",
            ["unavailable"],
            {"Retry-After": "RetryAfter"},
        ),
        "500": _problem(
            "A fault of ours. It may still land: sent again, it has the same event id.", ["internal_error"]
        ),
    }


def _answer(description: str, headers: Mapping[str, str] | None = None) -> Json:
    """Return an answer without a body. headers: name to component, beside X-Request-Id."""
    components = {"X-Request-Id": "RequestId", **(headers or {})}
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{component}"} for name, component in components.items()},
    }


def _problem(
    description: str, codes: list[str], headers: Mapping[str, str] | None = None, *, detail: str | None = None
) -> Json:
    content = {
        "schema": _any_of([{"$ref": f"#/components/schemas/{_problem_name(code)}"} for code in codes]),
        "examples": {code: {"value": problems.details(code, detail, _REQUEST_ID)} for code in codes},
    }
    return _answer(description, headers) | {"content": {problems.CONTENT_TYPE: content}}


def _of_the_server(description: str) -> Json:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _or_the_server(response: Json) -> Json:
    """Return an answer that the server may give too, before the application sees the request: no X-Request-Id then."""
    request_id = _headers()["RequestId"] | {"required": False}
    return response | {
        "headers": response["headers"] | {"X-Request-Id": request_id},
        "content": response["content"] | _of_the_server("")["content"],
    }


def _any_of(schemas: list[Json]) -> Json:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


# --- schemas and examples ---


def _schemas() -> Json:
    """Return the payloads as msgspec decodes them, with the sentences of the Avro schemas, and the problems."""
    _, components = msgspec.json.schema_components(PAYLOADS.values(), ref_template="#/components/schemas/{name}")
    for event, payload in PAYLOADS.items():
        schema = components[payload.__name__]
        schema["title"] = event
        for name, field in schema["properties"].items():
            field["description"] = _field_doc(event, name)
    names = [payload.__name__ for payload in PAYLOADS.values()]
    return {
        # Not oneOf: whatever is a valid order.status is a valid order.complete with one property more.
        "Webhook": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]},
        **components,
        **{_problem_name(code): _problem_schema(code) for code in problems.KINDS},
    }


def _field_doc(event: EventName, field: str) -> str:
    """Return what the newest schema version that has the field says about it."""
    docs = {
        declared["name"]: declared["doc"]
        for schema in shipped().versions(event)
        for declared in json.loads(schema.text)["fields"]
    }
    doc: str = docs[field]
    return doc


def _problem_name(code: str) -> str:
    return "Problem" + "".join(word.capitalize() for word in code.split("_"))


def _problem_schema(code: str) -> Json:
    """Return the schema of one problem type: its fixed members, and those that every problem of the type has."""
    kind = problems.KINDS[code]
    has_detail = code == "invalid_webhook"
    shown = problems.details(code, "detail" if has_detail else None, _REQUEST_ID)
    members: Json = {
        "type": {"type": "string", "const": shown["type"]},
        "title": {"type": "string", "const": kind.title},
        "status": {"type": "integer", "const": kind.status},
        "detail": {"type": "string", "enum": [problems.invalid_webhook_detail(reason) for reason in _reasons()]},
        "instance": {"type": "string", "format": "uri", "description": "The request's id, as a URN."},
    }
    return {
        "title": code,
        "description": "RFC 9457 problem details.",
        "type": "object",
        "properties": {name: members[name] for name in shown},
        "required": list(shown),
        "additionalProperties": False,
    }


def _reasons() -> list[str]:
    return sorted(INVALID_REASONS)


def _examples() -> Json:
    return {
        f"{event}.{case.replace('/', '.')}": {
            "summary": f"{event}: {summary}",
            "value": json.loads((files("kinguin_streams.schemas") / "examples" / event / f"{case}.json").read_bytes()),
        }
        for event, cases in _EXAMPLES.items()
        for case, summary in cases
    }


# --- the admin port ---


def _admin_paths(server: Json) -> Json:
    def get(operation_id: str, summary: str, responses: Json, parameters: list[Json] | None = None) -> Json:
        operation: Json = {"operationId": operation_id, "summary": summary, "tags": ["operations"], "security": []}
        if parameters:
            operation["parameters"] = parameters
        return {"servers": [server], "get": operation | {"responses": responses}}

    verbose = {
        "name": "verbose",
        "in": "query",
        "description": "With any value or none: every check, not only those that fail.",
        "allowEmptyValue": True,
        "schema": {"type": "string"},
    }
    may_be_sent: Json = {
        "200": _text("It may.", ["ready\n"]),
        "503": _text("Not now; each check that fails is a line.", ["[-] not_stopping: stopping\nnot ready\n"]),
    }
    return {
        admin.LIVEZ: get(
            "livez",
            "Whether the process serves.",
            {
                "200": _text("It does.", ["ok\n"]),
                "503": _text(
                    f"The loop that serves webhooks has not turned for {admin.STALLED_S:g} s; only a restart helps.",
                    ["no webhook has been served for 12 s: the loop is stuck\n"],
                ),
            },
        ),
        admin.READYZ: get("readyz", "Whether it may be sent requests.", may_be_sent, [verbose]),
        admin.HEALTHZ: get("healthz", "The same as /readyz.", may_be_sent, [verbose]),
        admin.METRICS: get("metrics", "Prometheus text.", {"200": _text("One scrape, read under one lock.", [])}),
        admin.OPENAPI: get(
            "openapi",
            "This document.",
            {
                "200": {
                    "description": "OpenAPI 3.1, with the ports of this very process.",
                    "content": {"application/json": {"schema": {"type": "object", "required": ["openapi"]}}},
                }
            },
        ),
    }


def _text(description: str, examples: list[str]) -> Json:
    content: Json = {"schema": {"type": "string"}}
    if examples:
        content["example"] = examples[0]
    return {"description": description, "content": {"text/plain": content}}
