"""ICMP errors about segments that an endpoint has sent (RFC 1122 section 4.2.3.9, RFC 5927), or refuses."""

import struct
from typing import Final, NamedTuple

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import derive, icmp, ip
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.socks import ANSWER, Reason
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended, State

_QUOTED: Final = struct.Struct("!HHI")
"""Ports and sequence number: at least these octets of a segment are quoted (RFC 792)."""

_NET: Final = (0, 5, 6, 11)  # codes of ICMPv4's type 3 (RFC 1122 section 3.2.2.1, RFC 1812 5.2.7.1)
_REFUSED: Final = (2, 3)
_PROHIBITED: Final = (9, 10, 13)
_V6_PROHIBITED: Final = (1, 5, 6)  # RFC 4443 section 3.1


class SegmentError(NamedTuple):
    """An error about a segment. flow: of the segments that the peer sends, as Segment.flow.

    seq: sequence number of the quoted segment. mtu: largest packet of the path, if the segment was too big.
    """

    flow: bytes
    seq: int
    reason: Reason
    mtu: int | None


def read_error(frame: memoryview) -> SegmentError | None:
    """Return the error that a frame reports about a TCP segment; None: it is something else.

    The checksum is for is_intact(). Raises Malformed, and nothing else.
    """
    pkt = Packet.at(frame)
    message, net = pkt.icmp, pkt.ip
    if message is None or net is None or net.is_fragment:
        return None
    is4 = isinstance(message, icmp.ICMPv4)
    kind, code = message.type, message.code
    if kind not in ((icmp.UNREACHABLE, icmp.TIME_EXCEEDED) if is4 else _V6_KINDS):
        return None
    quoted = (IPv4 if is4 else IPv6).quoted(frame, message.payload_off, message.end)
    if quoted.protocol != ip.TCP or quoted.is_later_fragment:
        return None
    if quoted.payload_off + _QUOTED.size > quoted.end:
        raise Malformed("icmp.quote", message.payload_off)
    sport, dport, seq = _QUOTED.unpack_from(frame, quoted.payload_off)
    flow = quoted.dst + quoted.src + struct.pack("!HH", dport, sport)
    if is4:
        mtu = message.rest & 0xFFFF if (kind, code) == (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED) else None
        return SegmentError(flow, seq, _reason4(kind, code), mtu)
    return SegmentError(
        flow, seq, _reason6(kind, code), message.rest if kind == icmp.V6_PACKET_TOO_BIG else None
    )


_V6_KINDS: Final = (icmp.V6_UNREACHABLE, icmp.V6_PACKET_TOO_BIG, icmp.V6_TIME_EXCEEDED)


def _reason4(kind: int, code: int) -> Reason:
    if kind == icmp.TIME_EXCEEDED:
        return Reason.HOST_UNREACHABLE
    if code in _REFUSED:
        return Reason.REFUSED
    if code in _PROHIBITED:
        return Reason.PROHIBITED
    return Reason.NET_UNREACHABLE if code in _NET else Reason.HOST_UNREACHABLE


def _reason6(kind: int, code: int) -> Reason:
    if kind != icmp.V6_UNREACHABLE:
        return Reason.HOST_UNREACHABLE
    if code == icmp.V6_PORT_UNREACHABLE:
        return Reason.REFUSED
    if code in _V6_PROHIBITED:
        return Reason.PROHIBITED
    return Reason.NET_UNREACHABLE if code == icmp.V6_NO_ROUTE else Reason.HOST_UNREACHABLE


def apply_error(endpoint: Endpoint, error: SegmentError) -> bool:
    """Tell an endpoint about an error. Return whether it ends a connection that is not open yet.

    An error about a segment that is not under way is ignored: a stranger sends such ones (RFC 5927 4.1). Once
    the connection is open, only the size of packets is taken from an error, which may be of a moment.
    """
    snd = endpoint.snd
    if not snd.una <= snd.position(error.seq) < snd.max:
        return False
    if error.mtu is not None:
        endpoint.path_mtu(error.mtu)
        return False
    if endpoint.state is not State.SYN_SENT:
        return False
    endpoint.end(Ended.ABORTED)
    return True


def refusal(syn: bytes, reason: Reason) -> bytes | None:
    """Return the answer to a SYN: a reset if the target refused, else an ICMP error; None: there is none."""
    pkt = Packet.at(bytearray(syn))
    unreachable = ANSWER[reason]
    if unreachable is None:
        answer = derive.rst(pkt)
    else:
        assert pkt.ip is not None
        if len(pkt.ip.dst) == 4:
            kind, code = icmp.UNREACHABLE, unreachable.v4
        else:
            kind, code = icmp.V6_UNREACHABLE, unreachable.v6
        answer = derive.icmp_error(pkt, kind, code, src=pkt.ip.dst)
    return None if answer is None else bytes(answer)
