"""The deputy of one end: delivers its data to the other end, in its name and by its sequence numbers."""

from collections.abc import Callable
from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.model.tcp_end import TcpEnd
from vtl_tools.common.packet.tcp import ACK, FIN, SYN
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.wire import NO_STAMPS, Framer, Path, Segment

_MASK: Final = 0xFFFF_FFFF
_NOTHING: Final = memoryview(b"")

Note = Callable[[int, int, int, int], object]
"""Takes SEG.SEQ, flags, window field and octets of data of a segment that the deputy makes."""


class DeputyFramer(Framer):
    """Makes the deputy's frames: with the acknowledgement and window of the end that it speaks for.

    ack, window: as on the wire. note: called for each segment with data or FIN.
    """

    __slots__ = ("ack", "note", "window")

    def __init__(self, path: Path, ttl: int, dscp: int, note: Note) -> None:
        super().__init__(path, ttl, dscp)
        self.ack = self.window = 0
        self.note = note

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
        """Return a segment as Framer does. ack and window are not used."""
        if length or flags & FIN:
            self.note(seq, flags, self.window, length)
        ack, window = self.ack, self.window
        return super().frame(
            seq, ack, flags, window, options, length, data, gso_size, urgent, ect, tsval, tsecr
        )


class Deputy(Endpoint):
    """The sending half of an endpoint, which took a connection over at its start.

    Its segments carry the TSval that the end itself sent last, so that there is one timestamp clock, and the
    end can go on by itself whenever nothing is left to deliver.
    """

    __slots__ = ("_speaker", "_speaks")

    def __init__(
        self,
        path: Path,
        speaker: TcpEnd,
        listener: TcpEnd,
        config: Config,
        opened_at: float,
        now: float,
        note: Note,
    ) -> None:
        """speaker: the end whose data is delivered; its variables are followed while the deputy lives.

        opened_at: when its SYN went to the listener.
        """
        assert speaker.iss is not None
        assert listener.iss is not None
        super().__init__(path, b"", opened_at, config, iss=speaker.iss)
        framer = DeputyFramer(path, config.ttl, config.dscp, note)
        self.framer = framer
        self._speaks = framer
        self._speaker = speaker
        # The handshake is the ends' own: the deputy takes part in it as the speaker did, for its state.
        self.connect()
        self.transmit_pieces(opened_at)
        syn = Segment(
            framer.expected, listener.iss, (speaker.iss + 1) & _MASK, SYN | ACK,
            min(listener.rcv_wnd, 0xFFFF), 0, _NOTHING, 0,
            listener.tsval if speaker.timestamps and listener.timestamps else NO_STAMPS,
        )  # fmt: skip
        syn.mss, syn.window_scale = listener.mss, listener.wscale
        syn.sack_permitted = bool(speaker.sack_permitted and listener.sack_permitted)
        self.arrive(syn, now)
        self.transmit_pieces(now)
        self.snd.wnd = self.snd.max_wnd = listener.rcv_wnd

    def readdress(self, *, local_mac: bytes | None = None, remote_mac: bytes | None = None) -> None:
        """Use other Ethernet addresses from now on."""
        super().readdress(local_mac=local_mac, remote_mac=remote_mac)
        was = self._speaks
        self.framer = self._speaks = DeputyFramer(self.path, self.config.ttl, self.config.dscp, was.note)
        self._speaks.ack, self._speaks.window = was.ack, was.window

    def tsval(self, now: float) -> int:
        """Return the end's own timestamp."""
        return self._speaker.tsval

    def listener_sent(
        self,
        ack: int,
        window: int,
        tsval: int | None,
        sack: list[tuple[int, int]] | None,
        now: float,
        length: int = 0,
    ) -> None:
        """Process what a segment of the listener acknowledges. window: as on the wire.

        TSecr is not used: it echoes the speaker's clock, whose unit is unknown. length: octets of data in the
        segment, which tell it from a duplicate acknowledgement.
        """
        if length and ack == self.snd.snd_una and sack is None:
            window_only = window << self.snd.shift
            if window_only == self.snd.wnd:
                return
        segment = Segment(
            self.framer.expected, self.rcv.rcv_nxt, ack, ACK, window, 0, _NOTHING, 0,
            NO_STAMPS if tsval is None else tsval,
        )  # fmt: skip
        segment.sack = sack
        self.arrive(segment, now)

    def deliver(self, ack: int, window: int, now: float) -> list[Pieces]:
        """Return the segments to send now. ack, window: of the end, as on the wire."""
        self._speaks.ack, self._speaks.window = ack, window
        return [
            frame for frame in self.transmit_pieces(now) if len(frame) > 1 or frame[0][self._flags_at] & FIN
        ]

    @property
    def spoken_ack(self) -> int:
        """SEG.ACK of the segments that it makes now."""
        return self._speaks.ack

    @property
    def _flags_at(self) -> int:
        return 10 + 14 + (20 if len(self.path.local) == 4 else 40) + 13

    @property
    def is_idle(self) -> bool:
        """Whether the listener has acknowledged all that was written, a FIN included."""
        return self.snd.una >= self.snd.end

    @property
    def fin_is_acknowledged(self) -> bool:
        """Whether the listener has acknowledged the FIN."""
        return self.snd.fin is not None and self.snd.una > self.snd.fin

    @property
    def room(self) -> int:
        """Octets that write() would accept."""
        return self.snd.room if self.snd.fin is None else 0
