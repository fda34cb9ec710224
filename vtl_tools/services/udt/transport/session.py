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
from collections.abc import Callable, Sequence
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
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.frames import DATA_MAX, FRAME, PLAIN_MAX, FrameKind
from vtl_tools.services.udt.transport.window import ReceiveWindow, WindowBudget

QUANTUM: Final = 1 << 16
"""Octets that a flow sends in its turn while others wait."""

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
    log. is_fresh: tells whether an initiator's ephemeral key was not seen before. on_flow: is given each flow
    that the initiator opens. on_change: is called when the session is up, and when it is over.

    flows: by number. rtt_s, rtt_min_s: of heartbeats.
    """

    prologue = b"vtl-udt 1"
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
        on_flow: Callable[[MuxFlow, float], object] = lambda flow, now: None,
        on_change: Callable[["Session", float], object] = lambda session, now: None,
    ) -> None:
        super().__init__(role, config, psk=psk, ephemeral=ephemeral, now=now, is_fresh=is_fresh)
        self.peer, self.on_change = peer, on_change
        self._budget, self._on_flow = budget, on_flow
        self.flows: dict[int, MuxFlow] = {}
        self.rtt_s: float | None = None
        self.rtt_min_s: float | None = None
        self._plain: list[bytes | memoryview] = []
        self._plain_size = 0
        self._last_flow = 0
        self._queue: deque[MuxFlow] = deque()
        self._granted: list[MuxFlow] = []
        self._began_at = self._beat_at = self._alive_at = now
        self._takers = {
            FrameKind.DATA: self._take_data,
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
            if kind is FrameKind.OPEN:
                self._take_open(number, payload)
            elif not number:
                self._take_session_frame(kind, payload)
            elif (flow := self.flows.get(number)) is not None:
                self._takers[kind](flow, payload)
            elif number > self._last_flow:
                raise Malformed("frame.flow")  # it never was; an older one has just ended here
            if self.is_over:
                return

    def _take_data(self, flow: MuxFlow, data: memoryview) -> None:
        window = flow.window
        if window is None or not flow.is_open or flow.got_end or not window.arrive(len(data)):
            raise Malformed("data")
        if data:
            flow.arrived(data, self.now)

    def _take_window(self, flow: MuxFlow, payload: memoryview) -> None:
        flow.credit += frames.CREDIT.unpack(payload)[0]
        if flow.credit > _CREDIT_MAX or not flow.is_open:
            raise Malformed("window")
        if flow.is_starved and flow.credit:
            flow.is_starved = False
            flow.tell(WRITABLE, self.now)

    def _take_end(self, flow: MuxFlow, payload: memoryview) -> None:
        if flow.got_end or not flow.is_open:
            raise Malformed("end")
        flow.ended(self.now)

    def _take_reset(self, flow: MuxFlow, payload: memoryview) -> None:
        self._drop(flow)
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

    def _take_open(self, number: int, payload: memoryview) -> None:
        if self.role is Role.INITIATOR or number <= self._last_flow:
            raise Malformed("open")
        opening, credit = frames.parse_opening(payload)
        self._last_flow = number
        flow = MuxFlow(opening)
        flow.id, flow.session, flow.credit = number, self, credit
        if len(self.flows) >= self.config.flows:
            flow.refuse(Reason.GENERAL, self.now)
            return
        self.flows[number] = flow
        self._on_flow(flow, self.now)

    def _take_answer(self, flow: MuxFlow, payload: memoryview) -> None:
        if self.role is Role.RESPONDER or flow.is_open:
            raise Malformed("answer")
        reason, credit = frames.parse_answer(payload)
        if reason is None:
            flow.opened(credit, self.now)
        else:
            self._drop(flow)
            flow.fail(reason, self.now)

    # --- what flows ask for

    def open(self, flow: MuxFlow, now: float) -> None:
        """Open a flow that has no session yet. The session must be up, and be the initiator's."""
        self.now = now
        self._last_flow += 1
        flow.id, flow.session = self._last_flow, self
        flow.window = self._new_window(flow)
        self.flows[flow.id] = flow
        self._put(FrameKind.OPEN, flow.id, frames.pack_opening(flow.opening, flow.window.size))

    def _new_window(self, flow: MuxFlow) -> ReceiveWindow:
        """Return a window for a flow. One to no port has reports only, and takes no memory from others."""
        budget = self._budget if flow.opening.destination_port else WindowBudget(0)
        return ReceiveWindow(budget, self.now, self.rtt_min_s or 0.0)

    @property
    def is_full(self) -> bool:
        """Whether no more flows can be opened."""
        return len(self.flows) >= self.config.flows or self._last_flow >= _FLOW_MAX

    def answer(self, flow: MuxFlow, reason: Reason | None) -> None:
        """Send ANSWER."""
        if reason is None:
            flow.window = self._new_window(flow)
            self._put(FrameKind.ANSWER, flow.id, frames.pack_answer(None, flow.window.size))
        else:
            self._drop(flow)
            self._put(FrameKind.ANSWER, flow.id, frames.pack_answer(reason, 0))

    def send_data(self, flow: MuxFlow, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Take octets of a flow, as far as there are room and credit. Raises BlockingIOError."""
        room = OUTBOX_MAX - self.pending - self._plain_size
        if flow.grant:
            room, flow.grant = min(room, flow.grant), 0
        elif self._queue:
            room = 0  # others have waited longer
        left = total = min(sum(map(len, pieces)), max(0, room), flow.credit)
        if total < sum(map(len, pieces)):
            self._make_wait(flow, is_starved=total == flow.credit)
        if not total:
            raise BlockingIOError
        for piece in pieces:
            with memoryview(piece) as view:
                for at in range(0, min(left, len(view)), DATA_MAX):
                    self._put(FrameKind.DATA, flow.id, view[at : min(at + DATA_MAX, left, len(view))])
                left -= min(left, len(view))
            if not left:
                break
        flow.credit -= total
        return total

    def _make_wait(self, flow: MuxFlow, *, is_starved: bool) -> None:
        """Tell a flow later: when it has credit, or when there is room."""
        if is_starved:
            flow.is_starved = True
        elif not flow.is_queued:
            flow.is_queued = True
            self._queue.append(flow)

    def end_flow(self, flow: MuxFlow) -> None:
        """Send END."""
        self._put(FrameKind.END, flow.id)

    def reset(self, flow: MuxFlow) -> None:
        """Send RESET, and forget the flow."""
        self._drop(flow)
        self._put(FrameKind.RESET, flow.id)

    def read(self, flow: MuxFlow, octets: int) -> None:
        """Let the other end send more, as so much was read."""
        if flow.window is None or flow.got_end:
            return
        if credit := flow.window.read(octets, self.now, 1.0 if self.rtt_s is None else self.rtt_s):
            self._put(FrameKind.WINDOW, flow.id, frames.CREDIT.pack(credit))

    def forget(self, flow: MuxFlow) -> None:
        """Forget a flow that has ended in both directions."""
        self._drop(flow)

    def _drop(self, flow: MuxFlow) -> None:
        self.flows.pop(flow.id, None)
        if flow.window is not None:
            flow.window.close()

    # --- octets out

    def _put(self, kind: FrameKind, number: int, payload: bytes | memoryview = b"") -> None:
        """Add a frame to the next record."""
        if self.is_over:
            return
        size = FRAME.size + len(payload)
        if self._plain_size + size > PLAIN_MAX:
            self._seal_frames()
        self._plain.append(FRAME.pack(kind, number, len(payload)))
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
        for flow in self._granted:
            flow.grant = 0  # not used: it has nothing to send now
        self._granted.clear()
        room = OUTBOX_MAX - self.pending
        while self._queue and room >= QUANTUM:
            flow = self._queue.popleft()
            flow.is_queued = False
            if flow.is_gone or flow.is_closed:
                continue
            flow.grant = QUANTUM
            room -= QUANTUM
            self._granted.append(flow)
            flow.tell(WRITABLE, now)

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
        flows = list(self.flows.values())
        self.flows.clear()
        self._queue.clear()
        self._granted.clear()
        self._plain.clear()
        self._rest.clear()
        for flow in flows:
            if flow.window is not None:
                flow.window.close()
            flow.fail(Reason.CLOSED, self.now)
        self.on_change(self, self.now)
