"""The fields of a packet that rules test, read once."""

from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ether, icmp, ip, nd, quick
from vtl_tools.common.packet.ether import Ethernet
from vtl_tools.common.packet.icmp import ICMPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rules.clauses import ICMP6
from vtl_tools.common.rules.rule import OUT, STACKED, UNTAGGED
from vtl_tools.services.fw.flow import Flow
from vtl_tools.services.fw.neighbours import HOP_LIMIT, NeighbourFilter

NONE: Final = -1
"""Stands for a missing port, type or protocol."""


class Fields:
    """src, dst: 4 or 16 octets; empty if this is not IP. protocol: IP's; NONE if this is not IP.

    sport, dport: of TCP and UDP. icmp: as Rule.icmp. vlan: one number, UNTAGGED or STACKED.
    roles: bits of roles.py, which the tracker sets when a rule asks for them.
    is_neighbour: whether this is ARP, or neighbour discovery that a host would accept (RFC 4861 6.1, 7.1);
    from the VM, whether it also stays on the link (neighbours.py).
    """

    __slots__ = (
        "dport", "dst", "dst_mac", "ethertype", "icmp", "is_neighbour", "protocol", "roles", "sport", "src",
        "src_mac", "vlan",
    )  # fmt: skip

    def __init__(
        self,
        ethertype: int,
        protocol: int = NONE,
        src: bytes = b"",
        dst: bytes = b"",
        sport: int = NONE,
        dport: int = NONE,
        icmp: int = NONE,
        src_mac: bytes = bytes(6),
        dst_mac: bytes = bytes(6),
        vlan: int = UNTAGGED,
        is_neighbour: bool = False,
    ) -> None:
        self.ethertype = ethertype
        self.protocol = protocol
        self.src = src
        self.dst = dst
        self.sport = sport
        self.dport = dport
        self.icmp = icmp
        self.src_mac = src_mac
        self.dst_mac = dst_mac
        self.vlan = vlan
        self.is_neighbour = is_neighbour
        self.roles = 0

    @classmethod
    def plain(cls, frame: Buffer, protocol: int, parties: bytes) -> "Fields":
        """Return the fields of an ordinary frame, given protocol and parties as quick.read() returns them."""
        src, dst, sport, dport = quick.split(parties)
        dst_mac, src_mac, kind = Ethernet.HEADER.unpack_from(frame, VNET)
        return cls(kind, protocol, src, dst, sport, dport, NONE, src_mac, dst_mac)

    @classmethod
    def of(cls, pkt: Packet, neighbours: NeighbourFilter | None) -> "Fields":
        """Return the fields of a packet, which must not be a fragment. Raises Malformed, and nothing else.

        neighbours: the VM's, if it sent the packet; None if the network did.
        """
        eth = pkt.eth
        tags = pkt.vlans
        vlan = UNTAGGED if not tags else tags[0].vid if len(tags) == 1 else STACKED
        made = cls(pkt.ethertype, src_mac=eth.src, dst_mac=eth.dst, vlan=vlan)
        if (net := pkt.ip) is None:
            if pkt.ethertype == ether.ARP:
                made.is_neighbour = neighbours is None or neighbours.are_asked_by(pkt)
            return made
        if net.is_fragment:
            raise Malformed("fragment", net.off)
        made.protocol, made.src, made.dst = net.protocol, net.src, net.dst
        inner = pkt.transport
        if isinstance(inner, TCP | UDP):
            made.sport, made.dport = inner.sport, inner.dport
        elif isinstance(inner, ICMPv6):
            made.icmp = ICMP6 | inner.type << 8 | inner.code
            if inner.type in nd.MESSAGES:
                made.is_neighbour = (
                    inner.code == 0 and net.ttl == HOP_LIMIT
                    if neighbours is None
                    else neighbours.are_asked_by(pkt)
                )
        elif inner is not None:
            made.icmp = inner.type << 8 | inner.code
        return made

    @classmethod
    def first_of(cls, flow: Flow) -> "Fields":
        """Return the fields of a connection's first packet."""
        (here, there), (near, far), protocol = flow.addresses, flow.ports, flow.protocol
        initiator, src_mac, dst_mac, vlan = flow.opening
        src, dst, sport, dport = (here, there, near, far) if initiator is OUT else (there, here, far, near)
        six, message = len(src) == 16, NONE
        if protocol in (ip.ICMP, ip.ICMPV6):
            message = ICMP6 | icmp.V6_ECHO_REQUEST << 8 if six else icmp.ECHO_REQUEST << 8
        if protocol not in (ip.TCP, ip.UDP):
            sport = dport = NONE
        kind = ether.IPV6 if six else ether.IPV4
        return cls(kind, protocol, src, dst, sport, dport, message, src_mac, dst_mac, vlan)
