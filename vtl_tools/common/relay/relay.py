"""The relay: terminates the guest's TCP connections and carries each over a stream.

Paper sections 2.5 and 3.1. The service decides where a stream leads: `dial` returns the connector for a path.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Final

from vtl_tools.common.device.batch import Batch, Pieces
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.addresses import MTU_MIN
from vtl_tools.common.packet import derive
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.common.relay.budget import DEFAULT_LIMITS, RelayBudget, RelayLimits
from vtl_tools.common.relay.connector import Connector, note_bulk
from vtl_tools.common.relay.endings import Endings
from vtl_tools.common.relay.flow import RELAYED, FlowOutcome, RelayFlow
from vtl_tools.common.relay.frame_queue import FrameQueue
from vtl_tools.common.relay.frames import is_broken, newest_acks, path_back, start_of, syn_alone, why_nobodys
from vtl_tools.common.relay.icmp_errors import SegmentError, apply_error, refusal
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.relay.syn_flood import SynFloodGuard
from vtl_tools.common.relay.timers import SOON_S, FlowTimers
from vtl_tools.common.socks import Reason
from vtl_tools.common.stage import Stage
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import LISTEN, SYN_RECEIVED, State
from vtl_tools.common.tcp.tuning import tune
from vtl_tools.common.tcp.wire import Path, Segment, parse

_BULK: Final = 1 << 16
"""Octets under way from which on a guest may acknowledge several times in one batch."""
_READ_AGAIN_MAX: Final = 64
"""Flows with a readable stream that have a turn before frames are read again."""
_READS_MAX: Final = 4
"""Buffers that flows read in a turn: a flow alone fills the caches of the processor once for all of them."""
_FLOWS_SHOWN_MAX: Final = 1000
_EVICTED_MAX: Final = 256
"""Flows that are evicted at once."""
_OPEN: Final = FlowOutcome.OPEN
_PAST: Final = (State.TIME_WAIT, State.CLOSED)


class Relay(Stage):
    """One port, the guest. A service uses it as its stage, or owns one and forwards the calls of a stage.

    dial: returns the connector for a path, or the reason why there is none; raises OSError without
    descriptors. send: puts frames on the guest's link; its own port, if not given. drops: counts frames that
    are dropped. on_drop: gets those frames. on_non_tcp: gets frames that are no TCP segments; they are
    dropped, if it is not given. Frames are borrowed by both. on_end: gets each flow that ends. poller: where
    streams are registered; its own, if not given. has_more: tells whether internal streams wait for settle().
    early_ack: answer a SYN at once, and reset the connection if its stream cannot be opened. syn: the frame
    for which `dial` is called.
    """

    def __init__(
        self,
        dial: Callable[[Path], Connector | Reason],
        secret: bytes,
        *,
        config: Config = RELAYED,
        limits: RelayLimits = DEFAULT_LIMITS,
        send: Callable[[Sequence[Pieces], float], object] | None = None,
        drops: Counter[str] | None = None,
        on_drop: Callable[[memoryview, float], object] | None = None,
        on_non_tcp: Callable[[memoryview, float], object] | None = None,
        on_end: Callable[[RelayFlow, float], object] | None = None,
        poller: Poller | None = None,
        has_more: Callable[[], bool] = lambda: False,
        early_ack: bool = False,
    ) -> None:
        super().__init__(ports=1)
        self.dial, self.config, self.limits, self._secret = dial, config, limits, secret
        self._send = send or partial(self.send, 0)
        if drops is not None:
            self.drops = drops
        self._on_drop, self._on_end, self._has_more = on_drop, on_end, has_more
        self._early_ack, self.syn = early_ack, b""
        self._on_non_tcp = on_non_tcp or (lambda frame, now: self.drop_frame(frame, "not-tcp", now))
        self.poller = poller or Poller()
        self._take_event = self._on_event  # bound once, and not for each flow
        self.sources = [self]
        self.flows: dict[bytes, RelayFlow] = {}
        self.budget = RelayBudget(limits)
        self.timers = FlowTimers(self.flows)
        self._outbox = FrameQueue(self._send)
        self.syn_guard = SynFloodGuard(secret)
        self._scheduled: list[RelayFlow] = []
        self._endings = Endings(self._outbox, self._remove)
        self._in_turn = False
        self._waiting: list[tuple[Segment, memoryview]] = []
        self._readable: dict[bytes, RelayFlow] = {}

    def on_mtu(self, port: int, octets: int) -> None:
        """Send packets that the link carries, on connections that open from now on."""
        self.config = replace(self.config, mtu=max(octets, MTU_MIN))

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the guest's frames."""
        frames = batch.frames()
        if len(frames) > 1 and self.budget.buffered > _BULK:
            frames = newest_acks(frames)
        for frame in frames:
            try:
                segment = parse(frame)
            except Malformed:
                segment = None
            if segment is None:
                self._on_non_tcp(frame, now)
            else:
                self.on_segment(segment, frame, now)

    def on_segment(self, segment: Segment, frame: memoryview, now: float) -> None:
        """Take a segment of the guest, of which the frame is borrowed until settle()."""
        flow = self.flows.get(segment.flow)
        if flow is None:
            self._waiting.append((segment, frame))
            if not segment.flags & SYN:  # what came before may be its SYN
                self.take_waiting(now)
            return
        if segment.flags & SYN and flow.endpoint.state in _PAST:
            self._on_unknown(segment, frame, now)
            return
        if is_broken(segment, frame):
            self.drop_frame(frame, "checksum", now)
            return
        endpoint = flow.endpoint
        if segment.length and self.budget.is_full and flow.buffered and not endpoint.fills_gap(segment):
            self.drop_frame(frame, "memory", now)
            return
        if segment.length or not endpoint.keep_alives:  # an answer to a keep-alive is not the guest's own
            flow.heard_at = now
        endpoint.arrive(segment, now)
        self._schedule(flow)

    def on_error(self, error: SegmentError, now: float) -> bool:
        """Take an ICMP error of the guest, with a right checksum; False: it is about no flow."""
        if (flow := self.flows.get(error.flow)) is None:
            return False
        apply_error(flow.endpoint, error)
        self._schedule(flow)
        return True

    def find(self, key: bytes, now: float) -> RelayFlow | None:
        """Return a flow, also if its SYN waits for settle(); None: there is none."""
        if key not in self.flows:
            self.take_waiting(now)
        return self.flows.get(key)

    def take_waiting(self, now: float) -> None:
        """Take the SYNs that wait for settle(), since whose a segment is may depend on them."""
        waiting, self._waiting = self._waiting, []
        for segment, frame in waiting:
            if segment.flow in self.flows:  # a SYN that came twice
                self.on_segment(segment, frame, now)
            else:
                self._on_unknown(segment, frame, now)

    def _on_unknown(self, segment: Segment, frame: memoryview, now: float) -> None:
        """Take a segment of no flow: a SYN, or a late segment of a connection that has ended.

        A SYN may replace a flow of which only TIME-WAIT is left (RFC 9293 section 3.6.1).
        """
        start = start_of(frame)
        path = path_back(segment.flow, start)
        if self._endings.waits and (segment.flow in self.flows or len(self.flows) >= self.limits.connections):
            self._endings.finish_all(now)
        past = self.flows.get(segment.flow)
        if past is not None and past.is_draining:  # the guest will send its SYN again
            self.drop_frame(frame, "not-drained", now)
        elif (why := why_nobodys(start, path)) is not None:
            self.drop_frame(frame, why, now)
        elif segment.flags & (SYN | ACK | RST | FIN) != SYN:
            if is_broken(segment, frame):
                self.drop_frame(frame, "checksum", now)
                return
            self.drop_frame(frame, "no-connection", now)
            if segment.flags & RST:
                self.syn_guard.on_reset(segment, now)
            elif (answer := derive.rst(Packet.at(frame))) is not None:
                self._send([(bytes(answer),)], now)
        elif len(self.flows) >= self.limits.connections:
            self.drop_frame(frame, "too-many-connections", now)
        elif not self.syn_guard.passes(segment, frame, self.budget, self._send, now):
            self.drop_frame(frame, "half-open", now)
        elif is_broken(segment, frame):
            self.drop_frame(frame, "checksum", now)
        else:
            if past is not None:
                self._remove(past, now)
            self._open(path, segment, syn_alone(frame, start), past, now)

    def _open(self, path: Path, segment: Segment, syn: bytes, past: RelayFlow | None, now: float) -> None:
        self.syn = syn
        endpoint = Endpoint(path, self._secret, now, self.config)
        if past is not None:
            endpoint.follow(past.endpoint)
        endpoint.listen(once=True)
        endpoint.arrive(segment, now)
        try:
            connector = self.dial(path)
        except OSError:  # no descriptor left: the guest will send its SYN again
            self.drop_frame(memoryview(syn), "no-descriptor", now)
            return
        if type(connector) is Reason:  # without its metaclass, which isinstance() asks
            self._refuse(syn, connector, now)
            return
        budget = self.budget
        flow = RelayFlow(segment.flow, endpoint, connector, syn, budget, now)
        self.flows[segment.flow] = flow
        budget.half_open += 1
        try:
            self.poller.add(flow.stream, flow, self._take_event)
        except OSError:  # the kernel's limit for epoll registrations
            self.drop_frame(memoryview(syn), "no-descriptor", now)
            self._remove(flow, now)
            return
        budget.opened += 1
        self.timers.arm_soon(flow, now)
        self._act(flow, flow.connect(0, now), now)
        if self._early_ack and flow.connector is not None:
            endpoint.accept()
            self._schedule(flow)

    def _refuse(self, syn: bytes, reason: Reason, now: float) -> None:
        """Answer a SYN whose target was not reached."""
        self.budget.failed += 1
        answer = refusal(syn, reason)
        if answer is not None:
            self._send([(answer,)], now)

    def drop_frame(self, frame: memoryview, reason: str, now: float) -> None:
        """Count a frame that goes no further, and pass it to on_drop."""
        self.drops[reason] += 1
        if self._on_drop is not None:
            self._on_drop(frame, now)

    # --- flows

    def _on_event(self, flow: RelayFlow, events: int, now: float) -> None:
        """Take events of a flow's stream."""
        outcome = flow.on_event(events, now)
        if outcome is not _OPEN:
            self._act(flow, outcome, now)
        else:
            self._schedule(flow)

    def _act(self, flow: RelayFlow, outcome: FlowOutcome | Reason, now: float) -> None:
        """Do what the outcome of a flow's event requires."""
        if outcome is _OPEN:
            self._schedule(flow)
        elif outcome is FlowOutcome.RETRY_LATER:
            if flow.armed_at > flow.retry_at:
                self.timers.arm(flow, flow.retry_at)
        elif outcome is FlowOutcome.ABORTED:
            self._outbox.transmit(flow.endpoint, now, flow.received_eof)
            self._endings.hurry()  # so that nothing of it is behind a new connection of its ports
            self._remove(flow, now)
        elif type(outcome) is Reason:
            if flow.endpoint.asked:
                self._refuse(flow.syn, outcome, now)
            else:  # its SYN was answered early
                self.budget.failed += 1
                flow.endpoint.abort()
                self._outbox.transmit(flow.endpoint, now)
                self._outbox.flush(now)
            self._remove(flow, now)

    def _schedule(self, flow: RelayFlow) -> None:
        """Have settle() carry a flow's octets."""
        if not flow.scheduled:
            flow.scheduled = True
            self._scheduled.append(flow)

    def _remove(self, flow: RelayFlow, now: float) -> None:
        if flow.has_left:
            return
        del self.flows[flow.key]
        if self._readable:
            self._readable.pop(flow.key, None)
        self.budget.buffered -= flow.buffered
        self.budget.half_open -= flow.half_open
        self.timers.prune()
        flow.release()
        self.poller.close(flow.stream)
        if self._on_end is not None:
            self._on_end(flow, now)

    # --- time

    def fileno(self) -> int:
        """Return a descriptor that is readable when a stream is."""
        return self.poller.fileno()

    def poll(self, now: float) -> bool:
        """Take the events of the streams."""
        self._in_turn = True  # and another follows if something is left to do then
        has_more = bool(self._scheduled or self._readable) or self._endings.waits
        return self.poller.poll(now) or has_more or self._has_more()

    def settle(self, now: float) -> None:
        """Carry what can be carried, and send it; then open the streams of new flows.

        That takes longer than all else, and guest and peers have something to do meanwhile.
        """
        self._carry(now)
        if self._waiting:
            self.take_waiting(now)
            if self._scheduled:
                self._carry(now)

    def _carry(self, now: float) -> None:
        if self._readable:
            for flow in list(islice(self._readable.values(), _READ_AGAIN_MAX)):
                del self._readable[flow.key]
                self._schedule(flow)
        scheduled, budget = self._scheduled, self.budget
        if not scheduled:
            if self._endings.waits:
                self._endings.finish([], False, False, not self._in_turn, now)
            return
        self._scheduled = []
        reads = max(1, _READS_MAX // len(scheduled))
        ending: list[RelayFlow] = []
        up, down, is_due = budget.octets_up, budget.octets_down, not self._in_turn
        for flow in scheduled:
            flow.scheduled = False
            if flow.has_left:
                continue
            endpoint = flow.endpoint
            before = budget.octets_up
            flow.carry(reads)
            is_due |= flow.received_eof and budget.octets_up != before  # its guest sends on: it awaits an ACK
            self._outbox.transmit(endpoint, now, flow.received_eof)
            endpoint.own()
            if flow.may_read and flow.can_read_more:
                self._readable[flow.key] = flow
            state = endpoint.state
            if flow.half_open and state is not SYN_RECEIVED and state is not LISTEN:
                flow.half_open = False
                budget.half_open -= 1
                budget.established += endpoint.ended is None
            budget.buffered += flow.recount()
            if now >= endpoint.tune_at:
                tune(endpoint, now, may_grow=not budget.is_full)
                note_bulk(flow.stream, endpoint.rcv.received)
            if endpoint.ended is not None or flow.owes_eof:
                ending.append(flow)
            if endpoint.paced_at < now + SOON_S and endpoint.paced_at < flow.armed_at:
                self.timers.arm(flow, endpoint.paced_at)
            elif flow.armed_at > now + SOON_S:
                self.timers.arm_soon(flow, now)
        if budget.is_exceeded:
            self._evict(now)
        self._endings.finish(ending, budget.octets_up != up, budget.octets_down != down, is_due, now)

    def _evict(self, now: float) -> None:
        """Reset the flows with the most buffered octets, several at once so that it is worth the sorting."""
        budget, bound = self.budget, self.limits.most * 7 // 8
        for flow in heapq.nlargest(_EVICTED_MAX, self.flows.values(), key=lambda each: each.buffered):
            if budget.buffered <= bound:
                break
            budget.evicted += 1
            flow.endpoint.abort()
            self._act(flow, FlowOutcome.ABORTED, now)

    def deadline(self) -> float | None:
        """Return when the first flow's timer is due."""
        return self.timers.deadline()

    def wake(self, now: float) -> None:
        """Wake flows whose time has come."""
        self._in_turn = False
        for flow in self.timers.expired(now):
            if flow.has_left:  # with one that was woken before
                continue
            self._act(flow, flow.wake(now), now)
            self._schedule(flow)  # so that it gets its next timer

    def on_stop(self, now: float) -> None:
        """Reset all flows, so that the guest knows."""
        for flow in list(self.flows.values()):
            flow.endpoint.abort()
            self._act(flow, FlowOutcome.ABORTED, now)
        self._outbox.flush_all(now)

    def close(self) -> None:
        """Close the streams that are left, and the descriptor."""
        for flow in self.flows.values():
            flow.release()
            self.poller.close(flow.stream)
        self.flows.clear()
        self.poller.end()

    def status(self, now: float) -> dict[str, object]:
        """Return the numbers of connections and octets."""
        stages = Counter(str(flow.stage) for flow in self.flows.values())
        return {"connections": dict(stages), **self.budget.status()}

    def list_flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each flow, of the first thousand."""
        return [flow.status(now) for flow in islice(self.flows.values(), _FLOWS_SHOWN_MAX)]
