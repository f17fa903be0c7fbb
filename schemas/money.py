"""Money on the wire: decimal(18,6), which is the amount times 1,000,000 as a two's-complement integer, big-endian.

Done here and not by fastavro: its reader takes any length, and the work grows with the square of it (measured: 5 s for
a decimal of 256 KiB, 79 s for 1 MB), and its writer spends a byte too many on some negative amounts, unlike Java's.
"""

from decimal import Context, Decimal, Inexact, InvalidOperation

PRECISION = 18
STEP = Decimal("0.000001")
MAX_BYTES = 8
_MAX_UNSCALED: int = 10**PRECISION - 1
_EXACT = Context(prec=PRECISION, traps=[Inexact, InvalidOperation])


def to_wire(amount: Decimal) -> bytes:
    """Return the shortest bytes of an amount. Raises ValueError if it has more than 6 decimal places or 18 digits."""
    try:
        unscaled = int(amount.quantize(STEP, context=_EXACT).scaleb(6, context=_EXACT))
    except (Inexact, InvalidOperation) as error:
        raise ValueError(f"{amount} is not a decimal(18,6)") from error
    return _shortest(unscaled)


def from_wire(wire: bytes) -> Decimal:
    """Return the amount, with six decimal places. Raises ValueError for bytes that to_wire never returns."""
    unscaled = int.from_bytes(wire[: MAX_BYTES + 1], "big", signed=True)
    if len(wire) > MAX_BYTES or abs(unscaled) > _MAX_UNSCALED or _shortest(unscaled) != wire:
        raise ValueError(f"{len(wire)} bytes that are not a decimal(18,6) in its shortest form")
    return Decimal(unscaled).scaleb(-6, context=_EXACT)


def _shortest(unscaled: int) -> bytes:
    magnitude = unscaled if unscaled >= 0 else ~unscaled
    return unscaled.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True)
