"""Money on the wire: decimal(18,6), which is the amount times 1,000,000 as a two's-complement integer, big-endian.

Done here and not by fastavro: its reader takes any length, and the work grows with the square of it (measured: 5 s for
a decimal of 256 KiB, 79 s for 1 MB), and its writer spends a byte too many on some negative amounts, unlike Java's.
"""

from decimal import Context, Decimal, Inexact, InvalidOperation

PRECISION = 18
SCALE = 6
STEP = Decimal(1).scaleb(-SCALE)
MAX_BYTES = 8
_MAX_UNSCALED: int = 10**PRECISION - 1
_EXACT = Context(prec=PRECISION, traps=[Inexact, InvalidOperation])


def to_wire(amount: Decimal) -> bytes:
    """Return the shortest bytes of an amount. Raises ValueError if it has more than 6 decimal places or 18 digits."""
    try:
        unscaled = int(amount.quantize(STEP, context=_EXACT).scaleb(SCALE, context=_EXACT))
    except (Inexact, InvalidOperation) as error:
        raise ValueError(f"{amount} is not a decimal(18,6)") from error
    return _shortest(unscaled)


def from_wire(wire: bytes) -> Decimal:
    """Return the amount, with six decimal places. Raises ValueError for bytes that to_wire never returns."""
    bits = 8 * len(wire)
    if 0 < bits <= 8 * MAX_BYTES:
        unscaled = int.from_bytes(wire, "big", signed=True)
        shortest = bits == 8 or not -(1 << (bits - 9)) <= unscaled < 1 << (bits - 9)
        if shortest and -_MAX_UNSCALED <= unscaled <= _MAX_UNSCALED:
            return Decimal(unscaled).scaleb(-SCALE, context=_EXACT)
    raise ValueError(f"{len(wire)} bytes that are not a decimal(18,6) in its shortest form")


def _shortest(unscaled: int) -> bytes:
    magnitude = unscaled if unscaled >= 0 else ~unscaled
    return unscaled.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True)
