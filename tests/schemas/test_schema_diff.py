"""What changed between two versions, and what a reader of either sees of the other's records."""

import json
from typing import Any

import pytest

from kinguin_streams.schemas.schema_diff import Change, SchemaDiff, diff
from kinguin_streams.schemas.versions import shipped

Schema = dict[str, Any]


def record(*fields: Schema, **more: Any) -> Schema:
    return {"type": "record", "name": "Purchase", "namespace": "kinguin.v1", "fields": list(fields), **more}


def field(name: str, kind: Any, **more: Any) -> Schema:
    return {"name": name, "type": kind, **more}


def between(old: Schema, new: Schema) -> SchemaDiff:
    return diff(json.dumps(old), json.dumps(new))


def test_the_price_that_went_with_version_3() -> None:
    found = diff(shipped().get("product.update", 2).text, shipped().get("product.update", 3).text)
    assert {(change.change, change.field) for change in found.changes} == {
        ("doc", ""),
        ("doc", "qty"),
        ("removed", "price"),
        ("removed", "priceRounded"),
    }
    assert "null or decimal(18,6), default null" in [change.before for change in found.changes]
    assert found.old_reader == ("price: always null", "priceRounded: always false")
    assert found.new_reader == ("price: not seen", "priceRounded: not seen")


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        pytest.param(
            record(),
            record(field("qty", ["null", "long"], default=None)),
            Change(change="added", field="qty", before=None, after="null or long, default null"),
            id="a field comes",
        ),
        pytest.param(
            record(field("qty", "int")),
            record(field("qty", "long")),
            Change(change="type", field="qty", before="int", after="long"),
            id="a type",
        ),
        pytest.param(
            record(field("at", {"type": "long", "logicalType": "timestamp-millis"})),
            record(field("at", "long")),
            Change(change="type", field="at", before="timestamp-millis", after="long"),
            id="a logical type",
        ),
        pytest.param(
            record(field("gift", "boolean", default=False)),
            record(field("gift", "boolean")),
            Change(change="default", field="gift", before="false", after=None),
            id="a default",
        ),
        pytest.param(
            record(field("gift", "boolean")),
            record(field("gift", "boolean", doc="A gift.")),
            Change(change="doc", field="gift", before=None, after="A gift."),
            id="documentation",
        ),
        pytest.param(
            record(field("a", "int"), field("b", "int")),
            record(field("b", "int"), field("c", "int", default=0), field("a", "int")),
            Change(change="order", field="", before="a, b", after="b, a"),
            id="the order of fields",
        ),
        pytest.param(
            record(),
            record(name="Order"),
            Change(change="name", field="", before="kinguin.v1.Purchase", after="kinguin.v1.Order"),
            id="the name",
        ),
        pytest.param(
            record(field("note", "string")),
            record(field("note", "string", aliases=["remark"])),
            Change(change="aliases", field="note", before=None, after="remark"),
            id="an alias",
        ),
        pytest.param(
            record(field("size", {"type": "enum", "name": "Size", "symbols": ["S"]})),
            record(field("size", {"type": "enum", "name": "Size", "symbols": ["S", "M"]})),
            Change(change="symbols", field="size", before="S", after="S, M"),
            id="a symbol",
        ),
        pytest.param(
            record(field("size", {"type": "enum", "name": "Size", "symbols": ["S"]})),
            record(field("size", {"type": "enum", "name": "Size", "symbols": ["S"], "default": "S"})),
            Change(change="default", field="size", before=None, after="S"),
            id="the default of an enum",
        ),
        pytest.param(
            record(field("digest", {"type": "fixed", "name": "Digest", "size": 16})),
            record(field("digest", {"type": "fixed", "name": "Digest", "size": 32})),
            Change(
                change="type",
                field="digest",
                before="fixed kinguin.v1.Digest of 16 bytes",
                after="fixed kinguin.v1.Digest of 32 bytes",
            ),
            id="the size of a fixed",
        ),
    ],
)
def test_each_kind_of_change_is_said(old: Schema, new: Schema, change: Change) -> None:
    assert change in between(old, new).changes


def test_changes_within_lists_and_maps_have_their_path() -> None:
    def lines(*fields: Schema) -> Schema:
        line = {"type": "record", "name": "Line", "fields": [field("sku", "string"), *fields]}
        return record(
            field("lines", ["null", {"type": "map", "values": {"type": "array", "items": line}}], default=None)
        )

    found = between(lines(), lines(field("qty", "long", default=1)))
    assert [(change.change, change.field) for change in found.changes] == [("added", "lines[][].qty")]
    assert found.new_reader == ("lines[][].qty: always 1",)
    assert found.old_reader == ("lines[][].qty: not seen",)


def test_a_field_without_a_default_is_what_a_reader_stops_at() -> None:
    assert between(record(), record(field("qty", "long"))).new_reader == ("qty: no default: it cannot read them",)


def test_a_schema_within_itself_ends_and_equal_schemas_differ_in_nothing() -> None:
    tree = record(field("parent", ["null", "Purchase"], default=None))
    assert between(tree, tree) == SchemaDiff(changes=(), old_reader=(), new_reader=())
