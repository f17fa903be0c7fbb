"""Avro's binary encoding, strict in both directions, compiled from a schema: the part of it that our schemas use.

`coding` turns a type, as it stands in an .avsc file, into two functions. A reader takes what a writer writes and
nothing else: Avro's other readers also take overlong numbers, a negative union branch, arrays in several blocks and text cut
short, so that two different values would be one record. Timestamps are integers here, money is Decimal, an array is a
tuple, and so is a record inside a record.

Why not a library: see docs/adr/0007. Proven against two of them in tests/schemas/test_binary.py.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from kinguin_streams.schemas import money

T = TypeVar("T")
Read = Callable[[bytes, int], tuple[Any, int]]
"""(data, position) to (value, position after it). Raises IndexError where the data ends too early, NotCanonical or ValueError."""
Write = Callable[[Any], bytes]
"""value to bytes. Raises ValueError for a number that the type cannot hold, or text with a surrogate."""


class NotCanonical(ValueError):
    """A lenient reader would take these bytes, but no writer writes them."""


class UnsupportedType(Exception):
    """A type that no shipped schema uses. Adding it to a schema means adding it here first."""


class Coding(NamedTuple):
    """A type in both directions."""

    read: Read
    write: Write


def coding(kind: Any) -> Coding:
    """Return the reader and the writer of a type as it stands in an .avsc file. Raises UnsupportedType."""
    match kind:
        case {"logicalType": "decimal", "type": "bytes", "precision": money.PRECISION, "scale": money.SCALE}:
            return Coding(_read_money, _write_money)
        case {"logicalType": "timestamp-millis", "type": "long"}:
            return Coding(_read_instant, _write_instant)
        case ["null", inner]:
            one = coding(inner)
            return Coding(partial(_read_optional, one.read), partial(_write_optional, one.write))
        case {"type": "array", "items": items} if _takes_a_byte(items):
            one = coding(items)
            return Coding(partial(_read_array, one.read), partial(_write_array, one.write))
        case {"type": "record", "fields": [_, *_] as fields}:
            reads, writes = zip(*(coding(field["type"]) for field in fields), strict=True)
            return Coding(partial(_read_record, reads), partial(_write_record, writes))
        case str() if kind in _PRIMITIVES:
            return _PRIMITIVES[kind]
    raise UnsupportedType(f"no reader and writer for {kind}")


def _takes_a_byte(items: Any) -> bool:
    # Items of no bytes would let five bytes of data stand for any number of them.
    return not isinstance(items, Mapping) or items.get("type") != "record" or bool(items["fields"])


# Numbers: zigzag, then seven bits a byte, the lowest first.

_LONG_BITS = 64
_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1
_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), at + 1
    second = data[at + 1]
    if 0 < second < 0x80:
        return (byte & 0x7F | second << 7) >> 1 ^ -(byte & 1), at + 2
    at += 1
    zigzag, shift = byte & 0x7F, 7
    while byte >= 0x80:
        byte = data[at]
        at += 1
        zigzag |= (byte & 0x7F) << shift
        shift += 7
        if shift > _LONG_BITS + 6:
            raise ValueError("a number of more than ten bytes")
    if byte == 0:
        raise NotCanonical("a number with bytes that add nothing")
    if zigzag >> _LONG_BITS:
        raise ValueError("a number of more than 64 bits")
    return (zigzag >> 1) ^ -(zigzag & 1), at


def _read_int(data: bytes, at: int) -> tuple[int, int]:
    number, at = _read_long(data, at)
    if not _INT_MIN <= number <= _INT_MAX:
        raise ValueError("an int of more than 32 bits")
    return number, at


def _read_instant(data: bytes, at: int) -> tuple[int, int]:
    # From 1987 to 2039 an instant in milliseconds has six bytes; measured, taking them at once saves half the time.
    six = int.from_bytes(data[at : at + 6], "little")
    if six & 0x808080808081 != 0x008080808080 or six <= 0xFFFFFFFFFF:
        return _read_long(data, at)
    return (
        (six & 0x7E) >> 1
        | (six & 0x7F00) >> 2
        | (six & 0x7F0000) >> 3
        | (six & 0x7F000000) >> 4
        | (six & 0x7F00000000) >> 5
        | (six & 0x7F0000000000) >> 6
    ), at + 6


def _write_long(number: int) -> bytes:
    if not _LONG_MIN <= number <= _LONG_MAX:
        raise ValueError(f"{number} does not fit 64 bits")
    rest = (number << 1) ^ (number >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _write_int(number: int) -> bytes:
    if not _INT_MIN <= number <= _INT_MAX:
        raise ValueError(f"{number} does not fit 32 bits")
    return _write_long(number)


_FIRST_OF_SIX_BYTES, _FIRST_OF_SEVEN_BYTES = 2**34, 2**41


def _write_instant(number: int) -> bytes:
    if not _FIRST_OF_SIX_BYTES <= number < _FIRST_OF_SEVEN_BYTES:
        return _write_long(number)
    six = (
        0x8080808080
        | (number & 0x3F) << 1
        | (number & 0x1FC0) << 2
        | (number & 0xFE000) << 3
        | (number & 0x7F00000) << 4
        | (number & 0x3F8000000) << 5
        | (number & 0x1FC00000000) << 6
    )
    return six.to_bytes(6, "little")


def _read_boolean(data: bytes, at: int) -> tuple[bool, int]:
    byte = data[at]
    if byte > 1:
        raise ValueError(f"a boolean of {byte}")
    return byte == 1, at + 1


def _write_boolean(value: bool) -> bytes:
    return b"\x01" if value else b"\x00"


# Lengths in front

_SHORT_LENGTHS = tuple(_write_long(length) for length in range(4096))


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    length = data[at]
    if length & 0x81:
        at, end = _read_long_length(data, at)
    else:
        at += 1
        end = at + (length >> 1)
    if end > len(data):
        raise IndexError("bytes that end before their length says so")
    return data[at:end], end


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    # The lines of _read_bytes again: most fields are short strings, and a call more was a tenth of the time.
    length = data[at]
    if length & 0x81:
        at, end = _read_long_length(data, at)
    else:
        at += 1
        end = at + (length >> 1)
    if end > len(data):
        raise IndexError("text that ends before its length says so")
    return data[at:end].decode(), end


def _read_long_length(data: bytes, at: int) -> tuple[int, int]:
    """Return where the bytes begin whose length stands at `at`, in several bytes or below zero, and where they end."""
    length, at = _read_long(data, at)
    if length < 0:
        raise ValueError("a length below zero")
    return at, at + length


def _write_bytes(value: bytes) -> bytes:
    length = len(value)
    return (_SHORT_LENGTHS[length] if length < len(_SHORT_LENGTHS) else _write_long(length)) + value


_MOST_WORDS = 1024
_words: dict[bytes, str] = {}


def _read_word(data: bytes, at: int) -> tuple[str, int]:
    # Short ones only: what is remembered is 64 KiB of text at most, whatever is sent.
    length = data[at]
    if length & 0x81:
        return _read_string(data, at)
    end = at + 1 + (length >> 1)
    wire = data[at + 1 : end]
    word = _words.get(wire)
    if word is None:
        word, end = _read_string(data, at)
        if len(_words) == _MOST_WORDS:
            _words.clear()
        _words[wire] = word
    elif end > len(data):
        raise IndexError("text that ends before its length says so")
    return word, end


def _write_string(value: str) -> bytes:
    return _write_bytes(value.encode())


def _read_money(data: bytes, at: int) -> tuple[Any, int]:
    wire, at = _read_bytes(data, at)
    try:
        return money.from_wire(wire), at
    except ValueError as error:
        raise NotCanonical(str(error)) from error


def _write_money(amount: Any) -> bytes:
    return _write_bytes(money.to_wire(amount))


# Types of types


def _read_optional(read: Read, data: bytes, at: int) -> tuple[Any, int]:
    zigzag = data[at]
    if zigzag == 0:
        return None, at + 1
    if zigzag == 2:
        return read(data, at + 1)
    branch, _ = _read_long(data, at)
    raise ValueError(f"branch {branch} of a union of two")


def _write_optional(write: Write, value: Any) -> bytes:
    return b"\x00" if value is None else b"\x02" + write(value)


def _read_array(read: Read, data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
    count, at = _read_long(data, at)
    if count == 0:
        return (), at
    if count < 0:
        raise NotCanonical("an array's block that tells its size")
    if count > len(data) - at:
        raise IndexError("an array of more items than there are bytes")
    items = []
    for _ in range(count):
        item, at = read(data, at)
        items.append(item)
    if data[at] != 0:
        raise NotCanonical("an array in more than one block")
    return tuple(items), at + 1


def _write_array(write: Write, items: Any) -> bytes:
    if not items:
        return b"\x00"
    return b"".join((_write_long(len(items)), *map(write, items), b"\x00"))


def _read_record(reads: tuple[Read, ...], data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
    values = []
    for read in reads:
        value, at = read(data, at)
        values.append(value)
    return tuple(values), at


def _write_record(writes: tuple[Write, ...], values: Any) -> bytes:
    return b"".join(write(value) for write, value in zip(writes, values, strict=True))


def unrolled(
    readers: Sequence[tuple[str, Read]], make: Callable[..., T], unset: Mapping[str, Any]
) -> Callable[[bytes, int], tuple[T, int]]:
    """Return a reader that calls these in their order and makes one thing of what they return, by name.

    unset: what to take instead of a field's value, which is read all the same. One line for each field, as the standard
    library's dataclasses do it: going round a loop and filling a dictionary took a quarter of an event's time.
    """
    lines = [f"v{n}, at = r{n}(data, at)" for n in range(len(readers))]
    values = [f"{name}={f'unset[{name!r}]' if name in unset else f'v{n}'}" for n, (name, _) in enumerate(readers)]
    source = "\n ".join(["def read(data, at):", *lines, f"return make({', '.join(values)}), at"])
    scope: dict[str, Any] = {"make": make, "unset": unset, **{f"r{n}": read for n, (_, read) in enumerate(readers)}}
    exec(source, scope)  # noqa: S102 - of the names of our own fields
    read: Callable[[bytes, int], tuple[T, int]] = scope["read"]
    return read


_PRIMITIVES: dict[str, Coding] = {
    "boolean": Coding(_read_boolean, _write_boolean),
    "int": Coding(_read_int, _write_int),
    "long": Coding(_read_long, _write_long),
    "bytes": Coding(_read_bytes, _write_bytes),
    "string": Coding(_read_string, _write_string),
}
WORD = Coding(_read_word, _write_string)
"""A string that is one of a few for most records: they share it, instead of 57 bytes or more for each."""
