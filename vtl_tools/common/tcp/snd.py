"""The sending half: SND.* of RFC 9293, the choice of the next segment, loss recovery (RFC 6675, RFC 6582).

Numbers are *positions*: octets counted from the ISS, which never wrap, so they compare as ints do. The SYN
is at 0, data begins at 1. seq() converts a position to 32 bits, and position() converts back.
"""

from typing import Final, NamedTuple

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.congestion.base import Congestion, Sample
from vtl_tools.common.tcp.congestion.choice import CONTROLS
from vtl_tools.common.tcp.queue import Octets, SendQueue
from vtl_tools.common.tcp.sack import DUP_THRESH, Scoreboard

_SEGMENTS_MAX: Final = 128
"""Maximum segments of a super-segment, which a link without offload cuts: a peer may have an MSS of 32."""
_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000


class Piece(NamedTuple):
    """A segment to send: octets from start to end of the queue, and the FIN after them."""

    start: int
    end: int
    fin: bool
    again: bool  # a retransmission


class Sender:
    """SND.* of one connection. una, nxt: SND.UNA and SND.NXT. max: after the highest octet ever sent.

    wnd: SND.WND; max_wnd: its maximum so far. wl1, wl2: SND.WL1 (a position of the receiver) and SND.WL2.
    shift: Snd.Wind.Shift. mss: Eff.snd.MSS. fin: position of our FIN, once the user has closed.
    up: SND.UP, the end of urgent data; nothing is urgent unless it is ahead of una.
    recover: end of the data in flight when recovery began; None outside of recovery. loss: recovery from a
    timeout. dup_acks: in a row, each taken for a received segment if the peer has no SACK.
    """

    __slots__ = (
        "board",
        "cc",
        "config",
        "dup_acks",
        "fin",
        "force",
        "head_is_lost",
        "iss",
        "loss",
        "max",
        "max_wnd",
        "mss",
        "nxt",
        "queue",
        "recover",
        "retransmits",
        "sack",
        "shift",
        "una",
        "up",
        "wl1",
        "wl2",
        "wnd",
    )  # fmt: skip

    def __init__(self, config: Config, iss: int) -> None:
        self.config = config
        self.iss = iss
        self.una = self.nxt = self.max = self.up = 0
        self.wnd = self.max_wnd = self.wl1 = self.wl2 = self.shift = 0
        self.mss = 536
        self.queue = SendQueue()
        self.board = Scoreboard()
        self.cc: Congestion = CONTROLS[config.congestion](self.mss, config.initial_window)
        self.fin: int | None = None
        self.sack = False
        self.recover: int | None = None
        self.loss = False
        self.force = False  # a retransmission is due regardless of cwnd (RFC 6675 section 5, step 4.3)
        self.head_is_lost = False  # the retransmission of the head was lost
        self.dup_acks = 0
        self.retransmits = 0

    # --- numbers

    def seq(self, position: int) -> int:
        """Return the sequence number of a position."""
        return (self.iss + position) & _MASK

    def position(self, seq: int) -> int:
        """Return the position of a sequence number, the one nearest to SND.UNA."""
        return self.una + ((seq - self.iss - self.una + _HALF) & _MASK) - _HALF

    @property
    def snd_una(self) -> int:
        """SND.UNA as on the wire."""
        return (self.iss + self.una) & _MASK

    @property
    def snd_nxt(self) -> int:
        """SND.NXT as on the wire."""
        return (self.iss + self.nxt) & _MASK

    @property
    def flight(self) -> int:
        """Octets sent and not acknowledged: FlightSize of RFC 5681."""
        return self.nxt - self.una

    @property
    def end(self) -> int:
        """The position after all data to send, FIN included."""
        return self.queue.tail if self.fin is None else self.fin + 1

    @property
    def unsent(self) -> int:
        """Octets never sent, the FIN included."""
        return self.end - self.nxt

    @property
    def room(self) -> int:
        """Octets that write() would accept."""
        room = self.config.send_buffer - self.queue.tail + self.queue.head
        return room if room > 0 else 0

    # --- the user

    @property
    def is_urgent(self) -> bool:
        """Whether urgent data is not acknowledged yet."""
        return self.up > self.una

    def write(self, data: Octets) -> int:
        """Queue as many octets as there is room for. Return their number."""
        room = self.room
        if len(data) > room:
            data = memoryview(data)[:room]
        if data:
            self.queue.append(data)
        return len(data)

    def close(self) -> None:
        """Queue a FIN after the written data."""
        self.fin = self.queue.tail

    # --- the next segment

    def start(self, mss: int) -> None:
        """Start with the segment size that the SYNs agreed on."""
        self.mss = mss
        self.cc = CONTROLS[self.config.congestion](mss, self.config.initial_window)

    def pipe(self) -> int:
        """Return the octets in the network (RFC 6675 section 4, SetPipe)."""
        board = self.board
        pipe = self.nxt - self.una
        if board.sacked or self.dup_acks or self.recover is not None:
            pipe -= board.sacked + board.unsacked(
                max(board.high_rxt, self.una), min(board.lost_edge, self.nxt)
            )
            if not self.sack:
                pipe -= self.dup_acks * self.mss
        return pipe if pipe > 0 else 0

    @property
    def lost(self) -> int:
        """Octets considered lost and not retransmitted yet."""
        if self.recover is None:
            return 0
        return self.board.unsacked(max(self.board.high_rxt, self.una), min(self.board.lost_edge, self.nxt))

    @property
    def phase(self) -> str:
        """The sender's phase in Linux's terms: open, disorder, recovery or loss."""
        if self.recover is not None:
            return "loss" if self.loss else "recovery"
        return "disorder" if self.board or self.dup_acks else "open"

    def next(self) -> Piece | None:
        """Return the next segment to send: lost data first, then new data. None: nothing for now."""
        pipe = self.pipe()
        if self.recover is not None and (piece := self._head() or self._lost(pipe)) is not None:
            return piece
        return self._new(pipe)

    def _head(self) -> Piece | None:
        """Return the first segment once more, if its retransmission was lost."""
        if not self.head_is_lost:
            return None
        self.head_is_lost = False
        hole = self.board.hole(self.una, min(self.una + min(self.mss, max(self.wnd, 1)), self.nxt))
        return self._piece(*hole, again=True) if hole else None

    def _lost(self, pipe: int) -> Piece | None:
        """RFC 6675 section 4, NextSeg rule (1)."""
        board = self.board
        hole = board.hole(max(board.high_rxt, self.una), min(board.lost_edge, self.nxt))
        if hole is None:
            self.force = False
            return None
        start, end = hole
        room = self.cc.cwnd - pipe
        if room < self.mss:
            if not self.force:
                return None
            room = self.mss
        self.force = False
        window = self.una + max(self.wnd, 1) - start  # a zero window is probed by an octet
        if window <= 0:
            return None
        size = min(end - start, window, self._whole(room))
        return self._piece(start, start + size, again=True)

    def _new(self, pipe: int) -> Piece | None:
        """Return new data, if window, cwnd, Nagle and silly window avoidance permit."""
        unsent = self.end - self.nxt
        if unsent <= 0:
            return None
        window = self.una + self.wnd - self.nxt
        room = self.cc.cwnd - pipe
        data = self.queue.tail - self.nxt
        if data <= 0:  # a FIN alone needs room in the window, but is not delayed as data
            return self._piece(self.nxt, self.nxt + 1, again=False) if window > 0 else None
        if window <= 0 or room < min(self.mss, data):
            return None
        size = min(data, window, self._whole(room))
        if size < data or not (self.config.no_delay or self.fin is not None or self.up > self.nxt):
            # 3.8.6.2.1: (1) full segments, (2) all data if nothing is in flight, (3) half of the window
            whole = size // self.mss * self.mss
            if size == data:
                if not (self.nxt == self.una or (whole and whole == size)):
                    size = whole  # Nagle: the rest waits for an ACK
            elif size % self.mss:
                size = whole or (size if 2 * size >= self.max_wnd else 0)
            if not size:
                return None
        return self._piece(self.nxt, self.nxt + size, again=False)

    def override(self) -> Piece | None:
        """Return the data that fits, however little (3.8.6.2.1 (4)), or an octet to probe a zero window."""
        if self.recover is not None or self.flight:
            return None
        size = min(self.queue.tail - self.nxt, max(self.wnd, 1), self.mss)
        if size > 0:
            return self._piece(self.nxt, self.nxt + size, again=False)
        return self._piece(self.nxt, self.nxt + 1, again=False) if self.unsent > 0 else None

    def tail(self) -> Piece | None:
        """Return a tail loss probe (RFC 8985 section 7.3): new data, else the last segment again."""
        data_end = self.queue.tail
        size = min(data_end - self.nxt, self.una + self.wnd - self.nxt, self.mss)
        if size > 0:
            return self._piece(self.nxt, self.nxt + size, again=False)
        start = max(self.una, self.nxt - self.mss)
        return self._piece(start, self.nxt, again=True) if start < self.nxt else None

    def _whole(self, octets: int) -> int:
        """Return how much of this room one frame may use: whole segments, and at least one.

        While data is urgent it is one, since a super-segment has one urgent pointer for all.
        """
        most = 0 if self.up > self.una else min(self.config.super_segment, _SEGMENTS_MAX * self.mss)
        whole = (octets if octets < most else most) // self.mss * self.mss
        return whole or self.mss

    @property
    def send_size(self) -> int:
        """Maximum octets of data of one frame."""
        return self._whole(self.config.super_segment)

    def _piece(self, start: int, end: int, *, again: bool) -> Piece:
        """Separate data from the FIN, and include the FIN if it follows directly."""
        fin = self.fin
        if fin is not None and end >= fin and start <= fin:
            if end > fin:
                return Piece(start, fin, True, again)
            if not again or fin < self.nxt:
                takes = fin - self.una < self.wnd
                return Piece(start, end, takes, again)
        return Piece(start, end, False, again)

    def sent(self, piece: Piece) -> None:
        """Record that a piece was sent."""
        end = piece.end + piece.fin
        if piece.again:
            self.retransmits += 1
            self.board.high_rxt = max(self.board.high_rxt, end)
        else:
            self.nxt = end
            if end > self.max:
                self.max = end

    # --- acknowledgements

    def offered(self, window: int, seq: int, ack: int) -> None:
        """Apply a window (3.10.7.4, fifth step). seq, ack: positions of the segment that offers it."""
        # A higher ACK is newer regardless of SEG.SEQ, as in Linux; else SND.UNA would shift the old window.
        if self.wl2 < ack or self.wl1 < seq or (self.wl1 == seq and self.wl2 <= ack):
            if self.wnd == 0 and window and self.recover is None and self.nxt <= self.una + 1:
                self.nxt = self.una  # the peer dropped the probe's octet; send it again at once
            self.wnd = window
            self.max_wnd = max(self.max_wnd, window)
            self.wl1, self.wl2 = seq, ack

    def acked(self, ack: int) -> None:
        """Process SND.UNA < SEG.ACK =< SND.NXT: free the data, and continue recovery (RFC 6582, RFC 6675)."""
        octets, flight = ack - self.una, self.nxt - self.una
        self.una = ack
        if ack > self.nxt:
            self.nxt = ack
        self.queue.drop(ack if ack < self.queue.tail else self.queue.tail)
        board = self.board
        if board.sacked:
            board.advance(ack)
        if self.recover is None:
            self.dup_acks = 0
            self.cc.acked(octets, flight)
        elif ack >= self.recover:
            if self.loss:
                self.cc.acked(octets, flight)
            self.recover, self.loss, self.dup_acks = None, False, 0
        else:
            self.dup_acks = 0 if self.loss else max(0, self.dup_acks - octets // self.mss)
            if self.loss:
                self.cc.acked(octets, flight)
            elif board.high_rxt <= ack:  # a partial acknowledgement: the next segment was also lost
                board.lost_edge = max(board.lost_edge, min(ack + self.mss, self.nxt))
                self.force = True

    def sacked(self, blocks: list[tuple[int, int]]) -> bool:
        """Update the scoreboard from SACK blocks. Return whether they had new ranges."""
        news = False
        for left, right in blocks:
            start, end = self.position(left), self.position(right)
            if self.una <= start < end <= self.nxt:  # below SND.UNA it is a D-SACK (RFC 2883)
                news |= self.board.add(start, end)
        if news:
            self.board.update_lost(self.mss)
        return news

    def duplicated(self) -> None:
        """Count a duplicate ACK, and begin fast recovery after enough of them (RFC 6675 section 5)."""
        self.dup_acks += 1
        if self.recover is not None or self.una >= self.nxt:
            return
        if self.dup_acks >= DUP_THRESH or (self.sack and self.board.lost_edge > self.una):
            self.begin_recovery()

    def reordering_is_over(self) -> None:
        """Mark the data missing below sacked ranges as lost, and begin fast recovery."""
        if self.recover is None and self.board and self.una < self.nxt and self.wnd:
            self.board.lost_edge = max(self.board.lost_edge, self.board.top)
            self.begin_recovery()

    def begin_recovery(self) -> None:
        """Enter fast recovery (RFC 6675 section 5, step (4))."""
        self.cc.lost(self.flight)
        self.recover, self.loss, self.force, self.head_is_lost = self.nxt, False, True, False
        self.board.high_rxt = self.una
        self.board.lost_edge = max(self.board.lost_edge, min(self.una + self.mss, self.nxt))

    def timed_out(self) -> None:
        """Mark all data in flight as lost, except sacked ranges (RFC 6298 (5.4))."""
        if self.board.reneged(self.una):
            self.board.forget()
        self.cc.timed_out(self.pipe() or self.flight, again=self.loss)
        self.recover, self.loss, self.force, self.head_is_lost = self.nxt, True, True, False
        self.dup_acks = 0
        self.board.high_rxt = self.una
        self.board.lost_edge = self.nxt
