"""Do in software what a card with offload does: complete checksums, and cut super-segments.

Links without offload (a QEMU socket, a pcap file, VXLAN over UDP) carry plain frames only. The octets are
those that Linux makes; the functions of its that say so are named below.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final, TypeAlias

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ip, quick, vnet
from vtl_tools.common.packet.checksum import ones_sum
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.quick import Headers
from vtl_tools.common.packet.supersegment import KINDS, TCP_CHECKSUM, UDP_CHECKSUM, SuperSegment
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.vnet import VNET

Frame: TypeAlias = bytearray | memoryview

_MF: Final = 0x2000  # IPv4: more fragments (RFC 791 section 3.1)
_FIN: Final = 0x01
_PSH: Final = 0x08
_CWR: Final = 0x80

_U16: Final = struct.Struct("!H")
_IPV4_VARIED: Final = struct.Struct("!HHHHH")  # from octet 2: total_length id fragment ttl+protocol checksum
_TCP_VARIED: Final = struct.Struct("!IIHHH")  # from octet 4: seq ack offset+flags window checksum
_UDP_VARIED: Final = struct.Struct("!HH")  # from octet 4: length checksum
_MIN_CSUM_START: Final = 14 + 20  # Ethernet, and the shortest IP header

_PLACE: Final = struct.Struct("!BB4x4s")  # flags, gso_type; csum_start and csum_offset


def _places(version: int, octets: int) -> dict[int, tuple[bytes, frozenset[int]]]:
    """Return for TCP and UDP right behind an IP header where a frame's partial checksum is, as csum_start and
    csum_offset, and as what the frame may be a super-segment.
    """
    fields = {ip.TCP: TCP_CHECKSUM, ip.UDP: UDP_CHECKSUM}
    return {
        protocol: (
            struct.pack("=HH", 14 + octets, field),
            frozenset(kind for kind, *rest in KINDS if rest == [version, protocol]),
        )
        for protocol, field in fields.items()
    }


_PLACES: Final = {quick.L4_OF_4: _places(4, 20), quick.L4_OF_6: _places(6, 40)}
"""By where TCP or UDP is."""


def is_plain(frame: Frame) -> bool:
    """Tell whether a link without offload can carry the frame as it is. frame: VNET octets at least."""
    return not (frame[0] & vnet.F_NEEDS_CSUM or frame[1])


def partial_to_full(frame: Frame) -> None:
    """Complete a partial checksum in place, if there is one, and clear the vnet header.

    The frame remains right for links with offload too. It must not be a super-segment: segment() those.
    Raises Malformed, with the frame unchanged.
    """
    if len(frame) < VNET:
        raise Malformed("vnet", 0)
    flags, _, _, _, csum_start, csum_offset = vnet.HEADER.unpack_from(frame)
    if flags & vnet.F_NEEDS_CSUM:
        start = VNET + csum_start
        field = start + csum_offset
        if csum_start < _MIN_CSUM_START:
            raise Malformed("vnet.csum_start", 6)
        if field + 2 > len(frame):
            raise Malformed("vnet.csum_offset", 8)
        # The field holds the pseudo-header's sum, so it is summed like all that follows, up to the end of
        # the buffer (skb_checksum_help; which sends 0xFFFF for 0 in TCP as well, where both are right).
        full = ones_sum(memoryview(frame)[start:]) ^ 0xFFFF
        if not full and csum_offset == UDP_CHECKSUM:
            full = 0xFFFF  # 0 means "none" in UDP (RFC 768)
        _U16.pack_into(frame, field, full)
    frame[:VNET] = vnet.NONE


def is_bound(frame: Frame, headers: Headers) -> bool:
    """Tell whether bind() has nothing to do, and nothing against the frame. headers: of quick.read()."""
    flags, gso_type, at = _PLACE.unpack_from(frame)
    _, protocol, _, _, _, _, _, l4, _, end, _, _ = headers
    place, kinds = _PLACES[l4][protocol]
    return (at == place or not flags & vnet.F_NEEDS_CSUM) and (
        not gso_type or (gso_type in kinds and end == len(frame))
    )


def bind(frame: Frame) -> None:
    """See to it that a frame says of itself what will be sent, so that it can be judged by that.

    The vnet header is its sender's, and a checksum is written where it says, behind everybody who read an
    address or a port there: so one that is not in the header of TCP or UDP is made at once, in place.
    Raises Malformed where that cannot be, and for a super-segment that is not of the protocol it says, or
    goes on where its packet ends. frame: any octets.
    """
    headers = quick.read(frame)
    if headers is not None and is_bound(frame, headers):
        return
    if len(frame) < VNET:
        raise Malformed("vnet", 0)
    flags, gso_type, _, _, *place = vnet.HEADER.unpack_from(frame)
    pkt = Packet.at(frame)
    net, inner = pkt.ip, pkt.transport
    whole = net is not None and not net.is_fragment and isinstance(inner, TCP | UDP)
    fits = whole and inner is not None and place == [inner.off - VNET, inner.SUM]
    if gso_type != vnet.GSO_NONE:
        if not whole or net is None or net.end != len(frame):
            raise Malformed("vnet.gso_type", 1)
        if (gso_type, 4 if isinstance(net, IPv4) else 6, net.protocol) not in KINDS:
            raise Malformed("vnet.gso_type", 1)
        if flags & vnet.F_NEEDS_CSUM and not fits:
            raise Malformed("vnet.csum_start", 6)
    elif flags & vnet.F_NEEDS_CSUM and not fits:
        partial_to_full(frame)


def cut(frame: Frame) -> Sequence[Frame]:
    """Return frames that are no super-segments and say the same as frame. Checksums of TCP stay partial.

    Else as segment(). joining.join() puts them together again.
    """
    if frame[1] == vnet.GSO_NONE:
        return [frame]
    whole = SuperSegment.at(frame)
    if len(whole.data) <= whole.size or not frame[0] & vnet.F_NEEDS_CSUM:
        return segment(frame)
    return _cut(whole, is_partial=whole.gso_type not in (vnet.GSO_UDP, vnet.GSO_UDP_L4))


def segment(frame: Frame) -> Sequence[Frame]:
    """Return the plain frames that say the same as frame, each with a vnet header of zeros.

    A frame without GSO is completed in place and returned itself. A super-segment is left as it was; its
    segments are views of one new buffer. Raises Malformed; the work is bounded by MAX_SEGMENTS.
    """
    if len(frame) < VNET:
        raise Malformed("vnet", 0)
    if is_plain(frame):
        return [frame]
    if frame[1] != vnet.GSO_NONE:
        whole = SuperSegment.at(frame)
        if len(whole.data) > whole.size:
            return _cut(whole)
    # "Too small packets are not really GSO ones" (virtio_net_hdr_to_skb).
    partial_to_full(frame)
    return [frame]


def max_frame(frame: Frame) -> int:
    """Return the size in octets of the greatest Ethernet frame that segment() makes of frame.

    Raises Malformed for a super-segment that segment() refuses.
    """
    if len(frame) < VNET:
        raise Malformed("vnet", 0)
    if frame[1] != vnet.GSO_NONE:
        whole = SuperSegment.at(frame)
        if len(whole.data) > whole.size:
            return len(whole.head) - VNET + whole.size
    return len(frame) - VNET


def _cut(whole: SuperSegment, *, is_partial: bool = False) -> list[memoryview]:
    """Lay out the segments in one buffer: first all octets, then each layer's fields that vary."""
    head, data, size = whole.head, whole.data, whole.size
    if is_partial:
        vnet.HEADER.pack_into(head, 0, vnet.F_NEEDS_CSUM, vnet.GSO_NONE, 0, 0, whole.l4 - VNET, TCP_CHECKSUM)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    pieces: list[bytearray | memoryview] = [head] * (2 * len(chunks))
    pieces[1::2] = chunks
    out = bytearray().join(pieces)
    stride = len(head) + size
    starts = range(0, len(out), stride)

    if whole.gso_type == vnet.GSO_UDP:
        _write_fragments(out, starts, chunks, whole)
    elif whole.version == 4:
        (fragment,) = _U16.unpack_from(head, whole.l3 + 6)
        _write_ipv4(out, starts, chunks, whole, 1, repeat(fragment))
    else:
        _write_ipv6(out, starts, chunks, whole)
    if whole.gso_type == vnet.GSO_UDP_L4:
        _write_udp(out, starts, chunks, whole)
    elif whole.gso_type != vnet.GSO_UDP:
        _write_tcp(out, starts, chunks, whole, is_partial=is_partial)

    frames = memoryview(out)
    return [frames[at : at + stride] for at in starts]


def _write_ipv4(
    out: bytearray,
    starts: range,
    chunks: list[memoryview],
    whole: SuperSegment,
    ident_step: int,
    fragments: Iterable[int],
) -> None:
    """Write what varies among IPv4 headers (inet_gso_segment): length, identification, offset, checksum."""
    head, l3 = whole.head, whole.l3
    _, ident, _, ttl_protocol, _ = _IPV4_VARIED.unpack_from(head, l3 + 2)
    end = l3 + (head[l3] & 0x0F) * 4
    fixed = ones_sum(head[l3 : l3 + 2]) + ttl_protocol + ones_sum(head[l3 + 12 : end])
    headers = len(head) - l3
    for at, chunk, fragment in zip(starts, chunks, fragments, strict=False):
        length = headers + len(chunk)
        # Of a sum that is not 0, -sum % 65535 is the complement of the folded sum (see _sums).
        full = -(fixed + length + ident + fragment) % 0xFFFF
        _IPV4_VARIED.pack_into(out, at + l3 + 2, length, ident, fragment, ttl_protocol, full)
        ident = (ident + ident_step) & 0xFFFF


def _write_ipv6(out: bytearray, starts: range, chunks: list[memoryview], whole: SuperSegment) -> None:
    """Write the payload lengths (ipv6_gso_segment)."""
    headers = len(whole.head) - whole.l3 - 40
    for at, chunk in zip(starts, chunks, strict=True):
        _U16.pack_into(out, at + whole.l3 + 4, headers + len(chunk))


def _write_tcp(
    out: bytearray, starts: range, chunks: list[memoryview], whole: SuperSegment, *, is_partial: bool
) -> None:
    """Write sequence numbers, flags and checksums (tcp_gso_segment)."""
    head, l4, size = whole.head, whole.l4, whole.size
    seq, ack, offset_flags, window, _ = _TCP_VARIED.unpack_from(head, l4 + 4)
    flags = [offset_flags & ~(_FIN | _PSH | _CWR)] * len(chunks)
    flags[0] |= offset_flags & _CWR  # once for a window's reduction (RFC 3168 section 6.1.2), GSO_ECN or not
    flags[-1] |= offset_flags & (_FIN | _PSH)  # they mark the end of the data
    # A 32-bit number is congruent to the sum of its halves: seq and ack need no splitting.
    fixed = whole.pseudo + ones_sum(head[l4 : l4 + 4]) + ack + window + ones_sum(head[l4 + 18 :])
    headers = len(head) - l4
    totals = repeat(0) if is_partial else _sums(chunks, size)
    for at, chunk, total, flag in zip(starts, chunks, totals, flags, strict=False):
        if is_partial:
            full = (whole.pseudo + headers + len(chunk)) % 0xFFFF or 0xFFFF
        else:
            full = -(total + fixed + headers + len(chunk) + seq + flag) % 0xFFFF
        _TCP_VARIED.pack_into(out, at + l4 + 4, seq, ack, flag, window, full)
        seq = (seq + size) & 0xFFFF_FFFF


def _write_udp(out: bytearray, starts: range, chunks: list[memoryview], whole: SuperSegment) -> None:
    """Write lengths and checksums of UDP datagrams (__udp_gso_segment)."""
    l4 = whole.l4
    fixed = whole.pseudo + ones_sum(whole.head[l4 : l4 + 4])
    for at, chunk, total in zip(starts, chunks, _sums(chunks, whole.size), strict=True):
        length = 8 + len(chunk)
        full = -(total + fixed + 2 * length) % 0xFFFF or 0xFFFF  # the length is in the pseudo-header too
        _UDP_VARIED.pack_into(out, at + l4 + 4, length, full)


def _write_fragments(out: bytearray, starts: range, chunks: list[memoryview], whole: SuperSegment) -> None:
    """Write the fragments of one datagram and its checksum (udp4_ufo_fragment, udp6_ufo_fragment).

    The fragment header follows all extension headers, so that they count as "per-fragment headers".
    """
    head, data = whole.head, whole.data
    total = ones_sum(data[:UDP_CHECKSUM]) + ones_sum(data[8:]) + whole.pseudo + len(data)
    _U16.pack_into(out, len(head) + UDP_CHECKSUM, -total % 0xFFFF or 0xFFFF)
    offsets = range(0, len(data), whole.size)
    if whole.version == 4:
        fragments = [_MF | offset >> 3 for offset in offsets]
        fragments[-1] ^= _MF
        _write_ipv4(out, starts, chunks, whole, 0, fragments)
        return
    _write_ipv6(out, starts, chunks, whole)
    for at, offset in zip(starts, offsets, strict=True):
        _U16.pack_into(out, at + whole.l4 + 2, offset | (offset != offsets[-1]))  # M is bit 0


def _sums(chunks: list[memoryview], size: int) -> list[int]:
    """Return a number congruent to the sum of each chunk modulo 65535. size: of all chunks but the last.

    As ones_sum, but twice folded by shift and mask before the caller divides: dividing the 390 digits that
    1,448 octets are takes 2.1 us; folding them and dividing what is left, 0.9 us.
    """
    half, quarter = 16 * (size // 4 + 1), 16 * (size // 8 + 1)
    half_mask, quarter_mask = (1 << half) - 1, (1 << quarter) - 1
    sums = []
    for chunk in chunks:
        total = int.from_bytes(chunk, "big")
        total = (total >> half) + (total & half_mask)
        sums.append((total >> quarter) + (total & quarter_mask))
    if size & 1:
        sums[:-1] = [total << 8 for total in sums[:-1]]
    if len(chunks[-1]) & 1:
        sums[-1] <<= 8
    return sums
