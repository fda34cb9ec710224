"""The sending half: SND.* of RFC 9293, and the choice of the next segment. acks.py takes in acknowledgements.

Numbers are *positions*: octets counted from the ISS, which never wrap, so they compare as ints do. The SYN
is at 0, data begins at 1. seq() converts a position to 32 bits, and position() converts back.
"""

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.congestion.base import Congestion
from vtl_tools.common.tcp.congestion.choice import new_control
from vtl_tools.common.tcp.flight import Flight, Stamp
from vtl_tools.common.tcp.queue import Octets, SendQueue
from vtl_tools.common.tcp.rack import Rack

if TYPE_CHECKING:  # the compiler's own integers, that no operation has to check for their size
    from mypy_extensions import i64

_SEGMENTS_MAX: Final = 128
"""Maximum segments of a super-segment, which a link without offload cuts: a peer may have an MSS of 32."""
REPAIRS_MAX: Final = 512
"""Retransmissions that are remembered. A reduction with more is final: D-SACKs cannot tell of all of them."""
_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000
_NO_RECORDS: Final[list[int]] = []
"""Of all connections whose user has marked none yet, as most never do."""


class Piece:
    """A segment to send: octets from start to end of the queue, and the FIN after them.

    again: it is a retransmission.
    """

    __slots__ = ("again", "end", "fin", "start")

    def __init__(self, start: int, end: int, fin: bool, again: bool) -> None:
        self.start, self.end, self.fin, self.again = start, end, fin, again


class Sender:
    """SND.* of one connection. una, nxt: SND.UNA and SND.NXT. max: after the highest octet ever sent.

    wnd: SND.WND; max_wnd: its maximum so far. wl1, wl2: SND.WL1 (a position of the receiver) and SND.WL2.
    shift: Snd.Wind.Shift. mss: Eff.snd.MSS. fin: position of our FIN, once the user has closed.
    up: SND.UP, the end of urgent data; nothing is urgent unless it is ahead of una.
    runs: the octets in flight. cc: congestion control.

    recover: end of the data in flight when recovery began; None outside of recovery. loss: recovery from a
    timeout, which may prove spurious while frto is set; new_first: new data is due, and until the next ACK
    nothing else, to learn it. recovered: the last recover. dup_acks: in a row, each taken for a received
    segment if the peer has no SACK.
    undo_from: SND.UNA when the window was last reduced; None if that is final. repaired: octets sent again
    since and not known to be duplicates; -1: none. repairs: which, start to end. repaired_ms: when the first
    was. reduced_to: SND.NXT when a congestion mark last reduced the window. single: no frame has more than
    one segment. small: end of the last segment sent that was not full.

    limited: the window has limited us in the last round trip, which ends at used_to; most: octets in flight
    then at most. delivered: octets in all, the last at delivered_at, of data sent at first_at. missing:
    octets lost in all. starved_to: `delivered` up to which rate samples are limited by the user. rate: the
    last sample that is not, or is higher all the same.
    """

    __slots__ = (
        "cc", "config", "cwr_due", "delivered", "delivered_at", "dup_acks", "fin", "first_at",
        "frto", "iss", "limited", "loss", "max", "max_wnd", "missing", "more",
        "most", "mss", "new_first", "nxt", "queue", "rack", "rate", "records", "recover", "recovered",
        "reduced_to", "repaired", "repaired_ms", "repairs", "retransmits", "runs", "sack", "shift", "single",
        "small", "starved_to", "una", "undo_from", "up", "used_to", "wl1", "wl2", "wnd",
    )  # fmt: skip

    def __init__(self, config: Config, iss: int) -> None:
        self.config = config
        self.iss = iss
        self.una = self.nxt = self.max = self.up = 0
        self.wnd = self.max_wnd = self.wl1 = self.wl2 = self.shift = 0
        self.mss = 536
        self.queue = SendQueue()
        self.more = False  # the user announced more data: a part of a segment waits for it
        self.records = _NO_RECORDS  # ends of records: no segment holds data of two
        self.runs = Flight()
        self.rack = Rack()
        self.cc: Congestion = new_control(config.congestion, self.mss, config.initial_window)
        self.fin: int | None = None
        self.sack = self.loss = self.frto = self.new_first = self.cwr_due = False
        self.recover: int | None = None
        self.recovered = self.reduced_to = 0
        self.single = False
        self.small = 0
        self.dup_acks = 0
        self.undo_from: int | None = None
        self.repaired = -1
        self.repaired_ms: int | None = None
        self.repairs: dict[int, int] = {}
        self.retransmits = 0
        self.limited, self.most, self.used_to = False, 0, 0
        self.delivered = self.missing = self.starved_to = 0
        self.delivered_at = self.first_at = self.rate = 0.0

    # --- numbers

    def seq(self, position: int) -> int:
        """Return the sequence number of a position."""
        return (self.iss + position) & _MASK

    def position(self, seq: int) -> int:
        """Return the position of a sequence number, the one nearest to SND.UNA."""
        una: i64 = self.una
        return una + ((seq - self.iss - una + _HALF) & _MASK) - _HALF

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
        queue, config = self.queue, self.config
        room = config.send_buffer - queue.tail + queue.head
        if config.notsent_lowat is not None:
            permitted = max(self.una + min(self.wnd, self.cc.cwnd), self.nxt)
            frame = min(self.send_size, self.max_wnd // 2 // self.mss * self.mss)
            room = min(room, permitted + max(config.notsent_lowat, frame) - queue.tail)
        return room if room > 0 else 0

    # --- the user

    @property
    def is_urgent(self) -> bool:
        """Whether urgent data is not acknowledged yet."""
        return self.up > self.una

    def write(self, data: Octets, *, more: bool = False, eor: bool = False) -> int:
        """Queue as many octets as there is room for. Return their number. See Endpoint.write()."""
        room = self.room
        if len(data) > room:
            data, eor = memoryview(data)[:room], False
        if data:
            self.queue.append(data)
        self.more = more
        if eor and (not self.records or self.records[-1] < self.queue.tail):
            if self.records is _NO_RECORDS:
                self.records = []
            self.records.append(self.queue.tail)
        return len(data)

    def close(self) -> None:
        """Queue a FIN after the written data."""
        self.fin = self.queue.tail
        self.more = False

    # --- the next segment

    def start(self, mss: int) -> None:
        """Start with the segment size that the SYNs agreed on."""
        self.mss = mss
        self.cc.begin(mss)

    def pipe(self) -> int:
        """Return the octets in the network (RFC 6675 section 4, SetPipe)."""
        runs = self.runs
        pipe = self.nxt - self.una - runs.sacked - runs.lost
        if self.dup_acks and not self.sack:
            pipe -= self.dup_acks * self.mss
        return pipe if pipe > 0 else 0

    @property
    def lost(self) -> int:
        """Octets considered lost, retransmitted or not. A tail loss probe counts as a retransmission."""
        return self.runs.lost + self.runs.repaired

    @property
    def phase(self) -> str:
        """The sender's phase in Linux's terms: open, disorder, recovery or loss."""
        if self.recover is not None:
            return "loss" if self.loss else "recovery"
        return "disorder" if self.runs.sacked or self.dup_acks else "open"

    def next(self) -> Piece | None:
        """Return the next segment to send: lost data first, then new data. None: nothing for now."""
        pipe = self.pipe()
        if self.runs.lost:
            if self.new_first:
                piece = self._new(pipe)
                if piece is not None or self.nxt > (self.recover or 0):
                    return piece
                self.new_first = False
            return self._lost(pipe)
        return self._new(pipe)

    def _lost(self, pipe: int) -> Piece | None:
        """Return data considered lost, as far as the windows permit."""
        room = self.cc.cwnd - pipe
        hole = self.runs.first_lost(self._whole(max(room, self.mss)), self.mss)
        if hole is None:
            return None
        start, end = hole
        if self.records:
            end = self.record_end(start, end)
        size = min(end - start, self.una + max(self.wnd, 1) - start)  # a zero window is probed by an octet
        if size <= 0 or room < (self.mss if self.loss else min(size, self.mss)):
            return None  # after a timeout, the window is one segment, however small (RFC 5681 section 3.1)
        return self._piece(start, start + size, again=True)

    def _new(self, pipe: int) -> Piece | None:
        """Return new data, if window, cwnd, Nagle and silly window avoidance permit."""
        unsent = self.end - self.nxt
        if unsent <= 0:
            return None
        window = self.una + self.wnd - self.nxt
        room = self.cc.cwnd - pipe
        data = self.queue.tail - self.nxt
        within = False
        if self.records:
            end = self.record_end(self.nxt, self.queue.tail)
            within, data = end < self.queue.tail, end - self.nxt
        if data <= 0:  # a FIN alone needs room in the window, but is not delayed as data
            return self._piece(self.nxt, self.nxt + 1, again=False) if window > 0 else None
        if window <= 0 or room < min(self.mss, data):
            return None
        size = min(min(data, window), self._whole(room))
        at_once = self.config.no_delay or self.fin is not None or self.up > self.nxt or within
        more = self.more and not within
        if size < data or more or not at_once:
            # 3.8.6.2.1: (1) full segments; (2) all data, if no small segment is in flight (Minshall);
            # (3) half of the window, if nothing is
            whole = size // self.mss * self.mss
            if size == data:
                if more or not (at_once or self.small <= self.una):
                    size = whole  # the rest waits for an ACK (Nagle), or for more
            elif size % self.mss:
                at_once = at_once or self.nxt == self.una
                size = whole or (size if at_once and 2 * size >= self.max_wnd else 0)
            if not size:
                return None
        return self._piece(self.nxt, self.nxt + size, again=False)

    def override(self) -> Piece | None:
        """Return the data that fits, however little (3.8.6.2.1 (4)), or an octet to probe a zero window."""
        if self.recover is not None or self.flight:
            return None
        size = min(self.record_end(self.nxt, self.queue.tail) - self.nxt, max(self.wnd, 1), self.mss)
        if size > 0:
            return self._piece(self.nxt, self.nxt + size, again=False)
        return self._piece(self.nxt, self.nxt + 1, again=False) if self.unsent > 0 else None

    def tail(self) -> Piece | None:
        """Return a tail loss probe (RFC 8985 section 7.3): new data, else the last segment again.

        None: it is behind the window of the peer, which shrank.
        """
        room = self.una + self.wnd - self.nxt
        if room < 0:
            return None
        size = min(self.record_end(self.nxt, self.queue.tail) - self.nxt, self.mss)
        if 0 < size <= room:
            return self._piece(self.nxt, self.nxt + size, again=False)
        start = self.una
        if self.runs.runs:  # a run is whole segments, and as a rule at most one small one at its end
            last = self.runs.runs[-1]
            start = max(start, self.nxt - ((last.end - last.start - 1) % self.mss + 1))
        if at := bisect_left(self.records, min(self.nxt, self.queue.tail)):  # a FIN is in the last record
            start = max(start, self.records[at - 1])
        return self._piece(start, self.nxt, again=True) if start < self.nxt else None

    def record_end(self, position: int, end: int) -> int:
        """Return the end of the record at a position, where one ends behind it; at most end."""
        records = self.records
        if records and records[0] <= self.una:
            del records[: bisect_right(records, self.una)]
        at = bisect_right(records, position)
        return min(records[at], end) if at < len(records) else end

    def _whole(self, octets: int) -> int:
        """Return how much of this room one frame may use: whole segments, and at least one.

        While data is urgent it is one, since a super-segment has one urgent pointer for all.
        """
        most = (
            0
            if self.up > self.una or self.single
            else min(min(self.config.super_segment, _SEGMENTS_MAX * self.mss), self.cc.quantum)
        )
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

    def sent(self, piece: Piece, now: float) -> None:
        """Record that a piece is sent."""
        start, end, again = piece.start, piece.end + piece.fin, piece.again
        cc, stamp = self.cc, None
        if cc.samples or self.recover is not None:
            if cc.samples:
                stamp = self.stamp(end - start, now, again=again)
            cc.sent(now, end - start, self.pipe(), app_limited=self.starved_to > 0)
        if again:
            self.retransmits += 1
            if self.recover is not None:
                self.repaired = max(self.repaired, 0) + end - start
                if len(self.repairs) < REPAIRS_MAX:
                    self.repairs[start] = end
            if self.repaired_ms is None:
                self.repaired_ms = int(now * 1000)
            self.runs.sent_again(start, end, now, stamp)
        else:
            self.runs.sent(start, end, now, stamp, self.rack.tick_s, self.mss)
            self.nxt = end
            if (end - start) % self.mss:
                self.small = end
            if end > self.max:
                self.max = end

    def stamp(self, octets: int, now: float, *, again: bool) -> Stamp:
        """Return the state for a rate sample of octets that are about to be sent."""
        pipe = self.pipe()
        if not pipe:
            self.first_at = self.delivered_at = now
        return Stamp(
            self.delivered, self.delivered_at, self.first_at, pipe + octets, self.missing, self.starved_to > 0
        )

    def used(self) -> None:
        """Note after sending how much of the window is used (Linux: tcp_cwnd_validate)."""
        cc, runs = self.cc, self.runs
        flight = self.pipe() if runs.sacked or runs.lost or self.dup_acks else self.nxt - self.una
        if flight + self.mss > cc.cwnd:
            self.limited, self.most, self.used_to = True, flight, self.nxt
            return
        if self.una >= self.used_to or (flight > self.most and not self.limited):
            self.limited, self.most, self.used_to = False, flight, self.nxt
        if cc.samples and self.nxt >= self.end and not runs.lost:
            self.starved_to = self.delivered + flight or 1

    @property
    def is_limited(self) -> bool:
        """Whether the window may grow: it limited us, or slow start used more than half of it."""
        cc = self.cc
        return self.limited or (cc.cwnd < cc.ssthresh and cc.cwnd < 2 * self.most)

    # --- the window of the peer

    def offered(self, window: int, seq: int, ack: int) -> None:
        """Apply a window (3.10.7.4, fifth step). seq, ack: positions of the segment that offers it."""
        # A higher ACK is newer regardless of SEG.SEQ, as in Linux; else SND.UNA would shift the old window.
        if self.wl2 < ack or self.wl1 < seq or (self.wl1 == seq and self.wl2 <= ack):
            if self.wnd == 0 and window and self.recover is None and self.nxt <= self.una + 1:
                self.nxt = self.small = self.una  # the peer dropped the probe's octet; send it again at once
                self.runs.truncate(self.una)
            self.wnd = window
            self.max_wnd = max(self.max_wnd, window)
            self.wl1, self.wl2 = seq, ack
