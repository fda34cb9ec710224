"""The other module of vtl-udt, with the key and hostile: its frames, and octets that are none.

Checked: no exception; pieces say what the whole says; octets of a flow arrive in order and once; no more is
held than was promised; answers have a bound; a session that is over has no flow left.
"""

import struct
from typing import Final

from tests.fuzz.octets import Octets, blob, pieces
from tests.unit.udt.pairs import OPENING, outgoing, read, session
from vtl_tools.common.session.secure_channel import OUTBOX_MAX, Role
from vtl_tools.services.udt.transport import frames
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.frames import FRAME, FrameKind
from vtl_tools.services.udt.transport.session import Session, SessionConfig
from vtl_tools.services.udt.transport.window import WINDOW_MIN

CONFIG: Final = SessionConfig(encrypt=False, memory=1 << 20, flows=3)
OPEN_PAYLOAD: Final = frames.pack_opening(OPENING, 1000)
PAYLOADS: Final = {
    FrameKind.PING: bytes(8), FrameKind.PONG: bytes(8), FrameKind.OPEN: OPEN_PAYLOAD,
    FrameKind.ANSWER: frames.pack_answer(None, 500), FrameKind.WINDOW: frames.CREDIT.pack(7),
}  # fmt: skip
KEYS: Final = (b"\1" * 32, b"\2" * 32)


class Side:
    """A session under attack, with what its flows were told. asked: flows in the order of their openings."""

    def __init__(self, role: Role) -> None:
        self.asked: list[MuxFlow] = []
        other = Role.RESPONDER if role is Role.INITIATOR else Role.INITIATOR
        self.session = session(role, config=CONFIG, ephemeral=KEYS[0], on_flow=self._on_flow)
        peer = session(other, config=CONFIG, ephemeral=KEYS[1])
        for _ in range(2):
            self.session.receive(memoryview(outgoing(peer)), 0.0)
            peer.receive(memoryview(outgoing(self.session)), 0.0)
        assert self.session.is_up
        if role is Role.INITIATOR:
            for _ in range(2):
                flow = MuxFlow(OPENING)
                self.session.open(flow, 0.0)
                self.asked.append(flow)

    def _on_flow(self, flow: MuxFlow, now: float) -> None:
        self.asked.append(flow)
        if len(self.asked) % 4:
            flow.accept(now)

    def result(self) -> tuple[object, ...]:
        held = [(flow.is_open, flow.is_gone, flow.got_end, flow.buffered) for flow in self.asked]
        return self.session.state, self.session.why, held


def said(take: Octets) -> tuple[bytes, dict[int, bytes]]:
    """Return octets of records, and the data of each flow in them that a reader may expect."""
    out, data = b"", dict[int, bytes]()
    while take.left:
        choice = take.number()
        if choice == 255:
            out += take.blob()
            continue
        kind = list(FrameKind)[choice % len(FrameKind)]
        flow = 0 if kind in (FrameKind.PING, FrameKind.PONG, FrameKind.BYE) else take.number() % 6
        payload = PAYLOADS.get(kind, b"")
        if kind is FrameKind.DATA:
            payload = take.blob()
            data[flow] = data.get(flow, b"") + payload
        body = FRAME.pack(kind, flow, len(payload)) + payload
        out += struct.pack("!I", len(body)) + body
    return out, data


def one(data: bytes) -> None:
    take = Octets(data)
    role = take.pick([Role.RESPONDER, Role.INITIATOR])
    cuts = Octets(take.blob())
    octets, sent = said(take)
    whole, cut = Side(role), Side(role)
    whole.session.receive(memoryview(octets), 0.0)
    for piece in pieces(octets, cuts):
        cut.session.receive(memoryview(piece), 0.0)
    assert whole.result() == cut.result(), "the pieces say something else than the whole"
    check(whole, sent)


def check(side: Side, sent: dict[int, bytes]) -> None:
    live: Session = side.session
    outgoing(live)
    assert live.pending <= 5 * OUTBOX_MAX
    assert len(live.flows) <= CONFIG.flows
    assert not (live.is_over and live.flows)
    held = 0
    for number, flow in live.flows.items():
        assert flow.window is not None or not flow.buffered
        held += flow.buffered
        expected = sent.get(number, b"")
        assert flow.buffered <= len(expected)
        arrived = read(flow) if flow.buffered else b""
        assert arrived == expected[: len(arrived)], "octets of a flow are others than those that were sent"
    assert held <= CONFIG.memory + CONFIG.flows * WINDOW_MIN


def seeds() -> list[bytes]:
    kinds = list(FrameKind)

    def frame(kind: FrameKind, flow: int = 0, data: bytes | None = None) -> bytes:
        number = b"" if kind in (FrameKind.PING, FrameKind.PONG, FrameKind.BYE) else bytes([flow])
        return bytes([kinds.index(kind)]) + number + (b"" if data is None else blob(data))

    opened = frame(FrameKind.OPEN, 1) + frame(FrameKind.OPEN, 2)
    answered = frame(FrameKind.ANSWER, 1) + frame(FrameKind.ANSWER, 2)
    data = (
        frame(FrameKind.DATA, 1, b"first")
        + frame(FrameKind.DATA, 2, b"other")
        + frame(FrameKind.DATA, 1, b"x" * 300)
    )
    ends = frame(FrameKind.END, 1) + frame(FrameKind.RESET, 2) + frame(FrameKind.DATA, 2, b"late")
    beats = frame(FrameKind.PING) + frame(FrameKind.PONG) + frame(FrameKind.WINDOW, 1)
    conversations = [
        (0, opened + data + ends), (0, opened + beats + data), (1, answered + data + ends),
        (1, answered + beats),
        (0, opened + frame(FrameKind.END, 1) + data), (0, data), (0, opened + opened), (1, opened),
        (0, opened + frame(FrameKind.BYE)), (0, b"\xff" + blob(b"\xff" * 9)), (1, answered + answered),
        (0, opened + frame(FrameKind.OPEN, 3) + frame(FrameKind.OPEN, 4) + frame(FrameKind.OPEN, 5)),
        (0, b"\xff" + blob(struct.pack("!IBII", 9, 99, 1, 0))), (0, frame(FrameKind.END, 5)),
    ]  # fmt: skip
    return [bytes([role]) + blob(b"\1\2\3\40") + talk for role, talk in conversations]
