"""The headers of a frame by name, each parsed on first use."""

import enum
from typing import Final, Literal, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ether, ip, nd, vnet
from vtl_tools.common.packet.arp import ARP
from vtl_tools.common.packet.ether import VLAN, Ethernet
from vtl_tools.common.packet.icmp import ICMP, ICMPv4, ICMPv6
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.nd import ND
from vtl_tools.common.packet.sums import Transport
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import U16, Buffer


class _Unread(enum.Enum):
    UNREAD = 0


_UNREAD: Final = _Unread.UNREAD
_L3: Final = vnet.VNET + Ethernet.SIZE
_ETHERTYPE: Final = vnet.VNET + 12


class Layers:
    """The headers of one frame. Base of Packet, which callers use.

    buf: borrowed; the packet is valid as long as the frame is. Each layer is a view, or None if the frame has
    no such layer. Access to a broken layer raises Malformed, and so does access to any layer above it. Views
    are created once: after a write to a length, a protocol number or the vnet header, create the packet
    again.

    A write to a field updates every checksum that covers it, also through the pseudo-header. A checksum that
    is partial by the vnet header stays the sum of the pseudo-header.
    """

    __slots__ = ("_ip", "_transport", "buf", "ethertype", "l3_off", "partial_at")

    def __init__(self, buf: Buffer, ethertype: int, l3_off: int, partial_at: int) -> None:
        self.buf = buf
        self.ethertype = ethertype  # after the VLAN tags
        self.l3_off = l3_off  # offset in buf of the network header
        self.partial_at = partial_at  # offset in buf of the partial checksum; 0: there is none
        self._ip: IPv4 | IPv6 | Literal[_Unread.UNREAD] | None = _UNREAD
        self._transport: Transport | Literal[_Unread.UNREAD] | None = _UNREAD

    @classmethod
    def at(cls, frame: Buffer) -> Self:
        """Validate an untrusted frame. Raises Malformed if no Ethernet header fits.

        Deeper layers are checked later.
        """
        size = len(frame)
        if size < _L3:
            raise Malformed("frame", size)
        l3_off = _L3
        ethertype: int = U16.unpack_from(frame, _ETHERTYPE)[0]
        if ethertype in ether.TAGS:
            for _ in range(ether.MAX_TAGS):
                if l3_off + 4 > size or ethertype not in ether.TAGS:
                    break
                ethertype = U16.unpack_from(frame, l3_off + 2)[0]
                l3_off += 4
        partial_at = 0
        if frame[0] & vnet.F_NEEDS_CSUM:
            _, _, _, _, start, offset = vnet.HEADER.unpack_from(frame)
            partial_at = vnet.VNET + start + offset
        return cls(frame, ethertype, l3_off, partial_at)

    # --- layers

    @property
    def eth(self) -> Ethernet:
        """The Ethernet header."""
        return Ethernet(self.buf, vnet.VNET, len(self.buf))

    @property
    def vlans(self) -> list[VLAN]:
        """The VLAN tags, outermost first.

        Raises Malformed if one is truncated or there are more than MAX_TAGS.
        """
        if self.ethertype in ether.TAGS:
            raise Malformed("vlan", self.l3_off)
        return [VLAN(self.buf, at, len(self.buf)) for at in range(_ETHERTYPE, self.l3_off - 2, 4)]

    @property
    def arp(self) -> ARP | None:
        """The ARP packet."""
        return ARP.at(self.buf, self.l3_off) if self.ethertype == ether.ARP else None

    @property
    def ip(self) -> IPv4 | IPv6 | None:
        """The IP header, of either version."""
        if self._ip is not _UNREAD:
            return self._ip
        found: IPv4 | IPv6 | None = None
        if self.ethertype == ether.IPV4:
            found = IPv4.at(self.buf, self.l3_off, None, self.partial_at, gso=self.buf[1] != vnet.GSO_NONE)
        elif self.ethertype == ether.IPV6:
            found = IPv6.at(self.buf, self.l3_off, None, self.partial_at, gso=self.buf[1] != vnet.GSO_NONE)
        self._ip = found
        return found

    @property
    def ipv4(self) -> IPv4 | None:
        """The IPv4 header."""
        found = self.ip
        return found if isinstance(found, IPv4) else None

    @property
    def ipv6(self) -> IPv6 | None:
        """The IPv6 header."""
        found = self.ip
        return found if isinstance(found, IPv6) else None

    @property
    def transport(self) -> Transport | None:
        """The TCP, UDP or ICMP header. None in a later fragment, which has none."""
        if self._transport is not _UNREAD:
            return self._transport
        net = self.ip
        found: Transport | None = None
        if net is not None and not net.is_later_fragment:
            protocol, off, end = net.protocol, net.payload_off, net.end
            if protocol == ip.TCP:
                found = TCP.at(self.buf, off, end, self.partial_at)
            elif protocol == ip.UDP:
                found = UDP.at(self.buf, off, end, self.partial_at, whole=not net.is_fragment)
            elif protocol == ip.ICMP and isinstance(net, IPv4):
                found = ICMPv4.at(self.buf, off, end, self.partial_at)
            elif protocol == ip.ICMPV6 and isinstance(net, IPv6):
                found = ICMPv6.at(self.buf, off, end, self.partial_at)
        self._transport = found
        return found

    @property
    def tcp(self) -> TCP | None:
        """The TCP header."""
        found = self.transport
        return found if isinstance(found, TCP) else None

    @property
    def udp(self) -> UDP | None:
        """The UDP header."""
        found = self.transport
        return found if isinstance(found, UDP) else None

    @property
    def icmp(self) -> ICMPv4 | ICMPv6 | None:
        """The ICMP message, ICMPv4 or ICMPv6."""
        found = self.transport
        return found if isinstance(found, ICMP) else None

    @property
    def nd(self) -> ND | None:
        """The neighbour discovery message: RouterSolicit, RouterAdvert, NeighborSolicit or NeighborAdvert."""
        found = self.transport
        if not isinstance(found, ICMPv6) or (kind := nd.MESSAGES.get(found.type)) is None:
            return None
        return kind.at(self.buf, found.off, found.end, self.partial_at)

    @property
    def payload(self) -> memoryview:
        """The payload of the innermost known header.

        Ethernet padding is excluded if an IP header tells the length.

        It is a memoryview: the frame cannot be resized while it exists.
        """
        inner = self.transport or self.ip
        return inner.payload if inner is not None else memoryview(self.buf)[self.l3_off :]

    def _forget(self) -> None:
        """Discard all views, as lengths or the vnet header have changed; the next access parses again."""
        self._ip = self._transport = _UNREAD
