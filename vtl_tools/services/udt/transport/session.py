"""Session: both sides of one authenticated connection between the modules, with many flows. Sans-IO.

    session = Session(role, config, budget, psk=..., ephemeral=os.urandom(32), now=now)
    session.receive(octets, now)                   # flows, and on_flow and on_change are told
    session.settle(now)                            # frames become records
    connection.sendmsg(session.outbox)             # then session.transmitted(octets), session.share(now)
    session.deadline(), session.wake(now)

A side that speaks another key, version or kind of encryption, lies about a length, exceeds a window, or opens
a flow twice is cut off: is_over, why.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.relay.connector import WRITABLE
from vtl_tools.common.session.secure_channel import (
    OUTBOX_MAX,
    Role,
    SecureChannel,
    SecureConfig,
    SessionState,
)
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.transport import frames
from vtl_tools.services.udt.transport.flow import Lane, MuxFlow
from vtl_tools.services.udt.transport.frames import DATA_MAX, FRAME, OFFSET, PLAIN_MAX, FrameKind
from vtl_tools.services.udt.transport.tokens import FlowTokens
from vtl_tools.services.udt.transport.window import ReceiveWindow, WindowBudget

QUANTUM: Final = 1 << 16
"""Octets that a flow sends in its turn while others wait."""
LONG_S: Final = 0.05
"""Round-trip time from which on a path is long: a connection starts slowly, and a loss costs it much."""
LANES_MAX: Final = 16
"""Sessions that one flow may use."""

_SEALED_AT_ONCE: Final = 1 << 14
_CREDIT_MAX: Final = 1 << 40
_FLOW_MAX: Final = (1 << 32) - 1
_RTT_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class SessionConfig(SecureConfig):
    """The choices of both modules.

    flows: of one session at once. memory: octets of windows, of all flows that share a WindowBudget.
    """

    flows: int = 16384
    memory: int = 128 << 20


class Session(SecureChannel):
    """One side of a connection: its flows.

    psk: the pre-shared key. ephemeral: 32 random octets that are used once. peer: the other module, for the
    log. is_fresh: tells whether an initiator's ephemeral key was not seen before. tokens: of the flows of all
    sessions that the initiator may join. on_flow: is given each flow that the initiator opens. on_change: is
    called when the session is up, and when it is over.

    lanes: the flows, each by its number here. rtt_s, rtt_min_s: of heartbeats.
    """

    prologue = b"vtl-udt 2"
    sizes = range(FRAME.size, PLAIN_MAX + 1)
    config: SessionConfig

    def __init__(
        self,
        role: Role,
        config: SessionConfig,
        budget: WindowBudget,
        *,
        psk: bytes,
        ephemeral: bytes,
        now: float,
        peer: str = "",
        is_fresh: Callable[[bytes], bool] = lambda key: True,
        tokens: FlowTokens[MuxFlow] | None = None,
        on_flow: Callable[[MuxFlow, float], object] = lambda flow, now: None,
        on_change: Callable[["Session", float], object] = lambda session, now: None,
    ) -> None:
        super().__init__(role, config, psk=psk, ephemeral=ephemeral, now=now, is_fresh=is_fresh)
        self.peer, self.on_change = peer, on_change
        self._budget, self._on_flow = budget, on_flow
        self._tokens: FlowTokens[MuxFlow] = FlowTokens() if tokens is None else tokens
        self.lanes: dict[int, Lane] = {}
        self.rtt_s: float | None = None
        self.rtt_min_s: float | None = None
        self._plain: list[bytes | memoryview] = []
        self._plain_size = 0
        self._last_flow = 0
        self._queue: deque[Lane] = deque()
        self._granted: list[Lane] = []
        self._began_at = self._beat_at = self._alive_at = now
        self._takers = {
            FrameKind.WINDOW: self._take_window,
            FrameKind.END: self._take_end,
            FrameKind.RESET: self._take_reset,
            FrameKind.ANSWER: self._take_answer,
        }

    @property
    def has_more(self) -> bool:
        """Whether flows were told that there is room, so that settle() must follow their turn."""
        return bool(self._granted)

    def on_up(self) -> None:
        """Take the end of the handshake, and measure the path at once."""
        self._beat_at = self.now - self.config.heartbeat_s
        self.wake(self.now)
        self.on_change(self, self.now)

    # --- frames in

    def on_record(self, body: memoryview) -> None:
        """Take the frames of a record. Raises Malformed."""
        for kind, number, payload in frames.split_frames(body):
            if kind is FrameKind.OPEN or kind is FrameKind.JOIN:
                self._take_new(kind, number, payload)
            elif not number:
                self._take_session_frame(kind, payload)
            elif (lane := self.lanes.get(number)) is not None:
                if kind is FrameKind.DATA:
                    self._take_data(lane.flow, payload)
                elif lane.flow.session is self:
                    self._takers[kind](lane.flow, payload)
                else:
                    raise Malformed("frame.kind")  # a further lane has data only
            elif number > self._last_flow:
                raise Malformed("frame.flow")  # it never was; an older one has just ended here
            if self.is_over:
                return

    def _take_data(self, flow: MuxFlow, payload: memoryview) -> None:
        if len(payload) < OFFSET.size:
            raise Malformed("data.length")
        flow.arrived(OFFSET.unpack_from(payload)[0], payload[OFFSET.size :], self.now)

    def _take_window(self, flow: MuxFlow, payload: memoryview) -> None:
        flow.credit += frames.CREDIT.unpack(payload)[0]
        if flow.credit > _CREDIT_MAX or not flow.is_open:
            raise Malformed("window")
        if flow.is_starved and flow.credit:
            flow.is_starved = False
            flow.tell(WRITABLE, self.now)

    def _take_end(self, flow: MuxFlow, payload: memoryview) -> None:
        flow.ended(OFFSET.unpack(payload)[0], self.now)

    def _take_reset(self, flow: MuxFlow, payload: memoryview) -> None:
        self.forget(flow)
        flow.fail(Reason.CLOSED, self.now)

    def _take_session_frame(self, kind: FrameKind, payload: memoryview) -> None:
        if kind is FrameKind.PING:
            if self.pending < OUTBOX_MAX:
                self._put(FrameKind.PONG, 0, bytes(payload))
        elif kind is FrameKind.PONG:
            self._measure(self.now - frames.STAMP.unpack(payload)[0] / 1e6)
        else:
            self.end("ended")

    def _measure(self, rtt_s: float) -> None:
        if not 0 <= rtt_s < _RTT_MAX_S:
            raise Malformed("pong")
        self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + (rtt_s - self.rtt_s) / 8  # as RFC 6298
        self.rtt_min_s = rtt_s if self.rtt_min_s is None else min(self.rtt_min_s, rtt_s)

    def _take_new(self, kind: FrameKind, number: int, payload: memoryview) -> None:
        if self.role is Role.INITIATOR or number <= self._last_flow:
            raise Malformed("open")
        self._last_flow = number
        if kind is FrameKind.JOIN:
            self._take_join(number, bytes(payload))
            return
        opening, token, credit = frames.parse_opening(payload)
        flow = MuxFlow(opening, token)
        flow.credit = credit
        lane = Lane(flow, self, number)
        if len(self.lanes) >= self.config.flows:
            flow.refuse(Reason.GENERAL, self.now)
            return
        self._tokens.add(flow)
        self.lanes[number] = lane
        self._on_flow(flow, self.now)

    def _take_join(self, number: int, token: bytes) -> None:
        """Let a flow use this session. If it has just ended, octets of this number are not taken."""
        flow = self._tokens.find(token)
        if flow is None:
            return
        if (
            not flow.is_open
            or len(flow.lanes) >= LANES_MAX
            or len(self.lanes) >= self.config.flows
            or any(lane.session is self for lane in flow.lanes)
        ):
            raise Malformed("join")
        self.lanes[number] = Lane(flow, self, number)
        flow.spread(self.now)

    def _take_answer(self, flow: MuxFlow, payload: memoryview) -> None:
        if self.role is Role.RESPONDER or flow.is_open:
            raise Malformed("answer")
        reason, credit = frames.parse_answer(payload)
        if reason is None:
            flow.opened(credit, self.now)
        else:
            self.forget(flow)
            flow.fail(reason, self.now)

    # --- what flows ask for

    def open(self, flow: MuxFlow, now: float) -> None:
        """Open a flow that has no session yet. The session must be up, and be the initiator's."""
        self.now = now
        flow.window = ReceiveWindow(self._budget, now)
        lane = self._add_lane(flow)
        self._put(FrameKind.OPEN, lane.id, frames.pack_opening(flow.opening, flow.token, flow.window.size))

    def join(self, flow: MuxFlow, now: float) -> None:
        """Let an open flow of another session use this one as well. It must be up, and be the initiator's."""
        self.now = now
        lane = self._add_lane(flow)
        self._put(FrameKind.JOIN, lane.id, flow.token)
        flow.spread(now)

    def _add_lane(self, flow: MuxFlow) -> Lane:
        self._last_flow += 1
        lane = self.lanes[self._last_flow] = Lane(flow, self, self._last_flow)
        return lane

    @property
    def is_long(self) -> bool:
        """Whether the path is known to be long."""
        return self.rtt_min_s is not None and self.rtt_min_s >= LONG_S

    @property
    def opened_here(self) -> int:
        """The number of flows that were opened on it; others may use it as well."""
        return sum(lane.flow.session is self for lane in self.lanes.values())

    @property
    def is_full(self) -> bool:
        """Whether no more flows can be opened."""
        return len(self.lanes) >= self.config.flows or self._last_flow >= _FLOW_MAX

    def answer(self, flow: MuxFlow, reason: Reason | None) -> None:
        """Send ANSWER."""
        if reason is None:
            flow.window = ReceiveWindow(self._budget, self.now)
            self._put(FrameKind.ANSWER, flow.lanes[0].id, frames.pack_answer(None, flow.window.size))
        else:
            self._put(FrameKind.ANSWER, flow.lanes[0].id, frames.pack_answer(reason, 0))
            self.forget(flow)

    def room(self, lane: Lane) -> int:
        """Return how many octets send_data() takes now."""
        room = max(0, OUTBOX_MAX - self.pending - self._plain_size)
        if lane.grant:
            return min(room, lane.grant)
        return 0 if self._queue else room  # others have waited longer

    def send_data(self, lane: Lane, offset: int, octets: memoryview) -> None:
        """Take octets, for which there is room. offset: octets of the flow before them."""
        lane.grant = max(0, lane.grant - len(octets))
        for at in range(0, len(octets), DATA_MAX):
            piece = octets[at : at + DATA_MAX]
            self._put(FrameKind.DATA, lane.id, piece, OFFSET.pack(offset + at))

    def wait_for_room(self, lane: Lane) -> None:
        """Tell the flow when there is room."""
        if not lane.is_queued:
            lane.is_queued = True
            self._queue.append(lane)

    def end_flow(self, flow: MuxFlow) -> None:
        """Send END."""
        self._put(FrameKind.END, flow.lanes[0].id, OFFSET.pack(flow.sent))

    def reset(self, flow: MuxFlow) -> None:
        """Send RESET, and forget the flow."""
        self.forget(flow)
        self._put(FrameKind.RESET, flow.lanes[0].id)

    def read(self, flow: MuxFlow, octets: int) -> None:
        """Let the other end send more, as so much was read."""
        if flow.window is None or not flow.expects_more:
            return
        if credit := flow.window.read(octets, self.now, self._may_take_s(flow)):
            self._put(FrameKind.WINDOW, flow.lanes[0].id, frames.CREDIT.pack(credit))

    def widen(self, flow: MuxFlow) -> None:
        """Let the other end send more, as octets that are ahead of others have to be held."""
        if flow.window is not None and flow.expects_more and (credit := flow.window.widen()):
            self._put(FrameKind.WINDOW, flow.lanes[0].id, frames.CREDIT.pack(credit))

    def _may_take_s(self, flow: MuxFlow) -> float:
        """Return the time in which a window is read through if it may be what limits the flow."""
        rtt_s = 1.0 if self.rtt_s is None else self.rtt_s
        return rtt_s * (2 if len(flow.lanes) == 1 else 4)  # octets wait for those of a slower session

    def forget(self, flow: MuxFlow) -> None:
        """Let go of a flow, on all sessions. Idempotent."""
        for lane in flow.lanes:
            lane.session.remove(lane)
        self._tokens.remove(flow)
        if flow.window is not None:
            flow.window.close()

    def remove(self, lane: Lane) -> None:
        """Let go of a lane. Idempotent."""
        self.lanes.pop(lane.id, None)

    # --- octets out

    def _put(
        self, kind: FrameKind, number: int, payload: bytes | memoryview = b"", prefix: bytes = b""
    ) -> None:
        """Add a frame to the next record. prefix: octets before the payload."""
        if self.is_over:
            return
        length = len(prefix) + len(payload)
        size = FRAME.size + length
        if self._plain_size + size > PLAIN_MAX:
            self._seal_frames()
        self._plain.append(FRAME.pack(kind, number, length) + prefix)
        self._plain_size += size
        if len(payload) < _SEALED_AT_ONCE:
            if payload:
                self._plain.append(bytes(payload))
        else:
            self._plain.append(payload)  # borrowed: it must not wait
            self._seal_frames()

    def _seal_frames(self) -> None:
        """Make a record of the frames that wait."""
        if self._plain:
            self._emit_record(self._plain)
            self._plain.clear()
            self._plain_size = 0

    def settle(self, now: float) -> None:
        """Make a record of the frames that wait. Called after the flows have had their turn."""
        self.now = now
        self._seal_frames()

    def share(self, now: float) -> None:
        """Tell flows that wait that there is room. Called after the connection took what it could."""
        for lane in self._granted:
            lane.grant = 0  # not used: it has nothing to send now
        self._granted.clear()
        room = OUTBOX_MAX - self.pending
        while self._queue and room >= QUANTUM:
            lane = self._queue.popleft()
            lane.is_queued = False
            if lane.flow.is_gone or lane.flow.is_closed:
                continue
            lane.grant = QUANTUM
            room -= QUANTUM
            self._granted.append(lane)
            lane.flow.tell(WRITABLE, now)

    # --- time and the end

    def deadline(self) -> float:
        """Return when wake() is due."""
        if self.is_up:
            return min(self._beat_at + self.config.heartbeat_s, self._dead_at)
        return self._began_at + self.config.handshake_s

    @property
    def _dead_at(self) -> float:
        """The time at which the other module is given up, unless something is heard of it."""
        config = self.config
        silent = max(self.heard_at, self._alive_at) + config.dead_after_s
        return min(silent, self.heard_at + config.stalled_after_s)

    def note_alive(self, now: float) -> None:
        """Note that packets came, though no octets."""
        self._alive_at = now

    def wake(self, now: float) -> None:
        """Send a heartbeat, or give up on the other end, if it is time."""
        self.now = now
        if self.state in (SessionState.HELLO, SessionState.CONFIRM):
            if now >= self._began_at + self.config.handshake_s:
                self.end("did not answer the handshake in time")
        elif self.is_up:
            if now >= self._dead_at:
                self.end("is silent: dead, or cut off")
            elif now >= self._beat_at + self.config.heartbeat_s:
                self._beat_at = now
                if self.pending < OUTBOX_MAX:
                    self._put(FrameKind.PING, 0, frames.STAMP.pack(int(now * 1e6)))

    def end(self, why: str, *, say: bool = False) -> None:
        """End the session: all flows are reset. say: tell the other end, if the connection takes it."""
        if self.is_over:
            return
        if say and self.is_up:
            self._put(FrameKind.BYE, 0)
            self._seal_frames()
            if self.is_over:
                return
        self.state, self.why = SessionState.OVER, why
        lanes = list(self.lanes.values())
        self._queue.clear()
        self._granted.clear()
        self._plain.clear()
        self._rest.clear()
        for lane in lanes:
            if (home := lane.flow.session) is not None:
                home.reset(lane.flow)  # it may be this one, which sends nothing any more
            lane.flow.fail(Reason.CLOSED, self.now)
        self.lanes.clear()
        self.on_change(self, self.now)
