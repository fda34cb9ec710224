"""State model of a TCP connection (paper section 2.5, RFC 9293): follow it, and send for either end."""

from collections.abc import Sequence
from typing import Final, Self

from vtl_tools.common.model.base import LOCAL, REMOTE, End
from vtl_tools.common.model.ip import IPModel, super_segments
from vtl_tools.common.model.segment_kind import SegmentKind
from vtl_tools.common.model.tcp_arrival import arrive, arrive_syn
from vtl_tools.common.model.tcp_end import TcpEnd
from vtl_tools.common.model.transport import TransportModel
from vtl_tools.common.packet import build, ip, quick, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, PSH, RST, SYN, TCP
from vtl_tools.common.packet.tcp_state import State
from vtl_tools.common.packet.view import Buffer

_MASK: Final = 0xFFFF_FFFF
_TIMESTAMPS_OCTETS: Final = 12  # the option, and two no-operations to align it
_DEFAULT_MSS: Final = {4: 536, 6: 1220}
"""The MSS of an end that did not send the option (RFC 9293 section 3.7.1)."""


class TcpModel(TransportModel[TcpEnd]):
    """Both ends of one TCP connection, followed segment by segment.

    seen: the kind of the last segment, or the reason why it was not followed.

    The model follows segments that are lost later on their way: its numbers are those of an end that received
    everything that passed here. The other end's snd_una is the part that an end certainly has, because it
    acknowledged it.
    """

    __slots__ = ("seen",)
    HEADER = TCP

    def __init__(self, ip: IPModel, local: TcpEnd, remote: TcpEnd) -> None:
        super().__init__(ip, local, remote)
        self.seen: SegmentKind | None = None

    @classmethod
    def from_packet(cls, pkt: Packet, sender: End = LOCAL) -> Self:
        """Learn both ends from a segment that `sender` sent: a SYN, its answer, or any later one.

        From a later one, joined() is true: window shifts and MSS stay unknown, see TcpEnd. Raises ValueError
        if the packet is not a whole TCP segment, or has neither SYN nor ACK.
        """
        segment = pkt.tcp
        if segment is None or pkt.is_fragment:
            raise ValueError("the packet is not a whole TCP segment")
        seq, ack, flags = segment.seq, segment.ack, segment.flags
        if not flags & SYN and not flags & ACK:
            raise ValueError("the segment has neither SYN nor ACK")
        tx, rx = TcpEnd(segment.sport), TcpEnd(segment.dport)
        if not flags & SYN:
            stamps = segment.timestamps is not None
            for one, mine, theirs in (tx, seq, ack), (rx, ack, seq):
                one.state = State.ESTABLISHED
                one.snd_una = one.snd_nxt = mine
                one.rcv_nxt = one.snd_wl1 = theirs
                one.timestamps, one.sack_permitted = stamps, None
        elif flags & ACK:
            rx.state = State.SYN_SENT
            rx.iss = rx.snd_una = (ack - 1) & _MASK
            rx.snd_nxt = ack
        model = cls(IPModel.from_packet(pkt, sender), *((tx, rx) if sender is LOCAL else (rx, tx)))
        if not model.follow(pkt, sender):
            raise ValueError(f"the segment belongs to no connection: {model.seen}")
        return model

    @property
    def joined(self) -> bool:
        """Whether the model missed a SYN, so that shift and MSS of its sender are unknown."""
        return self.local.iss is None or self.remote.iss is None

    @property
    def closed(self) -> bool:
        """Whether only retransmissions of the end can follow: each end is CLOSED or in TIME-WAIT."""
        through = (State.CLOSED, State.TIME_WAIT)
        return self.local.state in through and self.remote.state in through

    @property
    def timestamps(self) -> bool:
        """Whether segments carry timestamps: both SYNs offered it, or the model joined later and saw one."""
        return self.local.timestamps and self.remote.timestamps

    @property
    def sack_permitted(self) -> bool | None:
        """Whether both SYNs permitted SACK. None if they were not seen."""
        if self.local.sack_permitted is None:
            return None
        return self.local.sack_permitted and self.remote.sack_permitted

    def learn_scale(self, end: End, shift: int) -> None:
        """Set the shift of an end whose SYN was not seen. Shifts the windows that it offered before."""
        tx, rx = self[end], self[end.other]
        if tx.wscale is None:
            tx.rcv_wnd <<= shift
            rx.snd_wnd <<= shift
            rx.max_snd_wnd <<= shift
        tx.wscale = shift

    def segment_size(self, from_: End) -> int:
        """Return the maximum data of one segment of from_, in octets (RFC 9293 section 3.7.1).

        It is the lesser of both announced MSS, as an end announces the limit of its own link.
        """
        sizes = [end.mss for end in (self.local, self.remote) if end.mss is not None]
        if self[from_.other].mss is None:
            sizes.append(_DEFAULT_MSS[self.ip.version])
        return max(1, min(sizes) - (_TIMESTAMPS_OCTETS if self.timestamps else 0))

    def follow(self, pkt: Packet, sender: End) -> bool:
        """Process a segment that matches as its receiver does. `seen` tells its kind."""
        segment, tx, rx = pkt.tcp, self[sender], self[sender.other]
        assert segment is not None
        _, _, seq, ack, _, flags, window, _, _ = TCP.HEADER.unpack_from(segment.buf, segment.off)
        if flags & SYN:
            seen = arrive_syn(tx, rx, segment)
        else:
            stamps = segment.timestamps if tx.timestamps else None
            length = segment.end - segment.payload_off
            seen = arrive(tx, rx, seq, ack, flags, window, length, stamps[0] if stamps else None)
        self.seen = seen
        if seen.taken:
            self.ip.follow(pkt, sender)
        return seen.taken

    def sync_frame(self, frame: Buffer) -> End | None:
        """Do what sync(Packet.at(frame)) does, in a third of the time for common frames."""
        net, local, remote = self.ip, self.local, self.remote
        headers = quick.read(frame)
        if headers is None or headers[1] != ip.TCP or headers[5] & SYN:
            return self.sync(Packet.at(frame))
        _, _, parties, seq, ack, flags, window, _, data, end, stamp, _ = headers
        src, dst, sport, dport = quick.split(parties)
        here, there = net.local.address, net.remote.address
        if sport == local.port and dport == remote.port and src == here and dst == there:
            sender, tx, rx = LOCAL, local, remote
        elif sport == remote.port and dport == local.port and src == there and dst == here:
            sender, tx, rx = REMOTE, remote, local
        else:
            return None
        tsval = stamp if tx.timestamps and stamp != quick.NO_OPTIONS else None
        if tsval == quick.OTHER_OPTIONS:
            return self.sync(Packet.at(frame))
        self.seen = seen = arrive(tx, rx, seq, ack, flags, window, end - data, tsval)
        if not seen.taken:
            return None
        net.follow_frame(frame, quick.L3, super_segments(frame, end - data) if frame[1] else 1, sender)
        return sender

    def adopt(
        self, pkt: Packet, from_: End, *, seq: int | None = None, ack: int | None = None, sync: bool = True
    ) -> None:
        """Rewrite a segment so that it is the next one of from_: numbers, window, timestamps, lower layers.

        seq, ack: numbers to use instead of the next ones, to splice streams. sync: follow it as sent. SACK
        blocks are erased, since they refer to other numbers, and so are timestamps if this connection has
        none. Raises ValueError as in Model.
        """
        super().adopt(pkt, from_)
        segment, tx = pkt.tcp, self[from_]
        assert segment is not None
        segment.seq = tx.snd_nxt if seq is None else seq
        if segment.flags & ACK:
            segment.ack = tx.rcv_nxt if ack is None else ack
        segment.window = self._window_field(tx, None, segment.flags)
        segment.erase_option(tcp.SACK)
        if segment.timestamps is not None:
            if self.timestamps or segment.flags & SYN:
                segment.timestamps = (tx.tsval, tx.ts_recent or 0)
            else:
                segment.erase_option(tcp.TIMESTAMPS)
        if sync:
            self.follow(pkt, from_)

    def create(
        self,
        payload: bytes | bytearray | memoryview = b"",
        *,
        from_: End = LOCAL,
        flags: int | None = None,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        sack: Sequence[tuple[int, int]] = (),
        offload: bool = False,
        sync: bool = True,
    ) -> bytearray:
        """Return a new segment of the connection, the next one of from_ (paper Figure 4).

        flags: by default ACK, and PSH with data. A SYN carries the options of the end's variables. seq:
        SND.NXT by default. ack: RCV.NXT by default. To answer for an end that may have missed segments that
        passed here (a frozen VM), pass the ack that is certain, model[from_.other].snd_una. window: octets to
        offer, rounded down to the shift; by default the end's last window. sack: SACK blocks, as many as fit
        beside timestamps; not in a SYN or RST. offload: leave the checksum to the
        kernel, and let it segment a payload above segment_size(). Without it the checksum is full, and such a
        payload raises ValueError, as does one above 64 KiB. sync: follow the segment as sent; False leaves
        the model as it is. The timestamp is the end's last, since this module has no clock; a caller with a
        clock sets tsval first.
        """
        tx, rx = self[from_], self[from_.other]
        if flags is None:
            flags = ACK | PSH if payload else ACK
        size = self.segment_size(from_)
        if len(payload) > size and not offload:
            raise ValueError(f"{len(payload)} octets exceed the {size} of one segment")
        header = build.tcp_header(
            tx.port,
            rx.port,
            tx.snd_nxt if seq is None else seq,
            (tx.rcv_nxt if ack is None else ack) if flags & ACK else 0,
            flags,
            self._window_field(tx, window, flags),
            self._options(tx, rx, flags, sack),
        )
        frame = self.ip.carry(
            header,
            payload,
            from_=from_,
            protocol=ip.TCP,
            partial=offload,
            gso_size=size if len(payload) > size else 0,
        )
        if sync:
            self.follow(Packet.at(frame), from_)
        return frame

    @staticmethod
    def _window_field(tx: TcpEnd, window: int | None, flags: int) -> int:
        octets = tx.rcv_wnd if window is None else window
        return min(octets if flags & SYN else octets >> (tx.wscale or 0), 0xFFFF)

    def _options(self, tx: TcpEnd, rx: TcpEnd, flags: int, sack: Sequence[tuple[int, int]]) -> bytes:
        stamps = (tx.tsval, tx.ts_recent or 0)
        if flags & RST:
            return b""
        if not flags & SYN:
            return tcp.encode_options(timestamps=stamps if self.timestamps else None, sack=sack)
        answer = flags & ACK != 0  # which holds only what the SYN offered
        return tcp.encode_options(
            mss=tx.mss,
            window_scale=None if answer and rx.wscale is None else tx.wscale,
            sack_permitted=bool(tx.sack_permitted and (rx.sack_permitted or not answer)),
            timestamps=stamps if tx.timestamps and (rx.timestamps or not answer) else None,
        )
