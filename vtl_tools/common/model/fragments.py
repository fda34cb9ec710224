"""Reassembles the fragments of IP packets. They are held until the packet is whole.

Overlapping fragments are dropped (RFC 5722, here for IPv4 as well), and so are fragments that hide a header
(RFC 1858, RFC 3128, RFC 7112).
"""

from collections import Counter, OrderedDict
from typing import Final, NamedTuple

from vtl_tools.common.errors import Malformed
from vtl_tools.common.model.source_shares import SourceShare, SourceShares
from vtl_tools.common.packet import ip, vnet
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.view import U16

TIMEOUT_S: Final = 30.0
"""Seconds until an incomplete packet is dropped. As in Linux; RFC 8200 4.5 has 60, RFC 1122 up to 120."""
PACKETS_MAX: Final = 512
"""Maximum incomplete packets of one table."""
OCTETS_MAX: Final = 2 << 20
"""Maximum octets of held fragments of one table, as frames."""
PIECES_MAX: Final = 128
"""Maximum fragments of one packet: enough for 64 KiB at an MTU of 576."""
_SHARE: Final = 4
"""Maximum share of the octets for one source."""


class ReassembledPacket(NamedTuple):
    """frames: the fragments, unchanged, in order of arrival. packet: the reassembled packet, as a frame."""

    frames: tuple[bytes, ...]
    packet: bytearray


class _Piece(NamedTuple):
    start: int
    end: int
    at: int  # offset in the frame of its part of the packet
    frame: bytes

    @property
    def data(self) -> bytes:
        return self.frame[self.at : self.at + self.end - self.start]


class _Partial:
    """An incomplete packet. total: its octets after the header; None until the last fragment came."""

    __slots__ = (
        "bad", "before", "behind", "key", "octets", "pieces", "share", "source", "total", "until",
    )  # fmt: skip

    def __init__(self, key: "_Key", until: float) -> None:
        self.key = key
        self.source = key[0] if len(key[0]) == 4 else key[0][:8]  # as in Flow.source
        self.share: SourceShare[_Partial] | None = None
        self.before: _Partial | None = None
        self.behind: _Partial | None = None
        self.until = until
        self.pieces: list[_Piece] = []
        self.total: int | None = None
        self.octets = 0
        self.bad = False


_Key = tuple[bytes, bytes, bytes, int, int]
"""Source, destination, tags, identification, protocol."""


class FragmentTable:
    """The incomplete packets of one side, which cannot evict those of another table.

    When it is full, the oldest packet of the busiest source is evicted, so a flood evicts its own packets. A
    spoofed flood evicts the oldest of all; fragments of one packet follow each other closely.
    """

    def __init__(self) -> None:
        self.partial: OrderedDict[_Key, _Partial] = OrderedDict()
        self.octets = 0
        self._shares = SourceShares[_Partial]()
        self._of_source: Counter[bytes] = Counter()

    def add(self, pkt: Packet, now: float) -> ReassembledPacket | str | None:
        """Add a fragment; the frame is copied. Raises Malformed, and nothing else.

        Returns the whole packet, if this fragment completes it; None if it is held; or the reason of a drop.
        """
        net = pkt.ip
        assert net is not None
        if pkt.buf[1] != vnet.GSO_NONE:
            return "fragment-malformed"  # a super-segment is no fragment
        start, more, at, number = _place(net)
        end = start + net.end - at
        if end == start or (more and end & 7) or end + net.payload_off - net.off > 0xFFFF:
            return "fragment-malformed"
        if _hides_a_header(pkt, start):
            return "fragment-tiny"
        tags = bytes(pkt.buf[vnet.VNET + 12 : pkt.l3_off])
        protocol = net.protocol if isinstance(net, IPv4) else 0  # not part of the key in RFC 8200 4.5
        key = (net.src, net.dst, tags, number, protocol)
        partial = self.partial.get(key) or self._new(key, now)
        if partial.bad:
            return "fragment-overlap"
        piece = _Piece(start, end, at, bytes(pkt.buf))
        if refused := self._fits(partial, piece, more):
            return refused
        partial.pieces.append(piece)
        partial.octets += len(piece.frame)
        self.octets += len(piece.frame)
        self._of_source[partial.source] += len(piece.frame)
        pieces = partial.pieces
        if partial.total is None or sum(end - start for start, end, _, _ in pieces) < partial.total:
            return None
        self.forget(partial)
        return ReassembledPacket(tuple(piece.frame for piece in pieces), _join(pieces))

    def deadline(self) -> float | None:
        """Return when the oldest incomplete packet times out."""
        return next(iter(self.partial.values())).until if self.partial else None

    def wake(self, now: float) -> None:
        """Drop packets that are incomplete after their timeout."""
        while self.partial and (oldest := next(iter(self.partial.values()))).until <= now:
            self.forget(oldest)

    def forget(self, partial: _Partial) -> None:
        """Drop an incomplete packet."""
        del self.partial[partial.key]
        self._shares.remove(partial)
        self._empty(partial)

    def _new(self, key: _Key, now: float) -> _Partial:
        if len(self.partial) >= PACKETS_MAX and (oldest := self._shares.victim()) is not None:
            self.forget(oldest)
        partial = self.partial[key] = _Partial(key, now + TIMEOUT_S)
        self._shares.add(partial)
        return partial

    def _empty(self, partial: _Partial) -> None:
        self.octets -= partial.octets
        self._of_source[partial.source] -= partial.octets
        if self._of_source[partial.source] <= 0:
            del self._of_source[partial.source]
        partial.pieces, partial.octets = [], 0

    def _fits(self, partial: _Partial, piece: _Piece, more: bool) -> str:
        """Return why a fragment cannot belong to a packet, or "". A contradictory one spoils the packet."""
        for other in partial.pieces:
            if piece.start < other.end and other.start < piece.end:
                if piece[:2] == other[:2] and piece.data == other.data:
                    return "fragment-duplicate"
                return self._spoil(partial)
        last = max((other.end for other in partial.pieces), default=0)
        if partial.total is not None and (piece.end > partial.total or not more):
            return self._spoil(partial)
        if not more and last > piece.end:
            return self._spoil(partial)
        if len(partial.pieces) == PIECES_MAX:
            return self._spoil(partial)
        size = len(piece.frame)
        if self._of_source[partial.source] + size > OCTETS_MAX // _SHARE:
            return "fragment-full"
        while self.octets + size > OCTETS_MAX:
            oldest = self._shares.victim()
            if oldest is None or oldest is partial:
                return "fragment-full"
            self.forget(oldest)
        if not more:
            partial.total = piece.end
        return ""

    def _spoil(self, partial: _Partial) -> str:
        """Drop the fragments of a packet, and further ones until its timeout."""
        self._empty(partial)
        partial.bad = True
        return "fragment-overlap"


def _place(net: IPv4 | IPv6) -> tuple[int, bool, int, int]:
    """Return a fragment's offset in its packet, whether more follow, the offset of its data, its number."""
    if isinstance(net, IPv4):
        return net.fragment_offset * 8, net.more_fragments == 1, net.payload_off, net.identification
    header = net.fragment
    assert header is not None
    return header.offset * 8, header.more == 1, net.fragment_off + 8, header.identification


def _hides_a_header(pkt: Packet, start: int) -> bool:
    """Return whether a first fragment lacks a part of the transport header, or a later one overlaps it."""
    net = pkt.ip
    assert net is not None
    if start:
        return net.protocol == ip.TCP and start < TCP.SIZE
    try:
        return pkt.transport is None and net.protocol in (ip.TCP, ip.UDP)
    except Malformed:
        return True


def _join(pieces: list[_Piece]) -> bytearray:
    """Return the packet of these fragments, with the header of the first of them."""
    ordered = sorted(pieces)
    first = ordered[0]
    pkt = Packet.at(bytearray(first.frame))
    net = pkt.ip
    assert net is not None
    head = bytearray(first.frame[: net.payload_off if isinstance(net, IPv4) else net.fragment_off])
    head[: vnet.VNET] = vnet.NONE
    payload = b"".join(piece.data for piece in ordered)
    if isinstance(net, IPv4):
        U16.pack_into(head, net.off + 2, len(head) - net.off + len(payload))
        U16.pack_into(head, net.off + 6, 0)
        whole = head + payload
        Packet.at(whole).compute_ip_checksum()
        return whole
    number_at = net.off + 6
    for number, at, _ in net.extensions():
        if number == ip.FRAGMENT:
            break
        number_at = at
    head[number_at] = first.frame[net.fragment_off]
    U16.pack_into(head, net.off + 4, len(head) - net.off - IPv6.SIZE + len(payload))
    return head + payload
