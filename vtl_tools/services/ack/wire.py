"""One end of a connection as its link has it, and those who act for the other end towards it."""

from typing import Final

from vtl_tools.common.model.base import End
from vtl_tools.common.model.tcp import TcpModel
from vtl_tools.common.model.tcp_arrival import arrive
from vtl_tools.common.model.tcp_end import TcpEnd
from vtl_tools.common.packet.seq import seq_max
from vtl_tools.common.packet.tcp import ACK, RST
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.rcv import Receiver
from vtl_tools.common.tcp.wire import NO_STAMPS, Path, Segment
from vtl_tools.services.ack.deputy import Deputy

_MASK: Final = 0xFFFF_FFFF


class Wire:
    """The link to one end. Its model follows all that passes there, also what is made here.

    taker: takes the end's data and acknowledges it in the other end's name; None: its segments pass. deputy:
    delivers the other end's data to this end; None: the other end's segments pass. ack_due: the end is to be
    sent an acknowledgement. tell_due: the other end's own acknowledgement is to be passed on to this end.
    probe_due: the end is to be asked for an acknowledgement. echo_due: its next one shows that it is alive.
    syn_at: when the other end's SYN was passed on to this end. macs: destination and source of the end's
    frames.
    """

    __slots__ = (
        "ack_due", "deputy", "echo_due", "end", "macs", "model", "port", "probe_due", "syn_at", "taker",
        "tell_due",
    )  # fmt: skip

    def __init__(self, port: int, end: End, model: TcpModel, syn_at: float) -> None:
        self.port, self.end, self.model, self.syn_at = port, end, model, syn_at
        self.taker: Receiver | None = None
        self.deputy: Deputy | None = None
        self.ack_due = self.tell_due = self.probe_due = self.echo_due = False
        self.macs = b""

    @property
    def mine(self) -> TcpEnd:
        """The variables of the end itself."""
        return self.model[self.end]

    @property
    def theirs(self) -> TcpEnd:
        """The variables of the other end, as this one sees them."""
        return self.model[self.end.other]

    # --- how the end's data is taken

    def take_over(self, buffer: int) -> None:
        """Take the end's data from now on."""
        mine, theirs = self.mine, self.theirs
        assert mine.iss is not None
        taker = Receiver(Config(receive_buffer=buffer))
        taker.start(mine.iss)
        taker.shift = theirs.wscale or 0
        taker.mss = self.model.segment_size(self.end)
        taker.edge = max(taker.edge, 1 + theirs.rcv_wnd)  # offered in the other end's SYN
        self.taker = taker

    def speak_for_other(self, config: Config, now: float) -> None:
        """Deliver the other end's data to the end from now on."""
        net, other = self.model.ip, self.end.other
        path = Path(
            net.link[other].mac, net.link[self.end].mac, net[other].address, net[self.end].address,
            self.theirs.port, self.mine.port,
        )  # fmt: skip
        self.deputy = Deputy(path, self.theirs, self.mine, config, self.syn_at, now, self._note)

    def _note(self, seq: int, flags: int, window: int, length: int) -> None:
        """Follow a segment of the deputy."""
        theirs, deputy = self.theirs, self.deputy
        assert deputy is not None
        stamp = theirs.tsval if theirs.timestamps else None
        arrive(theirs, self.mine, seq, deputy.spoken_ack, flags, window, length, stamp)

    # --- segments that the ends themselves send

    def sends_by(self, frame: memoryview, other: "Wire") -> None:
        """Note from where and to where the end sends its frames, for those in its name on the other wire."""
        macs = bytes(frame[VNET : VNET + 12])
        if macs != self.macs:
            self.macs = macs
            other.address(macs)

    def passed(self, segment: Segment, seq: int, ack: int, field: int, length: int) -> None:
        """Follow a segment of the other end that passes to this one, with these numbers."""
        theirs = self.theirs
        tsval = segment.tsval if segment.tsval != NO_STAMPS and theirs.timestamps else None
        arrive(theirs, self.mine, seq, ack, segment.flags, field, length, tsval)

    # --- segments in the other end's name

    def address(self, macs: bytes) -> None:
        """Send frames in the other end's name as it sends its own: to the router that it has chosen.

        A router may answer from another Ethernet address than the one that it is reached at (RFC 9568).
        """
        if not macs:
            return
        link, dst, src = self.model.ip.link, macs[:6], macs[6:]
        link[self.end].mac, link[self.end.other].mac = dst, src
        if self.deputy is not None:
            self.deputy.readdress(remote_mac=dst, local_mac=src)

    def stamp(self, tsval: int) -> None:
        """Use the TSval that the other end sent, unless it is from a late segment and older."""
        self.theirs.tsval = seq_max(tsval, self.theirs.tsval)

    @property
    def next_seq(self) -> int:
        """SEG.SEQ of a segment without data in the other end's name."""
        return self.theirs.snd_nxt if self.deputy is None else self.deputy.snd.snd_nxt

    def window(self, room: int) -> int:
        """Return the window field that offers the end this room, and record it as offered."""
        taker = self.taker
        assert taker is not None
        taker.resize(room)
        return taker.window(taker.shift)

    def acknowledge(self, ack: int, field: int, *, probe: bool = False) -> bytearray:
        """Return an acknowledgement for the end, in the other's name. ack, field: as on the wire.

        probe: with a number before the window, so that the end answers (RFC 9293 section 3.8.4).
        """
        theirs = self.theirs
        blocks: list[tuple[int, int]] = []
        if self.taker is not None and self.model.sack_permitted:
            blocks = self.taker.blocks()[: 3 if theirs.timestamps else 4]
        seq = (self.next_seq - probe) & _MASK
        frame = self.model.create(
            from_=self.end.other, flags=ACK, seq=seq, ack=ack, window=field << (theirs.wscale or 0),
            sack=blocks, sync=False,
        )  # fmt: skip
        if not probe:
            arrive(theirs, self.mine, seq, ack, ACK, field, 0, theirs.tsval if theirs.timestamps else None)
        return frame

    def resets(self) -> list[bytearray]:
        """Return resets for the end: with the number that it certainly expects, and the one after all."""
        theirs = self.theirs
        numbers = dict.fromkeys((theirs.snd_una, self.next_seq))
        return [
            self.model.create(
                from_=self.end.other, flags=RST | ACK, seq=seq, ack=self.mine.snd_una, window=0, sync=False
            )
            for seq in numbers
        ]
