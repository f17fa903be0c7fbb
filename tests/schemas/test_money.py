"""decimal(18,6) on the wire."""

from decimal import Context, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinguin_streams.schemas.money import from_wire, to_wire


@pytest.mark.parametrize(
    ("amount", "wire"),
    [
        # new java.math.BigDecimal(amount).setScale(6).unscaledValue().toByteArray()
        ("0", "00"),
        ("0.000001", "01"),
        ("0.000127", "7f"),
        ("0.000128", "0080"),
        ("-0.000001", "ff"),
        ("-0.000128", "80"),
        ("-0.000129", "ff7f"),
        ("5.9", "5a06e0"),
        ("999999999999.999999", "0de0b6b3a763ffff"),
        ("-999999999999.999999", "f21f494c589c0001"),
    ],
)
def test_an_amount_is_the_shortest_twos_complement_as_javas(amount: str, wire: str) -> None:
    assert to_wire(Decimal(amount)).hex() == wire
    assert from_wire(bytes.fromhex(wire)) == Decimal(amount)


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_any_amount_comes_back_with_six_places(unscaled: int) -> None:
    amount = Decimal(unscaled).scaleb(-6)
    assert from_wire(to_wire(amount)) == amount
    assert from_wire(to_wire(amount)).as_tuple().exponent == -6


@given(st.binary(max_size=12))
def test_bytes_are_an_amount_only_if_it_writes_them(wire: bytes) -> None:
    try:
        amount = from_wire(wire)
    except ValueError:
        return
    assert to_wire(amount) == wire


@pytest.mark.parametrize("amount", ["0.0000001", "1E+12", "-1000000000000", "1E+400", "Infinity", "NaN", "-sNaN"])
def test_what_does_not_fit_is_refused_not_rounded(amount: str) -> None:
    with pytest.raises(ValueError):
        to_wire(Decimal(amount))


def test_the_callers_decimal_context_changes_nothing() -> None:
    with localcontext(Context(prec=2)):
        assert from_wire(to_wire(Decimal("123456.789012"))) == Decimal("123456.789012")
