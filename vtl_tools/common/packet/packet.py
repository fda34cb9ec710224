"""A whole frame by name: pkt.ip.dst, pkt.tcp.dport (paper section 2.4, Figure 3)."""

import struct
from typing import Final

from vtl_tools.common.packet import ip, sums, tcp, vnet
from vtl_tools.common.packet.arp import REQUEST
from vtl_tools.common.packet.checksum import ones_sum
from vtl_tools.common.packet.icmp import ICMPv4
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.layers import Layers
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP

Flow = tuple[int, bytes, int, bytes, int]
"""Protocol, source address and port, destination address and port; an echo's identifier is both ports."""

PORTS: Final = struct.Struct("!HH")
"""Source and destination port, of TCP and UDP alike."""


class Packet(Layers):
    """One frame, by the names of its fields, read and written in place. Enter through Packet.at().

    The layers are those of Layers: eth, vlans, arp, ip (ipv4, ipv6), transport (tcp, udp, icmp), nd, payload.
    """

    __slots__ = ()

    # --- queries

    @property
    def is_arp_request(self) -> bool:
        """Whether this asks for somebody's Ethernet address (RFC 826)."""
        arp = self.arp
        return arp is not None and arp.oper == REQUEST

    @property
    def is_fragment(self) -> bool:
        """Whether this is a part of an IP packet only."""
        net = self.ip
        return net is not None and net.is_fragment

    @property
    def is_first_fragment(self) -> bool:
        """Whether this is the part of an IP packet that has the transport header."""
        net = self.ip
        return net is not None and net.is_fragment and not net.is_later_fragment

    @property
    def is_tcp(self) -> bool:
        """Whether this has a TCP header."""
        return self.tcp is not None

    @property
    def is_udp(self) -> bool:
        """Whether this has a UDP header."""
        return self.udp is not None

    @property
    def is_syn(self) -> bool:
        """Whether this opens a TCP connection: SYN, and neither ACK nor RST."""
        segment = self.tcp
        return segment is not None and segment.flags & (tcp.SYN | tcp.ACK | tcp.RST) == tcp.SYN

    @property
    def is_syn_ack(self) -> bool:
        """Whether this answers a SYN: SYN and ACK, and no RST."""
        segment = self.tcp
        return segment is not None and segment.flags & (tcp.SYN | tcp.ACK | tcp.RST) == tcp.SYN | tcp.ACK

    @property
    def is_rst(self) -> bool:
        """Whether this resets a TCP connection."""
        segment = self.tcp
        return segment is not None and segment.flags & tcp.RST != 0

    @property
    def flow(self) -> Flow | None:
        """Who talks to whom, in this packet's direction; None if this is no IP packet.

        Ports are an echo's identifier, and 0 in a later fragment and for other protocols.
        """
        net = self.ip
        if net is None:
            return None
        inner = self.transport
        if isinstance(inner, TCP | UDP):
            return net.protocol, net.src, inner.sport, net.dst, inner.dport
        port = inner.identifier if inner is not None and inner.is_echo else 0
        return net.protocol, net.src, port, net.dst, port

    @property
    def conversation(self) -> Flow | None:
        """The flow, the same for both directions: the lower of both ends first."""
        flow = self.flow
        if flow is None or flow[1:3] <= flow[3:5]:
            return flow
        return flow[0], flow[3], flow[4], flow[1], flow[2]

    @property
    def quoted_flow(self) -> Flow | None:
        """The flow of the packet that an ICMP error is about, in that packet's direction; None if none is."""
        message = self.icmp
        if message is None or not message.is_error:
            return None
        family = IPv4 if isinstance(message, ICMPv4) else IPv6
        net = family.quoted(self.buf, message.payload_off, message.end)
        sport = dport = 0
        if net.protocol in (ip.TCP, ip.UDP) and not net.is_later_fragment and net.payload_off + 4 <= net.end:
            sport, dport = PORTS.unpack_from(self.buf, net.payload_off)
        return net.protocol, net.src, sport, net.dst, dport

    # --- offload, as the vnet header has it

    @property
    def needs_csum(self) -> bool:
        """Whether a checksum is partial, for the kernel or the card to complete."""
        return self.buf[0] & vnet.F_NEEDS_CSUM != 0

    @property
    def gso_type(self) -> int:
        """What the frame is to be cut into, as vnet.GSO_TCPV4; without GSO_ECN. GSO_NONE: nothing."""
        return self.buf[1] & ~vnet.GSO_ECN

    @property
    def gso_size(self) -> int:
        """Octets of payload in each packet that a super-segment is to be cut into; 0: it is not one."""
        size: int = vnet.HEADER.unpack_from(self.buf)[3]
        return size if self.buf[1] != vnet.GSO_NONE else 0

    # --- calculations

    @property
    def tcp_payload_len(self) -> int:
        """Octets of TCP data; 0 if this is not TCP."""
        segment = self.tcp
        return segment.end - segment.payload_off if segment is not None else 0

    @property
    def seg_len(self) -> int:
        """SEG.LEN: TCP data in octets, and one each for SYN and FIN (RFC 9293 3.4); 0 if this is not TCP."""
        segment = self.tcp
        return segment.seg_len if segment is not None else 0

    @property
    def end(self) -> int:
        """Where in the buffer the packet ends: behind it are Ethernet padding and, at most, nothing else."""
        net = self.ip
        return net.end if net is not None else len(self.buf)

    def compute_ip_checksum(self) -> None:
        """Write the IPv4 header's checksum from scratch; IPv6 has none."""
        if (net := self.ipv4) is not None:
            net.checksum = sums.ip_checksum(net)

    def compute_transport_checksum(self, *, full: bool = True) -> bool:
        """Write the transport checksum from scratch, and say so in the vnet header.

        full: else the pseudo-header's sum, which the kernel completes. Returns False, and does nothing,
        where there is none to compute: a fragment, another protocol, a partial ICMPv4 one. The kernel
        takes no super-segment whose checksum is full. Take the packet's views anew afterwards.
        """
        net, inner = self.ip, self.transport
        if net is None or inner is None or net.is_fragment or (isinstance(inner, ICMPv4) and not full):
            return False
        flags, gso_type, hdr_len, gso_size, _, _ = vnet.HEADER.unpack_from(self.buf)
        start, offset = (0, 0) if full else (inner.off - vnet.VNET, inner.SUM)
        flags = flags & ~vnet.F_NEEDS_CSUM if full else flags | vnet.F_NEEDS_CSUM
        vnet.HEADER.pack_into(self.buf, 0, flags, gso_type, hdr_len, gso_size, start, offset)
        sums.fill(net, inner, full=full)
        self.partial_at = 0 if full else inner.off + inner.SUM
        self._forget()
        return True

    def verify(self) -> bool:
        """Say whether no checksum is wrong. One that is partial, absent or a fragment's cannot be."""
        net, inner = self.ip, self.transport
        if isinstance(net, IPv4) and not sums.sums_to_ones(net, net.payload_off, 0):
            return False
        if net is None or inner is None or net.is_fragment or inner.off + inner.SUM == self.partial_at:
            return True
        if isinstance(inner, UDP) and inner.checksum == 0:
            return isinstance(net, IPv4)  # RFC 8200 8.1: over IPv6 it is computed
        return sums.sums_to_ones(inner, inner.end, sums.pseudo(net, inner))

    # --- changes

    def swap(self) -> None:
        """Send the packet back: swap Ethernet addresses, IP addresses and ports, each where there are any."""
        eth, net, inner = self.eth, self.ip, self.transport
        eth.src, eth.dst = eth.dst, eth.src
        if net is not None:
            net.src, net.dst = net.dst, net.src
        if isinstance(inner, TCP | UDP):
            inner.sport, inner.dport = inner.dport, inner.sport

    def clone(self) -> "Packet":
        """Return the packet in a buffer of its own, which outlives the frame's."""
        return Packet.at(bytearray(self.buf))

    def set_payload(self, data: bytes | bytearray | memoryview) -> None:
        """Replace the data of a TCP segment, UDP datagram or ICMP message; lengths and checksums follow.

        The buffer keeps its size: data must fit it (else ValueError), and what is left behind a shorter
        packet is no longer part of it; buf[:pkt.end] is the frame then. Views taken before are void.
        """
        net, inner = self.ip, self.transport
        if net is None or inner is None or net.is_fragment:
            raise ValueError("the packet has no payload that could be replaced")
        off, old_end = inner.payload_off, inner.end
        if off + len(data) > len(self.buf):
            raise ValueError(f"{len(data)} octets do not fit the {len(self.buf) - off} of the frame")
        if max(net.end, off + len(data)) - net.off > 0xFFFF:
            raise ValueError("the length of a super-segment past 64 KiB is in no field that could follow")
        room = memoryview(self.buf)
        old = ones_sum(room[off:old_end])
        room[off : off + len(data)] = data
        inner.end = off + len(data)
        inner._resum(old, ones_sum(data))  # last: whether an ICMPv4 message is all zeros now decides
        grown = off + len(data) - net.end
        if isinstance(inner, UDP):
            inner.length = off + len(data) - inner.off
        if isinstance(net, IPv4):
            net.total_length += grown
        else:
            net.payload_length += grown
        self._forget()
