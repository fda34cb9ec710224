"""The addresses at both ends of a wormhole: a pair of IPv4 and IPv6."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet import address

Pair = tuple[bytes, bytes]
"""Addresses of IPv4 and IPv6."""

BACKEND: Final[Pair] = (address.ip("198.18.0.2"), address.ip("2001:2::2"))
"""The backend's addresses on a wormhole (RFC 2544, RFC 5180: no host of the internet has them)."""


def parse_pair(texts: Iterable[str], option: str) -> Pair:
    """Return the addresses of texts; BACKEND's for a version that is not given. Raises SpecError."""
    found = dict(zip((4, 6), BACKEND, strict=True))
    for text in texts:
        try:
            given = ip_address(text)
        except ValueError:
            raise SpecError(f"{option}: {text!r}: not an address; write 198.18.0.2") from None
        found[given.version] = given.packed
    return found[4], found[6]
