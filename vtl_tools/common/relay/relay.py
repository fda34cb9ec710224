"""The relay: impersonates whoever a guest calls by TCP, and carries each connection over a stream.

Paper sections 2.5 and 3.1. Who is called decides nothing here: `dial` says by which call a stream is made.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from vtl_tools.common.device.batch import Batch, Pieces
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import derive, icmp
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.relay.connector import Connector
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.relay.frames import is_broken, path_back, syn_alone
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.relay.syn_flood import SynFloodGuard, SynVerdict
from vtl_tools.common.socks import ANSWER, Reason
from vtl_tools.common.stage import Stage
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State
from vtl_tools.common.tcp.tcb import NEVER
from vtl_tools.common.tcp.wire import Path, Segment, is_intact, parse

_RETRY_S: Final = 0.01
"""How long a proxy that is too busy to be called is left alone."""
_BUFFERS_MAX: Final = 64
_ETHERTYPE: Final = VNET + 12
_IP: Final = (0x08, 0x86)  # the first octets of IPv4's and IPv6's Ethertypes; a tag's is 0x81, 0x88 or 0x91
_JOINED: Final = 2048
"""Octets of data below which a frame is copied together, and sent along with those of other flows."""
_TICK_S: Final = 0.01
"""How late a flow's timer may be: it is looked at when this has passed, not at every frame."""
_PUMPED_MAX: Final = 64
"""Flows with more to bring that have a turn before frames are looked at again."""
_FLOWS_SHOWN_MAX: Final = 1000
_BATCH: Final = 4 << 20
"""Octets that one batch may bring."""
_WOKEN_MAX: Final = 64
"""Flows that have something to do because time has passed, before frames are looked at again."""
_TIMERS_MAX: Final = 1024
"""Timers that are looked at before that; most were put off."""
_RELIEVED_MAX: Final = 256
"""Flows that are reset at once because they hold too much."""
_STALE_MAX: Final = 1024
"""Timers of flows that have ended, or are looked at earlier, beyond one for each flow."""
_OPENING: Final = (State.LISTEN, State.SYN_RECEIVED)
_PAST: Final = (State.TIME_WAIT, State.CLOSED)

SUPER_SEGMENT: Final = 65_455
"""Octets of data that fit a packet of 65,535 with all the options that may come with them."""

RELAYED: Final = Config(
    super_segment=SUPER_SEGMENT, no_delay=True, delayed_fin_ack=True, syn_timeout_s=30.0, time_wait_s=1.0,
    keep_alive_s=300.0, keep_alive_interval_s=30.0, keep_alive_probes=5,
)  # fmt: skip
"""How connections with a guest are set. The guest is one link away, so what is late there is soon known."""


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a guest may cost. Seconds and octets.

    connections: flows at once. half_open: of them, those that are not established yet. open_s: how long a
    call may take. idle_s: silence after which a flow is reset (RFC 5382 wants two hours and four minutes).
    memory: what is taken by what waits for slower sides, of all flows together; beyond it each has what it
    has, and no more. Beyond `most` those that have most are reset, so that the others still have their turn.
    """

    connections: int = 65536
    half_open: int = 8192
    open_s: float = 120.0
    idle_s: float = 7440.0
    memory: int = 128 << 20

    @property
    def most(self) -> int:
        """Octets that are never held for longer than a turn."""
        return 2 * self.memory + _BATCH


class Relay(Stage):
    """One port, the guest. dial: returns the call for a path, or why there is none.

    other: takes frames that are no TCP segments; they are borrowed, as those are that on_loss is shown.
    on_end: told of each flow that ends. has_more: says whether streams within the process have more to do.
    """

    def __init__(
        self,
        dial: Callable[[Path], Connector | Reason],
        secret: bytes,
        *,
        config: Config = RELAYED,
        limits: RelayLimits = RelayLimits(),
    ) -> None:
        super().__init__(ports=1)
        self.dial, self.config, self.limits, self._secret = dial, config, limits, secret
        self.poller = Poller()
        self.sources = [self]
        self.flows: dict[bytes, RelayFlow] = {}
        self.buffers: list[memoryview] = []
        self.other: Callable[[memoryview, float], object] = self._nothing_else
        self.on_loss: Callable[[memoryview, float], object] | None = None
        self.on_end: Callable[[RelayFlow, float], object] | None = None
        self.has_more: Callable[[], bool] = lambda: False
        self.octets_up = self.octets_down = self.held = 0
        self.opened = self.established = self.failed = self.evicted = 0
        self._half_open = 0
        self._outbox: list[Pieces] = []
        self._crowd, self._crowded_at = SynFloodGuard(secret), limits.half_open // 2
        self._touched: list[RelayFlow] = []
        self._more: dict[bytes, RelayFlow] = {}
        self._timers: list[tuple[float, int, RelayFlow]] = []
        self._timer = 0

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the guest's frames."""
        flows, touched, full = self.flows, self._touched, self.is_full
        for frame in batch:
            try:
                segment = parse(frame)
            except Malformed:
                segment = None
            if segment is None:
                self.other(frame, now)
                continue
            flow = flows.get(segment.flow)
            if flow is None or (segment.flags & SYN and flow.endpoint.state in _PAST):
                self._stranger(segment, frame, now)
                continue
            if not frame[0] & 3 and not is_intact(frame):
                self.lose(frame, "checksum", now)
                continue
            endpoint = flow.endpoint
            if full and segment.length and flow.held and not _frees(endpoint, segment):
                self.lose(frame, "memory", now)
                continue
            if segment.length or not endpoint.keep_alives:  # else it answers us, and says nothing of its own
                flow.heard_at = now
            endpoint.arrive(segment, now)
            if not flow.touched:
                flow.touched = True
                touched.append(flow)

    def _stranger(self, segment: Segment, frame: memoryview, now: float) -> None:
        """A segment of no flow: a call, or what is left of a connection that ended.

        Where only TIME-WAIT is left of a flow, a call may take its place (RFC 9293 section 3.6.1).
        """
        path = path_back(segment.flow, frame)
        past = self.flows.get(segment.flow)
        if past is not None and past.is_draining:  # the guest will ask again
            self.lose(frame, "not-drained", now)
        elif frame[_ETHERTYPE] not in _IP:
            self.lose(frame, "vlan", now)
        elif path.local_mac[0] & 1 or not (is_single_host(path.local) and is_single_host(path.remote)):
            self.lose(frame, "not-unicast", now)
        elif segment.flags & (SYN | ACK | RST | FIN) != SYN:
            if is_broken(frame):
                self.lose(frame, "checksum", now)
                return
            self.lose(frame, "no-connection", now)
            if segment.flags & RST:
                self._crowd.on_reset(segment, now)
            elif (answer := derive.rst(Packet.at(frame))) is not None:
                self.send(0, [(bytes(answer),)], now)
        elif len(self.flows) >= self.limits.connections:
            self.lose(frame, "too-many-connections", now)
        elif self._half_open >= self._crowded_at and self._is_crowd(segment, frame, now):
            self.lose(frame, "half-open", now)
        elif is_broken(frame):
            self.lose(frame, "checksum", now)
        else:
            if past is not None:
                self._remove(past, now)
            self._open(path, segment, syn_alone(frame), now)

    def _is_crowd(self, segment: Segment, frame: memoryview, now: float) -> bool:
        """Whether a SYN is passed over, as one of a flood, and perhaps asked for a proof that it is not."""
        verdict = self._crowd.judge(segment.flow, now, half_open=self._half_open, most=self.limits.half_open)
        if verdict is SynVerdict.PROVE and (challenge := self._crowd.challenge(frame, segment)) is not None:
            self.send(0, [(challenge,)], now)
        return verdict is not SynVerdict.PASS

    def _open(self, path: Path, segment: Segment, syn: bytes, now: float) -> None:
        endpoint = Endpoint(path, self._secret, now, self.config)
        endpoint.listen()
        endpoint.arrive(segment, now)
        try:
            call = self.dial(path)
        except OSError:  # no descriptor left: the guest will ask again
            self.lose(memoryview(syn), "no-descriptor", now)
            return
        if isinstance(call, Reason):
            self._tell(syn, call, now)
            return
        flow = RelayFlow(self, segment.flow, endpoint, call, syn, now)
        self.flows[segment.flow] = flow
        self._half_open += 1
        try:
            self.poller.add(flow.stream, flow)
        except OSError:  # the kernel's limit for what epoll watches
            self.lose(memoryview(syn), "no-descriptor", now)
            self._remove(flow, now)
            return
        self.opened += 1
        self._arm(flow, flow.deadline())
        flow.step(0, now)

    def _tell(self, syn: bytes, reason: Reason, now: float) -> None:
        """Tell a caller that nothing came of it: by a reset if it was the other side that said no."""
        self.failed += 1
        pkt = Packet.at(bytearray(syn))
        unreachable = ANSWER[reason]
        if unreachable is None:
            answer = derive.rst(pkt)
        else:
            assert pkt.ip is not None
            if len(pkt.ip.dst) == 4:
                kind, code = icmp.UNREACHABLE, unreachable.v4
            else:
                kind, code = icmp.V6_UNREACHABLE, unreachable.v6
            answer = derive.icmp_error(pkt, kind, code, src=pkt.ip.dst)
        if answer is not None:
            self.send(0, [(bytes(answer),)], now)

    def _nothing_else(self, frame: memoryview, now: float) -> None:
        self.lose(frame, "not-tcp", now)

    def lose(self, frame: memoryview, reason: str, now: float) -> None:
        """Count a frame that goes no further, and show it to who wants to keep it."""
        self.drops[reason] += 1
        if self.on_loss is not None:
            self.on_loss(frame, now)

    # --- what flows ask for

    @property
    def is_full(self) -> bool:
        """Whether as much is held as may be."""
        return self.held > self.limits.memory

    def touch(self, flow: RelayFlow) -> None:
        """Have flow pumped when the relay settles."""
        if not flow.touched:
            flow.touched = True
            self._touched.append(flow)

    def transmit(self, flow: RelayFlow, now: float) -> None:
        """Send what a flow's endpoint has for the guest."""
        for pieces in flow.endpoint.transmit_pieces(now):
            if len(pieces) == 1:
                self._outbox.append(pieces)
            elif len(pieces) == 2 and len(pieces[1]) < _JOINED:
                self._outbox.append((b"".join(pieces),))
            else:
                self._post(now)
                self.send(0, (pieces,), now)

    def _post(self, now: float) -> None:
        """Send what was gathered, with one system call for many flows."""
        if self._outbox:
            self.send(0, self._outbox, now)
            self._outbox = []

    def again(self, flow: RelayFlow, now: float) -> None:
        """Have a flow's call tried again in a while."""
        flow.retry_at = now + _RETRY_S
        if flow.armed_at > flow.retry_at:
            self._arm(flow, flow.retry_at)

    def refused(self, flow: RelayFlow, reason: Reason, now: float) -> None:
        """Tell the guest that a call came to nothing, and forget it."""
        self._tell(flow.syn, reason, now)
        self._remove(flow, now)

    def give_up(self, flow: RelayFlow, now: float) -> None:
        """Reset a flow at both ends."""
        flow.endpoint.abort()
        self.transmit(flow, now)
        self._remove(flow, now)

    # --- time

    def fileno(self) -> int:
        """Return a descriptor that is readable when a stream is."""
        return self.poller.fileno()

    def poll(self, now: float) -> bool:
        """Take what the streams have to say."""
        return self.poller.poll(now) or bool(self._more) or self.has_more()

    def settle(self, now: float) -> None:
        """Move what can be moved."""
        touched = self._touched
        if more := self._more:
            for flow in list(islice(more.values(), _PUMPED_MAX)):
                del more[flow.key]
                self.touch(flow)
        if not touched:
            return
        self._touched = []
        for flow in touched:
            flow.touched = False
            if self.flows.get(flow.key) is not flow:
                continue
            endpoint = flow.endpoint
            flow.pump(now)
            rcv = endpoint.rcv
            if rcv.borrowed:
                rcv.own()
            if flow.may_read and flow.has_room:
                self._more[flow.key] = flow
            if flow.opening and endpoint.state not in _OPENING:
                flow.opening = False
                self._half_open -= 1
                self.established += endpoint.ended is None
            held = rcv.kept + endpoint.snd.queue.kept + flow.spare
            if flow.within is not None:
                held += flow.within.kept
            if held != flow.held:
                self.held += held - flow.held
                flow.held = held
            if endpoint.ended is not None and flow.is_over:
                self._remove(flow, now)
                continue
            if flow.armed_at > now + _TICK_S:
                self._arm(flow, now + _TICK_S)
        if self.held > self.limits.most:
            self._relieve(now)
        self._post(now)
        del self.buffers[_BUFFERS_MAX:]

    def _relieve(self, now: float) -> None:
        """Reset the flows that hold most. As much is freed at once as to be worth the sorting."""
        bound = self.limits.most * 7 // 8
        for flow in heapq.nlargest(_RELIEVED_MAX, self.flows.values(), key=lambda each: each.held):
            if self.held <= bound:
                break
            self.evicted += 1
            self.give_up(flow, now)

    def _arm(self, flow: RelayFlow, due: float) -> None:
        flow.armed_at = due
        self._timer += 1
        heapq.heappush(self._timers, (due, self._timer, flow))
        self._prune()

    def _prune(self) -> None:
        """Let go of timers that nobody waits for, and of the flows that they hold, once they are many."""
        timers, flows = self._timers, self.flows
        if len(timers) > 2 * len(flows) + _STALE_MAX:
            timers[:] = [
                each for each in timers if each[0] == each[2].armed_at and flows.get(each[2].key) is each[2]
            ]
            heapq.heapify(timers)

    def deadline(self) -> float | None:
        """Return when the first flow is to be looked at."""
        return self._timers[0][0] if self._timers else None

    def wake(self, now: float) -> None:
        """Look at flows whose time has come; most were put off since. What is left is due still."""
        timers, woken = self._timers, 0
        for _ in range(_TIMERS_MAX):
            if not timers or timers[0][0] > now or woken == _WOKEN_MAX:
                break
            at, _, flow = heapq.heappop(timers)
            if at != flow.armed_at or self.flows.get(flow.key) is not flow:
                continue
            due = flow.deadline()
            if due > now:
                self._arm(flow, due)
                continue
            woken += 1
            flow.armed_at = NEVER
            flow.wake(now)
            self.touch(flow)

    def _remove(self, flow: RelayFlow, now: float) -> None:
        if self.flows.get(flow.key) is not flow:
            return
        del self.flows[flow.key]
        self._more.pop(flow.key, None)
        self.held -= flow.held
        self._half_open -= flow.opening
        self._prune()
        flow.hang_up()
        if self.on_end is not None:
            self.on_end(flow, now)

    def close(self) -> None:
        """Reset what is left, so that the guest knows."""
        for flow in list(self.flows.values()):
            flow.endpoint.abort()
            self.transmit(flow, 0.0)
            flow.hang_up()
        self._post(0.0)
        self.flows.clear()
        self.poller.end()

    def status(self, now: float) -> dict[str, object]:
        """Return the numbers of connections and octets."""
        stages: dict[str, int] = {}
        for flow in self.flows.values():
            stages[str(flow.stage)] = stages.get(str(flow.stage), 0) + 1
        return {
            "connections": stages,
            "opened": self.opened,
            "established": self.established,
            "failed": self.failed,
            "evicted": self.evicted,
            "octets_up": self.octets_up,
            "octets_down": self.octets_down,
            "held": self.held,
        }

    def list_flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each flow, of the first thousand."""
        return [flow.status(now) for flow in islice(self.flows.values(), _FLOWS_SHOWN_MAX)]


def _frees(endpoint: Endpoint, segment: Segment) -> bool:
    """Whether a segment fills the gap before all that a flow holds, which then goes on its way."""
    rcv = endpoint.rcv
    return bool(rcv.early.starts) and not rcv.readable and segment.seq == rcv.rcv_nxt
