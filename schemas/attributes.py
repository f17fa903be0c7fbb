"""What a field of a schema is called in Python. The one rule that the generated classes and the codec share."""

import re
from collections.abc import Mapping
from typing import Any


def attribute_name(field: Mapping[str, Any]) -> str:
    """Return the attribute of a field as it stands in an .avsc file.

    snake_case; a time says its unit, and an array is a plural: the sender names a list of ids in the singular.
    """
    name = re.sub(r"(?<=[a-z0-9])[A-Z]", lambda capital: "_" + capital[0].lower(), field["name"])
    match required(field["type"]):
        case {"logicalType": "timestamp-millis"}:
            return f"{name}_ms"
        case {"type": "array"} if not name.endswith("s"):
            return f"{name}s"
    return name


def required(kind: Any) -> Any:
    """Return the type without its null, if it may be null."""
    return kind[1] if isinstance(kind, list) and kind[:1] == ["null"] and len(kind) == 2 else kind
