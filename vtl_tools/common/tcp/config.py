"""Parameters of an endpoint. Octets and seconds, unless the name says otherwise."""

from dataclasses import dataclass
from typing import Final

from vtl_tools.common.tcp.congestion.choice import CONTROLS

ECN: Final = ("off", "accept", "classic", "accurate")


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # to make these methods would take a millisecond
class Config:
    """Parameters of one connection. The defaults suit a virtual machine that is one link away.

    receive_buffer: octets buffered until they are read, and so the maximum window. reassembly_segments:
    maximum pieces out of order. send_buffer: octets that write() accepts before the peer has acknowledged
    them. notsent_lowat: octets that it accepts beyond what the windows permit to send, or a frame full if
    that is more, for a user that decides late what to send (TCP_NOTSENT_LOWAT); None: any. buffer_max: octets
    up to which tune() enlarges both for the path; None: it does not.

    mtu: largest IP packet of the link. mss: largest segment, which our SYN offers and which we do not exceed;
    None: derived from the MTU. shift: the window scale that our SYN offers, if window_scaling is on; None:
    the least that can express the largest receive buffer. super_segment: octets of data of one frame, which
    the link segments; less than two segments turns it off.

    no_delay: small segments are not delayed (RFC 9293 MUST-17). delayed_ack_s: below 0.5 (MUST-60); 0: every
    segment is acknowledged at once. quick_acks: at most so many acknowledgements are not delayed at the
    start, and after loss or silence: the peer may be in slow start. delayed_fin_ack: a FIN's acknowledgement
    is delayed as well, for a user that is likely to close at once, too. initial_window: segments (RFC 6928).
    fast_open: data may be in the SYN (RFC 7413), if the endpoint is given cookies. Not by default: such data
    may arrive twice, and only the user knows whether that does harm.
    congestion: the algorithm of congestion control, a name in congestion/choice.py. pacing: newreno and cubic
    pace as well; bbr always does. ecn: explicit congestion notification. "accept" (default): the accurate
    (RFC 9768) and the classic one (RFC 3168), if the peer asks for it. "accurate": we ask, too. "classic":
    RFC 3168 alone, we ask, too. "off": none. True is short for "classic", and False for "off".

    rto_min_s: RFC 6298 (2.4) asks for one second; the default is Linux's 0.2. user_timeout_s: seconds that
    sent data may stay unacknowledged (R2 of RFC 9293 3.8.3); None: no limit. user_timeout_option: tell it the
    peer, and adapt it to what the peer tells, within these limits (RFC 5482). syn_timeout_s: the limit for a
    SYN, if it is below the other. keep_alive_s: silence after which the peer is probed (MUST-26 and 28: off
    by default); then keep_alive_probes times, each keep_alive_interval_s. fin_wait_2_s: seconds that a peer
    may be silent after we closed; None: no limit. time_wait_s: two maximum segment lifetimes, for which RFC
    9293 assumes two minutes each (MUST-13).
    """

    receive_buffer: int = 1 << 20
    reassembly_segments: int = 1024
    send_buffer: int = 1 << 20
    notsent_lowat: int | None = None
    buffer_max: int | None = None
    mtu: int = 1500
    mss: int | None = None
    super_segment: int = 65_000
    timestamps: bool = True
    sack: bool = True
    window_scaling: bool = True
    shift: int | None = None
    no_delay: bool = False
    delayed_ack_s: float = 0.04
    quick_acks: int = 16
    delayed_fin_ack: bool = False
    initial_window: int = 10
    fast_open: bool = False
    congestion: str = "newreno"
    pacing: bool = False
    ecn: str | bool = "accept"
    tail_loss_probe: bool = True
    rto_min_s: float = 0.2
    rto_max_s: float = 60.0
    user_timeout_s: float | None = 300.0
    user_timeout_option: bool = False
    user_timeout_min_s: float = 100.0
    user_timeout_max_s: float = 3600.0
    syn_timeout_s: float = 180.0
    keep_alive_s: float | None = None
    keep_alive_interval_s: float = 75.0
    keep_alive_probes: int = 9
    fin_wait_2_s: float | None = None
    time_wait_s: float = 240.0
    ttl: int = 64
    dscp: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.delayed_ack_s < 0.5:
            raise ValueError("delayed_ack_s: must be below 0.5 seconds (RFC 9293 MUST-60)")
        if self.receive_buffer < 1 or self.send_buffer < 1:
            raise ValueError("a buffer must hold at least one octet")
        if self.notsent_lowat is not None and self.notsent_lowat < 1:
            raise ValueError("notsent_lowat: must be above 0")
        if self.mtu < 576:
            raise ValueError("mtu: must be at least 576 octets")
        if self.shift is not None and not 0 <= self.shift <= 14:
            raise ValueError("shift: must be from 0 to 14 (RFC 7323 section 2.3)")
        if self.congestion not in CONTROLS:
            raise ValueError(f"congestion: must be one of {', '.join(CONTROLS)}")
        if isinstance(self.ecn, bool):
            object.__setattr__(self, "ecn", "classic" if self.ecn else "off")
        if self.ecn not in ECN:
            raise ValueError(f"ecn: must be one of {', '.join(ECN)}")
        if not 0 < self.rto_min_s <= self.rto_max_s:
            raise ValueError("rto_min_s: must be above 0, and at most rto_max_s")
        if self.user_timeout_s is not None and self.user_timeout_s <= 0:
            raise ValueError("user_timeout_s: must be above 0")
        if not 0 < self.user_timeout_min_s <= self.user_timeout_max_s:
            raise ValueError("user_timeout_min_s: must be above 0, and at most user_timeout_max_s")

    @property
    def window_scale(self) -> int:
        """The shift that our SYN offers (RFC 7323 section 2.3); 0 if it offers none."""
        if self.window_scaling and self.shift is not None:
            return self.shift
        most = max(self.receive_buffer, self.buffer_max or 0)
        return min(14, max(0, most.bit_length() - 16)) if self.window_scaling else 0
