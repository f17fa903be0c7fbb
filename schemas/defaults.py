"""Which defaults every reader hands out alike: those that are a value of their type, and whose JSON is that value.

Apache's Python parser looks at the outermost type of a default and no further. fastavro looks at nothing and hands out the
JSON as it stands: a text for bytes, a number for a time, a record without its own defaults. Java's parser refuses what is
no value of the type.
"""

from collections.abc import Callable
from typing import Any

from kinguin_streams.schemas.schema_tree import Kind


def reads_alike(kind: Kind, default: Any) -> bool:
    """Return whether a default, parsed from JSON, is the same value of this type for every reader."""
    holds = _HOLDS.get(kind.base)
    return holds is not None and kind.logical_type is None and holds(kind, default)


def _is_text(default: Any) -> bool:
    """Return whether it is text that can be written: JSON can say half a surrogate pair, UTF-8 cannot."""
    if not isinstance(default, str):
        return False
    try:
        default.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_integer(default: Any, bits: int) -> bool:
    return type(default) is int and -(2 ** (bits - 1)) <= default < 2 ** (bits - 1)  # True is an int in Python


def _is_list(kind: Kind, default: Any) -> bool:
    return isinstance(default, list) and all(
        kind.inner is not None and reads_alike(kind.inner, item) for item in default
    )


def _is_map(kind: Kind, default: Any) -> bool:
    return isinstance(default, dict) and all(
        kind.inner is not None and _is_text(key) and reads_alike(kind.inner, value) for key, value in default.items()
    )


_HOLDS: dict[str, Callable[[Kind, Any], bool]] = {
    "null": lambda _, default: default is None,
    "boolean": lambda _, default: isinstance(default, bool),
    "int": lambda _, default: _is_integer(default, 32),
    "long": lambda _, default: _is_integer(default, 64),
    "float": lambda _, default: type(default) in (int, float),
    "double": lambda _, default: type(default) in (int, float),
    "string": lambda _, default: _is_text(default),
    "enum": lambda kind, default: default in kind.symbols,
    "array": _is_list,
    "map": _is_map,
    # Avro takes the default of a union for its first branch.
    "union": lambda kind, default: reads_alike(kind.branches[0], default),
}
"""What is missing here, bytes, fixed and record, is never its own JSON."""
