"""The receiving half: RCV.* of RFC 9293, reassembly, SACK blocks, and the window that we offer.

Numbers are *positions*, as in snd.py: octets counted from the IRS, which never wrap.
"""

from typing import TYPE_CHECKING, Final

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.queue import PIECE, Octets
from vtl_tools.common.tcp.reassembly import ReassemblyQueue

if TYPE_CHECKING:  # the compiler's own integers, that no operation has to check for their size
    from mypy_extensions import i64

_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000
_SMALL: Final = 2048
"""Smaller in-order pieces are copied together, so that tiny segments do not take an object each."""
_GATHERED_MAX: Final = 16384
_NOTHING: Final = ReassemblyQueue(0)
"""Of all connections that have received nothing out of order yet, as most never do."""


class Receiver:
    """RCV.* of one connection. nxt: RCV.NXT. edge: right edge of the largest window offered.

    shift: Rcv.Wind.Shift. mss: the largest segment that we take. full: the largest that came: with more than
    that an acknowledgement is due at once. fin: position of the peer's FIN, once it has come, in order or
    not. readable: octets in order. early: octets after a gap. dsack: the first range that the latest segment
    repeated, not reported yet. up: RCV.UP, the end of urgent data.
    """

    __slots__ = (
        "_buffer", "_early_max", "_meant", "_tail", "_told", "_used", "borrowed", "dsack", "early", "edge",
        "fin", "full", "irs", "mss", "nxt", "queue", "readable", "received", "shift", "up",
    )  # fmt: skip

    def __init__(self, config: Config) -> None:
        self._buffer = config.receive_buffer
        self.irs = 0
        self.nxt = 0
        self.edge = 0
        self.up = 0
        self.shift = 0
        self.mss = self.full = 536
        self.fin: int | None = None
        self.queue: list[Octets] = []
        self.borrowed = 0  # pieces at the queue's end that are views of frames
        self.readable = 0
        self.received = 0
        self.dsack: tuple[int, int] | None = None
        self._tail: bytearray | None = None  # the last piece of the queue, if it gathers small ones
        self._used = 0  # octets of the queue's first piece that were read already
        self.early, self._early_max = _NOTHING, config.reassembly_segments
        self._told = 0  # the window in the last header, in octets
        self._meant = 0  # the edge that it would offer if the header's field were wide enough

    def resize(self, octets: int) -> None:
        """Change the size of the buffer.

        Data within the offered window is still accepted (RFC 9293 SHLD-14).
        """
        self._buffer = octets

    def start(self, irs: int) -> None:
        """Start with the peer's SYN, which is at position 0."""
        self.irs, self.nxt, self.edge, self._meant = irs, 1, 1, 1

    def has_offered(self, octets: int) -> None:
        """Record the window of our SYN, which was sent before the peer's."""
        self.edge = self._meant = self.nxt + octets

    # --- numbers

    def position(self, seq: int) -> int:
        """Return the position of a sequence number, the one nearest to RCV.NXT."""
        nxt: i64 = self.nxt
        return nxt + ((seq - self.irs - nxt + _HALF) & _MASK) - _HALF

    @property
    def rcv_nxt(self) -> int:
        """RCV.NXT as on the wire."""
        return (self.irs + self.nxt) & _MASK

    @property
    def wnd(self) -> int:
        """RCV.WND: octets that the peer may still send of the largest window offered."""
        return self.edge - self.nxt

    @property
    def kept(self) -> int:
        """Octets of memory that all of it takes, which is more than there are octets of data."""
        early = self.early
        pieces = len(self.queue) + len(early.starts)
        return self.readable + self._used + early.octets + PIECE * pieces if pieces else 0

    @property
    def has_gap(self) -> bool:
        """Whether data is missing before received data."""
        return bool(self.early.starts) or (self.fin is not None and self.nxt < self.fin)

    @property
    def has_news(self) -> bool:
        """Whether blocks() has something to report."""
        return self.has_gap or self.dsack is not None

    # --- the window

    def window(self, shift: int) -> int:
        """Return the window for a header, and record it as offered. shift: 0 in a SYN.

        The window is the free room. Its edge advances only by an amount that is worth a segment (3.8.6.2.2),
        and never moves back: the part that a shift truncates was offered before, and is still accepted (RFC
        7323 section 2.4).
        """
        nxt, room = self.nxt, self._buffer - self.readable
        edge = nxt + room if room > 0 else nxt
        if edge - self._meant >= self._worth:
            self._meant = edge
        field = self._meant - nxt >> shift if self._meant > nxt else 0
        if field > 0xFFFF:
            field = 0xFFFF
        self._told = field << shift
        if nxt + self._told > self.edge:
            self.edge = nxt + self._told
        return field

    @property
    def window_opened(self) -> bool:
        """Return whether so much was read since the last header that a window update is due."""
        left = self._meant - self.nxt
        gain = self._buffer - self.readable - (left if left > 0 else 0)
        if self._told < 2 * self.mss:
            return gain >= self._worth
        return gain > 0 and gain >= self._buffer // 2

    @property
    def _worth(self) -> int:
        """Return the increase of room that is worth a segment (3.8.6.2.2); no room never is."""
        half = self._buffer // 2
        return self.mss if self.mss < half else half or 1

    # --- the user

    @property
    def urgent(self) -> int:
        """Octets from the next that read() returns up to RCV.UP, received or not."""
        up = self.up if self.fin is None else min(self.up, self.fin)
        return max(0, up - 1 - self.received + self.readable)

    def read(self, octets: int) -> Octets:
        """Return at most so many octets: one piece, as it arrived; empty if there is none."""
        if not self.queue:
            return b""
        piece = self.queue[0]
        if piece is self._tail:
            self._tail = None
        if len(piece) > octets:
            whole = memoryview(piece)
            self.queue[0] = whole[octets:]
            piece = whole[:octets]
            self._used += octets
        else:
            del self.queue[0]
            self._used = 0
        self.readable -= len(piece)
        return piece

    def skip(self, octets: int) -> None:
        """Discard so many octets."""
        queue, done = self.queue, 0
        self.readable -= octets
        if not self.readable:  # all of it, as nearly always
            queue.clear()
            self._tail, self._used = None, 0
            return
        while octets:
            piece = queue[done]
            if piece is self._tail:
                self._tail = None
            if len(piece) > octets:
                queue[done] = memoryview(piece)[octets:]
                self._used += octets
                break
            octets -= len(piece)
            self._used = 0
            done += 1
        del queue[:done]

    def forget(self) -> None:
        """Discard all received data."""
        if self.queue:
            self.queue.clear()
        self.early.clear()
        self.readable = self.borrowed = self._used = 0
        self._tail = None

    def own(self) -> None:
        """Copy borrowed data."""
        borrowed, self.borrowed = self.borrowed, 0
        if not borrowed or not self.queue:
            return
        pieces = [self.queue.pop() for _ in range(min(borrowed, len(self.queue)))]
        if not self.queue:
            self._used = 0
        while pieces:
            self._keep(pieces.pop())

    def _keep(self, data: Octets) -> None:
        if len(data) < _SMALL:
            tail = self._tail
            if tail is not None and len(tail) < _GATHERED_MAX:
                tail += data
                return
            self._tail = gathered = bytearray(data)
            self.queue.append(gathered)
        else:
            self._tail = None
            self.queue.append(data if type(data) is bytearray else bytes(data))  # a bytearray is ours

    # --- segments

    def repeated(self, left: int, right: int) -> None:
        """Record that the latest segment repeats a range: the first contiguous one (RFC 2883 section 4.2)."""
        if self.dsack is None:
            self.dsack = left, right
        elif self.dsack[1] == left:
            self.dsack = self.dsack[0], right

    def take(self, start: int, data: memoryview) -> bool:
        """Accept data whose first octet is at start, trimmed to the new part within the offered window.

        The data is borrowed until own(). Returns False if it is out of order and there are too many such
        pieces.
        """
        end = start + len(data)
        if start < self.nxt:
            self.repeated(start, min(end, self.nxt))
            data = data[self.nxt - start :]
            start = self.nxt
        limit = self.edge if self.fin is None else min(self.edge, self.fin)
        if end > limit:
            data = data[: max(0, limit - start)]
            end = start + len(data)
        if not data:
            return True
        if start > self.nxt:
            kept, again = self._early_queue().add(start, end, data)
            if again is not None:
                self.repeated(*again)
            return kept
        if self.early.starts:
            self._join(start, end, data)
        else:
            self._append(data)
        return True

    def _join(self, start: int, end: int, data: memoryview) -> None:
        """Append data that is next, and the data after it. Of an octet received twice the first is kept."""
        early, nxt = self.early, start
        while (first := early.first(end)) is not None:
            at, piece = first
            if at > nxt:
                self._append(data[nxt - start : at - start])
            nxt = at + len(piece)
            if at < end:
                self.repeated(at, min(nxt, end))
            self._append(piece)
            end = max(end, nxt)
        if nxt < start + len(data):
            self._append(data[nxt - start :])

    def hold(self, data: memoryview) -> None:
        """Keep data that came with the SYN, until release()."""
        if data:
            self._early_queue().add(1, 1 + len(data), data)

    def release(self) -> None:
        """Accept the data that came with the SYN."""
        self._join(self.nxt, self.nxt, memoryview(b""))

    def take_next(self, data: memoryview, octets: int) -> None:
        """Accept data that is next, new, and within the window, while nothing is out of order."""
        self.queue.append(data)
        self.borrowed += 1
        self.nxt += octets
        self.readable += octets
        self.received += octets

    def take_fin(self, position: int) -> None:
        """Record the end of the peer's data. Data after it violates the protocol and is discarded."""
        if self.fin is None and position >= max(self.nxt, self.early.end):
            self.fin = position
        elif self.fin == position:
            self.repeated(position, position + 1)

    def finish(self) -> bool:
        """Advance RCV.NXT over the FIN if all data before it has arrived. Return whether it did."""
        if self.fin is None or self.nxt != self.fin:
            return False
        self.nxt += 1
        return True

    def blocks(self) -> list[tuple[int, int]]:
        """Return SACK blocks as sequence numbers: a duplicate (RFC 2883), then the latest first."""
        runs, fin = self.early.runs(), self.fin
        if fin is not None and self.nxt < fin:  # it has a number, and is kept (RFC 2018 section 3)
            runs = [(left, right + 1 if right == fin else right) for left, right in runs]
            if self.early.end < fin:
                runs.insert(0, (fin, fin + 1))
        if self.dsack is not None:
            runs = [self.dsack, *runs]
            self.dsack = None
        return [((self.irs + left) & _MASK, (self.irs + right) & _MASK) for left, right in runs[:4]]

    def _early_queue(self) -> ReassemblyQueue:
        """Return the connection's own queue of octets after a gap."""
        if self.early is _NOTHING:
            self.early = ReassemblyQueue(self._early_max)
        return self.early

    def _append(self, data: memoryview | bytearray) -> None:
        size = len(data)
        self.nxt += size
        self.readable += size
        self.received += size
        self.queue.append(data)
        self.borrowed += 1
