"""One relayed connection: an endpoint faces the guest, a stream faces the target."""

import socket
import struct
from collections import deque
from contextlib import suppress
from enum import Enum, StrEnum
from typing import Final

from vtl_tools.common.relay.budget import BUFFER, SUPER_SEGMENTS, RelayBudget
from vtl_tools.common.relay.connector import (
    HUNG_UP,
    READABLE,
    WRITABLE,
    Connector,
    InternalStream,
    TCPConnector,
    send_at_once,
)
from vtl_tools.common.relay.timers import Timed
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended
from vtl_tools.common.tcp.tcb import NEVER

_COPIED_MAX: Final = BUFFER // 2
"""A read of fewer octets is copied, so that it does not keep a whole buffer from other flows."""
_PIECES_MAX: Final = 64
"""Pieces of one system call."""
_SHUT_WR: Final[int] = socket.SHUT_WR
_RETRY_S: Final = 0.01
"""Time until a proxy that was too busy is called again."""
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: closing resets

SUPER_SEGMENT: Final = 65_455
"""Octets of data that fit a packet of 65,535 with all the options that may come with them."""

RELAYED: Final = Config(
    super_segment=SUPER_SEGMENT, buffer_max=4 << 20, no_delay=True, quick_acks=0, delayed_fin_ack=True,
    syn_timeout_s=30.0, time_wait_s=1.0, keep_alive_s=300.0, keep_alive_interval_s=30.0, keep_alive_probes=5,
)  # fmt: skip
"""Configuration of the endpoints. The guest is one link away, so a late answer is soon a lost one."""


class FlowStage(StrEnum):
    """The stage of a flow (paper section 3.1); the values are what --json prints."""

    OPEN = "open"
    ESTABLISHED = "established"
    CLOSE = "close"
    ERROR = "error"


class FlowOutcome(Enum):
    """The result of an event of a flow. A socks.Reason instead: the target was not reached, and why."""

    PENDING = "pending"
    """Nothing to do before the next event."""
    RETRY_LATER = "retry later"
    """The connector could not begin: call wake() at retry_at."""
    OPEN = "open"
    """The stream is open: carry() may have something to move."""
    ABORTED = "aborted"
    """The endpoint was reset: transmit, and forget the flow."""


class RelayFlow(Timed):
    """Joins an endpoint to a stream. Knows no relay: its methods return what happened, and the relay acts.

    connector: opens the stream; None once it is open, or was refused. syn: the frame with the guest's SYN,
    for an ICMP error to quote. internal: the stream, if it is in this process and buffers something itself.
    heard_at: time of the last event from either side. buffered: octets of memory at the last recount().
    unacked: read buffers that the guest has not acknowledged whole yet: the position behind the data, the
    buffer, its unused octets. slack: the unused octets of all of them. half_open: the handshake is not
    complete. retry_at: when the connector is tried again. is_prompt: small writes to the stream leave at
    once, which a TCP connection is told before its second write; many a short one has no second. has_sent:
    the first was made. has_left: release() was called. For the relay: scheduled, armed_at.
    """

    __slots__ = (
        "armed_at", "budget", "buffered", "connector", "endpoint", "half_open", "has_left", "has_sent",
        "heard_at", "hung_up", "internal", "is_prompt", "key", "may_read", "may_write", "opened_at",
        "received_eof", "retry_at", "scheduled", "sent_eof", "slack", "started_at", "stream", "syn",
        "unacked", "written",
    )  # fmt: skip

    def __init__(
        self,
        key: bytes,
        endpoint: Endpoint,
        connector: Connector,
        syn: bytes,
        budget: RelayBudget,
        now: float,
    ) -> None:
        self.key, self.endpoint, self.syn, self.budget = key, endpoint, syn, budget
        self.connector: Connector | None = connector
        self.stream = stream = connector.stream
        self.internal = stream if isinstance(stream, InternalStream) else None
        self.is_prompt = not isinstance(connector, TCPConnector)
        self.has_sent = self.has_left = False
        self.half_open = True
        self.scheduled = self.may_read = self.may_write = self.hung_up = False
        self.received_eof = self.sent_eof = False
        self.started_at = self.heard_at = now
        self.opened_at: float | None = None
        self.armed_at = self.retry_at = NEVER
        self.buffered = self.written = self.slack = 0
        self.unacked: deque[tuple[int, memoryview, int]] | None = None

    @property
    def stage(self) -> FlowStage:
        """The stage it is in."""
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

    def connect(self, events: int, now: float) -> FlowOutcome | Reason:
        """Go on with opening the stream; once it is open, answer the guest's SYN. events: of the stream."""
        assert self.connector is not None
        if self.endpoint.ended is not None:  # the guest gave up in the same turn
            return FlowOutcome.PENDING
        try:
            result = self.connector.step(events)
        except BlockingIOError:
            self.retry_at = now + _RETRY_S
            return FlowOutcome.RETRY_LATER
        if result is None:
            return FlowOutcome.PENDING
        self.connector = None
        if not isinstance(result, bytes):
            return result
        self.syn = b""
        self.opened_at = now
        if self.endpoint.asked:
            self.endpoint.accept()
        self.may_write = True
        self.may_read = bool(events & READABLE)
        self.hung_up = bool(events & HUNG_UP)
        if result:
            self._write(result)
        return FlowOutcome.OPEN

    # --- Established and Close

    def on_event(self, events: int, now: float) -> FlowOutcome | Reason:
        """Take events of the stream."""
        self.heard_at = now
        if self.connector is not None:
            return self.connect(events, now)
        if events & READABLE:
            self.may_read = True
            if events & HUNG_UP:
                self.hung_up = True
        if events & WRITABLE:
            self.may_write = True
        return FlowOutcome.OPEN

    def carry(self, reads: int = 1) -> None:
        """Move octets both ways, in so many reads. The endpoint then has something to transmit."""
        endpoint = self.endpoint
        ended = endpoint.ended
        if self.connector is not None or (ended is not None and ended is not Ended.CLOSED):
            return
        if self.may_write and (waiting := endpoint.readable):
            self._carry_up(waiting)
        if self.unacked:
            self._reclaim(self.unacked)
        if self.may_read and self.can_read_more:
            while self._carry_down() and reads > 1 and endpoint.can_send(BUFFER) and not self.budget.is_full:
                reads -= 1

    def _carry_up(self, waiting: int) -> None:
        """Send so many octets of the guest to the stream, straight from its frames."""
        endpoint, stream = self.endpoint, self.stream
        pieces = endpoint.pieces
        try:
            while waiting:
                if not self.is_prompt:
                    if self.has_sent:
                        self.is_prompt = True
                        send_at_once(stream)
                    self.has_sent = True
                if len(pieces) == 1:
                    sent = stream.send(pieces[0])
                    self.may_write = sent == waiting  # if not, until the next event
                else:
                    sent = stream.sendmsg(pieces[:_PIECES_MAX])
                endpoint.skip(sent)
                self.budget.octets_up += sent
                waiting -= sent
                if not self.may_write:
                    return
        except BlockingIOError:
            self.may_write = False
        except OSError:
            self._abort()

    @property
    def owes_eof(self) -> bool:
        """Whether the stream is still to be told that the guest has closed its side."""
        return self.endpoint.at_eof and self.connector is None and self.is_draining

    def finish_up(self) -> None:
        """Close the stream's sending side: the guest has closed its own, and all it sent is on its way."""
        self.sent_eof = True
        try:
            self.stream.shutdown(_SHUT_WR)
        except OSError:  # the stream is broken, which the next read reports
            self.may_write = False

    def _reclaim(self, unacked: deque[tuple[int, memoryview, int]]) -> None:
        """Return the buffers whose data the guest has acknowledged."""
        acknowledged = self.endpoint.acknowledged
        while unacked and unacked[0][0] <= acknowledged:
            _, buffer, slack = unacked.popleft()
            self.slack -= slack
            self.budget.return_buffer(buffer)

    @property
    def can_read_more(self) -> bool:
        """Whether the stream is to be read: all that it brought was sent, and the budget allows more."""
        if not self.endpoint.has_room_for(BUFFER):
            return False
        # octets that an internal stream holds are not buffered by moving them on
        return not self.budget.is_full or self.budget.allows(self.endpoint.buffered + self.slack)

    def _carry_down(self) -> bool:
        """Write what the stream brings to the guest, in one buffer. Return whether it was full."""
        budget, most = self.budget, SUPER_SEGMENTS * self.endpoint.send_size
        buffer = budget.take_buffer()
        try:
            size = self.stream.recv_into(buffer, most)
        except BlockingIOError:
            self.may_read = False
            budget.return_buffer(buffer)
            return False
        except OSError:
            budget.return_buffer(buffer)
            self._abort()
            return False
        if size >= _COPIED_MAX:
            self._write(buffer[:size])
            if self.unacked is None:
                self.unacked = deque()
            self.unacked.append((self.written, buffer, BUFFER - size))
            self.slack += BUFFER - size
        else:
            if size:
                self._write(b"" + buffer[:size])  # bytes() takes twice as long
            else:
                self.may_read = False
                if not self.received_eof:
                    self.received_eof = True
                    self.endpoint.close()
            budget.return_buffer(buffer)
        budget.octets_down += size
        if size < most and not self.hung_up:
            self.may_read = False  # that was all; the next event reports more
        return _COPIED_MAX <= size == most

    def _write(self, octets: bytes | memoryview) -> None:
        self.written += self.endpoint.write(octets)

    def _abort(self) -> None:
        """Reset the guest's connection, as the stream was reset."""
        self.may_read = self.may_write = False
        self.sent_eof = True  # what the guest sent before it closed has nowhere to go either
        self.endpoint.abort()

    def recount(self) -> int:
        """Count the octets of memory that are buffered; return by how many they grew since the last time."""
        before = self.buffered
        buffered = self.endpoint.buffered + self.slack
        if self.internal is not None:
            buffered += self.internal.buffered
        self.buffered = buffered
        return buffered - before

    # --- the end

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be carried."""
        ended = self.endpoint.ended
        if ended is None:
            return False
        return ended is not Ended.CLOSED or self.sent_eof or self.connector is not None

    @property
    def is_draining(self) -> bool:
        """Whether the stream has not taken all yet that the guest sent before it closed."""
        if self.sent_eof:
            return False
        ended = self.endpoint.ended
        return ended is None or ended is Ended.CLOSED

    def release(self) -> None:
        """Let go of all memory, and have the stream reset when it is closed, unless both sides finished."""
        self.has_left = True
        in_order = self.sent_eof and (self.received_eof or self.endpoint.ended is Ended.CLOSED)
        if self.opened_at is not None and not in_order:
            with suppress(OSError, AttributeError):  # an internal stream has no options
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # type: ignore[attr-defined]
        self.endpoint.forget()  # an internal stream may keep the flow for a while
        self.connector = self.unacked = None
        self.syn = b""

    # --- time

    def deadline(self) -> float:
        """Return when wake() is due."""
        limits = self.budget.limits
        tcp = self.endpoint.deadline()
        if self.connector is not None:
            due = min(self.retry_at, self.started_at + limits.open_s)
            return due if tcp is None or self.endpoint.asked else min(due, tcp)
        due = self.heard_at + limits.idle_s
        return due if tcp is None or due < tcp else tcp

    def wake(self, now: float) -> FlowOutcome | Reason:
        """Do what is due. Early is harmless."""
        limits = self.budget.limits
        if self.connector is not None:
            if now >= self.started_at + limits.open_s:
                self.connector = None
                return Reason.TTL_EXPIRED
            if now >= self.retry_at:
                self.retry_at = NEVER
                return self.connect(0, now)
            if not self.endpoint.asked:
                self.endpoint.wake(now)
            return FlowOutcome.PENDING
        if now >= self.heard_at + limits.idle_s:
            self.endpoint.abort()
            return FlowOutcome.ABORTED
        self.endpoint.wake(now)
        return FlowOutcome.OPEN

    def status(self, now: float) -> dict[str, object]:
        """Return the fields that --json prints of a flow."""
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
            "held": self.buffered,
        }


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6
