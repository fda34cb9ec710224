"""Two sessions that are joined by nothing but lists of octets, on a clock of their own."""

from itertools import count
from typing import Any

from vtl_tools.common.session.secure_channel import Role
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.transport.base import FlowOpening
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.session import Session, SessionConfig
from vtl_tools.services.udt.transport.window import WindowBudget

PSK = bytes(range(32))
OPENING = FlowOpening(bytes([10, 0, 0, 2]), 40000, bytes([192, 0, 2, 7]), 443)
ROOM = memoryview(bytearray(1 << 20))
_ephemerals = count(1)


def fresh() -> bytes:
    """An ephemeral key that no other session has."""
    return next(_ephemerals).to_bytes(32, "big")


def session(role: Role, *, psk: bytes = PSK, config: SessionConfig | None = None, **more: Any) -> Session:
    config = config or SessionConfig()
    more.setdefault("ephemeral", fresh())
    return Session(role, config, WindowBudget(config.memory), psk=psk, now=0.0, **more)


def outgoing(side: Session, now: float = 0.0) -> bytes:
    """All that a side has to send."""
    side.settle(now)
    octets = b"".join(side.outbox)
    side.transmitted(len(octets))
    side.share(now)
    return octets


def read(flow: MuxFlow, most: int = len(ROOM)) -> bytes:
    """Return the octets that wait in a flow, up to so many; b"" if there are none, or at the end."""
    try:
        return bytes(ROOM[: flow.recv_into(ROOM, most)])
    except BlockingIOError:
        return b""


def write(flow: MuxFlow, octets: bytes) -> int:
    """How many octets a flow takes now."""
    try:
        return flow.send(octets)
    except BlockingIOError:
        return 0


class Pair:
    """near: the initiator; far: the responder. arrived: flows that far was asked for. now: the clock."""

    def __init__(self, config: SessionConfig | None = None, **far: Any) -> None:
        self.now = 0.0
        self.arrived: list[MuxFlow] = []
        self.accepts = True
        self.near = session(Role.INITIATOR, config=config)
        self.far = session(Role.RESPONDER, config=config, on_flow=self._on_flow, **far)
        self.to_far, self.to_near = bytearray(), bytearray()

    def _on_flow(self, flow: MuxFlow, now: float) -> None:
        self.arrived.append(flow)
        if self.accepts:
            flow.accept(now)

    def exchange(self, piece: int = 1 << 20) -> None:
        """Carry octets, in pieces of a size, until neither side has any; all are kept in to_far, to_near."""
        moved = True
        while moved:
            moved = False
            for source, target, log in (
                (self.near, self.far, self.to_far),
                (self.far, self.near, self.to_near),
            ):
                octets = outgoing(source, self.now)
                log += octets
                for at in range(0, len(octets), piece):
                    target.receive(memoryview(octets)[at : at + piece], self.now)
                moved = moved or bool(octets)

    def wait(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass, with whatever is due."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for side in self.near, self.far:
                side.wake(self.now)
            self.exchange()

    def flow(self, opening: FlowOpening = OPENING) -> tuple[MuxFlow, MuxFlow]:
        """Open a flow; return both of its ends."""
        ours = MuxFlow(opening)
        self.near.open(ours, self.now)
        self.exchange()
        return ours, self.arrived[-1]


def up(config: SessionConfig | None = None) -> Pair:
    pair = Pair(config)
    pair.exchange()
    assert pair.near.is_up
    assert pair.far.is_up
    return pair


REFUSALS = [Reason.REFUSED, Reason.PROHIBITED, Reason.HOST_UNREACHABLE, Reason.NET_UNREACHABLE]
