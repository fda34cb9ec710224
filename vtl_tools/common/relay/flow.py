"""One connection that is relayed: the guest's end of it is our endpoint, the rest of the way is a stream."""

import socket
import struct
from collections import deque
from contextlib import suppress
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Final

from vtl_tools.common.relay.connector import HUNG_UP, READABLE, WRITABLE, Connector, InternalStream
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended
from vtl_tools.common.tcp.tcb import NEVER

if TYPE_CHECKING:
    from vtl_tools.common.relay.relay import Relay

SUPER_SEGMENTS: Final = 4
"""Frames that what a stream brings at once may fill: one system call for four of them saves a fifth."""
BUFFER: Final = SUPER_SEGMENTS << 16
"""Octets of a buffer for them."""

_KEPT: Final = BUFFER // 2
"""Octets below which what came is copied, rather than keeping a whole buffer from others."""

_PIECES_MAX: Final = 64  # of one system call

_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: closing resets


class FlowStage(StrEnum):
    """How far a flow is (paper section 3.1); the values are what --json prints."""

    OPEN = "open"
    ESTABLISHED = "established"
    CLOSE = "close"
    ERROR = "error"


class RelayFlow:
    """Joins an endpoint to a stream. pump() moves what can be moved, and the relay calls it when it may.

    syn: the frame that the guest called with, for an ICMP error to quote. heard_at: when anything came last.
    held: octets of memory that wait for the slower side. spare: of the buffers that are lent to the endpoint,
    those that nothing came into. within: the stream, where it is in this process and keeps something itself.
    armed_at: when the relay's timer looks at it again. retry_at: when the call, which could not be made, is
    tried again.
    """

    __slots__ = (
        "armed_at",
        "call",
        "endpoint",
        "heard_at",
        "held",
        "hung_up",
        "key",
        "lent",
        "may_read",
        "may_write",
        "opened_at",
        "opening",
        "received_eof",
        "relay",
        "retry_at",
        "sent_eof",
        "spare",
        "started_at",
        "stream",
        "syn",
        "touched",
        "within",
        "written",
    )  # fmt: skip

    def __init__(
        self, relay: "Relay", key: bytes, endpoint: Endpoint, call: Connector, syn: bytes, now: float
    ) -> None:
        self.relay, self.key, self.endpoint, self.syn = relay, key, endpoint, syn
        self.call: Connector | None = call
        self.stream = call.stream
        self.within = call.stream if isinstance(call.stream, InternalStream) else None
        self.opening = True
        self.touched = self.may_read = self.may_write = self.hung_up = False
        self.received_eof = self.sent_eof = False
        self.started_at = self.heard_at = now
        self.opened_at: float | None = None
        self.armed_at = self.retry_at = NEVER
        self.held = self.written = self.spare = 0
        self.lent: deque[tuple[int, memoryview, int]] | None = None

    @property
    def stage(self) -> FlowStage:
        """How far it is."""
        if self.endpoint.ended not in (None, Ended.CLOSED):
            return FlowStage.ERROR
        if self.opened_at is None:
            return FlowStage.OPEN
        return (
            FlowStage.CLOSE
            if self.received_eof or self.sent_eof or self.endpoint.ended
            else FlowStage.ESTABLISHED
        )

    # --- Open

    def step(self, events: int, now: float) -> None:
        """Go on with the call. Answer the guest's SYN by what came of it."""
        assert self.call is not None
        if self.endpoint.ended is not None:  # the guest gave up in the same turn: there is nobody to answer
            return
        try:
            outcome = self.call.step(events)
        except BlockingIOError:
            self.relay.again(self, now)
            return
        if outcome is None:
            return
        self.call = None
        if isinstance(outcome, Reason):
            self.relay.refused(self, outcome, now)
            return
        self.syn = b""
        self.opened_at = now
        self.endpoint.accept()
        self.relay.touch(self)
        self.may_write = True
        self.may_read = bool(events & READABLE)
        self.hung_up = bool(events & HUNG_UP)
        if outcome:
            self._write(outcome)

    # --- Established and Close

    def on_event(self, events: int, now: float) -> None:
        """Learn what the stream has become ready for."""
        self.heard_at = now
        if self.call is not None:
            self.step(events, now)
            return
        if events & READABLE:
            self.may_read = True
            if events & HUNG_UP:
                self.hung_up = True
        if events & WRITABLE:
            self.may_write = True
        self.relay.touch(self)

    def pump(self, now: float) -> None:
        """Move what can be moved, both ways, and send what is due to the guest."""
        endpoint, relay = self.endpoint, self.relay
        ended, rcv = endpoint.ended, endpoint.rcv
        if self.call is None and (ended is None or ended is Ended.CLOSED):
            if rcv.readable and self.may_write:
                self._up()
            if rcv.fin is not None and not self.sent_eof and endpoint.at_eof:
                self._end_up()
            if (lent := self.lent) is not None:
                acknowledged = endpoint.acknowledged
                while lent and lent[0][0] <= acknowledged:
                    _, buffer, spare = lent.popleft()
                    self.spare -= spare
                    relay.buffers.append(buffer)
            if self.may_read:
                self._down()
        relay.transmit(self, now)

    def _up(self) -> None:
        """What the guest sent goes to the stream, straight from its frames."""
        endpoint, stream = self.endpoint, self.stream
        pieces = endpoint.pieces
        try:
            while waiting := endpoint.readable:
                if len(pieces) == 1:
                    sent = stream.send(pieces[0])
                else:
                    sent = stream.sendmsg(tuple(islice(pieces, _PIECES_MAX)))
                endpoint.skip(sent)
                self.relay.octets_up += sent
                if len(pieces) == 1 and sent < waiting:
                    self.may_write = False  # and its edge will tell
                    return
        except BlockingIOError:
            self.may_write = False
        except OSError:
            self._broken()

    def _end_up(self) -> None:
        """The guest has closed its side, and all it sent is on its way."""
        self.sent_eof = True
        with suppress(OSError):  # the stream may be gone already, which reading it tells
            self.stream.shutdown(socket.SHUT_WR)

    @property
    def has_room(self) -> bool:
        """Whether more of what the stream brings is wanted: what there is has been sent, and may be kept."""
        snd, relay = self.endpoint.snd, self.relay
        return (
            snd.nxt >= snd.queue.tail
            and snd.room >= BUFFER
            and (relay.held <= relay.limits.memory or (not self.held and relay.held <= relay.limits.most))
        )

    def _down(self) -> None:
        """What the stream brings goes to the guest, a buffer at a time, so that others have their turn."""
        if not self.has_room:
            return
        buffers, most = self.relay.buffers, SUPER_SEGMENTS * self.endpoint.snd.send_size
        buffer = buffers.pop() if buffers else memoryview(bytearray(BUFFER))
        try:
            size = self.stream.recv_into(buffer, most)
        except BlockingIOError:
            self.may_read = False
            buffers.append(buffer)
            return
        except OSError:
            self._broken()
            return
        if size >= _KEPT:
            self._write(buffer[:size])
            if self.lent is None:
                self.lent = deque()
            self.lent.append((self.written, buffer, BUFFER - size))
            self.spare += BUFFER - size
        else:
            if size:
                self._write(bytes(buffer[:size]))
            else:
                self.may_read, self.received_eof = False, True
                self.endpoint.close()
            buffers.append(buffer)
        self.relay.octets_down += size
        if size < most and not self.hung_up:
            self.may_read = False  # that was all, and the next edge will tell of more

    def _write(self, octets: bytes | memoryview) -> None:
        self.written += self.endpoint.write(octets)

    def _broken(self) -> None:
        """The stream was reset: so is the guest's connection."""
        self.may_read = self.may_write = False
        self.sent_eof = True  # what the guest said before it closed has nowhere to go either
        self.endpoint.abort()

    # --- the end

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be carried."""
        ended = self.endpoint.ended
        if ended is None:
            return False
        return ended is not Ended.CLOSED or self.sent_eof or self.call is not None

    @property
    def is_draining(self) -> bool:
        """Whether the stream has not taken all yet that the guest said before it closed."""
        return not self.sent_eof and self.endpoint.ended in (None, Ended.CLOSED)

    def hang_up(self) -> None:
        """Close the stream, by a reset where it did not come to its end in order."""
        in_order = self.sent_eof and (self.received_eof or self.endpoint.ended is Ended.CLOSED)
        if self.opened_at is not None and not in_order:
            with suppress(OSError, AttributeError):  # not every stream can
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # type: ignore[attr-defined]
        self.relay.poller.close(self.stream)
        self.endpoint.forget()  # a timer may keep the flow for a while
        self.call = self.lent = None
        self.syn = b""

    def deadline(self) -> float:
        """Return when the relay is to look at it, whatever happens."""
        limits = self.relay.limits
        if self.call is not None:
            return min(self.retry_at, self.started_at + limits.open_s)
        due = self.heard_at + limits.idle_s
        tcp = self.endpoint.deadline()
        return due if tcp is None or due < tcp else tcp

    def wake(self, now: float) -> None:
        """Do what is due."""
        limits = self.relay.limits
        if self.call is not None:
            if now >= self.started_at + limits.open_s:
                self.call = None
                self.relay.refused(self, Reason.TTL_EXPIRED, now)
            elif now >= self.retry_at:
                self.retry_at = NEVER
                self.step(0, now)
            return
        if now >= self.heard_at + limits.idle_s:
            self.relay.give_up(self, now)
        else:
            self.endpoint.wake(now)

    def status(self, now: float) -> dict[str, object]:
        """Return what --json prints of it."""
        path, info = self.endpoint.path, self.endpoint.info()
        return {
            "from": socket.inet_ntop(_family(path.remote), path.remote),
            "from_port": path.remote_port,
            "to": socket.inet_ntop(_family(path.local), path.local),
            "to_port": path.local_port,
            "stage": str(self.stage),
            "state": info.state.value,
            "age_s": round(now - self.started_at, 3),
            "idle_s": round(now - self.heard_at, 3),
            "octets_up": info.received,
            "octets_down": self.written,
            "held": self.held,
        }


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6
