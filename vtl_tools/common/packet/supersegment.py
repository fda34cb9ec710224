"""Validates and splits up super-segments, the frames whose virtio_net_hdr asks for segmentation (GSO).

The checks follow Linux: virtio_net_hdr_to_skb for the vnet header, inet_gso_segment, ipv6_gso_segment,
tcp_gso_segment and __udp_gso_segment for the others.

As in the kernel, a super-segment ends at the end of its buffer. Its length fields are ignored: frames above
64 KiB have zeros there. hdr_len is ignored too: it is a hint that honest guests set to various values.
"""

import struct
from typing import Final, NamedTuple, Self
from zlib import crc32

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.checksum import ones_sum
from vtl_tools.common.packet.vnet import VNET

MAX_SEGMENTS: Final = 2048
"""Maximum segments of one frame, else a peer's gso_size of 1 costs us 64 Ki frames. 64 KiB at 36
octets, the least that Linux sends (TCP_MIN_SND_MSS less timestamps), are 1,821."""

UDP_MAX_SEGMENTS: Final = 128
"""The same for UDP_L4, where it is part of the kernel's interface (UDP_MAX_SEGMENTS)."""

MAX_HEADERS: Final = 512
"""Maximum octets of all headers, which each segment repeats. Only hostile extension headers need more."""

TCP_CHECKSUM: Final = 16
"""Offset of the checksum in a TCP header."""

UDP_CHECKSUM: Final = 6
"""Offset of the checksum in a UDP header."""

_MAX_TAGS: Final = 8  # VLAN_MAX_DEPTH
_TAGS: Final = frozenset((0x8100, 0x88A8))  # 802.1Q, 802.1ad
_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
_TCP: Final = 6
_UDP: Final = 17

_EXTENSIONS: Final = frozenset((0, 43, 60))  # hop-by-hop, routing, destination options (RFC 8200 section 4)
_FRAGMENT: Final = 44
_FRAGMENT_HEADER: Final = struct.Struct("!BBHI")  # next header, reserved, offset+M, identification
_JUMBO: Final = b"\0\xc2\4"  # hdr ext len 0, then the option's type and length (RFC 2675 section 2)
_FRAGMENTED: Final = 0x3FFF  # IPv4: more fragments, or an offset (RFC 791 section 3.1)

_U16: Final = struct.Struct("!H")

KINDS: Final = frozenset(
    (
        (vnet.GSO_TCPV4, 4, _TCP),
        (vnet.GSO_TCPV4 | vnet.GSO_ECN, 4, _TCP),
        (vnet.GSO_TCPV6, 6, _TCP),
        (vnet.GSO_TCPV6 | vnet.GSO_ECN, 6, _TCP),
        (vnet.GSO_UDP_L4, 4, _UDP),
        (vnet.GSO_UDP_L4, 6, _UDP),
        (vnet.GSO_UDP, 4, _UDP),
        (vnet.GSO_UDP, 6, _UDP),
    )
)
"""Valid combinations of gso_type, IP version and protocol."""


class SuperSegment(NamedTuple):
    """A parsed super-segment. Offsets count octets in head, and so in every segment.

    data is a view of the frame, which must not change meanwhile.
    """

    head: bytearray  # start of each segment: a vnet header of zeros, then all headers that are repeated
    data: memoryview  # the payload to segment; no more than size if it fits one segment
    size: int  # octets of data in a segment
    gso_type: int
    version: int  # of IP
    l3: int
    l4: int  # offset of the TCP or UDP header; for UFO, whose UDP header is data, the fragment header
    pseudo: int  # a number congruent, modulo 65535, to the sum of the pseudo-header without its length

    @classmethod
    def at(cls, frame: bytearray | memoryview) -> Self:
        """Parse a frame of VNET octets or more whose gso_type is not GSO_NONE. Raises Malformed."""
        _, gso_type, hdr_len, size, _, _ = vnet.HEADER.unpack_from(frame)
        view = memoryview(frame)
        if hdr_len > len(view) - VNET:
            raise Malformed("vnet.hdr_len", 2)

        version, l3 = _network(view)
        protocol, l4, link = _ipv4_end(view, l3) if version == 4 else _ipv6_end(view, l3)
        if (gso_type, version, protocol) not in KINDS:
            raise Malformed("vnet.gso_type", 1)
        payload = _payload(view, protocol, l4)
        pseudo = _pseudo(view, version, protocol, l3, l4)

        if gso_type == vnet.GSO_UDP:
            payload = l4  # the whole datagram is fragmented, its header included
            size &= ~7  # fragment offsets count eights (RFC 791 section 3.1)
        data = view[payload:]
        if not size or len(data) > size * (UDP_MAX_SEGMENTS if gso_type == vnet.GSO_UDP_L4 else MAX_SEGMENTS):
            raise Malformed("vnet.gso_size", 4)

        head = bytearray(vnet.NONE)
        head += view[VNET:payload]
        if version == 6:
            l4, link = _without_jumbo(head, l3, l4, link)
            if gso_type == vnet.GSO_UDP:
                head[link] = _FRAGMENT
                # Fragments of two datagrams must not be mixed up (RFC 8200 section 4.5), unless the
                # datagrams are equal. So a hash suffices; Linux uses a counter and a secret.
                head += _FRAGMENT_HEADER.pack(_UDP, 0, 0, crc32(data))
        if len(head) - l3 + min(size, len(data)) > 0xFFFF:
            raise Malformed("vnet.gso_size", 4)
        return cls(head, data, size, gso_type, version, l3, l4, pseudo)


def _network(view: memoryview) -> tuple[int, int]:
    """Return the IP version and the offset of its header, after any VLAN tags."""
    at = VNET + 12
    for _ in range(_MAX_TAGS + 1):
        if at + 2 > len(view):
            raise Malformed("ether", at)
        (ethertype,) = _U16.unpack_from(view, at)
        at += 2
        if ethertype == _IPV4:
            return 4, at
        if ethertype == _IPV6:
            return 6, at
        if ethertype not in _TAGS:
            break
        at += 2
    raise Malformed("ether.type", at - 2)


def _ipv4_end(view: memoryview, l3: int) -> tuple[int, int, int]:
    """Return the protocol, the offset of its header, and the offset of the protocol number."""
    if l3 + 20 > len(view):
        raise Malformed("ipv4", l3)
    if not 0x45 <= view[l3] <= 0x4F:
        raise Malformed("ipv4.ihl", l3)
    if _U16.unpack_from(view, l3 + 6)[0] & _FRAGMENTED:
        raise Malformed("ipv4.fragment", l3 + 6)
    return view[l3 + 9], l3 + (view[l3] & 0x0F) * 4, l3 + 9


def _ipv6_end(view: memoryview, l3: int) -> tuple[int, int, int]:
    """Return the protocol after the extension headers, its offset, and the offset of the protocol number."""
    if l3 + 40 > len(view):
        raise Malformed("ipv6", l3)
    if view[l3] >> 4 != 6:
        raise Malformed("ipv6.version", l3)
    link, at = l3 + 6, l3 + 40
    while (protocol := view[link]) in _EXTENSIONS:
        if at + 8 > len(view) or at > MAX_HEADERS:
            raise Malformed("ipv6.extension", at)
        link, at = at, at + (view[at + 1] + 1) * 8
    return protocol, at, link


def _payload(view: memoryview, protocol: int, l4: int) -> int:
    """Return the offset of the payload of TCP or UDP."""
    if protocol == _UDP:
        payload = l4 + 8
        if payload > len(view):
            raise Malformed("udp", l4)
    else:
        if l4 + 20 > len(view):
            raise Malformed("tcp", l4)
        payload = l4 + (view[l4 + 12] >> 4) * 4
        if not l4 + 20 <= payload <= len(view):
            raise Malformed("tcp.offset", l4 + 12)
    if payload - VNET > MAX_HEADERS:
        raise Malformed("headers", payload)
    return payload


def _pseudo(view: memoryview, version: int, protocol: int, l3: int, l4: int) -> int:
    """Return the sum of the pseudo-header without its length; it may be negative, and is not folded.

    Unlike tcp4_gso_segment this does not repair an unverified checksum. Either the checksum is partial, or a
    card that merges segments (LRO) has verified it and sets DATA_VALID alone.
    """
    flags, _, _, _, csum_start, csum_offset = vnet.HEADER.unpack_from(view)
    field = TCP_CHECKSUM if protocol == _TCP else UDP_CHECKSUM
    if flags & vnet.F_NEEDS_CSUM:
        if csum_start != l4 - VNET:
            raise Malformed("vnet.csum_start", 6)
        if csum_offset != field:
            raise Malformed("vnet.csum_offset", 8)
        # The sender's own sum: with a routing header it covers the final destination (RFC 8200
        # section 8.1), which is not in the IPv6 header.
        partial: int = _U16.unpack_from(view, l4 + field)[0]
        return partial - (len(view) - l4)
    if flags & vnet.F_DATA_VALID:
        return ones_sum(view[l3 + 12 : l3 + 20] if version == 4 else view[l3 + 8 : l3 + 40]) + protocol
    raise Malformed("vnet.flags", 0)


def _without_jumbo(head: bytearray, l3: int, l4: int, link: int) -> tuple[int, int]:
    """Remove the jumbogram header of an IPv6 packet, as no segment is a jumbogram. Return l4 and link.

    Linux adds it only before TCP in frames above 64 KiB (ipv6_hopopt_jumbo_remove).
    """
    hop_by_hop = l3 + 40
    # payload_length and next header (hop-by-hop) are all zeros in a jumbogram.
    if any(head[l3 + 4 : l3 + 7]) or head[hop_by_hop + 1 : hop_by_hop + 4] != _JUMBO:
        return l4, link
    head[l3 + 6] = head[hop_by_hop]
    del head[hop_by_hop : hop_by_hop + 8]
    return l4 - 8, l3 + 6 if link == hop_by_hop else link - 8
