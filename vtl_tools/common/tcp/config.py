"""What the owner of an endpoint may choose. Octets and seconds, unless the name says otherwise."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """One connection's parameters; the defaults suit a virtual machine that is one link away.

    receive_buffer: octets kept until they are read, and so the largest window. reassembly_segments: pieces
    kept out of order. send_buffer: octets that write() takes before the peer has acknowledged them.

    mtu: the largest IP packet of the link. mss: the largest segment, which our SYN offers and which we do not
    exceed; None: what the MTU allows. shift: the window scale that our SYN offers, if window_scaling is on;
    None: the least that can tell of the whole receive buffer.
    super_segment: octets of data that one frame may carry, to be cut by the link; less than two segments
    turns it off.

    no_delay: small segments are not held back (RFC 9293 MUST-17). delayed_ack_s: below 0.5 (MUST-60);
    0: every segment is acknowledged at once. delayed_fin_ack: a FIN's acknowledgement is delayed as well, for
    who will most likely close at once, too. initial_window: segments (RFC 6928).

    rto_min_s: RFC 6298 (2.4) asks for one second, Linux takes 0.2, as we do.
    user_timeout_s: how long what was sent may stay unacknowledged (R2 of RFC 9293 3.8.3); None: for ever.
    syn_timeout_s: the same for a SYN. keep_alive_s: silence after which the peer is asked whether it is
    still there (MUST-26 and 28: not, unless told to); then each keep_alive_interval_s, keep_alive_probes
    times. fin_wait_2_s: how long a peer may be silent after we closed; None: half-closed for as long as it
    likes. time_wait_s: two maximum segment lifetimes, which RFC 9293 takes for two minutes each (MUST-13).
    """

    receive_buffer: int = 1 << 20
    reassembly_segments: int = 1024
    send_buffer: int = 1 << 20
    mtu: int = 1500
    mss: int | None = None
    super_segment: int = 65_000
    timestamps: bool = True
    sack: bool = True
    window_scaling: bool = True
    shift: int | None = None
    no_delay: bool = False
    delayed_ack_s: float = 0.04
    delayed_fin_ack: bool = False
    initial_window: int = 10
    tail_loss_probe: bool = True
    rto_min_s: float = 0.2
    rto_max_s: float = 60.0
    user_timeout_s: float | None = 300.0
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
            raise ValueError("delayed_ack_s: RFC 9293 wants less than 0.5 seconds")
        if self.receive_buffer < 1 or self.send_buffer < 1:
            raise ValueError("a buffer must hold an octet at least")
        if self.mtu < 576:
            raise ValueError("mtu: less than the 576 octets that any host takes")
        if self.shift is not None and not 0 <= self.shift <= 14:
            raise ValueError("shift: from 0 to 14 (RFC 7323 section 2.3)")
        if self.user_timeout_s is not None and self.user_timeout_s <= 0:
            raise ValueError("user_timeout_s: must be above 0")

    @property
    def window_scale(self) -> int:
        """The shift that our SYN offers (RFC 7323 section 2.3); 0 where it offers none."""
        if self.window_scaling and self.shift is not None:
            return self.shift
        return min(14, max(0, self.receive_buffer.bit_length() - 16)) if self.window_scaling else 0
