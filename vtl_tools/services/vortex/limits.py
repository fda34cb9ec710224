"""Limits that keep a volunteer safe: rates, a quota, and the sources that are never wormholed."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from vtl_tools.common.packet.address import is_single_host

Network = IPv4Network | IPv6Network

DAY_S: Final = 86400.0
AMPLIFICATION: Final = 3
"""Octets that may go to a source that is not proven, for each that came from there (RFC 9000 section 8.1)."""
PRIVATE: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
        "::/3", "4000::/2", "8000::/1",
    )
)  # fmt: skip
"""Addresses that are not of the internet (RFC 6890); of IPv6 all but 2000::/3."""


@dataclass(frozen=True, slots=True)
class Limits:
    """rate_bps: bits a second in each direction; quota: octets of both directions in a day; 0: no limit."""

    rate_bps: float = 2e6
    quota: int = 10**9
    amplification: int = AMPLIFICATION


class Allowance:
    """A bucket of octets for one direction, which fills at the rate."""

    def __init__(self, rate_bps: float) -> None:
        self._octets_per_s = rate_bps / 8
        self._burst = max(self._octets_per_s, 131072.0)  # a second; always one super-segment
        self._left, self._at = self._burst, 0.0

    def take(self, octets: int, now: float) -> bool:
        """Take octets, and return whether they were there."""
        if not self._octets_per_s:
            return True
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._octets_per_s)
        self._at = now
        if octets > self._left:
            return False
        self._left -= octets
        return True


class Quota:
    """Octets of both directions in a day."""

    def __init__(self, octets: int) -> None:
        self.octets, self.used, self._ends = octets, 0, 0.0

    def take(self, octets: int, now: float) -> bool:
        """Take octets, and return whether they were there."""
        if now >= self._ends:
            self.used, self._ends = 0, now + DAY_S
        if self.octets and self.used + octets > self.octets:
            return False
        self.used += octets
        return True


class Sources:
    """Tells which sources are wormholed. allow_private: also those of private networks, and neighbours."""

    def __init__(self, *, allow_private: bool = False) -> None:
        self.allow_private = allow_private
        self.excluded: tuple[Network, ...] = () if allow_private else PRIVATE

    def set_neighbours(self, networks: tuple[Network, ...]) -> bool:
        """Note the networks that the volunteer is in. Return whether this is a change."""
        wanted = self.excluded if self.allow_private else (*PRIVATE, *networks)
        changed, self.excluded = wanted != self.excluded, wanted
        return changed

    def allows(self, octets: bytes) -> bool:
        """Return whether traffic from an IP address is wormholed."""
        if not is_single_host(octets):
            return False
        address = ip_address(octets)
        if address.is_loopback or address.is_link_local:
            return False
        return not any(address.version == one.version and address in one for one in self.excluded)
