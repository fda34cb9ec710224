"""Join TCP segments that follow each other to super-segments, as the kernel does for a card (GRO).

Only segments with a partial checksum are joined: there is none in them that somebody could still verify.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from vtl_tools.common.packet import ether, ip, quick, vnet
from vtl_tools.common.packet.supersegment import TCP_CHECKSUM
from vtl_tools.common.packet.tcp import ACK, FIN, PSH, TCP
from vtl_tools.common.packet.view import U16
from vtl_tools.common.packet.vnet import VNET

Frame = tuple[int, memoryview]
"""Hops and a frame; only frames of equal hops are joined."""

_OCTETS_MAX: Final = 65535
"""Of an IP packet."""
_LAST: Final = PSH | FIN
_FLAGS: Final = frozenset((ACK, ACK | PSH, ACK | FIN, ACK | PSH | FIN))
_FRAGMENT: Final = 0x3FFF  # more fragments, or an offset (RFC 791 section 3.1)
_FLAGS_AT: Final = 13
_IDENTIFICATION: Final = quick.L3 + 4
_HEADER_SUM: Final = quick.L3 + 10

# From the Ethernet header to the end of TCP's. Segments of one super-segment share Ethernet and the start
# of IP; fragment offset, TTL (hop limit), protocol; addresses and ports; SEG.ACK; window; urgent pointer.
_V4: Final = struct.Struct("!16sHHHBB2x12sI4sBB2s2x2s")
_V6: Final = struct.Struct("!18sHBB36sI4sBB2s2x2s")


class _Place(NamedTuple):
    """Of a version of IP: where its length is, where TCP is, a header for a partial checksum, its GSO."""

    length: int
    l4: int
    hdr: bytes
    gso: int


def _place(length: int, l4: int, gso: int) -> _Place:
    return _Place(
        length, l4, vnet.HEADER.pack(vnet.F_NEEDS_CSUM, vnet.GSO_NONE, 0, 0, l4 - VNET, TCP_CHECKSUM), gso
    )


_IPV4: Final = _place(quick.L3 + 2, quick.L4_OF_4, vnet.GSO_TCPV4)
_IPV6: Final = _place(quick.L3 + 4, quick.L4_OF_6, vnet.GSO_TCPV6)


class _Segment(NamedTuple):
    """A segment with data that may be joined. same: what it shares with those that it is joined with."""

    hops: int
    frame: memoryview
    place: _Place
    same: tuple[object, ...]
    identification: int
    seq: int
    flags: int
    data: int
    """Where its data starts."""


def _read(hops: int, frame: memoryview) -> _Segment | None:
    """Return a frame as a segment; None if it is not to be joined. Nothing is raised for foreign octets."""
    if len(frame) < quick.L4_OF_4 + TCP.SIZE or not frame[0] & vnet.F_NEEDS_CSUM or frame[1] != vnet.GSO_NONE:
        return None  # most frames of a path without loss are super-segments already
    identification = 0
    if frame[VNET + 12] == ether.IPV4 >> 8:
        place = _IPV4
        start, length, identification, fragment, ttl, protocol, parties, seq, *rest = _V4.unpack_from(
            frame, VNET
        )
        if start[12:15] != b"\x08\x00\x45" or fragment & _FRAGMENT:
            return None
        end = quick.L3 + length
    elif len(frame) < quick.L4_OF_6 + TCP.SIZE:
        return None
    else:
        place, fragment = _IPV6, 0
        start, length, protocol, ttl, parties, seq, *rest = _V6.unpack_from(frame, VNET)
        if start[12:14] != b"\x86\xdd" or start[14] >> 4 != 6:
            return None
        end = quick.L4_OF_6 + length
    ack, offset, flags, window, urgent = rest
    data = place.l4 + (offset >> 4 << 2)
    is_whole = end == len(frame) and place.l4 + TCP.SIZE <= data < end
    if protocol != ip.TCP or flags not in _FLAGS or not is_whole or bytes(frame[:VNET]) != place.hdr:
        return None
    same = (
        hops,
        start,
        fragment,
        ttl,
        parties,
        ack,
        offset,
        window,
        urgent,
        bytes(frame[place.l4 + TCP.SIZE : data]),
    )
    return _Segment(hops, frame, place, same, identification, seq, flags, data)


class _Run:
    """Segments that follow each other."""

    def __init__(self, first: _Segment) -> None:
        self.first, self.flags = first, first.flags
        self.pieces = [first.frame[first.data :]]
        self.octets = self.size = len(self.pieces[0])

    def takes(self, segment: _Segment) -> bool:
        """Add a segment, if it follows."""
        first, piece = self.first, segment.frame[segment.data :]
        if (
            segment.same != first.same
            or segment.seq != (first.seq + self.octets) & 0xFFFF_FFFF
            or self.flags & _LAST
            or len(piece) > self.size
            or self.octets != self.size * len(self.pieces)  # only the last one may be shorter
            or (
                segment.identification != (first.identification + len(self.pieces)) & 0xFFFF
                and first.place is _IPV4
            )
            or first.data - quick.L3 + self.octets + len(piece) > _OCTETS_MAX
        ):
            return False
        self.flags = segment.flags
        self.pieces.append(piece)
        self.octets += len(piece)
        return True

    def joined(self) -> Frame:
        """Return the super-segment, or the only segment as it is."""
        first, place = self.first, self.first.place
        if len(self.pieces) == 1:
            return first.hops, first.frame
        out = bytearray().join((first.frame[: first.data], *self.pieces))
        vnet.HEADER.pack_into(
            out, 0, vnet.F_NEEDS_CSUM, place.gso, first.data - VNET, self.size, place.l4 - VNET, TCP_CHECKSUM
        )
        more = self.octets - self.size
        U16.pack_into(out, place.length, U16.unpack_from(out, place.length)[0] + more)
        if place is _IPV4:
            _add(out, _HEADER_SUM, -more)  # which is complemented, so it falls by what a field rises
        _add(out, place.l4 + TCP_CHECKSUM, more)  # of the pseudo-header
        out[place.l4 + _FLAGS_AT] = self.flags
        return first.hops, memoryview(out)


def _add(out: bytearray, at: int, more: int) -> None:
    """Add to a sum in ones' complement."""
    U16.pack_into(out, at, (U16.unpack_from(out, at)[0] + more) % 0xFFFF or 0xFFFF)


def join(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield frames in their order, where segments that follow each other are one frame."""
    run: _Run | None = None
    for hops, frame in frames:
        segment = _read(hops, frame)
        if run is not None:
            if segment is not None and run.takes(segment):
                continue
            yield run.joined()
            run = None
        if segment is None:
            yield hops, frame
        else:
            run = _Run(segment)
    if run is not None:
        yield run.joined()
