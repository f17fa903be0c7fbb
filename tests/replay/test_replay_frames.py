"""A schema's id of one registry is no schema's id of another."""

import pytest

from kinguin_streams.replay.frames import FrameGuard, TextOfId
from kinguin_streams.replay.record import Record
from kinguin_streams.telemetry.operator_error import OperatorError

INT, LONG = '{"type": "int"}', '{"type":"long"}'


def framed(schema_id: int) -> Record:
    return Record("t", 0, 5, 1, b"k", b"\x00" + schema_id.to_bytes(4, "big") + b"\x02", ())


def test_an_id_with_the_same_schema_on_both_sides_passes_and_is_asked_for_once() -> None:
    asked: list[int] = []

    def at_target(schema_id: int) -> str:
        asked.append(schema_id)
        return INT.replace(" ", "")

    guard = FrameGuard({7: INT}, at_target)
    guard([framed(7), framed(7)])
    guard([framed(7)])
    assert asked == [7]


@pytest.mark.parametrize(
    ("at_source", "at_target", "why"),
    [
        pytest.param({7: INT}, lambda _id: LONG, "another schema", id="another schema"),
        pytest.param({7: INT}, lambda _id: None, "no such id", id="an id that the target does not have"),
        pytest.param({7: INT}, None, "no registry is set", id="no registry"),
        pytest.param({}, lambda _id: INT, "nothing says", id="nobody knows what it was"),
    ],
)
def test_any_other_is_refused_with_the_record_and_the_id(
    at_source: dict[int, str], at_target: TextOfId | None, why: str
) -> None:
    with pytest.raises(OperatorError, match=why) as refused:
        FrameGuard(at_source, at_target)([framed(7)])
    assert refused.value.code == "registry_differs"
    assert "t/0/5" in refused.value.what


def test_values_that_need_no_registry_are_not_looked_at() -> None:
    values = [None, b"", b"\x00", b"\x00\x00\x00\x01", b"\xc3\x01" + bytes(20)]
    FrameGuard({}, None)([framed(1)._replace(value=value) for value in values])


def test_where_a_value_may_be_anything_only_ids_that_are_known_are_looked_at() -> None:
    guard = FrameGuard({8: INT}, lambda _id: LONG, takes_unknown=True)
    guard([framed(7)])
    with pytest.raises(OperatorError, match="another schema"):
        guard([framed(8)])
