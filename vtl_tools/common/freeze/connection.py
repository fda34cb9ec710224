"""One TCP connection of the VM, as far as its peer must be told of it: the highest numbers of both ends.

What is seen may be a sample, and begin in the middle, so this is no state model that wants every segment: it
keeps maxima, which are right from the first segment on that tells of them.
"""

from typing import Final

from vtl_tools.common.freeze.headers import Segment
from vtl_tools.common.freeze.proof import Proof
from vtl_tools.common.packet.seq import seq_add, seq_between, seq_ge, seq_gt, seq_le, seq_max
from vtl_tools.common.packet.tcp import ACK, FIN, SYN

VM_FIN: Final = 1
PEER_FIN: Final = 2
FROM_SYN: Final = 4  # followed from its first segment
SPOKE: Final = 8  # the VM itself was heard while it was to be away
RAISED: Final = 16  # the peer did not believe the shut window: SEG.SEQ is one higher
USER_TIMEOUT: Final = 32  # the peer has told of a user timeout (RFC 5482)
ACK_LATER: Final = 64  # the held acknowledgement came after the held head
CLOSED: Final = 128  # it will be forgotten
HEARD_WHOLE: Final = 256  # the peer's numbers are from segments whose checksum was looked at

GAP: Final = 1 << 26
"""Octets that may have passed unseen, where not all is seen."""
SHIFT_MAX: Final = 14  # RFC 7323 section 2.3


class Connection:
    """Numbers are as on the wire, and None as long as no segment has told them.

    vm_ack: the highest that the VM has acknowledged. vm_nxt: behind all that it was seen to have sent.
    vm_window: its last one, as in a segment without SYN. vm_scale: its shift; None: not heard.
    peer_ack: the highest that the peer has acknowledged; peer_nxt, peer_window: likewise.
    seen: when it was last heard of. epoch: see Table.missed(). head: the peer's frame with the octet at
    vm_ack; newest: its latest pure ACK. probes: segments answered since the VM is away, the first at
    `since`. may_at, may_challenge_at: see Pace.
    """

    __slots__ = (
        "epoch", "flags", "head", "key", "l2", "may_at", "may_challenge_at", "newest", "peer_ack",
        "peer_nxt", "peer_tsval", "peer_window", "probes", "proof", "repeated", "seen", "since",
        "vm_ack", "vm_nxt", "vm_scale", "vm_tsval", "vm_window",
    )  # fmt: skip

    def __init__(self, key: bytes, now: float) -> None:
        self.key = key
        self.l2 = b""
        self.vm_ack: int | None = None
        self.vm_nxt: int | None = None
        self.vm_window = 0
        self.vm_scale: int | None = None
        self.vm_tsval: int | None = None
        self.peer_ack: int | None = None
        self.peer_nxt: int | None = None
        self.peer_window = 0
        self.peer_tsval: int | None = None
        self.flags = 0
        self.epoch = -1
        self.seen = now
        self.head: bytes | None = None
        self.newest: bytes | None = None
        self.proof: Proof | None = None
        self.probes = self.repeated = 0
        self.since = self.may_at = self.may_challenge_at = 0.0

    # --- what the VM sends

    def is_anew(self, segment: Segment) -> bool:
        """Whether a SYN of the VM begins another connection of the same name."""
        return self.vm_nxt is not None and self.vm_nxt != seq_add(segment.seq, 1)

    def vm_sent(self, segment: Segment) -> None:
        """Follow a segment of the VM."""
        _, seq, ack, flags, window, length, tsval, _, _, _, _ = segment
        if flags & ACK:
            if flags & SYN and self.vm_scale:
                window >>= self.vm_scale
            if self.vm_ack is None or seq_ge(ack, self.vm_ack):
                self.vm_ack, self.vm_window = ack, window
        elif flags & SYN:
            self.vm_window = window >> (self.vm_scale or 0)
        end = seq_add(seq, length)
        if self.vm_nxt is None or seq_gt(end, self.vm_nxt):
            self.vm_nxt = end
        if tsval is not None and (self.vm_tsval is None or seq_gt(tsval, self.vm_tsval)):
            self.vm_tsval = tsval
        if flags & FIN:
            self.flags |= VM_FIN

    # --- what the peer sends

    def peer_sent(self, segment: Segment, doubt: bool, whole: bool = False) -> bool:
        """Follow a segment of the peer that has an ACK; tell whether it can be of the connection.

        doubt: whether segments of the VM may have passed unseen. An ACK of what was never sent is somebody
        else's guess (RFC 5961 section 5), and nothing is learned from it. whole: its checksum is right; in
        doubt, the first such one is believed more than all that was only overheard, which may be damaged.
        """
        _, seq, ack, flags, window, length, tsval, tsecr, _, _, _ = segment
        if not self._may_acknowledge(ack, doubt):
            return False
        if whole and doubt and not self.flags & HEARD_WHOLE:
            self.flags |= HEARD_WHOLE
            self.peer_ack = self.peer_nxt = self.peer_tsval = None
        if self.peer_ack is None or seq_ge(ack, self.peer_ack):
            self.peer_ack, self.peer_window = ack, window
        end = seq_add(seq, length)
        if self.peer_nxt is None or seq_gt(end, self.peer_nxt):
            self.peer_nxt = end
        if tsval is not None and tsecr is not None:
            if self.peer_tsval is None or seq_gt(tsval, self.peer_tsval):
                self.peer_tsval = tsval
            if whole and (doubt or self.vm_tsval is None):
                self.vm_tsval = tsecr if self.vm_tsval is None else seq_max(tsecr, self.vm_tsval)
        if flags & FIN:
            self.flags |= PEER_FIN
        return True

    def _may_acknowledge(self, ack: int, doubt: bool) -> bool:
        if self.vm_nxt is not None and seq_le(ack, self.vm_nxt):
            return True
        if not doubt:
            return False
        known = self.vm_nxt if self.vm_nxt is not None else self.peer_ack
        return known is None or seq_le(ack, seq_add(known, GAP))

    def catch_up(self, other: "Connection") -> None:
        """Take over what was heard since, here, of this connection, and that the VM itself speaks."""
        if _is_newer(other.vm_ack, self.vm_ack):
            self.vm_ack, self.vm_window = other.vm_ack, other.vm_window
        if _is_newer(other.peer_ack, self.peer_ack):
            self.peer_ack, self.peer_window = other.peer_ack, other.peer_window
        for name in "vm_nxt", "vm_tsval", "peer_nxt", "peer_tsval":
            if _is_newer(newest := getattr(other, name), getattr(self, name)):
                setattr(self, name, newest)
        self.flags |= other.flags & (VM_FIN | PEER_FIN | USER_TIMEOUT) | SPOKE
        self.seen = other.seen

    # --- what is known

    @property
    def has_numbers(self) -> bool:
        """Whether enough is known to speak for the VM."""
        return self.vm_ack is not None and self.peer_ack is not None

    @property
    def is_closed(self) -> bool:
        """Whether both ends have sent their FIN."""
        return self.flags & (VM_FIN | PEER_FIN) == VM_FIN | PEER_FIN

    @property
    def window_octets(self) -> int:
        """The VM's last window; the largest that it can have been where its scale was not heard."""
        shift = SHIFT_MAX if self.vm_scale is None else self.vm_scale
        return self.vm_window << shift

    def in_window(self, seq: int) -> bool:
        """Whether a number is in what the VM would take next, or just behind."""
        assert self.vm_ack is not None
        return seq_between(self.vm_ack, seq, seq_add(self.vm_ack, self.window_octets + 1))

    @property
    def is_waiting(self) -> bool:
        """Whether the peer has data, or a FIN, that the VM must take before it sends more."""
        return self.head is not None

    @property
    def held_octets(self) -> int:
        """Octets of frames that are held."""
        return len(self.head or b"") + len(self.newest or b"")


def _is_newer(one: int | None, other: int | None) -> bool:
    return one is not None and (other is None or seq_ge(one, other))
