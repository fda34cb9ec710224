"""Values that rules compare with: sorted ranges of addresses and of numbers, without overlap."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from vtl_tools.common.packet.address import format_ip

Span = tuple[bytes, bytes]
"""First and last address of a range, inclusive, of 4 or 16 octets."""

Ranges = tuple[tuple[int, int], ...]
"""Ranges of numbers, first and last inclusive."""

_BITS: Final = {4: 32, 16: 128}
_MASKS: Final = {format_ip((0xFFFF_FFFF << 32 - n & 0xFFFF_FFFF).to_bytes(4, "big")): n for n in range(33)}


@dataclass(frozen=True, slots=True, eq=False)
class Addresses:
    """IPv4 and IPv6 addresses, kept apart: ::/0 contains no IPv4 address. May be empty.

    Compares by identity: rules that name one set share one object, of which the compiler makes use.
    """

    v4: tuple[Span, ...]
    v6: tuple[Span, ...]

    @classmethod
    def of(cls, spans: Iterable[Span]) -> "Addresses":
        """Return the union of ranges."""
        both = list(spans)
        return cls(
            _union([span for span in both if len(span[0]) == 4]),
            _union([span for span in both if len(span[0]) == 16]),
        )

    def __bool__(self) -> bool:
        return bool(self.v4 or self.v6)

    def __contains__(self, address: bytes) -> bool:
        return any(first <= address <= last for first, last in self.family(len(address)))

    def family(self, octets: int) -> tuple[Span, ...]:
        """Return the ranges of addresses of 4 or 16 octets."""
        return self.v4 if octets == 4 else self.v6

    def covers(self, other: "Addresses") -> bool:
        """Return whether these contain every address of the other."""
        return _covers(self.v4, other.v4) and _covers(self.v6, other.v6)

    def __str__(self) -> str:
        return ", ".join(first_last(span) for span in (*self.v4, *self.v6)) or "empty"


def first_last(span: Span) -> str:
    """Return a range of addresses as a prefix, if it is one, or as first and last."""
    first, last = (int.from_bytes(octets, "big") for octets in span)
    host = first ^ last
    if host & (host + 1) == 0 and first & host == 0:
        text = format_ip(span[0])
        return text if not host else f"{text}/{_BITS[len(span[0])] - host.bit_length()}"
    return f"{format_ip(span[0])}-{format_ip(span[1])}"


def _union(spans: list[Span]) -> tuple[Span, ...]:
    if len(spans) < 2:
        return tuple(spans)
    out: list[Span] = []
    for first, last in sorted(spans):
        if out and (first <= out[-1][1] or first == after(out[-1][1])):
            if last > out[-1][1]:
                out[-1] = out[-1][0], last
        else:
            out.append((first, last))
    return tuple(out)


def after(address: bytes) -> bytes | None:
    """Return the next address; None after the last."""
    number = int.from_bytes(address, "big") + 1
    return None if number >> len(address) * 8 else number.to_bytes(len(address), "big")


def _covers(wide: tuple[Span, ...], narrow: tuple[Span, ...]) -> bool:
    if len(wide) * len(narrow) > 10_000:
        return wide == narrow  # only a warning depends on it, which may be missing
    return all(any(first <= low and high <= last for first, last in wide) for low, high in narrow)


def ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Return the union of ranges of numbers."""
    out: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if out and first <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(last, out[-1][1])
        else:
            out.append((first, last))
    return tuple(out)


def holds(wide: Ranges, number: int) -> bool:
    """Return whether a number is in one of the ranges."""
    return any(first <= number <= last for first, last in wide)


def ranges_cover(wide: Ranges, narrow: Ranges) -> bool:
    """Return whether one contains every number of the other."""
    if len(wide) * len(narrow) > 10_000:
        return wide == narrow
    return all(any(first <= low and high <= last for first, last in wide) for low, high in narrow)


def parse_addresses(text: str) -> Span:
    """Return the range of an address, a prefix or "first-last".

    Raises ValueError, with the reason: no address, a prefix that is too long or has host bits set, ends of
    different versions or in the wrong order.
    """
    if "/" in text:
        return _prefix(text)
    if "-" in text:
        low, _, high = text.partition("-")
        first, last = parse_address(low), parse_address(high)
        if len(first) != len(last):
            raise ValueError(f"{text} goes from one IP version to the other")
        if first > last:
            raise ValueError(f"{text} ends before it begins")
        return first, last
    address = parse_address(text)
    return address, address


def is_address(text: str) -> bool:
    """Return whether parse_addresses() takes a text."""
    try:
        parse_addresses(text)
    except ValueError:
        return False
    return True


def _prefix(text: str) -> Span:
    head, _, tail = text.partition("/")
    address = parse_address(head)
    bits = len(address) * 8
    if (length := _MASKS.get(tail)) is not None and bits == 32:
        raise ValueError(f"/{tail} is a mask: write {head}/{length}")
    if not tail.isdecimal() or len(tail) > 3 or int(tail) > bits or (tail[0] == "0" and tail != "0"):
        raise ValueError(f"/{tail} is not a prefix length: use 0 to {bits}")
    host = (1 << bits - int(tail)) - 1
    number = int.from_bytes(address, "big")
    if number & host:
        right = format_ip((number & ~host).to_bytes(len(address), "big"))
        raise ValueError(f"{text} has host bits set: write {right}/{tail}, or {head}")
    return address, (number | host).to_bytes(len(address), "big")


@lru_cache(maxsize=4096)
def parse_address(text: str) -> bytes:
    """Return the octets of an address.

    Raises ValueError if it is none; a zone such as %eth0 is not accepted.
    """
    if ":" not in text:
        with suppress(ValueError):
            octets = bytes(map(int, text.split(".")))
            if len(octets) == 4 and ".".join(map(str, octets)) == text:  # some parsers read 010 as 8
                return octets
        raise ValueError(f"{text} is no IP address")
    try:
        if "%" not in text:
            return IPv6Address(text).packed
    except AddressValueError:
        pass
    raise ValueError(f"{text} is no IP address")
