"""The ARP packet for IPv4 over Ethernet (RFC 826)."""

import struct
from typing import ClassVar, Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.view import Buffer, View, octets, u16

REQUEST: Final = 1
REPLY: Final = 2


class ARP(View):
    """An ARP packet with 6-octet hardware and 4-octet protocol addresses. Other kinds raise Malformed."""

    __slots__ = ()
    SIZE = 28
    HEADER: ClassVar = struct.Struct("!8s6s4s6s4s")
    oper = u16(6)  # ar$op: REQUEST or REPLY
    sha = octets(8, 6)  # sender's hardware address
    spa = octets(14, 4)  # sender's protocol address; 0.0.0.0 in a probe (RFC 5227)
    tha = octets(18, 6)  # target's
    tpa = octets(24, 4)

    ETHERNET_IPV4: ClassVar = b"\x00\x01\x08\x00\x06\x04"
    """ar$hrd, ar$pro, ar$hln and ar$pln of Ethernet and IPv4, the only supported kind."""

    @classmethod
    def at(cls, buf: Buffer, off: int, end: int | None = None) -> Self:
        """Validate untrusted octets. Raises Malformed, and nothing else."""
        end = len(buf) if end is None else end
        if off < 0 or not off + cls.SIZE <= end <= len(buf):
            raise Malformed("arp", off)
        if bytes(buf[off : off + 6]) != cls.ETHERNET_IPV4:
            raise Malformed("arp.kind", off)
        return cls(buf, off, end)
