"""Frames to segments and back: one unpack for the headers of a segment, one pack for those of another."""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ether, ip, quick, vnet
from vtl_tools.common.packet.checksum import ones_sum
from vtl_tools.common.packet.options import walk_options
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import (
    CWR,
    MSS,
    NOP,
    SACK,
    SACK_PERMITTED,
    TCP,
    TIMESTAMPS,
    URG,
    USER_TIMEOUT,
    WINDOW_SCALE,
)
from vtl_tools.common.packet.view import U16

if TYPE_CHECKING:  # the compiler's own integers, that no operation has to check for their size
    from mypy_extensions import i64

Frame = bytearray | memoryview
Pieces = tuple[bytes | memoryview, ...]
"""A frame in pieces that belong together: the headers, then views of the data."""

NO_STAMPS: Final = -1
"""The TSval of a segment without timestamps."""

_STAMPED: Final = 32
"""Octets of a TCP header whose only option is timestamps, as nearly all are."""
_FLOW4: Final = struct.Struct("!4s4sHH")
_FLOW6: Final = struct.Struct("!16s16sHH")
_SUM_DONE: Final = vnet.F_NEEDS_CSUM | vnet.F_DATA_VALID
_NO_DATA: Final = memoryview(b"")
_RIGHT: Final = 0xFFFF  # the sum of octets with a right checksum
_SYN_OPTIONS_SIZE: Final = 20
_MSS_FIRST: Final = MSS << 8 | 4
_SACK_AND_STAMPS: Final = SACK_PERMITTED << 24 | 2 << 16 | TIMESTAMPS << 8 | 10
_SCALE_LAST: Final = NOP << 16 | WINDOW_SCALE << 8 | 3
"""The options of a SYN of Linux, which are read without a walk."""
_SUM_DUE4: Final = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, 0, 0, 0, 34, TCP.SUM)
_SUM_DUE6: Final = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, 0, 0, 0, 54, TCP.SUM)
"""The virtio_net_hdr of a segment that is to be completed by the link, and not to be cut."""

# vnet and Ethernet headers, and the start of IP's; what varies; addresses and ports; SEG.SEQ and SEG.ACK;
# flags and window as one number, and sum and urgent pointer as another: each number becomes an object.
_OUT4: Final = struct.Struct("!26sH6sH12sIIII").pack
_OUT6: Final = struct.Struct("!28sH2s36sIIII").pack
_STAMPED4: Final = struct.Struct("!26sH6sH12sIIII4sII").pack
_STAMPED6: Final = struct.Struct("!28sH2s36sIIII4sII").pack
"""The same with timestamps: a pack of their own would take a fifth of the time of all."""
_STAMPS_ALONE: Final = bytes((NOP, NOP, TIMESTAMPS, 10))
_TCP: Final = 6
_TCP_SIZE: Final = 20
_TCP_SUM: Final = 16  # as in TCP, whose own are attributes of an interpreted class
_ECT: Final = 2  # ECT(0)
_DONT_FRAGMENT: Final = 0x4000
_UNFRAGMENTED: Final = b"\0\0\x40\0"
_IPV4_START: Final = b"\x08\0\x45"  # the Ethertype, and a header of 20 octets
_IPV4_STARTS: Final = [_IPV4_START + bytes((each,)) for each in range(256)]
"""By the octet of DSCP and ECN."""
_IPV4_TTLS: Final = [_UNFRAGMENTED + bytes((each, 6)) for each in range(256)]
"""Identification to protocol, by the TTL."""
_ECN_AT: Final = 25  # of the head: in IPv4's second octet, and in IPv6's, four bits higher

_ANY4: Final = bytes(4)

SOURCE_ROUTE: Final = "ip.source_route"
"""The name by which Malformed reports a source route."""


_PATH_FIELDS: Final = ("local_mac", "remote_mac", "local", "remote", "local_port", "remote_port")


class Path:
    """Both ends of a connection, as seen from ours. Addresses are octets (see packet/address.py)."""

    __slots__ = ("local", "local_mac", "local_port", "remote", "remote_mac", "remote_port")

    def __init__(
        self,
        local_mac: bytes,
        remote_mac: bytes,
        local: bytes,
        remote: bytes,
        local_port: int,
        remote_port: int,
    ) -> None:
        self.local_mac, self.remote_mac = local_mac, remote_mac
        self.local, self.remote = local, remote
        self.local_port, self.remote_port = local_port, remote_port

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Path) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[bytes, bytes, bytes, bytes, int, int]:
        return self.local_mac, self.remote_mac, self.local, self.remote, self.local_port, self.remote_port

    def replace(self, **changes: Any) -> "Path":
        """Return a path that differs in these fields. Raises TypeError for one that it does not have."""
        return Path(**({name: getattr(self, name) for name in _PATH_FIELDS} | changes))

    @classmethod
    def answering(cls, frame: Frame) -> Self:
        """Return the path back to the sender of a TCP segment. Raises Malformed."""
        pkt = Packet.at(frame)
        net, segment = pkt.ip, pkt.tcp
        if net is None or segment is None:
            raise Malformed("tcp", pkt.l3_off)
        return cls(pkt.eth.dst, pkt.eth.src, net.dst, net.src, segment.dport, segment.sport)

    @property
    def is_unicast(self) -> bool:
        """Whether both addresses are of one host each, as TCP needs (RFC 9293 section 3.9.2.3)."""
        return _is_host(self.local) and _is_host(self.remote)


def _is_host(octets: bytes) -> bool:
    return (octets[0] < 0xE0 and octets != _ANY4) if len(octets) == 4 else octets[0] != 0xFF and any(octets)


class Segment:
    """A segment that arrived. data is a view of the frame, valid as long as that is.

    length: octets of data. urgent: how far behind seq the urgent pointer is, where flags has URG. Options are
    None or empty where there are none; mss, window_scale and sack_permitted are read from a SYN only. tsval,
    tsecr: its timestamps; tsval is NO_STAMPS if it has none. user_timeout: the field of that option (RFC
    5482), else 0. frame: the whole frame, borrowed as data is; at: where its TCP header begins. sum_is_due:
    its sender has not left the checksum to somebody else, so that is_intact() has to be asked.
    """

    __slots__ = (
        "ack", "at", "data", "flags", "flow", "frame", "length", "mss", "sack", "sack_permitted", "seq",
        "sum_is_due", "tsecr", "tsval", "urgent", "user_timeout", "window", "window_scale",
    )  # fmt: skip

    def __init__(
        self,
        flow: bytes,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        urgent: int,
        data: memoryview,
        length: int,
        tsval: int = NO_STAMPS,
        tsecr: int = 0,
    ) -> None:
        self.flow = flow
        self.seq = seq
        self.ack = ack
        self.flags = flags
        self.window = window
        self.urgent = urgent
        self.data = data
        self.length = length
        self.tsval = tsval
        self.tsecr = tsecr
        self.frame: memoryview | None = None
        self.at = 0
        self.sum_is_due = True
        self.sack: list[tuple[int, int]] | None = None
        self.mss: int | None = None
        self.window_scale: int | None = None
        self.sack_permitted = False
        self.user_timeout = 0

    @property
    def stamps(self) -> tuple[int, int] | None:
        """Its timestamps, TSval and TSecr."""
        return None if self.tsval == NO_STAMPS else (self.tsval, self.tsecr)


def parse(frame: Frame) -> Segment | None:
    """Take a frame apart; None if it is no TCP segment, or a fragment of one.

    The checksum is for is_intact(). Raises Malformed for a broken packet, and nothing else.
    """
    start, protocol, flow, seq, ack, flags, window, l4, off, end, tsval, tsecr = quick.unpack(frame)
    if l4:
        if protocol != _TCP:
            return None
    else:
        if (found := _locate(frame)) is None:
            return None
        flow, l4, off, end = found
        _, _, seq, ack, _, flags, window, _, _ = TCP.HEADER.unpack_from(frame, l4)
        start, tsval, tsecr = bytes(frame[: quick.KIND]), quick.OTHER_OPTIONS, 0
    urgent = U16.unpack_from(frame, l4 + 18)[0] if flags & URG else 0
    view = memoryview(frame) if isinstance(frame, bytearray) else frame
    data = view[off:end] if end > off else _NO_DATA
    stamp = tsval if tsval >= 0 else NO_STAMPS
    segment = Segment(flow, seq, ack, flags, window, urgent, data, end - off, stamp, tsecr)
    segment.frame, segment.at = view, l4
    segment.sum_is_due = not start[0] & _SUM_DONE
    first = l4 + _TCP_SIZE
    if off > first and (stamp == NO_STAMPS or off != l4 + _STAMPED):
        _read_options(segment, start[first:off] if off <= len(start) else bytes(frame[first:off]))
    return segment


def is_intact(frame: Frame) -> bool:
    """Tell whether the checksums are right, or are for somebody else to complete (MUST-3).

    A kernel's segments without a socket, as those of TIME-WAIT, come with full ones.
    """
    if frame[0] & _SUM_DONE:
        return True
    _, protocol, flow, _, _, _, _, l4, _, end, _, _ = quick.unpack(frame)
    if not l4 or protocol != ip.TCP:
        return Packet.at(frame).verify()
    if l4 == quick.L4_OF_4 and ones_sum(frame[quick.L3 : l4]) != _RIGHT:
        return False
    pseudo = ones_sum(flow[:-4]) + ip.TCP + end - l4
    return ones_sum(frame[l4:end], pseudo) == _RIGHT


def _locate(frame: Frame) -> tuple[bytes, int, int, int] | None:
    """Find a segment behind VLAN tags, IP options or extension headers: flow, header, data and end."""
    pkt = Packet.at(frame)
    net, segment = pkt.ip, pkt.tcp
    if net is None or segment is None or net.is_fragment:
        return None
    # RFC 7126 section 4.3, RFC 5095; an IPv6 routing header at its end is ignored (RFC 8200 section 4.4)
    if net.is_routed or (len(net.src) == 4 and net.has_source_route):
        raise Malformed(SOURCE_ROUTE, pkt.l3_off)
    form = _FLOW4 if len(net.src) == 4 else _FLOW6
    flow = form.pack(net.src, net.dst, segment.sport, segment.dport)
    return flow, segment.off, segment.payload_off, segment.end


def options_of(segment: Segment, frame: Frame) -> Iterator[tuple[int, int, int]]:
    """Yield kind, place and size of each option of a segment in its frame."""
    at = segment.at
    return walk_options(frame, at + _TCP_SIZE, at + (frame[at + 12] >> 4 << 2))


def _read_options(segment: Segment, options: bytes) -> None:
    if len(options) == _SYN_OPTIONS_SIZE:
        first, last = quick.u32(options, 0), quick.u32(options, 16)
        is_usual = quick.u32(options, 4) == _SACK_AND_STAMPS and last >> 8 == _SCALE_LAST
        if is_usual and first >> 16 == _MSS_FIRST:
            segment.mss, segment.sack_permitted, segment.window_scale = first & 0xFFFF, True, last & 0xFF
            segment.tsval, segment.tsecr = quick.u32(options, 8), quick.u32(options, 12)
            return
    for kind, at, size in walk_options(options, 0, len(options)):
        if kind == TIMESTAMPS and size == 10:
            segment.tsval, segment.tsecr = quick.u32(options, at + 2), quick.u32(options, at + 6)
        elif kind == SACK and size % 8 == 2 and size > 2:
            blocks = range(at + 2, at + size, 8)
            segment.sack = [(quick.u32(options, left), quick.u32(options, left + 4)) for left in blocks]
        elif kind == MSS and size == 4:
            segment.mss = options[at + 2] << 8 | options[at + 3]
        elif kind == WINDOW_SCALE and size == 3:
            segment.window_scale = options[at + 2]
        elif kind == SACK_PERMITTED and size == 2:
            segment.sack_permitted = True
        elif kind == USER_TIMEOUT and size == 4:
            segment.user_timeout = options[at + 2] << 8 | options[at + 3]


class Framer:
    """Makes the frames of one path. Checksums are partial, for the link to complete.

    ends: the addresses and ports, as they are sent.
    """

    __slots__ = (
        "_capable", "_gso_type", "_head", "_ip_sum", "_is4", "_l4", "_pseudo", "_ttl", "ends", "overhead",
    )  # fmt: skip

    def __init__(self, path: Path, ttl: int, dscp: int) -> None:
        local, remote = path.local, path.remote
        ports = (path.local_port << 16 | path.remote_port).to_bytes(4, "big")
        self._is4 = len(local) == 4
        self.ends = local + remote + ports
        addresses = 0  # their sum, as ones_sum() adds more octets
        for at in range(0, len(local), 2):
            addresses += (local[at] << 8 | local[at + 1]) + (remote[at] << 8 | remote[at + 1])
        self._pseudo = addresses + 6
        macs = path.remote_mac + path.local_mac
        self._capable: bytes | None = None
        if self._is4:
            self._head = _SUM_DUE4 + macs + _IPV4_STARTS[dscp << 2]
            self._ttl = _IPV4_TTLS[ttl]
            self._ip_sum = 0x4500 + (dscp << 2) + _DONT_FRAGMENT + (ttl << 8 | 6) + addresses
            self._gso_type, self._l4 = vnet.GSO_TCPV4, 34
            self.overhead = 40
        else:
            self._head = _SUM_DUE6 + macs + (ether.IPV6 << 32 | 0x6000_0000 | dscp << 22).to_bytes(6, "big")
            self._ttl = (6 << 8 | ttl).to_bytes(2, "big")
            self._ip_sum = 0
            self._gso_type, self._l4 = vnet.GSO_TCPV6, 54
            self.overhead = 60

    @property
    def expected(self) -> bytes:
        """Addresses and ports of what comes, as Segment.flow has them."""
        return quick.reverse(self.ends)

    def _capable_head(self) -> bytes:
        """Return the start of a frame of a transport with ECN, which few connections need."""
        if self._capable is None:
            head = self._head
            ect = head[_ECN_AT] | (_ECT if self._is4 else _ECT << 4)
            self._capable = head[:_ECN_AT] + ect.to_bytes(1, "big") + head[_ECN_AT + 1 :]
        return self._capable

    def frame(
        self,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        options: bytes,
        length: int = 0,
        data: list[bytes | memoryview] | None = None,
        gso_size: int = 0,
        urgent: int = 0,
        ect: bool = False,
        tsval: int = NO_STAMPS,
        tsecr: int = 0,
    ) -> Pieces:
        """Return a segment with so many octets of data, which are not copied. Numbers are as on the wire.

        options: a multiple of four octets. gso_size: octets of data of each segment that a super-segment is
        cut into, else 0; not with an urgent pointer, which would be the same in each segment. ect: the
        network may mark the packet instead of dropping it (RFC 3168). tsval, tsecr: timestamps before the
        options, if any.
        """
        header: i64 = (_TCP_SIZE if tsval == NO_STAMPS else _STAMPED) + len(options)
        start = self._capable_head() if ect else self._head
        if gso_size:
            kind = self._gso_type | vnet.GSO_ECN if flags & CWR else self._gso_type
            virtio = vnet.HEADER.pack(1, kind, self._l4 + header, gso_size, self._l4, _TCP_SUM)
            start = virtio + start[vnet.VNET :]
        size = header + length
        control: i64 = header << 26 | flags << 16 | window
        sums: i64 = (self._pseudo + size) % 0xFFFF << 16 | urgent
        head: bytes
        if self._is4:
            total = 20 + size
            full: i64 = -(self._ip_sum + total + (_ECT if ect else 0)) % 0xFFFF
            if tsval == NO_STAMPS:
                head = _OUT4(start, total, self._ttl, full, self.ends, seq, ack, control, sums)
            else:
                head = _STAMPED4(
                    start, total, self._ttl, full, self.ends, seq, ack, control, sums,
                    _STAMPS_ALONE, tsval, tsecr,
                )  # fmt: skip
        elif tsval == NO_STAMPS:
            head = _OUT6(start, size, self._ttl, self.ends, seq, ack, control, sums)
        else:
            head = _STAMPED6(
                start, size, self._ttl, self.ends, seq, ack, control, sums, _STAMPS_ALONE, tsval, tsecr
            )
        if options:
            head = head + options  # compiled, += would be of any objects, and slower
        if not data:
            return (head,)
        return (head, data[0]) if len(data) == 1 else (head, *data)

    def renumbered(self, head: bytes | memoryview, seq: int) -> bytes:
        """Return a copy of the first piece of a frame with another SEQ. The sum is partial, without SEQ."""
        assert isinstance(head, bytes)
        at = vnet.VNET + self._l4 + 4
        return head[:at] + seq.to_bytes(4, "big") + head[at + 4 :]
