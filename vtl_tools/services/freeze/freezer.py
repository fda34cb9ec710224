"""Answers for a VM that is away, so that its peers wait. Frames and time go in, frames come out.

Each segment to the VM that needs an answer gets the one that the VM's TCP would send with a zero window
(RFC 9293 section 3.10.7.4). No octet is acknowledged that the VM had not acknowledged itself.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.seq import seq_add, seq_between, seq_ge, seq_le, seq_lt
from vtl_tools.common.packet.tcp import ACK, RST, SYN
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.rate_limit import RateLimit, TokenBucket
from vtl_tools.services.freeze import answers
from vtl_tools.services.freeze.connection import (
    ACK_LATER,
    FROM_SYN,
    GAP,
    RAISED,
    SPOKE,
    TAKEN,
    UNHEARD,
    HeldConnection,
    OverheardNumbers,
)
from vtl_tools.services.freeze.headers import SegmentHeader, ethernet_back, is_intact, parse
from vtl_tools.services.freeze.peer_evidence import PeerEvidence
from vtl_tools.services.freeze.table import ConnectionTable

LATE_S: Final = 0.1
"""Maximum delay of captured frames in seconds; a ring hands them over every few milliseconds."""
QUIET_S: Final = 1.0
"""Seconds of silence after a segment of the VM itself."""
REPEATED: Final = 2
"""Number of answers to the same data, after which its sender is assumed to ignore the window."""
RESETS_MAX: Final = 1024
RESET_OCTETS_MAX: Final = 2048
SLICE: Final = 256
"""Connections thawed per step; frames of others are processed in between."""
FRAME_MAX: Final = vnet.VNET + 14 + 16 + 40 + 0xFFFF
"""Maximum octets of a held frame: a super-segment after four VLAN tags."""

_CONNECTION: Final = RateLimit(10.0, 10)
_CHALLENGES: Final = RateLimit(1.0, 5)
"""Rate limit per connection of answers to impossible segments, whose sender may answer, too (RFC 5961 7)."""
_ALL_PER_S: Final = 50_000.0
_ALL_AT_ONCE: Final = 10_000


class Freezer:
    """One VM, away or not. now: seconds, on a monotonic clock.

    any_mac: every frame is for the VM, as on an interface of its own; else only frames to an Ethernet address
    that the VM is known to have.
    """

    def __init__(self, table: ConnectionTable | None = None, *, any_mac: bool = True) -> None:
        self.table = ConnectionTable() if table is None else table
        self.any_mac = any_mac
        self.frozen = False
        self.frozen_at = 0.0
        self.left = False
        """Whether the VM is on another host, which answers for it."""
        self.quiet_until = 0.0
        self.heard_vm = False
        """Whether the VM sent a frame although it is supposed to be away."""
        self.answered = self.opened = 0
        self.unanswered: Counter[str] = Counter()
        """Number of unanswered segments, by reason."""
        self.resets: list[bytes] = []
        """Resets from peers, held for the VM."""
        self.touched: dict[bytes, HeldConnection] = {}
        """Connections that were answered, or for which frames are held, since the VM went away."""
        self.thawing: list[HeldConnection] = []
        self.to_network: list[bytes] = []
        self.to_vm: list[bytes] = []
        self._all = TokenBucket(_ALL_PER_S, _ALL_AT_ONCE)

    # --- the VM stops and continues

    def start(self, now: float) -> bool:
        """Answer for the VM from now on. False: it is away already."""
        if self.frozen:
            left, self.left = self.left, False
            return left
        self._forget()
        self.frozen, self.frozen_at, self.quiet_until, self.heard_vm = True, now, 0.0, False
        return True

    def hand_over(self, now: float) -> None:
        """Stop answering, as the VM is on another host. Keeps the state, for transfer to that host."""
        self.start(now)
        self.left = True
        self.to_network.clear()

    def stop(self, now: float) -> bool:
        """Stop answering. After thaw(), take() returns the segments that open the windows.

        False: the VM is not away.
        If the VM had moved to another host, the state is outdated and is discarded.
        """
        if not self.frozen:
            return False
        self.frozen = False
        if self.left:
            self.left = False
            self._forget()
            for connection in self.table:
                self.table.remove(connection.key)
            return True
        self.thawing = sorted(self.touched.values(), key=lambda one: one.is_waiting)  # from the end
        self.to_vm += self.resets
        self.to_network.clear()
        self.resets.clear()
        self.touched.clear()
        return True

    def thaw(self) -> bool:
        """Prepare window updates to some peers, and held frames for the VM. Return whether any are left."""
        for _ in range(min(SLICE, len(self.thawing))):
            connection = self.thawing.pop()
            self._thaw(connection)
            self._reset(connection)
        if not self.thawing:
            self.table.forget_strangers()
        return bool(self.thawing)

    def _thaw(self, connection: HeldConnection) -> None:
        # To a peer that got a higher SEG.SEQ, a segment of the VM itself is not newer
        spoke = connection.flags & (SPOKE | RAISED) == SPOKE
        if connection.probes and connection.vm_window and connection.has_numbers and not spoke:
            self.to_network.append(answers.ack(connection, connection.vm_window))
            self.opened += 1
        held = [connection.newest, connection.head]
        if connection.flags & ACK_LATER:  # a newer timestamp first would make the other stale (PAWS)
            held.reverse()
        self.to_vm += [frame for frame in held if frame is not None]

    def _reset(self, connection: HeldConnection) -> None:
        """Reset the state that concerns only the VM's absence."""
        self.table.release(connection)
        connection.disprove()
        connection.probes, connection.repeated = 0, 0
        connection.flags &= ~(SPOKE | RAISED | ACK_LATER)

    def _forget(self) -> None:
        for connection in (*self.thawing, *self.touched.values()):
            self._reset(connection)
        for part in self.thawing, self.touched, self.resets, self.to_network, self.to_vm:
            part.clear()
        self.table.forget_strangers()

    def replace(self, other: "Freezer") -> None:
        """Take over the state of another freezer, except for counters."""
        self._forget()
        self.table, self.frozen, self.frozen_at = other.table, other.frozen, other.frozen_at
        self.left, self.resets, self.touched = other.left, other.resets, other.touched
        self.quiet_until, self.heard_vm = 0.0, False

    def catch_up(self, heard: Iterable[HeldConnection], now: float) -> None:
        """Merge the numbers seen of the VM itself, where those of the imported state are older."""
        table = self.table
        for connection in heard:
            told = table.get(connection.key)
            if told is None:
                table.add(connection, now)
            else:
                table.note_peer(told, now)
                told.catch_up(connection)

    def take(self) -> tuple[list[bytes], list[bytes]]:
        """Return the frames to send to the network, and to the VM."""
        sent = self.to_network, self.to_vm
        self.to_network, self.to_vm = [], []
        return sent

    # --- input

    def overhear(self, frame: Buffer, from_vm: bool, now: float) -> None:
        """Learn from a captured frame, which may be truncated after its TCP header, damaged, or late."""
        if self.frozen and not from_vm and now - self.frozen_at > LATE_S:
            return  # from_peer() gets the whole frame
        try:
            connection = self.table.overhear(frame, from_vm, now)
        except Malformed:
            self.unanswered["malformed"] += 1
            return
        if from_vm and self.thawing and connection is not None:
            connection.flags |= SPOKE

    def from_vm(self, frame: Buffer, now: float) -> None:
        """Process a frame that the VM sends although it is supposed to be away: be silent for a while."""
        if not self.frozen:
            return
        self.quiet_until, self.heard_vm = now + QUIET_S, True
        try:
            known = self.table.get(parse(frame, True).key)
            before = None if known is None else known.vm_ack
            connection = self.table.overhear(frame, True, now)
        except Malformed:  # such as ARP
            return
        if connection is not None:
            connection.flags |= SPOKE
            if connection.vm_ack != before:  # the VM has received the held octets
                self.table.release(connection)
            self._touch(connection)

    def is_quiet(self, now: float) -> bool:
        """Return whether nothing is answered, since the VM is present or sent a frame lately."""
        return not self.frozen or self.left or now < self.quiet_until

    def from_peer(self, frame: Buffer, now: float) -> None:
        """Process a whole frame on its way to the VM."""
        try:
            segment = parse(frame, False)
        except Malformed:
            self._neighbour(frame, now)
            return
        if self.is_quiet(now):
            if not self.frozen:
                self.overhear(frame, False, now)
            return
        if not is_intact(frame, segment):
            self.unanswered["checksum"] += 1
            return
        table = self.table
        connection = table.get(segment.key)
        mac = bytes(frame[vnet.VNET : vnet.VNET + 6])
        own = connection.l2[6:12] if connection is not None and connection.evidence is None else b""
        if mac != own if own else not self._is_vms(mac):
            self.unanswered["foreign"] += 1
            return
        if connection is None:
            if segment.flags & (SYN | RST | ACK) != ACK:
                self.unanswered["unknown"] += 1
                return
            connection = table.add_stranger(segment.key, now)
            if connection is None:
                self.unanswered["crowded"] += 1
                return
        connection.seen = now
        self._arrive(connection, segment, frame, now)

    def _is_vms(self, mac: bytes) -> bool:
        if self.table.macs:
            return mac in self.table.macs
        return self.any_mac and not mac[0] & 1

    def _neighbour(self, frame: Buffer, now: float) -> None:
        if self.is_quiet(now):
            return
        try:
            answer = answers.neighbour_reply(frame, self.table.hosts)
        except Malformed:
            self.unanswered["malformed"] += 1
            return
        if answer is not None and self._all.take(now):
            self.to_network.append(bytes(answer))

    # --- SEGMENT ARRIVES, for a connection with a zero window

    def _arrive(self, connection: HeldConnection, segment: SegmentHeader, frame: Buffer, now: float) -> None:
        flags = segment.flags
        if flags & RST:
            self._reset_arrives(connection, segment, frame, now)
            return
        if flags & SYN:  # RFC 5961 section 4.2
            self._challenge(connection, now)
            return
        if not flags & ACK:
            self.unanswered["no-ack"] += 1
            return
        doubt = self.table.doubts(connection)
        # A proof is made of segments that an attacker can repeat, too.
        proven = connection.evidence is not None and connection.is_proven
        heard = (
            OverheardNumbers.UNACCEPTABLE if proven else connection.peer_sent(segment, GAP if doubt else 0)
        )
        unsure = doubt or proven
        if heard is not TAKEN and not connection.flags & FROM_SYN:
            unsure = unsure or heard is OverheardNumbers.FORGED or connection.flags & UNHEARD != 0
        if heard is TAKEN:  # from a peer that knows both ends' numbers
            connection.l2 = self.table.shared(ethernet_back(frame, segment))
        if unsure and connection.may_be_unseen(segment.ack):
            self._learn(connection, segment, frame, doubt, now)
        elif heard is OverheardNumbers.FORGED:
            self.unanswered["bad-ack"] += 1
            self._challenge(connection, now)
            return
        if connection.vm_ack is None:
            return
        sure = heard is TAKEN or connection.is_proven_by(segment)
        if segment.length:
            self._data_arrives(connection, segment, frame, sure, now)
        elif seq_lt(segment.seq, connection.vm_ack):
            self._answer(connection, now)
        elif doubt or connection.in_window(segment.seq):  # acceptable, and never answered
            if sure and self._keep(connection, frame[: segment.end], head=False):
                self._touch(connection)
        else:
            self._challenge(connection, now)

    def _reset_arrives(
        self, connection: HeldConnection, segment: SegmentHeader, frame: Buffer, now: float
    ) -> None:
        """Process a RST (RFC 5961 section 3.2)."""
        if connection.vm_ack is None:
            self.unanswered["unknown"] += 1
        elif segment.seq == connection.vm_ack:
            self.table.remove(connection.key)
            self.touched.pop(connection.key, None)
            if len(self.resets) < RESETS_MAX and len(frame) <= RESET_OCTETS_MAX:
                self.resets.append(bytes(frame))
        elif connection.in_window(segment.seq):
            self.unanswered["unsure-reset"] += 1
            self._challenge(connection, now)
        else:
            self.unanswered["out-of-window"] += 1

    def _data_arrives(
        self, connection: HeldConnection, segment: SegmentHeader, frame: Buffer, sure: bool, now: float
    ) -> None:
        """Answer data. sure: it is certainly the peer's, and not forged."""
        number = connection.vm_ack
        assert number is not None
        if sure and seq_le(segment.seq, number) and seq_lt(number, seq_add(segment.seq, segment.length)):
            if self._keep(connection, frame[: segment.end], head=True):
                self._touch(connection)
            if connection.probes:
                connection.repeated += 1
            # Linux before 6.6 and the BSDs ignore a window that shrinks to zero in a segment that is no
            # newer than the last one. A higher SEG.SEQ is newer, and acceptable while there is room.
            if connection.repeated >= REPEATED and connection.vm_window and connection.peer_window > 1:
                connection.flags |= RAISED
        self._answer(connection, now)

    def _keep(self, connection: HeldConnection, frame: Buffer, *, head: bool) -> bool:
        if len(frame) <= FRAME_MAX and self.table.hold(connection, frame, head=head):
            return True
        self.unanswered["not-kept"] += 1
        return False

    def _learn(
        self, connection: HeldConnection, segment: SegmentHeader, frame: Buffer, doubt: bool, now: float
    ) -> None:
        """Derive the VM's acknowledgement from the peer's segment, if the VM's own may have passed unseen.

        doubt: whether it may; if not, only SND.NXT of the VM is derived.
        """
        table, proof = self.table, connection.evidence
        floor = connection.vm_ack if proof is None else proof.floor
        if connection.is_late(segment.ack):
            return
        if floor is not None and not seq_between(floor - 1, segment.seq, floor + GAP):
            return
        if proof is None or proof.is_contradicted(segment):
            if connection.head is not None or connection.newest is not None:
                table.release(connection)
            connection.disprove()
            highest = connection.peer_nxt if floor is not None else None
            proof = connection.evidence = PeerEvidence(segment.ack, floor, highest)
            if floor is not None:
                self._touch(connection)
        elif proof.number is not None:
            connection.peer_repeats(segment)
            return
        was_under_way = proof.is_under_way
        number = proof.take(segment, now)
        if proof.is_under_way and not was_under_way:
            table.came_again(connection, now)
        if number is not None and (floor is None or seq_ge(number, floor) if doubt else number == floor):
            if number != connection.vm_ack:
                table.release(connection)
            if not table.proven(connection, now):
                self.unanswered["crowded"] += 1
                return
            connection.prove(number, segment)
            if not table.is_heard(connection):
                connection.l2 = table.shared(ethernet_back(frame, segment))
            self._touch(connection)
        elif not segment.length and not proof.asked and proof.highest == segment.seq != floor:
            self._ask(connection, segment, frame, now)

    def _ask(self, connection: HeldConnection, segment: SegmentHeader, frame: Buffer, now: float) -> None:
        """Probe a peer for its SND.NXT."""
        may_at = _CHALLENGES.take(connection.may_challenge_at, now)
        if may_at is None or not self._all.take(now):
            self.unanswered["paced"] += 1
            return
        assert connection.evidence is not None
        connection.may_challenge_at, connection.evidence.asked = may_at, True
        l2 = connection.l2 or ethernet_back(frame, segment)
        self.to_network.append(answers.probe(connection, segment, l2))

    # --- output

    def _challenge(self, connection: HeldConnection, now: float) -> None:
        may_at = _CHALLENGES.take(connection.may_challenge_at, now)
        if may_at is None:
            self.unanswered["paced"] += 1
        else:
            connection.may_challenge_at = may_at
            self._answer(connection, now)

    def _answer(self, connection: HeldConnection, now: float) -> None:
        if not connection.has_numbers:
            self.unanswered["unknown"] += 1
            return
        may_at = _CONNECTION.take(connection.may_at, now)
        if may_at is None or not self._all.take(now):
            self.unanswered["paced"] += 1
            return
        connection.may_at = may_at
        if not connection.probes:
            connection.since = now
            self._touch(connection)
        connection.probes += 1
        self.answered += 1
        self.to_network.append(answers.ack(connection, 0))

    def _touch(self, connection: HeldConnection) -> None:
        self.touched[connection.key] = connection
        if len(self.touched) > 2 * len(self.table) + RESETS_MAX:  # some were removed from the table since
            get = self.table.get
            self.touched = {key: one for key, one in self.touched.items() if get(key) is one}
