"""Which of our versions a registry's text is: by what its bytes mean."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kinguin_streams.cluster.registry_match import NotOurs, identify
from kinguin_streams.schemas.versions import RECORD_NAMES, SchemaCatalogue, fingerprint_of, read_version, shipped

SHIPPED = [schema for record in RECORD_NAMES for schema in shipped().versions(record)]


def places(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every type in a schema that has a logical type."""
    if isinstance(schema, list):
        for branch in schema:
            yield from places(branch)
    if isinstance(schema, dict):
        if "logicalType" in schema:
            yield schema
        for inner in schema.values():
            yield from places(inner)


@pytest.mark.parametrize("ours", SHIPPED, ids=lambda schema: f"{schema.record} {schema.version}")
def test_every_shipped_version_is_itself(ours: Any) -> None:
    assert identify(ours.text, shipped()) is ours


@pytest.mark.parametrize("ours", SHIPPED, ids=lambda schema: f"{schema.record} {schema.version}")
def test_no_change_of_any_logical_type_scale_or_precision_passes_for_ours(ours: Any) -> None:
    changes = 0
    for number, place in enumerate(places(json.loads(ours.text))):
        for attribute, other in {"logicalType": "somebody-elses", "scale": 3, "precision": 17}.items():
            if attribute in place:
                changed = json.loads(ours.text)
                list(places(changed))[number][attribute] = other
                text = json.dumps(changed)
                assert fingerprint_of(text) == ours.fingerprint
                with pytest.raises(NotOurs, match="another logical type, scale or precision at"):
                    identify(text, shipped())
                changes += 1
    assert changes > 0


def test_a_logical_type_where_we_have_none_is_another_meaning() -> None:
    status = json.loads(shipped().newest("order.status").text)
    field = next(field for field in status["fields"] if field["type"] == "string")
    field["type"] = {"type": "string", "logicalType": "uuid"}
    with pytest.raises(NotOurs, match=str(field["name"])):
        identify(json.dumps(status), shipped())


@pytest.mark.parametrize("written", ['{"type": "long"}', '"long"', '{"type": "long", "doc": "x"}'])
def test_a_type_may_be_written_at_length(written: str) -> None:
    ours = read_version("order.status", 1, '{"type": "record", "name": "A", "fields": [{"name": "a", "type": "long"}]}')
    text = f'{{"type": "record", "name": "A", "fields": [{{"name": "a", "type": {written}}}]}}'
    assert identify(text, SchemaCatalogue((ours,))) is ours


def test_a_scale_that_is_not_said_is_0() -> None:
    def text(scale: str) -> str:
        money = f'{{"type": "bytes", "logicalType": "decimal", "precision": 4{scale}}}'
        return f'{{"type": "record", "name": "A", "fields": [{{"name": "a", "type": ["null", {money}]}}]}}'

    catalogue = SchemaCatalogue((read_version("order.status", 1, text("")),))
    assert identify(text(', "scale": 0'), catalogue).text == text("")
    with pytest.raises(NotOurs):
        identify(text(', "scale": 2'), catalogue)
