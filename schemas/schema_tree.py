"""What the text of an Avro schema says, as a tree. Names are resolved: a type reads the same wherever it was defined."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRIMITIVES = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A type. Two are equal if no reader could tell them apart: documentation is not compared."""

    base: str
    """A primitive's name, or record, enum, fixed, array, map, union."""
    name: str = ""
    """The full name of a record, an enum or a fixed."""
    doc: str = field(default="", compare=False)
    aliases: tuple[str, ...] = ()
    logical_type: str | None = None
    precision: Any = None
    scale: Any = None
    size: int = 0
    symbols: tuple[str, ...] = ()
    default_symbol: str | None = None
    inner: "Kind | None" = None
    """The items of an array, the values of a map."""
    branches: tuple["Kind", ...] = ()
    fields: tuple["FieldOf", ...] = ()
    recursive: bool = False
    """It stands within itself: the name is all there is to see here."""

    @property
    def meaning(self) -> tuple[Any, Any, Any]:
        """Logical type, scale and precision: what bytes stand for, and what a fingerprint leaves out."""
        return (self.logical_type, self.scale, self.precision)

    def but_null(self) -> "Kind":
        """Return T of ["null", T]; any other type as it is."""
        rest = [branch for branch in self.branches if branch.base != "null"]
        return rest[0] if len(rest) == 1 else self

    def is_null_or_another(self) -> bool:
        """Return whether it is ["null", T]: a union of two with null in front."""
        return len(self.branches) == 2 and self.branches[0].base == "null"

    def may_be_null(self) -> bool:
        """Return whether it is a union with null in it."""
        return any(branch.base == "null" for branch in self.branches)

    def words(self) -> str:
        """Return the type as one says it: "null or decimal(18,6)", "list of string", "record kinguin.v1.Line"."""
        match self.base:
            case "union":
                return " or ".join(branch.words() for branch in self.branches)
            case "array" | "map" if self.inner is not None:
                return f"{'list' if self.base == 'array' else 'map'} of {self.inner.words()}"
            case "record" | "enum":
                return f"{self.base} {self.name}"
            case "fixed":
                return f"fixed {self.name} of {self.size} bytes"
        if self.logical_type == "decimal":
            return f"decimal({self.precision},{self.scale})"
        return self.logical_type or self.base


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldOf:
    """A field of a record."""

    name: str
    kind: Kind
    doc: str = field(default="", compare=False)
    aliases: tuple[str, ...] = ()
    default: str | None = None
    """As JSON; None if there is none."""


def tree_of(text: str) -> Kind:
    """Return what a schema says. text: JSON that Avro's own parsers accept.

    Raises ValueError, KeyError, TypeError, AttributeError or RecursionError for what they would refuse.
    """
    return _Names().kind(json.loads(text), "")


class _Names:
    """The names seen so far in one schema, and what they stand for; None while a type is being defined."""

    def __init__(self) -> None:
        self._seen: dict[str, Kind | None] = {}

    def kind(self, schema: Any, namespace: str) -> Kind:
        if isinstance(schema, str):
            return self._named(schema, namespace, {})
        if isinstance(schema, list):
            return Kind(base="union", branches=tuple(self.kind(branch, namespace) for branch in schema))
        if not isinstance(schema["type"], str):
            return self.kind(schema["type"], namespace)
        match schema["type"]:
            case "array":
                return Kind(base="array", inner=self.kind(schema["items"], namespace))
            case "map":
                return Kind(base="map", inner=self.kind(schema["values"], namespace))
            case "record" | "enum" | "fixed" as base:
                return self._define(base, schema, namespace)
            case other:
                return self._named(other, namespace, schema)

    def _named(self, name: str, namespace: str, attributes: Mapping[str, Any]) -> Kind:
        if name in PRIMITIVES:
            return Kind(base=name, **_logical(attributes))
        full_name = _full_name(name, namespace)
        return self._seen[full_name] or Kind(base="record", name=full_name, recursive=True)

    def _define(self, base: str, schema: Mapping[str, Any], namespace: str) -> Kind:
        name = _full_name(schema["name"], schema.get("namespace", namespace))
        within = name.rpartition(".")[0]
        self._seen[name] = None
        kind = Kind(
            base=base,
            name=name,
            doc=schema.get("doc", ""),
            aliases=tuple(schema.get("aliases", ())),
            size=schema["size"] if base == "fixed" else 0,
            symbols=tuple(schema["symbols"]) if base == "enum" else (),
            default_symbol=schema.get("default") if base == "enum" else None,
            fields=tuple(self._field(each, within) for each in schema["fields"]) if base == "record" else (),
            **_logical(schema),
        )
        self._seen[name] = kind
        return kind

    def _field(self, schema: Mapping[str, Any], namespace: str) -> FieldOf:
        return FieldOf(
            name=schema["name"],
            kind=self.kind(schema["type"], namespace),
            doc=schema.get("doc", ""),
            aliases=tuple(schema.get("aliases", ())),
            default=json.dumps(schema["default"], sort_keys=True) if "default" in schema else None,
        )


def _logical(attributes: Mapping[str, Any]) -> dict[str, Any]:
    logical_type = attributes.get("logicalType")
    if logical_type is not None and not isinstance(logical_type, str):
        logical_type = json.dumps(logical_type)  # the parsers pass anything as one that they do not know
    # Avro says that a decimal without a scale has none after the point.
    absent_scale = 0 if logical_type == "decimal" else None
    return {
        "logical_type": logical_type,
        "precision": attributes.get("precision"),
        "scale": attributes.get("scale", absent_scale),
    }


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"
