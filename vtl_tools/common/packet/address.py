"""Ethernet and IP addresses: conversion between octets and text, and classification."""

import ipaddress
from typing import Final

BROADCAST: Final = b"\xff" * 6
"""The Ethernet broadcast address."""

UNSPECIFIED4: Final = bytes(4)
UNSPECIFIED6: Final = bytes(16)
ALL_NODES: Final = bytes.fromhex("ff02" + "0" * 27 + "1")  # RFC 4291 2.7.1
ALL_ROUTERS: Final = bytes.fromhex("ff02" + "0" * 27 + "2")
_NAT64: Final = bytes.fromhex("0064ff9b" + "00" * 8)
_NAT64_LOCAL: Final = bytes.fromhex("0064ff9b0001")
_TEREDO: Final = bytes.fromhex("20010000")
_ISATAP: Final = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))
_IN_THE_END: Final = (_NAT64, bytes(12), bytes(10) + b"\xff\xff", bytes(8) + b"\xff\xff\0\0")
_OF_192: Final = (b"\xc0\0\0", b"\xc0\x58\x63")
"""192.0.0.0/24 (RFC 6890 2.1), and 192.88.99.0/24, which was 6to4's (RFC 7526)."""
SOLICITED_NODE: Final = bytes.fromhex("ff02" + "0" * 19 + "1ff")  # its first 13 octets, RFC 4291 2.7.1


def mac(text: str) -> bytes:
    """Return the 6 octets of "02:00:00:00:00:01". Raises ValueError for any other text."""
    parts = text.replace("-", ":").split(":")
    if len(parts) != 6 or not all(1 <= len(part) <= 2 for part in parts):
        raise ValueError(f"{text!r} is not an Ethernet address: write 02:00:00:00:00:01")
    return bytes(int(part, 16) for part in parts)


def ip(text: str) -> bytes:
    """Return the 4 or 16 octets of "10.0.0.1" or "2001:db8::1". Raises ValueError for any other text."""
    return ipaddress.ip_address(text).packed


def format_mac(octets: bytes) -> str:
    """Return an Ethernet address as text."""
    return octets.hex(":")


def format_ip(octets: bytes) -> str:
    """Return an address of 4 or 16 octets as text."""
    return str(ipaddress.ip_address(octets))


def is_multicast_mac(octets: bytes) -> bool:
    """Return whether an Ethernet address is a group address. Broadcast is one."""
    return bool(octets[0] & 1)


def is_broadcast_mac(octets: bytes) -> bool:
    """Return whether an Ethernet address is ff:ff:ff:ff:ff:ff."""
    return octets == BROADCAST


def is_multicast(octets: bytes) -> bool:
    """Return whether an IP address is multicast: 224.0.0.0/4 (RFC 1112) or ff00::/8 (RFC 4291 2.7)."""
    return octets[0] >> 4 == 14 if len(octets) == 4 else octets[0] == 0xFF


def is_broadcast(octets: bytes) -> bool:
    """Return whether an IP address is 255.255.255.255.

    The broadcast address of a subnet is not recognized.
    """
    return octets == b"\xff\xff\xff\xff"


def is_unspecified(octets: bytes) -> bool:
    """Return whether an IP address is 0.0.0.0 or the IPv6 ::."""
    return not any(octets)


def is_loopback(octets: bytes) -> bool:
    """Return whether an IP address is in 127.0.0.0/8 or is ::1."""
    return octets[0] == 127 if len(octets) == 4 else octets == b"\0" * 15 + b"\1"


def is_link_local(octets: bytes) -> bool:
    """Return whether an IP address is in 169.254.0.0/16 (RFC 3927) or fe80::/10 (RFC 4291 2.5.6)."""
    if len(octets) == 4:
        return octets[:2] == b"\xa9\xfe"
    return octets[0] == 0xFE and octets[1] & 0xC0 == 0x80


def is_single_host(octets: bytes) -> bool:
    """Return whether an address can be a single remote host's (RFC 1122 3.2.2, RFC 4443 2.4 e.6)."""
    if len(octets) == 4:
        return octets[0] not in (0, 127) and octets[0] < 224
    return not (is_unspecified(octets) or is_multicast(octets) or is_loopback(octets))


def is_internal(octets: bytes) -> bool:
    """Return whether an address belongs to a network that is not reachable from the Internet.

    IPv4: the entries of RFC 6890's registry that are not global. IPv6: everything but 2000::/3 (RFC 4291
    2.4), and addresses that embed an internal IPv4 address: NAT64 (RFC 6052 2.1), 6to4 (RFC 3056), and all of
    Teredo (RFC 4380). Tor's own list is shorter. Documentation networks are not internal.
    """
    if len(octets) == 4:
        return _is_internal4(octets)
    first = int.from_bytes(octets[:2], "big")
    if octets[:12] == _NAT64:
        return _is_internal4(octets[12:])
    if first == 0x2002:
        return _is_internal4(octets[2:6])
    return first >> 13 != 1 or (first == 0x2001 and octets[2] < 2)


def embedded(octets: bytes) -> list[bytes]:
    """Return the IPv4 addresses to which a translator or a tunnel may carry an IPv6 packet.

    Mapped and compatible addresses (RFC 4291 section 2.5.5), translated ones (RFC 2765), NAT64 (RFC 6052,
    RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380), ISATAP (RFC 5214).
    """
    if len(octets) == 4:
        return []
    if octets[:12] in _IN_THE_END or octets[8:12] in _ISATAP:
        return [octets[12:]]
    if octets[:6] == _NAT64_LOCAL:  # a prefix of 96, 64, 56 or 48 bits: octet 8 is skipped
        rest = octets[:8] + octets[9:]
        return [octets[12:], *(rest[at : at + 4] for at in (8, 7, 6))]
    if octets[:2] == b"\x20\x02":
        return [octets[2:6]]
    if octets[:4] == _TEREDO:
        return [bytes(each ^ 0xFF for each in octets[12:])]
    return []


def _is_internal4(octets: bytes) -> bool:
    first, second = octets[0], octets[1]
    return (
        first in (0, 10, 127)
        or first >= 224
        or (first == 172 and second >> 4 == 1)
        or (first == 192 and (second == 168 or octets[:3] in _OF_192))
        or (first == 100 and second >> 6 == 1)
        or (first == 169 and second == 254)
        or (first == 198 and second >> 1 == 9)
    )


def is_solicited_node(octets: bytes) -> bool:
    """Return whether an IPv6 address is a solicited-node multicast address (RFC 4291 2.7.1)."""
    return octets[:13] == SOLICITED_NODE


def solicited_node(octets: bytes) -> bytes:
    """Return the solicited-node multicast address of an IPv6 address (RFC 4291 2.7.1)."""
    return SOLICITED_NODE + octets[13:]


def multicast_mac(octets: bytes) -> bytes:
    """Return the Ethernet group address of a multicast IP address (RFC 1112 6.4, RFC 2464 7)."""
    if len(octets) == 4:
        return b"\x01\x00\x5e" + bytes((octets[1] & 0x7F,)) + octets[2:]
    return b"\x33\x33" + octets[12:]


def link_local(mac_octets: bytes) -> bytes:
    """Return the fe80:: address derived from an Ethernet address by EUI-64 (RFC 4291 appendix A)."""
    first = bytes((mac_octets[0] ^ 0x02,))
    return b"\xfe\x80" + bytes(6) + first + mac_octets[1:3] + b"\xff\xfe" + mac_octets[3:]
