"""The DNS resolvers that the network has named to the VM: by DHCP, DHCPv6 and router advertisements.

Only the link can name one: routers forward none of the messages, or they answer a request of the VM. Reads no
clock; `now` is in seconds.
"""

from collections import OrderedDict
from typing import Final

from vtl_tools.common.packet import address, nd

RESOLVERS_MAX: Final = 8
_LIFETIME, _ADDRESSES = slice(2, 6), 6
"""Of the octets after the option's length: a lifetime in seconds, and addresses (RFC 8106 section 5.1)."""


class Resolvers:
    """Resolvers, each with the time until which it counts; the latest RESOLVERS_MAX."""

    def __init__(self) -> None:
        self.known: OrderedDict[bytes, float] = OrderedDict()

    def name(self, listed: bytes, size: int, until: float) -> None:
        """Take a list of addresses of `size` octets each. Addresses of groups are left out."""
        for at in range(0, len(listed) - size + 1, size):
            octets = bytes(listed[at : at + size])
            if address.is_single_host(octets):
                self.known[octets] = until
                self.known.move_to_end(octets)
        while len(self.known) > RESOLVERS_MAX:
            self.known.popitem(last=False)

    def observe(self, message: nd.RouterAdvert, now: float) -> None:
        """Learn from a router advertisement of the link."""
        for kind, data in message.options():
            if kind == nd.RDNSS:
                self.name(data[_ADDRESSES:], 16, now + int.from_bytes(data[_LIFETIME], "big"))
        self.expire(now)

    def deadline(self) -> float | None:
        """Return when expire() is due; None: never."""
        return min(self.known.values(), default=None)

    def expire(self, now: float) -> None:
        """Remove those whose time is over. Early is harmless."""
        for octets in [octets for octets, until in self.known.items() if until <= now]:
            del self.known[octets]
