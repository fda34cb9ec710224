"""The wire format of Protocol Buffers, as far as the messages of GoBGP need it."""

from collections.abc import Iterator
from typing import Final

from vtl_tools.common.errors import Malformed

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_FIXED: Final = {_I64: 8, _I32: 4}
Fields = dict[int, list[int | memoryview]]


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field, in order. Raises Malformed."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _LEN:
            size, at = _varint(message, at)
        elif kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        elif not (size := _FIXED.get(kind, 0)):
            raise Malformed("protobuf.type", at)
        if size > end - at:
            raise Malformed("protobuf.length", at)
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        octet = message[at]
        at += 1
        if octet < 0x80:
            return value | octet << shift, at
        value |= (octet & 0x7F) << shift
        shift += 7
    raise Malformed("protobuf.varint", at)


def parse(message: memoryview) -> Fields:
    """Return the values of each field by its number. Raises Malformed."""
    found: Fields = {}
    for number, value in fields(message):
        found.setdefault(number, []).append(value)
    return found


def pick(message: Fields, number: int) -> memoryview:
    """Return a field that is octets; without it, none."""
    for value in reversed(message.get(number, ())):
        if isinstance(value, memoryview):
            return value
    return memoryview(b"")


def pick_int(message: Fields, number: int) -> int:
    """Return a field that is a number; without it, 0."""
    for value in reversed(message.get(number, ())):
        if isinstance(value, int):
            return value
    return 0


def first_int(packed: memoryview) -> int:
    """Return the first of numbers that follow each other. Raises Malformed."""
    return _varint(packed, 0)[0]


def pick_all(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the values of a repeated field of octets. Raises Malformed."""
    return (value for each, value in fields(message) if each == number and isinstance(value, memoryview))


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    """Return a field that is a number, from 0 to 2**64 - 1."""
    return _encoded(number << 3 | _VARINT) + _encoded(value)


def octets(number: int, value: bytes) -> bytes:
    """Return a field that is octets, text or a message."""
    return _encoded(number << 3 | _LEN) + _encoded(len(value)) + value
