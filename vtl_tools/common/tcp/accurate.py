"""Accurate ECN (RFC 9768): the counters of one connection, and how three flags and an option carry them.

The half that receives data counts what the network marked, and feeds the counts back; the half that sends
data follows the peer's counts.
"""

import struct
from typing import Final, final

NOT_ECT: Final = 0
ECT_1: Final = 1
ECT_0: Final = 2
CE: Final = 3
"""The codepoints of IP's ECN field (RFC 3168 section 5)."""

ACE_SHIFT: Final = 6
"""The three flags AE, CWR and ECE are one number, ACE, from this bit of the header's flags on."""
REFLECTED: Final = (0b010, 0b011, 0b100, 0b110)
"""ACE by the codepoint of the SYN or SYN-ACK that a segment answers (tables 2 and 3)."""

ORDER_0: Final = 172
ORDER_1: Final = 174
"""The kinds of the option (section 3.2.3)."""

_CYCLE: Final = 8
_OCTETS: Final = 1 << 24  # a counter of the option
_HALF: Final = 1 << 23
_CE_OF_DATA: Final = 2
_CE_OF_NO_DATA: Final = 3
"""So many marks draw an acknowledgement (section 3.2.2.5.1)."""
_E0B: Final = 1
_CEB: Final = 2
_E1B: Final = 4
_NONE: Final = b""
_ZERO: Final = bytes(3)
_KIND_SIZE: Final = struct.Struct("!BB")


def _field(octets: int) -> bytes:
    return (octets % _OCTETS).to_bytes(3, "big")


@final
class AccurateECN:
    """The counters of a connection in AccECN mode, and what is known of the path. Octets and packets.

    cep, e0b, e1b, ceb: r.cep, r.e0b, r.e1b and r.ceb of what was received. told_cep, told_ceb, told_e0b,
    told_e1b: s.cep and so on, of what the peer has told. is_server: the peer sent the first SYN. reflects:
    ACE of the next pure acknowledgement, which answers a SYN-ACK; -1: none is due. answered: codepoint of the
    latest SYN or SYN-ACK. heeds: feedback means something (section 3.2.2.4). reads: the option is read.
    mangled: the flags and the option contradict each other. is_read: the flags of the segment at hand are no
    counter, and were read.
    """

    __slots__ = (
        "_changed",
        "_first_cep",
        "_is_due",
        "_last",
        "_unheard",
        "_untold",
        "_usual",
        "answered",
        "ceb",
        "cep",
        "e0b",
        "e1b",
        "heeds",
        "is_read",
        "is_server",
        "mangled",
        "reads",
        "reflects",
        "told_ceb",
        "told_cep",
        "told_e0b",
        "told_e1b",
    )

    def __init__(self, answered: int, *, is_server: bool) -> None:
        self.cep = self.told_cep = self._first_cep = 5
        self.e0b = self.e1b = self.told_e0b = self.told_e1b = 1
        self.ceb = self.told_ceb = 0
        self.is_server = is_server
        self.answered = answered
        self.reflects = -1
        self.heeds = self.reads = True
        self.mangled = self.is_read = False
        self._last = answered  # the codepoint of the latest packet
        self._untold = 0  # marks since an acknowledgement was sent
        self._changed = 0  # the counters of octets that have ever changed
        self._is_due = False  # a counter has changed since an acknowledgement told it
        self._unheard = True  # no feedback has come yet
        self._usual = 0.0  # packets that an acknowledgement is of

    # --- the receiver of data

    def syn_ack_arrived(self, codepoint: int) -> None:
        """Reflect the codepoint of a SYN-ACK, which counts once (section 3.2.2.2)."""
        self.answered = codepoint
        self.reflects = REFLECTED[codepoint]
        if codepoint == CE and self.cep == 5:
            self.cep = 6

    def arrived(self, codepoint: int, packets: int, octets: int, *, unacked: bool) -> bool:
        """Count packets with so many octets of data in all. Return whether to acknowledge at once.

        unacked: data waits to be acknowledged. The rules of section 3.2.2.5.1: at a change to CE, and after
        a number of marks. Pure acknowledgements with marks are acknowledged, too, but not each.
        """
        last, self._last = self._last, codepoint
        if codepoint == NOT_ECT:
            return False
        if octets:
            self._is_due = True
            if codepoint == ECT_0:
                self.e0b += octets
                self._changed |= _E0B
            elif codepoint == ECT_1:
                self.e1b += octets
                self._changed |= _E1B
            else:
                self.ceb += octets
                self._changed |= _CEB
        if codepoint != CE:
            return False
        self.cep += packets
        self._untold += packets
        return (octets > 0 and last != CE) or self._untold >= (_CE_OF_DATA if unacked else _CE_OF_NO_DATA)

    @property
    def is_due(self) -> bool:
        """Whether the next acknowledgement should have the option (section 3.2.3.3)."""
        return self._is_due

    def ace(self, *, pure: bool) -> int:
        """Return the flags of a segment that acknowledges, as a number. pure: without data and SACK."""
        self._untold = 0
        if pure and self.reflects >= 0:
            reflects, self.reflects = self.reflects, -1
            return reflects
        return self.cep % _CYCLE

    def option(self, room: int) -> bytes:
        """Return the option for the next acknowledgement, aligned to 32 bits; empty if there is no room.

        It has the counters that have ever changed, and may have those before them in its order.
        """
        if self._changed & _E1B and self._changed & _E0B:
            kind, size = ORDER_0, 11
        elif self._changed & _E1B:
            kind, size = ORDER_1, 8 if self._changed & _CEB else 5
        else:
            kind, size = ORDER_0, 8 if self._changed & _CEB else 5
        if size + (-size & 3) > room:
            return _NONE
        self._is_due = False
        return self._option(kind, size)

    def first_option(self, room: int) -> bytes:
        """Return the option for the handshake, with all counters if there is room: they are not zero.

        The peer learns that options pass, and that they pass unchanged (section 3.2.3.2).
        """
        if room >= 12:
            return self._option(ORDER_0, 11)
        return self._option(ORDER_0, 2) if room >= 4 else _NONE

    def _option(self, kind: int, size: int) -> bytes:
        first, last = (self.e0b, self.e1b) if kind == ORDER_0 else (self.e1b, self.e0b)
        fields = _field(first) + _field(self.ceb) + _field(last)
        return b"\1" * (-size & 3) + _KIND_SIZE.pack(kind, size) + fields[: size - 2]

    # --- the sender of data

    def third_ack(self, ace: int) -> bool:
        """Process a pure acknowledgement of our SYN-ACK (table 4). Return whether the SYN-ACK was marked."""
        self._unheard = False
        if not ace:
            self.heeds = False
        elif ace == REFLECTED[CE]:
            self.told_cep = self._first_cep = 6
            return True
        return False

    def check_option(self, option: bytes) -> None:
        """Judge the first option of a peer: a counter of zero is not one's own (section 3.2.3.2.4)."""
        if option[:3] == _ZERO or option[6:9] == _ZERO:
            self.reads = False

    def told(self, ace: int, kind: int, option: bytes, octets: int, mss: int) -> int:
        """Process the feedback of an acknowledgement. Return how many more packets were marked.

        octets: what it acknowledges. kind, option: the option and what it holds; 0: none came. The flags
        count to eight, and may have gone round (section 3.2.2.5.2, appendix A.2). The worst is assumed of
        what was acknowledged, unless the option tells that fewer octets were marked, or all acknowledgements
        are of so many packets, as those of a receiver that joins them are (Linux).
        """
        if self._unheard:
            self._unheard = False
            if not ace:
                self.heeds = False
        marked_octets = self._told_octets(kind, option) if kind and self.reads else -1
        more = (ace - self.told_cep) % _CYCLE
        packets = -(-octets // mss)
        if packets:
            self._usual = (7 * self._usual + packets) / 8 if self._usual else float(packets)
        worst = packets - (packets - more) % _CYCLE
        if worst > more and (self._usual < _CYCLE if marked_octets < 0 else 2 * marked_octets >= worst * mss):
            more = worst
        if marked_octets > 0 and not more and packets < _CYCLE and self.told_cep == self._first_cep:
            self.mangled = True  # section 3.2.3.2.5
        self.told_cep += more
        return more if self.heeds else 0

    def _told_octets(self, kind: int, option: bytes) -> int:
        """Follow the peer's counters of octets. Return how many more octets were marked; -1: unknown."""
        size = len(option)
        if size < 3:
            return -1
        first = int.from_bytes(option[:3], "big")
        third = int.from_bytes(option[6:9], "big") if size >= 9 else -1
        e0b, e1b = (first, third) if kind == ORDER_0 else (third, first)
        if e0b >= 0:
            self.told_e0b += _increment(e0b, self.told_e0b)
        if e1b >= 0:
            self.told_e1b += _increment(e1b, self.told_e1b)
        if size < 6:
            return 0  # a counter is left out if it has not changed
        more = _increment(int.from_bytes(option[3:6], "big"), self.told_ceb)
        self.told_ceb += more
        return more


def _increment(field: int, counter: int) -> int:
    """Return by how much a counter grows; 0 for a field of an older acknowledgement, or of a liar."""
    more = (field - counter) % _OCTETS
    return more if more < _HALF else 0
