"""Packet: the fields of a whole frame by name, pkt.ip.dst, pkt.tcp.dport (paper section 2.4, Figure 3)."""

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
"""Protocol, source address and port, destination address and port.

For an echo both ports are its identifier.
"""

PORTS: Final = struct.Struct("!HH")
"""Source and destination port, of TCP and UDP alike."""


class Packet(Layers):
    """One frame, by the names of its fields, read and written in place. Create it by Packet.at().

    The layers are those of Layers: eth, vlans, arp, ip (ipv4, ipv6), transport (tcp, udp, icmp), nd, payload.
    """

    __slots__ = ()

    # --- queries

    @property
    def is_arp_request(self) -> bool:
        """Whether this is an ARP request (RFC 826)."""
        arp = self.arp
        return arp is not None and arp.oper == REQUEST

    @property
    def is_fragment(self) -> bool:
        """Whether this is a fragment of an IP packet, first or later."""
        net = self.ip
        return net is not None and net.is_fragment

    @property
    def is_first_fragment(self) -> bool:
        """Whether this is the first fragment, the one with the transport header."""
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
        """The addresses and ports, in this packet's direction. None if this is no IP packet.

        Ports are the identifier of an echo, and 0 in a later fragment and for other protocols.
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
        """The flow in a form that is the same for both directions: the lower end first."""
        flow = self.flow
        if flow is None or flow[1:3] <= flow[3:5]:
            return flow
        return flow[0], flow[3], flow[4], flow[1], flow[2]

    @property
    def quoted_flow(self) -> Flow | None:
        """The flow of the packet that an ICMP error quotes, in that packet's direction.

        None if there is none.
        """
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
        """Whether a checksum is partial: the kernel or the card completes it."""
        return self.buf[0] & vnet.F_NEEDS_CSUM != 0

    @property
    def gso_type(self) -> int:
        """The kind of super-segment, such as vnet.GSO_TCPV4, without GSO_ECN. GSO_NONE: an ordinary frame."""
        return self.buf[1] & ~vnet.GSO_ECN

    @property
    def gso_size(self) -> int:
        """Octets of payload in each segment of a super-segment. 0: an ordinary frame."""
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
        """The offset in the buffer of the packet's end. Only Ethernet padding may follow."""
        net = self.ip
        return net.end if net is not None else len(self.buf)

    def compute_ip_checksum(self) -> None:
        """Write the IPv4 header's checksum, computed from scratch. IPv6 has none."""
        if (net := self.ipv4) is not None:
            net.checksum = sums.ip_checksum(net)

    def compute_transport_checksum(self, *, full: bool = True) -> bool:
        """Write the transport checksum, computed from scratch, and note its form in the vnet header.

        full: False writes the pseudo-header's sum, which the kernel completes. Returns False, and does
        nothing, if there is none to compute: a fragment, another protocol, a partial ICMPv4 checksum. The
        kernel rejects a super-segment whose checksum is full. Views taken before are invalid afterwards.
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
        """Return whether no checksum is wrong.

        A checksum that is partial, absent or of a fragment is not wrong.
        """
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
        """Swap source and destination: Ethernet addresses, IP addresses and ports, if there are any."""
        eth, net, inner = self.eth, self.ip, self.transport
        eth.src, eth.dst = eth.dst, eth.src
        if net is not None:
            net.src, net.dst = net.dst, net.src
        if isinstance(inner, TCP | UDP):
            inner.sport, inner.dport = inner.dport, inner.sport

    def clone(self) -> "Packet":
        """Return a copy of the packet in a buffer of its own."""
        return Packet.at(bytearray(self.buf))

    def set_payload(self, data: bytes | bytearray | memoryview) -> None:
        """Replace the data of a TCP segment, UDP datagram or ICMP message. Updates lengths and checksums.

        The buffer keeps its size, and data must fit it, else ValueError. After a shorter packet the rest of
        the buffer is unused: the frame is buf[:pkt.end]. Views taken before are invalid afterwards.
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
