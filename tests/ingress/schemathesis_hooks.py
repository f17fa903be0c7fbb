"""What schemathesis must be told about the ingress beyond its OpenAPI document. Read by schemathesis, not by pytest.

Two rules cannot be said in OpenAPI 3.1, so what it generates is bent to them: which schema a body must match follows from
the header X-Event-Name, and a number written as 1.0 is no integer.
"""

import jsonschema_rs  # type: ignore[import-not-found]  # comes with schemathesis, which has an environment of its own
import schemathesis  # type: ignore[import-not-found]

EVENT_NAMES = {"product.update", "order.status", "order.complete"}
PAYLOADS = ("ProductUpdatePayload", "OrderStatusPayload", "OrderCompletePayload")
INTEGERS = ("kinguinId", "qty", "textQty")


def before_call(_context: object, case: "schemathesis.Case", _kwargs: object) -> None:
    """Name the event in the header that a valid body is of. Whatever is wrong on purpose stays wrong."""
    if not isinstance(case.body, dict):
        return
    for name in INTEGERS:
        value = case.body.get(name)
        if isinstance(value, float) and value.is_integer():
            case.body[name] = int(value)
    if (case.headers or {}).get("X-Event-Name") in EVENT_NAMES:
        schemas = case.operation.schema.raw_schema["components"]["schemas"]
        for payload in PAYLOADS:
            if jsonschema_rs.Draft202012Validator(schemas[payload]).is_valid(case.body):
                case.headers["X-Event-Name"] = schemas[payload]["title"]
                return


schemathesis.hook(before_call)
# The sender's spelling.
schemathesis.serializer.alias("aplication/json", "application/json")
