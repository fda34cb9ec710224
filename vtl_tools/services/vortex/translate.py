"""Packets of a wormhole: the flow that each is of, and the one address that is replaced on the way.

The address is the volunteer's, or what stands for it. An ICMP error has it twice: in its own header, and in
the packet that it quotes.
"""

from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import icmp, ip
from vtl_tools.common.packet.icmp import ICMPv4
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import PORTS, Packet
from vtl_tools.common.packet.seq import seq_add
from vtl_tools.common.packet.view import U16, U32
from vtl_tools.services.vortex.flows import FlowKey

_ERRORS4: Final = frozenset((icmp.UNREACHABLE, icmp.TIME_EXCEEDED, icmp.PARAMETER_PROBLEM))
_ERRORS6: Final = frozenset(
    (icmp.V6_UNREACHABLE, icmp.V6_PACKET_TOO_BIG, icmp.V6_TIME_EXCEEDED, icmp.V6_PARAMETER_PROBLEM)
)
_IDENTIFIER: Final = 4  # of an echo, from the start of the message
_SEQUENCE: Final = 4  # of a segment


def quoted(pkt: Packet) -> IPv4 | IPv6 | None:
    """Return the packet that an ICMP error quotes; None: it is no error. Raises Malformed."""
    message = pkt.icmp
    if message is None or message.type not in (_ERRORS4 if isinstance(message, ICMPv4) else _ERRORS6):
        return None
    family = IPv4 if isinstance(message, ICMPv4) else IPv6
    return family.quoted(pkt.buf, message.payload_off, message.end)


def flow_key(pkt: Packet, *, from_outside: bool) -> FlowKey | None:
    """Return the key of a packet's flow, or of the flow that an ICMP error is about.

    from_outside: its source is the attacker's side. None: no kind that is wormholed. Raises Malformed.
    """
    flow, message = pkt.flow, pkt.icmp
    if flow is None or flow[0] not in (ip.TCP, ip.UDP, ip.ICMP, ip.ICMPV6) or pkt.transport is None:
        return None
    if message is not None and not message.is_echo:
        return _quoted_key(pkt, from_outside=from_outside)
    if message is not None and message.is_echo_request != from_outside:
        return None
    protocol, src, sport, dst, dport = flow
    return (protocol, src, sport, dport) if from_outside else (protocol, dst, dport, sport)


def _quoted_key(pkt: Packet, *, from_outside: bool) -> FlowKey | None:
    """Return the key of the quoted packet's flow, which the receiver of the error has sent."""
    net, inner = pkt.ip, quoted(pkt)
    if net is None or inner is None or inner.is_later_fragment or inner.src != net.dst:
        return None
    if not from_outside and inner.dst != net.src:
        return None
    at, protocol = inner.payload_off, inner.protocol
    if protocol in (ip.TCP, ip.UDP) and at + 8 <= inner.end:  # RFC 792: the least that is quoted
        sport, dport = PORTS.unpack_from(pkt.buf, at)
    elif protocol in (ip.ICMP, ip.ICMPV6) and at + 8 <= inner.end:
        sport = dport = U16.unpack_from(pkt.buf, at + _IDENTIFIER)[0]
    else:
        return None
    return (protocol, inner.dst, dport, sport) if from_outside else (protocol, inner.src, sport, dport)


def to_backend(pkt: Packet, address: bytes, offset: int = 0) -> None:
    """Replace the destination. Checksums follow by difference, so that a wrong one stays wrong.

    offset: by how much a quoted sequence number is ahead of the backend's. Raises Malformed, also for an ICMP
    error whose checksum is wrong.
    """
    assert pkt.ip is not None
    if (inner := quoted(pkt)) is not None:
        _check(pkt)
        inner.src = address
        if offset:
            at = inner.payload_off + _SEQUENCE
            U32.pack_into(pkt.buf, at, seq_add(U32.unpack_from(pkt.buf, at)[0], -offset))
        pkt.ip.dst = address
        pkt.compute_transport_checksum()
        return
    pkt.ip.dst = address


def to_outside(pkt: Packet, address: bytes) -> None:
    """Replace the source, likewise."""
    assert pkt.ip is not None
    if (inner := quoted(pkt)) is not None:
        _check(pkt)
        inner.dst = address
        pkt.ip.src = address
        pkt.compute_transport_checksum()
        return
    pkt.ip.src = address


def _check(pkt: Packet) -> None:
    if pkt.is_fragment or not pkt.verify():
        raise Malformed("icmp.checksum")
