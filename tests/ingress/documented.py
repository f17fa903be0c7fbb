"""The OpenAPI document as a judge: whether an answer is one that it lists for this request."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

from kinguin_streams.ingress.openapi import document

DOCUMENT = document(version="0", port=8080, admin_port=8081)
_REQUEST_LINE = re.compile(rb"([A-Z]+) ([^ ]+) HTTP/1\.1\r\n")
_HTTP_METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")
# To a path that is none of ours the document owes no list of its own: what is said of a store's path but for its success.
_OF_NO_PATH = ("400", "404", "413", "431", "500", "501")


def operations() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield path, method in capitals, and responses, references resolved."""
    for path, item in DOCUMENT["paths"].items():
        for method in _HTTP_METHODS:
            if method in item:
                yield path, method.upper(), _resolved(item[method]["responses"])


def is_valid(schema: Mapping[str, Any], value: object) -> bool:
    """Return whether a value satisfies a schema of the document."""
    whole = {**schema, "components": DOCUMENT["components"]}
    validator = jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker())
    return bool(validator.is_valid(value))


def assert_documented(
    request: bytes, status: int, headers: Mapping[str, str], body: bytes, *, admin_port: bool = False
) -> None:
    """Assert that the document lists this answer to this request: status, headers and body. Names in small letters."""
    line = _REQUEST_LINE.match(request)
    if line is None:
        return  # no HTTP: the server's own business
    method, path = line[1].decode(), line[2].decode("latin-1").partition("?")[0]
    responses = _responses(method, path, admin_port)
    assert str(status) in responses, f"{method} {path} was answered {status}, which docs/openapi.json does not list"
    response = responses[str(status)]
    for name, header in _resolved(response.get("headers", {})).items():
        value = headers.get(name.lower())
        assert value is not None or not header.get("required"), f"{method} {path} was answered {status} without {name}"
        if value is not None:
            assert is_valid(header["schema"], int(value) if header["schema"]["type"] == "integer" else value), (
                name,
                value,
            )
    content = response.get("content", {})
    if not content:
        assert body == b""
    elif method != "HEAD" and body:
        media_type = headers["content-type"].partition(";")[0]
        assert media_type in content, f"{method} {path} was answered {status} as {media_type}"
        value = json.loads(body) if media_type.endswith("json") else body.decode()
        assert is_valid(content[media_type]["schema"], value), value


def _responses(method: str, path: str, admin_port: bool) -> Mapping[str, Any]:
    for template, item in DOCUMENT["paths"].items():
        if admin_port == ("servers" in item) and re.fullmatch(
            re.sub(r"\\\{[^}]*\}", "[^/]+", re.escape(template)), path.rstrip("/") or "/"
        ):
            operation = item.get(method.lower()) or item.get("x-other-methods")
            if operation is not None:
                return _resolved(operation["responses"])
    return {status: DOCUMENT["components"]["responses"][status] for status in _OF_NO_PATH}


def _resolved(named: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in named.items():
        part: Any = value
        if "$ref" in value:
            part = DOCUMENT
            for step in value["$ref"].removeprefix("#/").split("/"):
                part = part[step]
        found[name] = part
    return found
