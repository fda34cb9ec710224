"""The addresses of the guest's network: one link with a router and a name server."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Self

from vtl_tools.common.packet import address

GATEWAY_MAC: Final = bytes.fromhex("0276746c0001")
"""The router's Ethernet address: locally administered, unicast, with "vtl" in ASCII."""

MTU_MIN: Final = 1280  # RFC 8200 section 5; IPv4 requires less

PREFIX_BITS: Final = 64
"""The prefix length that SLAAC requires (RFC 4862 5.5.3 d, RFC 4291 2.5.1)."""


@dataclass(frozen=True, slots=True)
class GuestAddresses:
    """The addresses of one link, in octets. Raises ValueError if they are inconsistent.

    The IPv4 default is that of QEMU's user network, so that a guest configured statically for that network
    finds its router. prefix: a ULA (RFC 4193) for SLAAC; None: there is no IPv6 router. mtu: largest IP
    packet in octets. name_servers: how many addresses of each version answer DNS, so that the guest has
    another one to ask. search: domains in which the guest looks up short names.
    """

    mac: bytes = GATEWAY_MAC
    subnet: IPv4Network = field(default=IPv4Network("10.0.2.0/24"))
    gateway: bytes = address.ip("10.0.2.2")
    dns: bytes = address.ip("10.0.2.2")
    prefix: IPv6Network | None = field(default=IPv6Network("fd76:746c:0:1::/64"))
    mtu: int = 1500
    name_servers: int = 1
    search: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mac) != 6 or address.is_multicast_mac(self.mac) or not any(self.mac):
            raise ValueError(f"{self.mac.hex(':')} is not a unicast Ethernet address")
        if not 8 <= self.subnet.prefixlen <= 29:
            raise ValueError(f"{self.subnet}: use a prefix length of 8 to 29")
        for octets in (self.gateway, self.dns):
            if len(octets) != 4 or not self.is_host(octets):
                raise ValueError(f"{address.format_ip(octets)} is not a host of {self.subnet}")
        if self.prefix is not None and self.prefix.prefixlen != PREFIX_BITS:
            raise ValueError(f"{self.prefix}: SLAAC needs a prefix length of {PREFIX_BITS}")
        if not MTU_MIN <= self.mtu <= 0xFFFF:
            raise ValueError(f"an MTU of {self.mtu}: use {MTU_MIN} to 65535 octets")
        if not all(map(self.is_host, self.dns_servers)):
            raise ValueError(f"{self.subnet} has no room for {self.name_servers} name servers")

    @classmethod
    def of_subnet(
        cls, subnet: IPv4Network | None, *, name_servers: int = 1, search: tuple[str, ...] = ()
    ) -> Self:
        """Return the addresses of a subnet, whose first one is gateway and name server; None: the default."""
        if subnet is None:
            return cls(name_servers=name_servers, search=search)
        first = subnet[1].packed
        return cls(subnet=subnet, gateway=first, dns=first, name_servers=name_servers, search=search)

    @property
    def link_local(self) -> bytes:
        """The router's link-local address, by which guests identify a router (RFC 4861 section 4.2)."""
        return address.link_local(self.mac)

    @property
    def dns6(self) -> bytes | None:
        """The IPv6 address of the name server: the first address of the prefix."""
        return None if self.prefix is None else self.prefix[1].packed

    @property
    def dns_servers(self) -> list[bytes]:
        """The IPv4 addresses of the name servers: `dns`, and those behind it."""
        first = int.from_bytes(self.dns, "big")
        return [(first + number).to_bytes(4, "big") for number in range(self.name_servers)]

    @property
    def dns_servers6(self) -> list[bytes]:
        """The IPv6 addresses of the name servers: the first of the prefix; none without one."""
        prefix = self.prefix
        return [] if prefix is None else [prefix[1 + number].packed for number in range(self.name_servers)]

    def name_server(self, octets: bytes) -> int | None:
        """Return the number, from 0, of the name server with an address; None: none has it."""
        servers = self.dns_servers if len(octets) == 4 else self.dns_servers6
        return servers.index(octets) if octets in servers else None

    def is_host(self, octets: bytes) -> bool:
        """Return whether an IPv4 address is a possible host address of the subnet."""
        number = int.from_bytes(octets, "big")
        first, last = int(self.subnet.network_address), int(self.subnet.broadcast_address)
        return first < number < last

    def is_on_link(self, octets: bytes) -> bool:
        """Return whether an address, of either version, is of the guest's own network."""
        if len(octets) == 4:
            bits = 32 - self.subnet.prefixlen
            return int.from_bytes(octets, "big") >> bits == int(self.subnet.network_address) >> bits
        return self.prefix is not None and octets[:8] == self.prefix.network_address.packed[:8]

    def is_ours(self, octets: bytes) -> bool:
        """Return whether an address, of either version, is the router's or the name server's."""
        return octets in (self.gateway, self.link_local) or self.name_server(octets) is not None
