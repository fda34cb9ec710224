"""One TCP connection of the VM, as far as its peer must be told of it: the highest numbers of both ends.

What is seen may be a sample, and begin in the middle, so this is no state model that wants every segment: it
keeps maxima, which are right from the first segment on that tells of them.
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
SPOKE: Final = 8  # the VM itself was heard while it was to be away
RAISED: Final = 16  # the peer did not believe the shut window: SEG.SEQ is one higher
USER_TIMEOUT: Final = 32  # the peer has told of a user timeout (RFC 5482)
ACK_LATER: Final = 64  # the held acknowledgement came after the held head
CLOSED: Final = 128  # it will be forgotten
OPENING: Final = 256  # the VM has sent a SYN, and nothing else is known yet
UNHEARD: Final = 512  # peer_ack is where the first segment of the VM began: the peer itself told nothing yet

GAP: Final = 1 << 26
"""Octets that may have passed unseen, where not all is seen."""
SHIFT_MAX: Final = 14  # RFC 7323 section 2.3


PROVEN: Final = ("vm_ack", "vm_tsval", "peer_ack", "peer_window", "peer_tsval")


class OverheardNumbers(Enum):
    """What a segment of the peer is to the VM (RFC 9293 section 3.10.7.4)."""

    FORGED = "forged"  # it acknowledges what was never sent, or is long past (RFC 5961 section 5.2)
    UNACCEPTABLE = "unacceptable"  # it is not within the window, or late: nothing is learned from it
    TAKEN = "taken"


TAKEN: Final = OverheardNumbers.TAKEN  # a third of the time of looking it up in an Enum


class HeldConnection:
    """Numbers are as on the wire, and None as long as no segment has told them.

    vm_ack: the highest that the VM has acknowledged. vm_nxt: behind all that it was seen to have sent.
    vm_window: its last one, as in a segment without SYN. vm_scale: its shift; None: not heard.
    peer_ack: the highest that the peer has acknowledged; peer_nxt, peer_window: likewise.
    proof: what is proven, or may be, where the VM's segments passed unseen.
    seen: when it was last heard of. epoch: see Table.missed(). head: the peer's frame with the octet at
    vm_ack; newest: its latest pure ACK. probes: segments answered since the VM is away, the first at
    `since`. may_at, may_challenge_at: see RateLimit.
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
        self.proof: PeerEvidence | None = None
        self.probes = self.repeated = 0
        self.since = self.may_at = self.may_challenge_at = 0.0

    # --- what the VM sends

    def is_anew(self, segment: SegmentHeader) -> bool:
        """Whether a SYN of the VM begins another connection of the same name."""
        return self.vm_nxt is not None and self.vm_nxt != seq_add(segment.seq, 1)

    def vm_sent(self, segment: SegmentHeader) -> None:
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
        if self.peer_ack is None:
            self.peer_ack = seq
            self.flags |= UNHEARD
        if self.vm_nxt is None or seq_gt(end, self.vm_nxt):
            self.vm_nxt = end
        if tsval is not None and (self.vm_tsval is None or seq_gt(tsval, self.vm_tsval)):
            self.vm_tsval = tsval
        if flags & FIN:
            self.flags |= VM_FIN

    # --- what the peer sends

    def peer_sent(self, segment: SegmentHeader, slack: int = 0) -> OverheardNumbers:
        """Follow a segment of the peer that has an ACK, if the VM would take it, and tell whether it would.

        Anybody can make up a segment. So SEG.ACK is believed within what the VM was seen to have sent, and
        SEG.SEQ within the window that it was seen to offer. slack: octets by which that may have moved on.
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
        """Whether an ACK may be of what the VM sent unseen: behind what was heard of it, by GAP at most."""
        if self.vm_nxt is None:
            return True
        una = self._una_heard
        return seq_between((self.vm_nxt if una is None else una) - GAP, ack, self.vm_nxt + GAP)

    # --- what is proven

    @property
    def is_proven(self) -> bool:
        """Whether the numbers are what the peer has shown, and not what was heard."""
        return self.proof is not None and self.proof.number is not None

    @property
    def _una_heard(self) -> int | None:
        if self.proof is None or self.proof.number is None:
            return self.peer_ack
        return self.proof.heard["peer_ack"]

    def is_late(self, ack: int) -> bool:
        """Whether the peer was heard to acknowledge more, before anything was to be proven."""
        una = self._una_heard
        return una is not None and not self.flags & UNHEARD and not seq_ge(ack, una)

    def prove(self, number: int, segment: SegmentHeader) -> None:
        """Speak by the numbers of a segment that came again and again, until something contradicts it.

        number: what the VM had acknowledged.
        """
        proof = self.proof
        assert proof is not None
        proof.number = number
        proof.heard = {name: getattr(self, name) for name in PROVEN}
        self.vm_ack, self.peer_ack, self.peer_window = number, segment.ack, segment.window
        self.peer_tsval = segment.tsval
        if segment.tsval is not None and segment.tsecr is not None:
            self.vm_tsval = segment.tsecr if self.vm_tsval is None else seq_max(segment.tsecr, self.vm_tsval)

    def is_proven_by(self, segment: SegmentHeader) -> bool:
        """Whether a segment bears the number that is proven to be the peer's."""
        return self.is_proven and self.peer_ack == segment.ack

    def peer_repeats(self, segment: SegmentHeader) -> None:
        """Follow a segment that is as what was proven."""
        self.peer_window = segment.window
        if segment.tsval is not None and (self.peer_tsval is None or seq_gt(segment.tsval, self.peer_tsval)):
            self.peer_tsval = segment.tsval
        if segment.flags & FIN:
            self.flags |= PEER_FIN

    def disprove(self) -> None:
        """Forget what was proven, or was to be; what was heard before stands again."""
        if self.proof is not None and self.is_proven:
            for name, value in self.proof.heard.items():
                setattr(self, name, value)
        self.proof = None

    def overrule(self, segment: SegmentHeader) -> None:
        """Follow a segment of the VM, whose own word goes before what was proven."""
        una, window, tsval = self.peer_ack, self.peer_window, self.peer_tsval
        self.disprove()
        self.vm_sent(segment)
        assert self.vm_nxt is not None
        if una is not None and seq_between(self.vm_nxt - GAP, una, self.vm_nxt + 1) and self.flags & UNHEARD:
            self.peer_ack, self.peer_window, self.peer_tsval = una, window, tsval
            self.flags &= ~UNHEARD

    def catch_up(self, other: "HeldConnection") -> None:
        """Take over what was heard since, here, of this connection, and that the VM itself speaks."""
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

    # --- what is known

    @property
    def has_numbers(self) -> bool:
        """Whether enough is known to speak for the VM."""
        if self.vm_ack is None or self.peer_ack is None:
            return False
        return not self.flags & UNHEARD or self.is_proven

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
