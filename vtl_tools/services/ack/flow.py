"""One connection whose data is acknowledged here, in one direction or both.

Sequence numbers stay as they are. So a SYN and the data of a direction that is not taken pass as they come,
and an octet that is lost with this process is missed by the receiver for good: no other can take its place. A
FIN is acknowledged by its receiver only.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from vtl_tools.common.model.base import LOCAL, REMOTE, End
from vtl_tools.common.model.segment_kind import SegmentKind
from vtl_tools.common.model.tcp import TcpModel
from vtl_tools.common.model.tcp_arrival import arrive
from vtl_tools.common.packet import derive
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import FIN, RST, SYN, URG
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.tcb import NEVER
from vtl_tools.common.tcp.wire import NO_STAMPS, Pieces, Segment, is_intact, parse
from vtl_tools.services.ack.budget import AckBudget, LossReason, SegmentFate
from vtl_tools.services.ack.rewrite import erase_sack, rewrite, simplify, widen
from vtl_tools.services.ack.wire import Wire

OPENING_S: Final = 120.0
"""Seconds for a handshake."""
CLOSED_S: Final = 5.0
"""Seconds that a connection is kept after both ends closed, for segments that are late."""
RESET_S: Final = 60.0
"""Seconds in which the segments of a connection that was reset are answered by resets."""
_ENDS: Final = (LOCAL, REMOTE)

Frames = list[Pieces]


class AckFlow:
    """One connection. key: addresses and ports of the guest's segments. taken: ends whose data is taken.

    slot: of the register; None before the handshake is complete. is_over: both ends have closed, or it was
    reset: a SYN begins another. lost: why data was lost, and how many octets, until the owner reports it.
    """

    __slots__ = (
        "_held", "_initiator", "_pending", "armed_at", "budget", "config", "expires_at", "heard_at",
        "is_over", "is_reset", "is_widened", "key", "lost", "mtus", "out", "shift", "slot", "taken",
        "touched", "wires",
    )  # fmt: skip

    def __init__(
        self,
        key: bytes,
        pkt: Packet,
        port: int,
        taken: Collection[End],
        config: Config,
        budget: AckBudget,
        mtus: tuple[int, int],
        now: float,
    ) -> None:
        """pkt: the SYN, which is changed for the other link. mtus: of the links.

        Raises ValueError, Malformed.
        """
        self.key, self.taken, self.config, self.budget, self.mtus = key, taken, config, budget, mtus
        self.shift = config.window_scale
        self.is_over = self.is_reset = self.is_widened = self.touched = False
        self.lost: list[tuple[End, LossReason, int]] = []
        self.slot: int | None = None
        self.armed_at = NEVER
        self.heard_at, self.expires_at = now, now + OPENING_S
        self._pending: Wire | None = None
        self._held = 0
        self.out: tuple[Frames, Frames] = ([], [])
        sender = _ENDS[port]
        here = Wire(port, sender, TcpModel.from_packet(pkt, sender), now)
        self._edit_syn(pkt, sender)
        there = Wire(1 - port, sender.other, TcpModel.from_packet(pkt, sender), now)
        here.macs = pkt.eth.dst + pkt.eth.src
        self.wires = (here, there) if port == 0 else (there, here)
        self._initiator = port  # which is open once it has the answer to its SYN

    # --- segments

    def on_segment(self, port: int, frame: memoryview, l4: int, now: float) -> bool:
        """Process an ordinary frame. Return whether it passes on, perhaps changed. Raises Malformed."""
        here, there = self.wires[port], self.wires[1 - port]
        segment = parse(frame)
        if segment is None:
            return True
        self.touched = True
        if not frame[0] & 3 and not is_intact(frame):
            return self._drop(SegmentFate.CHECKSUM)
        if self.is_reset:
            return self._refuse(here, frame)
        if segment.flags & SYN:
            return self._on_syn(here, there, frame, now)
        tx, rx = here.mine, here.theirs
        tsval = segment.tsval if segment.tsval != NO_STAMPS and tx.timestamps else None
        seen = arrive(tx, rx, segment.seq, segment.ack, segment.flags, segment.window, segment.length, tsval)
        if not seen.taken:
            if self.slot is None:
                return True  # half-open connections are the ends' own affair (RFC 9293 section 3.5.1)
            self.budget.drops[seen.text] += 1
            if not segment.flags & RST:
                here.ack_due = True
            return False
        if segment.flags & RST:
            return self._on_reset(here, there, frame, l4)
        self.heard_at = now
        here.sends_by(frame, there)
        if self._pending is here:
            self._open_second(here, there, now)
        if tsval is not None:
            there.stamp(tsval)
        if here.deputy is not None:
            self._acknowledged(here, there, segment, tsval, now)
        return self._pass(here, there, frame, l4, segment, seen)

    def _acknowledged(self, here: Wire, there: Wire, segment: Segment, tsval: int | None, now: float) -> None:
        """Process what a segment of one end acknowledges of the other end's data."""
        deputy = here.deputy
        assert deputy is not None
        before, length = deputy.acknowledged, segment.length + (segment.flags & FIN)
        deputy.listener_sent(segment.ack, segment.window, tsval, segment.sack, now, length)
        self.budget.delivered += deputy.acknowledged - before
        if here.echo_due:
            here.echo_due, there.ack_due = False, True
        self._pump(there, here)

    def _pass(
        self, here: Wire, there: Wire, frame: memoryview, l4: int, segment: Segment, seen: SegmentKind
    ) -> bool:
        """Take a segment, or change it for the other link. Return whether it passes."""
        length, fin = segment.length, segment.flags & FIN
        if here.taker is not None:
            if seen is SegmentKind.KEEP_ALIVE:
                self._on_probe(here, there)
                return False
            if length or fin:
                if here.deputy is None:
                    there.tell_due = True
                self._take(here, there, segment)
                return False
            if here.deputy is not None:
                return False  # it told what it has to tell
            deputy = there.deputy
            assert deputy is not None
            field = min(here.mine.rcv_wnd >> (there.theirs.wscale or 0), 0xFFFF)
            seq = deputy.snd.snd_nxt
            rewrite(frame, l4, seq=seq, window=field)
            there.tell_due = False
            there.passed(segment, seq, segment.ack, field, 0)
            return True
        if there.taker is None or (seen is SegmentKind.ACK and not fin):
            return there.taker is None
        ack, field = there.taker.rcv_nxt, there.window(self._room(there, here))
        rewrite(frame, l4, ack=ack, window=field)
        if segment.sack is not None:
            erase_sack(frame)
        there.ack_due = there.ack_due and there.taker.has_gap
        there.passed(segment, segment.seq, ack, field, length)
        return True

    def _on_probe(self, here: Wire, there: Wire) -> None:
        """Answer a keep-alive or a window probe, or ask the other end first: it may be dead."""
        assert there.deputy is not None
        if here.theirs.rcv_wnd and there.deputy.is_idle:
            there.probe_due = there.echo_due = True
        else:
            here.ack_due = True

    def _take(self, here: Wire, there: Wire, segment: Segment) -> None:
        taker, deputy, budget = here.taker, there.deputy, self.budget
        assert taker is not None
        assert deputy is not None
        here.ack_due = True
        at = taker.position(segment.seq)
        if segment.length:
            if segment.length > budget.left:
                budget.drops[SegmentFate.MEMORY] += 1
                return
            before = taker.nxt
            if not taker.take(at, segment.data):
                budget.drops[SegmentFate.REORDERED] += 1
            taker.own()
            budget.acknowledged += taker.nxt - before
            if segment.flags & URG:
                deputy.snd.up = max(deputy.snd.up, min(at + segment.urgent, taker.nxt))
        if segment.flags & FIN:
            taker.take_fin(at + segment.length)
        self._pump(here, there)
        self._recount()

    def _pump(self, here: Wire, there: Wire) -> None:
        """Hand the data of one end to its deputy at the other, as far as that has room, and then its FIN."""
        taker, deputy = here.taker, there.deputy
        if taker is None or deputy is None or deputy.ended is not None:
            return
        while taker.queue and (room := deputy.room):
            deputy.write(taker.read(room))
        if taker.fin is None:
            return
        if taker.nxt == taker.fin and not taker.readable and deputy.snd.fin is None:
            deputy.close()
        if deputy.fin_is_acknowledged and taker.finish():
            here.ack_due = True

    def _room(self, here: Wire, there: Wire) -> int:
        """Return the octets that an end may send."""
        assert there.deputy is not None
        return min(there.deputy.room, self.budget.left)

    def _drop(self, reason: str) -> bool:
        self.budget.drops[reason] += 1
        return False

    # --- the handshake

    def _on_syn(self, here: Wire, there: Wire, frame: memoryview, now: float) -> bool:
        pkt = Packet.at(frame)
        is_first = here.mine.iss is None
        crossing = is_first and not pkt.is_syn_ack and self.slot is None
        if crossing:  # a simultaneous open
            self.is_over = True
            return not self.is_widened
        if not here.model.follow(pkt, here.end):
            if self.slot is None:
                return True
            here.ack_due = True
            return self._drop(here.model.seen.text if here.model.seen is not None else "")
        if self.slot is not None and self._pending is None and here.taker is not None:
            here.ack_due = True  # the end of the handshake was lost; the other end has all of it
            return False
        self._edit_syn(pkt, here.end)
        there.model.follow(pkt, here.end)
        here.sends_by(frame, there)
        here.address(there.macs)
        if pkt.tcp is not None and (stamps := pkt.tcp.timestamps) is not None:
            there.stamp(stamps[0])  # also of a SYN that is sent again: perhaps no earlier one arrives
        if is_first:
            there.syn_at = now  # also of one that is sent again: the answer may be to the first
        return True

    def _edit_syn(self, pkt: Packet, sender: End) -> None:
        """Change a SYN for the other link.

        The peer, which is far, is offered more than the guest's shift may be able to tell.
        """
        segment = pkt.tcp
        assert segment is not None
        simplify(segment)
        if sender is LOCAL and REMOTE in self.taken:
            self.is_widened |= widen(segment, self.shift)

    @property
    def is_answered(self) -> bool:
        """Whether a SYN-ACK has passed, so that open() is due."""
        known = (end.iss for wire in self.wires for end in (wire.mine, wire.theirs))
        return self.slot is None and all(iss is not None for iss in known)

    def open(self, slot: int, now: float) -> None:
        """Begin to take data. The SYN-ACK has come, and the connection is in the register."""
        self.slot, self.expires_at = slot, NEVER
        first = self.wires[self._initiator]
        self._pending = first
        self._relay(first, self.wires[1 - first.port], now)

    def _open_second(self, here: Wire, there: Wire, now: float) -> None:
        """Begin with the passive end's data: the initiator has acknowledged its SYN."""
        self._pending = None
        self._relay(there, here, now)
        there.ack_due = there.taker is not None  # in place of the last of the handshake, which is taken

    def _relay(self, here: Wire, there: Wire, now: float) -> None:
        """Take the data of the end here, if it is to be taken."""
        if here.end not in self.taken:
            return
        model = there.model
        mss = min(model[here.end].mss or 536, self.mtus[there.port] - (40 if model.ip.version == 4 else 60))
        own = model.ip[here.end]
        there.speak_for_other(
            replace(self.config, mss=mss, timestamps=model.timestamps, sack=bool(model.sack_permitted),
                     ttl=own.ttl, dscp=own.dscp),
            now,
        )  # fmt: skip
        here.take_over(min(self.budget.buffer, max(self.budget.left, 1)))

    # --- the end

    def _on_reset(self, here: Wire, there: Wire, frame: memoryview, l4: int) -> bool:
        """Pass a reset of an end on, with the number that the other end expects."""
        if there.deputy is not None:
            rewrite(frame, l4, seq=there.deputy.snd.snd_nxt)
        if self.slot is not None:
            self._lose(here, there, LossReason.RESET_BY_SENDER)
            self._lose(there, here, LossReason.RESET_BY_RECEIVER)
            self._end()
        self.is_over = True
        return True

    def _lose(self, here: Wire, there: Wire, reason: LossReason) -> None:
        """Count the octets of the end here that were acknowledged to it and not delivered."""
        if here.taker is None or there.deputy is None:
            return
        octets = here.taker.nxt - max(there.deputy.snd.una, 1)
        if octets > 0:
            self.lost.append((here.end, reason, octets))
            self.budget.lost += octets

    def _end(self) -> None:
        """Give up: from now on, segments of both ends are answered by resets."""
        if self.lost:
            self.budget.lost_connections += 1
        self.is_reset = self.is_over = True
        self.expires_at = self.heard_at + RESET_S
        self.release()

    def release(self) -> None:
        """Free the buffers, and account for them."""
        self.budget.retransmits += self.retransmits
        for wire in self.wires:
            wire.deputy = wire.taker = None
        self._recount()

    def _refuse(self, here: Wire, frame: memoryview) -> bool:
        """Answer a segment of a connection that was reset, by the exact number (RFC 9293 3.10.7.1)."""
        answer = derive.rst(Packet.at(frame))
        if answer is not None:
            self.out[here.port].append((bytes(answer),))
        return self._drop(SegmentFate.RESET)

    def abort(self, reason: LossReason, now: float) -> None:
        """Reset both ends."""
        self.heard_at = now
        resets = [wire.resets() for wire in self.wires]
        for here, there in self.wires, self.wires[::-1]:
            self._lose(here, there, reason)
        self._end()
        for wire, frames in zip(self.wires, resets, strict=True):
            self.out[wire.port].extend((bytes(frame),) for frame in frames)

    @property
    def may_leave(self) -> bool:
        """Whether the ends can go on without us: all is delivered, and they know each other's numbers."""
        if self.slot is None or self.is_over:
            return True
        for here, there in self.wires, self.wires[::-1]:
            taker, deputy = here.taker, there.deputy
            if taker is None or deputy is None:
                continue
            if not deputy.is_idle or taker.readable or taker.early.starts:
                return False
        return not self.is_widened

    def path_mtu(self, port: int, seq: int, mtu: int) -> bool:
        """Limit the packets to the end at a port. Return whether the one that was too big is the deputy's.

        seq: of that segment, which must be in flight, or anyone could make the segments small.
        """
        deputy = self.wires[port].deputy
        if deputy is None or not deputy.snd.una <= deputy.snd.position(seq) < deputy.snd.nxt:
            return False
        deputy.path_mtu(mtu)
        self.touched = True
        return True

    @property
    def retransmits(self) -> int:
        """Segments or super-segments that were retransmitted."""
        return sum(wire.deputy.snd.retransmits for wire in self.wires if wire.deputy is not None)

    # --- time, and what is to be sent

    def deadline(self) -> float:
        """Return when wake() is due; NEVER: at no time."""
        due = self.expires_at
        for wire in self.wires:
            if wire.deputy is not None and (at := wire.deputy.deadline()) is not None and at < due:
                due = at
        return due

    def wake(self, now: float) -> bool:
        """Process the timers that are due. Return whether the connection is to be forgotten."""
        if now >= self.expires_at:
            return True
        self.touched = True
        for wire in self.wires:
            if wire.deputy is not None:
                wire.deputy.wake(now)
        return False

    def settle(self, now: float) -> tuple[Frames, Frames]:
        """Return what is to be sent to the guest's link, and to the network's."""
        if any(wire.deputy is not None and wire.deputy.ended is not None for wire in self.wires):
            self.abort(LossReason.NO_ANSWER, now)
        out = self.out
        if not self.is_reset and self.slot is not None:
            for here, there in self.wires, self.wires[::-1]:
                self._speak(here, there, out[here.port], now)
            if not self.is_over and all(wire.model.closed for wire in self.wires):
                self.is_over, self.expires_at = True, now + CLOSED_S
        self.touched, self.out = False, ([], [])
        self._recount()
        return out

    def _speak(self, here: Wire, there: Wire, out: Frames, now: float) -> None:
        """Send to the end here what is due to it."""
        taker, deputy = here.taker, here.deputy
        if taker is None:
            ack = there.theirs.snd_una
            field = min(there.mine.rcv_wnd >> (here.theirs.wscale or 0), 0xFFFF)
        else:
            ack = taker.rcv_nxt
            taker.resize(self._room(here, there))
            if deputy is None and not (here.ack_due or taker.window_opened):
                return
            here.ack_due |= taker.window_opened
            field = taker.window(taker.shift)
        if deputy is not None:
            if frames := deputy.deliver(ack, field, now):
                out.extend(frames)
                here.tell_due = False
                here.ack_due = here.ack_due and taker is not None and taker.has_gap
            if here.probe_due:
                out.append((bytes(here.acknowledge(ack, field, probe=True)),))
        if here.ack_due or here.tell_due:
            out.append((bytes(here.acknowledge(ack, field)),))
        here.ack_due = here.tell_due = here.probe_due = False

    def _recount(self) -> None:
        held = 0
        for wire in self.wires:
            if wire.deputy is not None:
                held += wire.deputy.snd.queue.kept
            if wire.taker is not None:
                held += wire.taker.kept
        self.budget.recount(self._held, held)
        self._held = held
