"""The wire format of Protocol Buffers, as far as the messages of GoBGP need it."""

from collections.abc import Iterator
from typing import Final

from vtl_tools.common.errors import Malformed

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_FIXED: Final = {_I64: 8, _I32: 4}


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field, in order. Raises Malformed."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = _FIXED.get(kind, 0)
        if kind == _LEN:
            size, at = _varint(message, at)
        elif not size:
            raise Malformed("protobuf.type", at)
        if size > len(message) - at:
            raise Malformed("protobuf.length", at)
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            break
        octet = message[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
    raise Malformed("protobuf.varint", at)


def pick(message: memoryview, number: int) -> memoryview:
    """Return a field that is octets; without it, none. Raises Malformed."""
    found = memoryview(b"")
    for each, value in fields(message):
        if each == number and isinstance(value, memoryview):
            found = value
    return found


def pick_all(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the values of a repeated field of octets. Raises Malformed."""
    return (value for each, value in fields(message) if each == number and isinstance(value, memoryview))


def pick_int(message: memoryview, number: int) -> int:
    """Return a field that is a number; without it, 0. Raises Malformed."""
    found = 0
    for each, value in fields(message):
        if each == number and isinstance(value, int):
            found = value
    return found


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
