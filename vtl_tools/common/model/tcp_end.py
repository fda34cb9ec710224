"""The variables of one end of a followed TCP connection, under the RFC's names (RFC 9293 3.3)."""

from typing import Final

from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.tcp_state import State

SHIFT_MAX: Final = 14
"""The maximum window shift (RFC 7323 section 2.3), assumed if the shift is unknown."""


class TcpEnd:
    """One end, as observed on the wire.

    snd_una: acknowledged by the other end, which therefore has all octets before it. snd_nxt: after the last
    octet that this end has sent. snd_wnd: octets that the other end offered last. snd_wl1: SEG.SEQ of the
    segment that offered them. max_snd_wnd: the largest snd_wnd (RFC 5961 section 5.2). rcv_nxt: next octet,
    if this end received all that passed here; it has acknowledged the other end's snd_una, which may be less.
    rcv_wnd: octets that this end offered last, from its acknowledgement on.

    iss: None if its SYN was not seen. fin: after its FIN; None before a FIN. heard: whether a segment of this
    end was seen or made; until then its variables are derived from the other end's packets.

    wscale: the shift of windows that this end sends. None: not offered, in a SYN that is not answered yet;
    or, for a connection joined later, unknown. In that case rcv_wnd and the other's snd_wnd are unshifted,
    and so lower bounds, until TcpModel.learn_scale() sets the shift. mss: the largest segment that this end
    accepts; None: not sent, or unknown. sack_permitted, timestamps: offered in the SYN, agreed once it is
    answered; sack_permitted is None if unknown. tsval: TSval that this end sent last. ts_recent: TS.Recent,
    the value that it echoes (RFC 7323 section 4.3); None: nothing yet.
    """

    __slots__ = (
        "fin", "heard", "iss", "max_snd_wnd", "mss", "port", "rcv_nxt", "rcv_wnd", "sack_permitted",
        "snd_nxt", "snd_una", "snd_wl1", "snd_wnd", "state", "timestamps", "ts_recent", "tsval", "wscale",
    )  # fmt: skip

    def __init__(
        self,
        port: int,
        *,
        state: State = State.CLOSED,
        snd_nxt: int = 0,
        snd_una: int | None = None,
        rcv_nxt: int = 0,
        rcv_wnd: int = 0xFFFF,
        snd_wnd: int = 0,
        wscale: int | None = None,
        mss: int | None = None,
        sack_permitted: bool | None = False,
        timestamps: bool = False,
        tsval: int = 0,
        ts_recent: int | None = None,
    ) -> None:
        self.port = port
        self.state = state
        self.iss: int | None = None
        self.fin: int | None = None
        self.heard = False
        self.snd_nxt = snd_nxt
        self.snd_una = snd_nxt if snd_una is None else snd_una
        self.rcv_nxt = rcv_nxt
        self.rcv_wnd = rcv_wnd
        self.snd_wnd = self.max_snd_wnd = snd_wnd
        self.snd_wl1 = rcv_nxt
        self.wscale = wscale
        self.mss = mss
        self.sack_permitted = sack_permitted
        self.timestamps = timestamps
        self.tsval = tsval
        self.ts_recent = ts_recent

    def __repr__(self) -> str:
        return (
            f"TcpEnd({self.port} {self.state.value} una={self.snd_una} nxt={self.snd_nxt} wnd={self.snd_wnd}"
            f" rcv_nxt={self.rcv_nxt} rcv_wnd={self.rcv_wnd} wscale={self.wscale})"
        )

    @property
    def reach(self) -> int:
        """Octets that the other end may have sent after snd_una: rcv_wnd, or its bound without the shift."""
        return self.rcv_wnd << SHIFT_MAX if self.wscale is None else self.rcv_wnd

    @property
    def is_synchronized(self) -> bool:
        """Whether this end has sent and received a SYN. Stays true after an orderly close."""
        if self.state in (State.CLOSED, State.LISTEN, State.SYN_SENT):
            return self.fin is not None
        return True

    def open(self, segment: TCP) -> tuple[int, int] | None:
        """Start, or restart, with a SYN of this end, with or without ACK (RFC 9293 section 3.5).

        Returns the timestamps of the SYN.
        """
        _, _, seq, _, _, _, window, _, _ = segment.HEADER.unpack_from(segment.buf, segment.off)
        self.iss = self.snd_una = seq
        self.snd_nxt = (seq + segment.seg_len) & 0xFFFF_FFFF
        self.fin = self.ts_recent = None
        self.snd_wnd = self.max_snd_wnd = 0
        self.rcv_wnd = window  # never shifted in a SYN
        self.heard = True
        self.mss, shift, self.sack_permitted, stamps = segment.offered()
        self.wscale = None if shift is None else min(shift, SHIFT_MAX)
        self.timestamps = stamps is not None
        if stamps is not None:
            self.tsval = stamps[0]
        return stamps


def agree(one: TcpEnd, two: TcpEnd) -> None:
    """Apply the options of both SYNs: an option holds only if both offered it (RFC 7323 2.2 and 3.2)."""
    if one.wscale is None or two.wscale is None:
        one.wscale = two.wscale = 0
    one.sack_permitted = two.sack_permitted = bool(one.sack_permitted and two.sack_permitted)
    one.timestamps = two.timestamps = one.timestamps and two.timestamps
