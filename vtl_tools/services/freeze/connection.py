"""The state of one TCP connection of the VM that is needed to hold it: the highest numbers of both ends.

Segments may be sampled, and the connection may be seen from the middle on. So this is no state model, which
needs every segment: it keeps maxima, which are correct from the first segment that contains them.
"""

from enum import Enum
from typing import Final

from vtl_tools.common.packet.seq import seq_add, seq_between, seq_ge, seq_gt, seq_max
from vtl_tools.common.packet.tcp import ACK, FIN, SYN
from vtl_tools.services.freeze.headers import SegmentHeader
from vtl_tools.services.freeze.peer_evidence import PeerEvidence

VM_FIN: Final = 1
PEER_FIN: Final = 2
FROM_SYN: Final = 4  # followed from its first segment
SPOKE: Final = 8  # the VM itself sent a segment while it was supposed to be away
RAISED: Final = 16  # the peer ignored the zero window: SEG.SEQ is one higher
USER_TIMEOUT: Final = 32  # the peer has sent a user timeout option (RFC 5482)
ACK_LATER: Final = 64  # the held acknowledgement came after the held head
CLOSED: Final = 128  # to be removed
OPENING: Final = 256  # the VM has sent a SYN, and nothing else is known yet
UNHEARD: Final = 512  # peer_ack is the start of the VM's first segment: no segment of the peer was seen

GAP: Final = 1 << 26
"""Maximum octets that may have passed unseen, if segments are sampled."""
SHIFT_MAX: Final = 14  # RFC 7323 section 2.3


PROVEN: Final = ("vm_ack", "vm_tsval", "peer_ack", "peer_window", "peer_tsval")


class OverheardNumbers(Enum):
    """Classification of a peer's segment by its numbers, as the VM would (RFC 9293 section 3.10.7.4)."""

    FORGED = "forged"  # an ACK of data never sent, or long past (RFC 5961 section 5.2)
    UNACCEPTABLE = "unacceptable"  # outside the window, or late: nothing is learned from it
    TAKEN = "taken"


TAKEN: Final = OverheardNumbers.TAKEN  # a third of the time of an Enum look-up


class HeldConnection:
    """One connection. Numbers are as on the wire, and None until a segment has shown them.

    vm_ack: the highest acknowledgement of the VM. vm_nxt: end of the data that it was seen to send.
    vm_window: its last window, as in a segment without SYN. vm_scale: its shift; None: unknown. peer_ack: the
    highest acknowledgement of the peer; peer_nxt, peer_window: likewise. evidence: evidence of the VM's
    numbers, if its segments passed unseen. seen: time of the last segment. epoch: see
    ConnectionTable.set_sampled(). head: the peer's frame with the octet at vm_ack; newest: its latest pure
    ACK. probes: segments answered since the VM went away, the first at `since`. may_at, may_challenge_at: see
    RateLimit.
    """

    __slots__ = (
        "epoch",
        "evidence",
        "flags",
        "head",
        "key",
        "l2",
        "may_at",
        "may_challenge_at",
        "newest",
        "peer_ack",
        "peer_nxt",
        "peer_tsval",
        "peer_window",
        "probes",
        "repeated",
        "seen",
        "since",
        "vm_ack",
        "vm_nxt",
        "vm_scale",
        "vm_tsval",
        "vm_window",
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
        self.evidence: PeerEvidence | None = None
        self.probes = self.repeated = 0
        self.since = self.may_at = self.may_challenge_at = 0.0

    # --- segments of the VM

    def is_new_incarnation(self, segment: SegmentHeader) -> bool:
        """Return whether a SYN of the VM starts a new connection with the same addresses and ports."""
        return self.vm_nxt is not None and self.vm_nxt != seq_add(segment.seq, 1)

    def vm_sent(self, segment: SegmentHeader) -> None:
        """Learn from a segment of the VM."""
        _, seq, ack, flags, window, length, tsval, _, _, _, _ = segment
        if flags & ACK:
            if flags & SYN and self.vm_scale:
                window >>= self.vm_scale
            if self.vm_ack is None or seq_ge(ack, self.vm_ack):
                self.vm_ack, self.vm_window = ack, window
        elif flags & SYN:
            self.vm_window = window >> (self.vm_scale or 0)
        end = seq_add(seq, length)
        if self.peer_ack is None:
            self.peer_ack = seq
            self.flags |= UNHEARD
        if self.vm_nxt is None or seq_gt(end, self.vm_nxt):
            self.vm_nxt = end
        if tsval is not None and (self.vm_tsval is None or seq_gt(tsval, self.vm_tsval)):
            self.vm_tsval = tsval
        if flags & FIN:
            self.flags |= VM_FIN

    # --- segments of the peer

    def peer_sent(self, segment: SegmentHeader, slack: int = 0) -> OverheardNumbers:
        """Learn from a segment of the peer with ACK, if the VM would accept it. Return its classification.

        Segments can be forged. So SEG.ACK must be within the data that the VM was seen to send, and SEG.SEQ
        within the window that it was seen to offer. slack: octets by which the window may have advanced
        unseen.
        """
        _, seq, ack, flags, window, length, tsval, _, _, _, _ = segment
        nxt, una, number = self.vm_nxt, self.peer_ack, self.vm_ack
        if nxt is None or una is None or not seq_between(una, ack, nxt + 1):
            late = nxt is not None and una is not None and seq_between(una - GAP, ack, una)
            return OverheardNumbers.UNACCEPTABLE if late else OverheardNumbers.FORGED
        if number is not None:
            right = number + (self.vm_window << (SHIFT_MAX if self.vm_scale is None else self.vm_scale))
            if not seq_between(number - length - 1, seq, right + slack + 1):
                return OverheardNumbers.UNACCEPTABLE
        self.peer_ack, self.peer_window = ack, window
        if self.flags & UNHEARD:
            self.flags &= ~UNHEARD
        end = (seq + length) & 0xFFFF_FFFF
        if self.peer_nxt is None or seq_gt(end, self.peer_nxt):
            self.peer_nxt = end
        if tsval is not None and (self.peer_tsval is None or seq_gt(tsval, self.peer_tsval)):
            self.peer_tsval = tsval
        if flags & FIN:
            self.flags |= PEER_FIN
        return TAKEN

    def may_be_unseen(self, ack: int) -> bool:
        """Return whether an ACK may cover data that the VM sent unseen: at most GAP after the data seen."""
        if self.vm_nxt is None:
            return True
        una = self._una_heard
        return seq_between((self.vm_nxt if una is None else una) - GAP, ack, self.vm_nxt + GAP)

    # --- proven numbers

    @property
    def is_proven(self) -> bool:
        """Whether the numbers are derived from the peer's retransmissions, and not from the VM's segments."""
        return self.evidence is not None and self.evidence.number is not None

    @property
    def _una_heard(self) -> int | None:
        if self.evidence is None or self.evidence.number is None:
            return self.peer_ack
        return self.evidence.heard["peer_ack"]

    def is_late(self, ack: int) -> bool:
        """Return whether the peer acknowledged more earlier, before the proof."""
        una = self._una_heard
        return una is not None and not self.flags & UNHEARD and not seq_ge(ack, una)

    def prove(self, number: int, segment: SegmentHeader) -> None:
        """Use the numbers of a segment that was repeated often enough, until a segment contradicts them.

        number: the VM's acknowledgement.
        """
        proof = self.evidence
        assert proof is not None
        proof.number = number
        proof.heard = {name: getattr(self, name) for name in PROVEN}
        self.vm_ack, self.peer_ack, self.peer_window = number, segment.ack, segment.window
        self.peer_tsval = segment.tsval
        if segment.tsval is not None and segment.tsecr is not None:
            self.vm_tsval = segment.tsecr if self.vm_tsval is None else seq_max(segment.tsecr, self.vm_tsval)

    def is_proven_by(self, segment: SegmentHeader) -> bool:
        """Return whether a segment has the number that is proven to be the peer's."""
        return self.is_proven and self.peer_ack == segment.ack

    def peer_repeats(self, segment: SegmentHeader) -> None:
        """Learn from a segment that agrees with the proof."""
        self.peer_window = segment.window
        if segment.tsval is not None and (self.peer_tsval is None or seq_gt(segment.tsval, self.peer_tsval)):
            self.peer_tsval = segment.tsval
        if segment.flags & FIN:
            self.flags |= PEER_FIN

    def disprove(self) -> None:
        """Discard the evidence. Restores the numbers from before."""
        if self.evidence is not None and self.is_proven:
            for name, value in self.evidence.heard.items():
                setattr(self, name, value)
        self.evidence = None

    def apply_vm_segment(self, segment: SegmentHeader) -> None:
        """Learn from a segment of the VM, which has precedence over a proof."""
        una, window, tsval = self.peer_ack, self.peer_window, self.peer_tsval
        self.disprove()
        self.vm_sent(segment)
        assert self.vm_nxt is not None
        if una is not None and seq_between(self.vm_nxt - GAP, una, self.vm_nxt + 1) and self.flags & UNHEARD:
            self.peer_ack, self.peer_window, self.peer_tsval = una, window, tsval
            self.flags &= ~UNHEARD

    def catch_up(self, other: "HeldConnection") -> None:
        """Merge newer numbers of the same connection seen here, and note that the VM itself sends."""
        self.disprove()
        if _is_newer(other.vm_ack, self.vm_ack):
            self.vm_ack, self.vm_window = other.vm_ack, other.vm_window
        if not other.flags & UNHEARD and _is_newer(other.peer_ack, self.peer_ack):
            self.peer_ack, self.peer_window = other.peer_ack, other.peer_window
        for name in "vm_nxt", "vm_tsval", "peer_nxt", "peer_tsval":
            if _is_newer(newest := getattr(other, name), getattr(self, name)):
                setattr(self, name, newest)
        self.flags |= other.flags & (VM_FIN | PEER_FIN | USER_TIMEOUT) | SPOKE
        self.seen = other.seen

    # --- state

    @property
    def has_numbers(self) -> bool:
        """Whether enough is known to answer for the VM."""
        if self.vm_ack is None or self.peer_ack is None:
            return False
        return not self.flags & UNHEARD or self.is_proven

    @property
    def is_closed(self) -> bool:
        """Whether both ends have sent their FIN."""
        return self.flags & (VM_FIN | PEER_FIN) == VM_FIN | PEER_FIN

    @property
    def window_octets(self) -> int:
        """The VM's last window in octets; its upper bound if the scale is unknown."""
        shift = SHIFT_MAX if self.vm_scale is None else self.vm_scale
        return self.vm_window << shift

    def in_window(self, seq: int) -> bool:
        """Return whether a number is in the window that the VM would accept, or right after it."""
        assert self.vm_ack is not None
        return seq_between(self.vm_ack, seq, seq_add(self.vm_ack, self.window_octets + 1))

    @property
    def is_waiting(self) -> bool:
        """Whether the peer has sent data or a FIN that the VM must acknowledge before the peer sends more."""
        return self.head is not None

    @property
    def held_octets(self) -> int:
        """Octets of held frames."""
        return len(self.head or b"") + len(self.newest or b"")


def _is_newer(one: int | None, other: int | None) -> bool:
    return one is not None and (other is None or seq_ge(one, other))
