"""Our encoding is Avro's: two libraries that nobody here wrote give the same bytes, and read the same values from them."""

import io
import json
import tracemalloc
from decimal import Decimal
from typing import Any

import avro.io
import avro.schema
import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinguin_streams.schemas.binary import WORD, NotCanonical, UnsupportedType, coding

INSTANT = {"type": "long", "logicalType": "timestamp-millis"}
MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 6}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
longs = st.integers(-(2**63), 2**63 - 1)
# Where the number of bytes changes, and where the fast path for instants begins and ends.
edges = st.builds(
    lambda bits, off, sign: sign * (2**bits + off), st.integers(0, 62), st.integers(-1, 1), st.sampled_from([1, -1])
)
VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    ("boolean", st.booleans()),
    ("int", st.integers(-(2**31), 2**31 - 1)),
    ("long", longs | edges),
    (INSTANT, longs | edges | st.integers(0, 2**42)),
    ("bytes", st.binary(max_size=9000)),
    ("string", texts),
    (MONEY, st.decimals("-999999999999.999999", "999999999999.999999", places=6)),
]
SIMPLE = st.sampled_from(VALUES)


@st.composite
def types_with_values(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """Draw a type that our schemas may use, with a strategy for its values as our code has them."""
    shape = draw(st.sampled_from(["simple", "optional", "array", "record"])) if depth else "simple"
    if shape == "simple":
        simple: tuple[Any, st.SearchStrategy[Any]] = draw(SIMPLE)
        return simple
    kind, values = draw(types_with_values(depth=depth - 1))
    if shape == "optional" and not isinstance(kind, list):
        return ["null", kind], st.none() | values
    if shape == "array":
        return {"type": "array", "items": kind}, st.lists(values, max_size=4).map(tuple)
    other, others = draw(SIMPLE)
    fields = [{"name": "one", "type": kind}, {"name": "other", "type": other}]
    return {"type": "record", "name": f"R{depth}", "fields": fields}, st.tuples(values, others)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_bytes_and_values_are_those_of_other_libraries(data: st.DataObject) -> None:
    kind, values = data.draw(types_with_values())
    value = data.draw(values)
    ours = coding(kind).write(value)
    plain = _plain(kind, value)

    schema = json.dumps(_without_logical_types(kind))
    fast = io.BytesIO()
    fastavro.schemaless_writer(fast, fastavro.parse_schema(json.loads(schema)), plain)
    assert ours == fast.getvalue()

    apache = avro.io.DatumReader(avro.schema.parse(schema)).read(avro.io.BinaryDecoder(io.BytesIO(ours)))
    assert apache == plain
    assert coding(kind).read(b"before" + ours, 6) == (value, 6 + len(ours))


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_what_a_reader_takes_is_what_a_writer_writes(data: st.DataObject) -> None:
    """Damaged bytes are refused by one of the three errors, or are the one encoding of another value."""
    kind, values = data.draw(types_with_values())
    ours = bytearray(coding(kind).write(data.draw(values)) + data.draw(st.binary(max_size=3)))
    for _ in range(data.draw(st.integers(0, 3))):
        if ours:
            ours[data.draw(st.integers(0, len(ours) - 1))] = data.draw(st.integers(0, 255))
    try:
        value, end = coding(kind).read(bytes(ours), 0)
    except (IndexError, ValueError):
        return
    assert end <= len(ours)
    assert coding(kind).write(value) == ours[:end]


@settings(max_examples=600, deadline=None)
@given(data=st.binary(max_size=70) | texts.map(coding("string").write), cut=st.integers(0, 3))
def test_a_word_is_read_as_any_string(data: bytes, cut: int) -> None:
    def result(read: Any, data: bytes) -> Any:
        try:
            return read(data, 0)
        except (IndexError, ValueError) as error:
            return type(error)

    for some in (data, data, data[: len(data) - cut]):
        assert result(WORD.read, some) == result(coding("string").read, some)


def test_words_are_remembered_up_to_a_limit() -> None:
    """Whoever sends another status each time fills no memory."""
    written = [WORD.write(f"{number:060}") for number in range(5_000)]
    tracemalloc.start()
    for data in written:
        WORD.read(data, 0)
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 400_000


@pytest.mark.parametrize("number", [0, 2**34 - 1, 2**34, 1_615_204_800_123, 2**41 - 1, 2**41, -1, -(2**63), 2**63 - 1])
def test_an_instant_is_a_long_whatever_its_size(number: int) -> None:
    assert coding(INSTANT).write(number) == coding("long").write(number)
    assert coding(INSTANT).read(coding("long").write(number), 0) == (number, len(coding("long").write(number)))


@pytest.mark.parametrize("kind", ["long", INSTANT], ids=["long", "instant"])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", IndexError, id="no byte"),
        pytest.param(b"\x80" * 5, IndexError, id="cut off"),
        pytest.param(b"\x82\x80\x80\x80\x80\x00", NotCanonical, id="six bytes of which the last adds nothing"),
        pytest.param(b"\x80\x00", NotCanonical, id="overlong zero"),
        pytest.param(b"\xff" * 9 + b"\x02", ValueError, id="65 bits"),
        pytest.param(b"\xff" * 11 + b"\x01", ValueError, id="twelve bytes"),
    ],
)
def test_a_number_is_read_in_its_one_form_only(kind: Any, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        coding(kind).read(data, 0)


@pytest.mark.parametrize(("kind", "value"), [("long", 2**63), ("int", 2**31), (INSTANT, -(2**63) - 1)])
def test_a_number_that_does_not_fit_is_refused(kind: Any, value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        coding(kind).write(value)


def test_text_with_a_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        coding("string").write("\ud800")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("double", id="double"),
        pytest.param("Another", id="a name"),
        pytest.param(["string", "null"], id="null last"),
        pytest.param(["null", "string", "long"], id="a union of three"),
        pytest.param({"type": "long", "logicalType": "timestamp-micros"}, id="micros"),
        pytest.param({**MONEY, "scale": 2}, id="another scale"),
        pytest.param({"type": "map", "values": "string"}, id="map"),
        pytest.param({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, id="items of no bytes"),
    ],
)
def test_a_type_that_no_schema_uses_yet_is_refused(kind: Any) -> None:
    with pytest.raises(UnsupportedType):
        coding(kind)


def _plain(kind: Any, value: Any) -> Any:
    """Return the value as a library has it that knows no logical types."""
    match kind:
        case {"logicalType": "decimal"}:
            unscaled = int(Decimal(value).scaleb(6))
            return next(
                unscaled.to_bytes(length, "big", signed=True)
                for length in range(1, 10)
                if -(1 << (8 * length - 1)) <= unscaled < 1 << (8 * length - 1)
            )
        case ["null", inner]:
            return None if value is None else _plain(inner, value)
        case {"type": "array", "items": items}:
            return [_plain(items, item) for item in value]
        case {"type": "record", "fields": fields}:
            return {field["name"]: _plain(field["type"], part) for field, part in zip(fields, value, strict=True)}
    return value


def _without_logical_types(kind: Any) -> Any:
    if isinstance(kind, dict):
        return {key: _without_logical_types(part) for key, part in kind.items() if key != "logicalType"}
    return [_without_logical_types(part) for part in kind] if isinstance(kind, list) else kind
