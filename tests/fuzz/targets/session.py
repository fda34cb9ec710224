"""The other module of vtl-udt, with the key and hostile: its frames, and octets that are none.

Its two sessions carry one flow, or several. The octet of a flow at an offset is always the same one. Checked:
no exception; pieces say what the whole says; octets of a flow are read in their order; no more is held than
was promised; answers have a bound; a session that is over has no flow left.
"""

import struct
from typing import Final

from tests.fuzz.octets import Octets, blob, pieces
from tests.unit.udt.pairs import OPENING, outgoing, read, session
from vtl_tools.common.session.secure_channel import OUTBOX_MAX, Role
from vtl_tools.services.udt.transport import frames
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.frames import FRAME, OFFSET, FrameKind
from vtl_tools.services.udt.transport.session import SessionConfig
from vtl_tools.services.udt.transport.tokens import TOKEN, FlowTokens
from vtl_tools.services.udt.transport.window import WINDOW_MIN, WindowBudget

CONFIG: Final = SessionConfig(encrypt=False, memory=1 << 20, flows=3)
PAYLOADS: Final = {
    FrameKind.PING: bytes(8), FrameKind.PONG: bytes(8), FrameKind.ANSWER: frames.pack_answer(None, 500),
    FrameKind.WINDOW: frames.CREDIT.pack(7),
}  # fmt: skip
OF_SESSION: Final = (FrameKind.PING, FrameKind.PONG, FrameKind.BYE)
OFFSETS: Final = (0, 1, 5, 300, WINDOW_MIN, (1 << 20) - 1, 1 << 40, 2**64 - 1)
CONTENT: Final = bytes(range(251)) * 9000


def token(number: int) -> bytes:
    """Return the token of one of the flows."""
    return bytes([1 + number]) * TOKEN


class Side:
    """Two sessions under attack. asked: flows in the order of their openings."""

    def __init__(self, role: Role) -> None:
        self.asked: list[MuxFlow] = []
        tokens: FlowTokens[MuxFlow] = FlowTokens()
        budget = WindowBudget(CONFIG.memory)
        other = Role.RESPONDER if role is Role.INITIATOR else Role.INITIATOR
        self.sessions = []
        for number in range(2):
            keys = [bytes([1 + 2 * number + end]) * 32 for end in range(2)]
            side = session(
                role, config=CONFIG, ephemeral=keys[0], on_flow=self._on_flow, tokens=tokens, budget=budget
            )
            peer = session(other, config=CONFIG, ephemeral=keys[1])
            for _ in range(2):
                side.receive(memoryview(outgoing(peer)), 0.0)
                peer.receive(memoryview(outgoing(side)), 0.0)
            assert side.is_up
            self.sessions.append(side)
        if role is Role.INITIATOR:
            for number in range(2):
                flow = MuxFlow(OPENING, token(number))
                self.sessions[0].open(flow, 0.0)
                self.asked.append(flow)
            self.sessions[1].join(self.asked[0], 0.0)

    def _on_flow(self, flow: MuxFlow, now: float) -> None:
        self.asked.append(flow)
        if len(self.asked) % 4:
            flow.accept(now)

    def result(self) -> tuple[object, ...]:
        held = [(flow.is_open, flow.is_gone, flow.got_end, flow.buffered) for flow in self.asked]
        return [(each.state, each.why) for each in self.sessions], held


def said(take: Octets) -> list[tuple[int, bytes]]:
    """Return octets of records, and the session that each comes by."""
    out = []
    while take.left:
        choice = take.number()
        by = choice >> 7
        if choice & 127 == 127:
            out.append((by, take.blob()))
            continue
        kind = list(FrameKind)[choice % 128 % len(FrameKind)]
        number = 0 if kind in OF_SESSION else take.number() % 6
        payload = PAYLOADS.get(kind, b"")
        if kind is FrameKind.OPEN:
            payload = frames.pack_opening(OPENING, token(number), 1000)
        elif kind is FrameKind.JOIN:
            payload = token(take.number() % 6)
        elif kind in (FrameKind.DATA, FrameKind.END):
            offset = take.number() if take.flag() else take.pick(OFFSETS)
            payload = OFFSET.pack(offset)
            if kind is FrameKind.DATA:
                payload += CONTENT[offset : offset + take.number(2) % 5000]
        body = FRAME.pack(kind, number, len(payload)) + payload
        out.append((by, struct.pack("!I", len(body)) + body))
    return out


def one(data: bytes) -> None:
    take = Octets(data)
    role = take.pick([Role.RESPONDER, Role.INITIATOR])
    cuts = take.blob()
    whole, cut = Side(role), Side(role)
    for by, octets in said(take):
        whole.sessions[by].receive(memoryview(octets), 0.0)
        for piece in pieces(octets, Octets(cuts)):
            cut.sessions[by].receive(memoryview(piece), 0.0)
    assert whole.result() == cut.result(), "the pieces say something else than the whole"
    check(whole)


def check(side: Side) -> None:
    for live in side.sessions:
        outgoing(live)
        assert live.pending <= 5 * OUTBOX_MAX
        assert len(live.lanes) <= CONFIG.flows
        assert not (live.is_over and live.lanes)
    flows = {id(lane.flow): lane.flow for live in side.sessions for lane in live.lanes.values()}.values()
    held = 0
    for flow in flows:
        assert not flow.is_gone
        assert flow.window is not None or not flow.buffered
        held += flow.buffered
        arrived = read(flow)
        assert CONTENT.startswith(arrived), "octets of a flow are others than those that were sent"
    assert held <= CONFIG.memory + len(flows) * WINDOW_MIN


def seeds() -> list[bytes]:
    kinds = list(FrameKind)

    def frame(kind: FrameKind, flow: int = 0, offset: int = 0, size: int = 0, *, by: int = 0) -> bytes:
        number = b"" if kind in OF_SESSION else bytes([flow])
        if kind is FrameKind.JOIN:
            number += bytes([offset])
        elif kind in (FrameKind.DATA, FrameKind.END):
            number += bytes([1, offset])
            if kind is FrameKind.DATA:
                number += size.to_bytes(2, "big")
        return bytes([kinds.index(kind) + 128 * by]) + number

    opened = frame(FrameKind.OPEN, 1) + frame(FrameKind.OPEN, 2)
    answered = frame(FrameKind.ANSWER, 1) + frame(FrameKind.ANSWER, 2)
    data = frame(FrameKind.DATA, 1, 0, 5) + frame(FrameKind.DATA, 2, 0, 5) + frame(FrameKind.DATA, 1, 5, 300)
    ends = frame(FrameKind.END, 1, 5) + frame(FrameKind.RESET, 2) + frame(FrameKind.DATA, 2, 5, 4)
    joined = frame(FrameKind.JOIN, 1, 1, by=1)
    ahead = frame(FrameKind.DATA, 1, 200, 50, by=1) + frame(FrameKind.DATA, 1, 0, 200)
    late = frame(FrameKind.DATA, 1, 5, 3, by=1) + frame(FrameKind.DATA, 1, 0, 9)
    beats = frame(FrameKind.PING) + frame(FrameKind.PONG) + frame(FrameKind.WINDOW, 1)
    conversations = [
        (0, opened + data + ends), (0, opened + beats + data), (1, answered + data + ends),
        (1, answered + beats),
        (0, opened + frame(FrameKind.END, 1) + data), (0, data), (0, opened + opened), (1, opened),
        (0, opened + frame(FrameKind.BYE)), (0, b"\xff" + blob(b"\xff" * 9)), (1, answered + answered),
        (0, opened + joined + ahead), (0, opened + joined + late), (1, answered + ahead),
        (1, answered + late),
        (0, opened + joined + frame(FrameKind.END, 1, 9, by=1)), (0, opened + joined + joined), (0, joined),
        (0, opened + joined + ahead + frame(FrameKind.END, 1, 250) + frame(FrameKind.RESET, 1)),
        (0, opened + joined + ahead + frame(FrameKind.BYE, by=1)), (1, joined),
        (0, opened + frame(FrameKind.OPEN, 3) + frame(FrameKind.OPEN, 4) + frame(FrameKind.OPEN, 5)),
        (0, b"\x7f" + blob(struct.pack("!IBII", 9, 99, 1, 0))), (0, frame(FrameKind.END, 5)),
    ]  # fmt: skip
    return [bytes([role]) + blob(b"\1\2\3\40") + talk for role, talk in conversations]
