"""The network that a guest is given: one link, one router, everything else behind it."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from vtl_tools.common.packet import address

GATEWAY_MAC: Final = bytes.fromhex("0276746c0001")
"""Locally administered, of one station; "vtl" in ASCII inside, to be recognised in a capture."""

MTU_MIN: Final = 1280  # RFC 8200 section 5; IPv4 asks for less

PREFIX_BITS: Final = 64
"""The length of a prefix in which a guest makes addresses by itself (RFC 4862 5.5.3 d, RFC 4291 2.5.1)."""


@dataclass(frozen=True, slots=True)
class GuestAddresses:
    """One link's addresses, in octets. ValueError if they do not belong together.

    The IPv4 default is that of QEMU's user network, so that a guest that was set up by hand for one finds
    its router. prefix: a ULA (RFC 4193) for SLAAC; None: there is no IPv6 router. mtu: of an IP packet.
    """

    mac: bytes = GATEWAY_MAC
    subnet: IPv4Network = field(default=IPv4Network("10.0.2.0/24"))
    gateway: bytes = address.ip("10.0.2.2")
    dns: bytes = address.ip("10.0.2.2")
    prefix: IPv6Network | None = field(default=IPv6Network("fd76:746c:0:1::/64"))
    mtu: int = 1500

    def __post_init__(self) -> None:
        if len(self.mac) != 6 or address.is_multicast_mac(self.mac) or not any(self.mac):
            raise ValueError(f"{self.mac.hex(':')} is not the Ethernet address of one station")
        if not 8 <= self.subnet.prefixlen <= 29:
            raise ValueError(f"{self.subnet}: write a network of 8 to 29 bits")
        for octets in (self.gateway, self.dns):
            if len(octets) != 4 or not self.is_host(octets):
                raise ValueError(f"{address.format_ip(octets)} is not a host of {self.subnet}")
        if self.prefix is not None and self.prefix.prefixlen != PREFIX_BITS:
            raise ValueError(f"{self.prefix}: a guest makes addresses of {PREFIX_BITS} bits only")
        if not MTU_MIN <= self.mtu <= 0xFFFF:
            raise ValueError(f"an MTU of {self.mtu}: write {MTU_MIN} to 65535 octets")

    @property
    def link_local(self) -> bytes:
        """The router's link-local address, which is what a guest knows a router by (RFC 4861 section 4.2)."""
        return address.link_local(self.mac)

    @property
    def dns6(self) -> bytes | None:
        """Where DNS is asked over IPv6: the first address of the prefix."""
        return None if self.prefix is None else self.prefix[1].packed

    def is_host(self, octets: bytes) -> bool:
        """Return whether an IPv4 address can be a host's in the subnet."""
        number = int.from_bytes(octets, "big")
        first, last = int(self.subnet.network_address), int(self.subnet.broadcast_address)
        return first < number < last

    def is_ours(self, octets: bytes) -> bool:
        """Return whether an address, of either version, is the router's or the name server's."""
        return octets in (self.gateway, self.dns, self.link_local, self.dns6)
