"""The classes are made from the .avsc files: whoever changes one and forgets the other is told here."""

import json

import pytest

from kinguin_streams.schemas import generate_records
from kinguin_streams.schemas.attributes import attribute_name
from kinguin_streams.schemas.generate_records import source
from kinguin_streams.schemas.names import RecordName
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaCatalogue, SchemaVersion, read_version, shipped


def test_making_the_classes_again_gives_the_committed_file() -> None:
    committed = generate_records.TARGET.read_text("utf-8")
    assert source(shipped()) == committed, "run `python -m kinguin_streams.schemas.generate_records`, and commit"


@pytest.mark.parametrize(
    ("name", "kind", "attribute"),
    [
        ("raw", "bytes", "raw"),
        ("orderExternalId", ["null", "string"], "order_external_id"),
        ("bodySha256", "string", "body_sha256"),
        ("updatedAt", {"type": "long", "logicalType": "timestamp-millis"}, "updated_at_ms"),
        ("sourceTimestamp", ["null", {"type": "long", "logicalType": "timestamp-millis"}], "source_timestamp_ms"),
        ("cheapestOfferId", ["null", {"type": "array", "items": "string"}], "cheapest_offer_ids"),
        ("headers", {"type": "array", "items": "string"}, "headers"),
    ],
)
def test_an_attribute_says_what_its_type_does_not(name: str, kind: object, attribute: str) -> None:
    assert attribute_name({"name": name, "type": kind}) == attribute


def test_a_field_of_some_versions_only_says_which_and_stands_where_it_stood() -> None:
    text = source(shipped())
    product = text[text.index("class ProductUpdateFields") : text.index("class OrderStatusFields")]
    assert product.index("text_qty: int | None = None") < product.index("price: Decimal | None = None")
    assert product.index("price_rounded: bool = False") < product.index("cheapest_offer_ids")
    assert "Only in schema version 2." in product
    assert "Only in schema versions 2 and 3." in product


def test_a_field_that_an_older_version_lacks_needs_a_default() -> None:
    with pytest.raises(KeyError, match="region is not in every version"):
        source(_with_another_order_status({"name": "region", "type": "string", "doc": "Region."}))


def test_a_type_that_has_no_python_type_yet_is_refused() -> None:
    with pytest.raises(KeyError, match="double"):
        source(_with_another_order_status({"name": "weight", "type": "double", "default": 0.0, "doc": "Weight."}))


def _with_another_order_status(field: dict[str, object]) -> SchemaCatalogue:
    schema = json.loads(shipped().newest("order.status").text)
    schema["fields"].append(field)
    return SchemaCatalogue((*_all_shipped(), read_version("order.status", 2, json.dumps(schema))))


def _all_shipped() -> list[SchemaVersion]:
    names: tuple[RecordName, ...] = RECORD_NAMES
    return [schema for record in names for schema in shipped().versions(record)]
