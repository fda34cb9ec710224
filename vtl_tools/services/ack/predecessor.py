"""The connections of a service that was killed on the same link: both ends of each are reset.

Data that it had acknowledged may be lost. Nobody knows the numbers of the ends by now, so each is sent a
segment that it has to answer (RFC 9293 section 3.10.7.4), and the answer has the number for the reset.
"""

from typing import Final

from vtl_tools.common.packet import build, derive, quick
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, RST, encode_options
from vtl_tools.services.ack.register import Register, RegisteredConnection

PROBE_S: Final = 1.0
"""Seconds until the first probe is repeated; the interval doubles."""
PROBES: Final = 8
FORGET_S: Final = 600.0
"""Seconds in which segments of these connections are answered by resets."""
_TOGETHER: Final = 256
"""Connections that are probed at once."""

Frames = list[tuple[bytes]]


class LeftConnection:
    """One of them. waits_for: ports whose end has not been reset."""

    __slots__ = ("connection", "slot", "waits_for")

    def __init__(self, slot: int, connection: RegisteredConnection) -> None:
        self.slot, self.connection = slot, connection
        self.waits_for = {0, 1}

    def probe(self, port: int, seq: int) -> bytes:
        """Return a segment for the end at a port, in the other end's name.

        It has timestamps, since one without may be dropped in silence (RFC 7323 section 3.2).
        """
        guest_mac, peer_mac, parties = self.connection
        src, dst, sport, dport = quick.split(parties)
        src_mac, dst_mac = guest_mac, peer_mac
        if port == 0:
            src_mac, dst_mac, src, dst, sport, dport = dst_mac, src_mac, dst, src, dport, sport
        return bytes(
            build.tcp(
                src_mac=src_mac, dst_mac=dst_mac, src=src, dst=dst, sport=sport, dport=dport,
                seq=seq, ack=seq, flags=ACK, options=encode_options(timestamps=(seq, 0)),
            )
        )  # fmt: skip


class Predecessor:
    """All connections that the register holds at the start."""

    def __init__(self, register: Register, now: float) -> None:
        self._register = register
        self._left = {one.parties: LeftConnection(slot, one) for slot, one in register.found()}
        self.found = len(self._left)
        self._round = 0
        self._waiting: list[LeftConnection] = list(self._left.values())
        self._due = now
        self._until = now + FORGET_S

    def __len__(self) -> int:
        return len(self._left)

    def deadline(self) -> float | None:
        """Return when probes() is due; None: never."""
        if not self._left:
            return None
        return self._due if self._waiting or self._round < PROBES else self._until

    def probes(self, now: float) -> tuple[Frames, Frames]:
        """Return the segments that are due to be sent to the guest's link, and to the network's."""
        out: tuple[Frames, Frames] = ([], [])
        if not self._left or now < self._due:
            return out
        if now >= self._until:
            for one in list(self._left.values()):
                self.forget(one)
            return out
        if not self._waiting and self._round < PROBES:
            self._waiting = list(self._left.values())
        part, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
        # A number that is in the window by chance may not be answered; the next one is far from it.
        seq = (self._round & 1) << 31
        for one in part:
            for port in one.waits_for:
                out[port].append((one.probe(port, seq),))
        if not self._waiting:
            self._round += 1
            self._due = now + PROBE_S * (1 << self._round - 1) if self._round < PROBES else self._until
        return out

    def find(self, port: int, parties: bytes) -> LeftConnection | None:
        """Return the connection of a segment that came in at a port; None: it is of none."""
        return self._left.get(parties if port == 0 else quick.reverse(parties))

    def answer(self, one: LeftConnection, port: int, frame: memoryview, flags: int) -> bytes | None:
        """Return the reset for a segment of a connection; None: it has no answer. Raises Malformed."""
        answer = derive.rst(Packet.at(frame))
        if answer is not None or flags & RST:
            one.waits_for.discard(port)
        if not one.waits_for and flags & RST:
            self.forget(one)  # the last word of an end
        return None if answer is None else bytes(answer)

    def forget(self, one: LeftConnection) -> None:
        """Forget a connection."""
        del self._left[one.connection.parties]
        self._register.free(one.slot)
        if one in self._waiting:
            self._waiting.remove(one)
