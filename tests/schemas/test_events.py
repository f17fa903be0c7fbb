"""The event classes say what the .avsc files say: a field added on one side only fails here."""

import io
import json
import types
import typing
from decimal import Decimal
from itertools import count
from typing import Any, Literal, get_args, get_origin

import fastavro
import msgspec
import pytest

from kinguin_streams.schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Decoder, Encoder
from kinguin_streams.schemas.events import (
    DeadLetter,
    DeadLetterTrail,
    OrderComplete,
    OrderStateRecord,
    OrderStatus,
    ProductStateRecord,
    ProductUpdate,
    Record,
    RecordName,
    StoreName,
)
from kinguin_streams.schemas.versions import RECORD_NAMES, shipped

CLASSES: tuple[type[Record], ...] = (
    ProductUpdate,
    OrderStatus,
    OrderComplete,
    DeadLetter,
    DeadLetterTrail,
    OrderStateRecord,
    ProductStateRecord,
)
AVRO_NAMES = {"cheapest_offer_ids": "cheapestOfferId"}
"""Names that are not the class's own in camel case. The sender names a list of ids in the singular."""


@pytest.mark.parametrize("record_class", CLASSES)
def test_a_class_has_the_fields_of_all_versions_together(record_class: type[Record]) -> None:
    fields = {name for version in _avro_fields(record_class) for name in version}
    assert {_avro_name(field) for field in _hints(record_class)} == fields


@pytest.mark.parametrize("record_class", CLASSES)
def test_a_field_has_the_type_that_the_schema_gives_it(record_class: type[Record]) -> None:
    for version in _avro_fields(record_class):
        for name, hint in _hints(record_class).items():
            if (field := version.get(_avro_name(name))) is not None:
                kind, optional = _python_type(field["type"])
                carried_by_all = all(_avro_name(name) in other for other in _avro_fields(record_class))
                assert _without_none(hint) == (kind, optional or (not carried_by_all and kind != "bool")), name


@pytest.mark.parametrize("record_class", CLASSES)
def test_times_and_only_times_say_their_unit(record_class: type[Record]) -> None:
    times = {
        name
        for version in _avro_fields(record_class)
        for name, field in version.items()
        # Not those within an array's items, which have no names in Python.
        if "timestamp-millis" in json.dumps(field["type"]) and "items" not in json.dumps(field["type"])
    }
    assert {_avro_name(field) for field in _hints(record_class) if field.endswith("_ms")} == times


@pytest.mark.parametrize("record_class", CLASSES)
def test_a_field_that_may_be_absent_has_the_default_of_its_schema(record_class: type[Record]) -> None:
    defaults = {field.name: field.default for field in msgspec.structs.fields(record_class) if not field.required}
    for version in _avro_fields(record_class):
        for name in _hints(record_class):
            field = version.get(_avro_name(name))
            if field is None:
                assert name in defaults, f"{name} is not in every version, so that its value may be missing"
            elif "default" in field:
                default = defaults[name]
                assert (list(default) if isinstance(default, tuple) else default) == field["default"], name
            elif name in defaults:
                assert any(_avro_name(name) not in other for other in _avro_fields(record_class)), name


@pytest.mark.parametrize(
    ("record", "version"),
    [(record, schema.version) for record in RECORD_NAMES for schema in shipped().versions(record)],
)
def test_the_codec_writes_every_field_of_a_version_and_reads_it_back(record: RecordName, version: int) -> None:
    """A field that the codec forgets would be null in every record, and no schema would object."""
    written = _sample(next(cls for cls in CLASSES if cls.record_name == record))
    value = Encoder({record: version}).encode(written)
    schema = json.loads(shipped().get(record, version).text)
    fields = fastavro.schemaless_reader(
        io.BytesIO(value[SINGLE_OBJECT_HEADER_BYTES:]), fastavro.parse_schema(schema), None
    )
    assert isinstance(fields, dict)
    for field in schema["fields"]:
        assert fields[field["name"]] != field.get("default", object()), field["name"]
    read = Decoder().decode(value)
    for name in _hints(type(written)):
        if _avro_name(name) in fields:
            assert getattr(read, name) == getattr(written, name), name


@pytest.mark.parametrize("record_class", CLASSES)
def test_an_event_cannot_be_changed(record_class: type[Record]) -> None:
    record = _sample(record_class)
    with pytest.raises(AttributeError):
        record.store = StoreName("another")  # type: ignore[misc,union-attr]
    assert hash(record) == hash(_sample(record_class))


def test_keys_are_what_orders_a_partition() -> None:
    product, status, complete, dead, trail, order_state, product_state = (_sample(cls) for cls in CLASSES)
    assert isinstance(product, ProductUpdate)
    assert isinstance(status, OrderStatus)
    assert isinstance(complete, OrderComplete)
    assert isinstance(dead, DeadLetter)
    assert product.key == str(product.kinguin_id)
    assert (status.key, complete.key, dead.key) == (status.order_id, complete.order_id, dead.dead_letter_id)
    assert complete.status == "completed"
    assert isinstance(trail, DeadLetterTrail)
    assert trail.key == trail.dead_letter_id
    assert isinstance(order_state, OrderStateRecord)
    assert isinstance(product_state, ProductStateRecord)
    assert order_state.key == "the store:the order_id"
    assert product_state.key == f"the store:{product_state.kinguin_id}"


def _hints(record_class: type[Record]) -> dict[str, Any]:
    hints = typing.get_type_hints(record_class)
    return {field.name: hints[field.name] for field in msgspec.structs.fields(record_class)}


def _avro_fields(record_class: type[Record]) -> list[dict[str, Any]]:
    return [
        {field["name"]: field for field in json.loads(schema.text)["fields"]}
        for schema in shipped().versions(record_class.record_name)
    ]


def _avro_name(name: str) -> str:
    first, *rest = name.removesuffix("_ms").split("_")
    return AVRO_NAMES.get(name, first + "".join(word.capitalize() for word in rest))


def _python_type(kind: Any) -> tuple[str, bool]:
    """Return the name of the Python type, and whether it may be None."""
    match kind:
        case ["null", inner]:
            return _python_type(inner)[0], True
        case {"logicalType": "decimal"}:
            return "Decimal", False
        case {"logicalType": "timestamp-millis"}:
            return "int", False
        case {"type": "array", "items": inner}:
            return f"tuple[{_python_type(inner)[0]}, ...]", False
        case {"type": "record", "fields": fields}:
            parts = [_python_type(field["type"]) for field in fields]
            return f"tuple[{', '.join(name + ' | None' * optional for name, optional in parts)}]", False
        case str():
            return {"string": "str", "long": "int", "int": "int", "bytes": "bytes", "boolean": "bool"}[kind], False
    raise AssertionError(f"no Python type for {kind}")


def _without_none(hint: Any) -> tuple[str, bool]:
    if get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = [arg for arg in get_args(hint) if arg is not type(None)]
        return _without_none(inner)[0], True
    if get_origin(hint) is Literal:
        return "str", False
    if isinstance(hint, typing.NewType):
        return hint.__supertype__.__name__, False
    return (hint.__name__, False) if isinstance(hint, type) and not get_args(hint) else (str(hint), False)


def _sample(record_class: type[Record]) -> Record:
    """Return a record in which every field has a value of its own, and none its default."""
    numbers = count(1)
    fields = {name: _value(_without_none(hint)[0], name, next(numbers)) for name, hint in _hints(record_class).items()}
    return record_class(**fields)


def _value(kind: str, name: str, number: int) -> Any:
    return {
        "str": "ingress" if name == "origin" else f"the {name}",
        "int": number,
        "bytes": name.encode(),
        "bool": True,
        "Decimal": Decimal("1.250000"),
        "tuple[str, ...]": ("a", "b"),
        "tuple[tuple[str, bytes | None], ...]": (("a", b"b"), ("c", None)),
        "tuple[tuple[int, str, str, int, int, int], ...]": ((1, "a", "t", 2, 3, 4),),
        "tuple[tuple[int, str, str | None, str, str | None], ...]": ((1, "a", None, "b", "c"),),
        "tuple[tuple[int, str | None, str], ...]": ((1, None, "a"), (2, "a", "b")),
        "tuple[tuple[str, int, str, int, str], ...]": (("a", 1, "b", 2, "c"),),
    }[kind]
