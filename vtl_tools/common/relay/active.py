"""Active endpoints: connections that we open out of a link, from the address of somebody else.

The stream of such a connection is the far half of a relayed flow, whose peer then sees the original client:

    active = ActiveEndpoints(send, secret)
    relay = Relay(lambda path: active.connector(back(path), time()), secret, has_more=lambda: active.has_more)

The owner passes each segment that comes in at the link to on_frame(), and calls settle() after the relay's.
"""

import errno
import select
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.guest_net.addresses import MTU_MIN
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.common.relay.connector import HUNG_UP, WRITABLE, InternalStream
from vtl_tools.common.relay.frame_queue import FrameQueue
from vtl_tools.common.relay.icmp_errors import SegmentError, apply_error
from vtl_tools.common.relay.timers import SOON_S, FlowTimers
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended, State
from vtl_tools.common.tcp.tcb import NEVER
from vtl_tools.common.tcp.tuning import tune
from vtl_tools.common.tcp.wire import Path, Segment, is_intact

ACTIVE: Final = Config(
    super_segment=65_455, no_delay=True, delayed_fin_ack=True, syn_timeout_s=120.0, time_wait_s=60.0
)
"""Configuration of active endpoints: the peer may be anywhere."""

_ORPHANS_MAX: Final = 4096
"""Connections without an owner: data still on its way to the peer, or TIME-WAIT."""
_ORPHANED_MAX: Final = 64 << 20
"""Octets that these may buffer, all together."""
_FIN_WAIT_2_S: Final = 60.0
"""Time that the peer of such a connection may be silent before it closes, as in Linux."""
_UNSENT_MIN: Final = 1 << 19
"""Octets that may wait to be sent, where the congestion window is smaller."""
_OPENING: Final = (State.CLOSED, State.SYN_SENT, State.SYN_RECEIVED)

_REASONS: Final = {
    Ended.REFUSED: Reason.REFUSED,
    Ended.RESET: Reason.REFUSED,
    Ended.TIMED_OUT: Reason.TTL_EXPIRED,
    Ended.ABORTED: Reason.HOST_UNREACHABLE,
}
_ERRORS: Final = {
    Ended.REFUSED: errno.ECONNREFUSED,
    Ended.RESET: errno.ECONNRESET,
    Ended.TIMED_OUT: errno.ETIMEDOUT,
    Ended.ABORTED: errno.ECONNABORTED,
}


class ActiveStream(InternalStream):
    """The stream of an active endpoint, for a RelayFlow or another owner. Octets are copied in and out.

    Its methods are those of a non-blocking socket; on_event gets the events of one (select.EPOLLIN and so on)
    when they happen. key: of the segments that arrive, as Segment.flow. refused: why it did not open.
    For ActiveEndpoints: armed_at, scheduled, orphaned (octets, once nobody owns it).
    """

    __slots__ = (
        "_closing", "_endpoints", "_resets", "_starved", "armed_at", "endpoint", "key", "on_event",
        "orphaned", "refused", "scheduled",
    )  # fmt: skip

    def __init__(self, endpoints: "ActiveEndpoints", endpoint: Endpoint) -> None:
        self.on_event = None
        self.endpoint, self._endpoints = endpoint, endpoints
        self.key = endpoint.framer.expected
        self.armed_at = NEVER
        self.scheduled = self._closing = self._resets = self._starved = False
        self.refused: Reason | None = None
        self.orphaned = -1

    @property
    def buffered(self) -> int:
        """Octets of memory that wait in it, in either direction."""
        return self.endpoint.buffered

    @property
    def is_open(self) -> bool:
        """Whether the handshake is complete, or was."""
        return self.endpoint.state not in _OPENING or self.endpoint.ended is Ended.CLOSED

    def fileno(self) -> int:
        """Return -1: there is no descriptor."""
        return -1

    # --- the owner's side

    def send(self, octets: bytes | bytearray | memoryview) -> int:
        """Take some of the octets, at least one; return how many."""
        return self.sendmsg((octets,))

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Take some octets of several pieces."""
        endpoint, taken = self.endpoint, 0
        if endpoint.ended is not None:
            raise self._error(errno.EPIPE)
        room = self._room()
        for piece in pieces:
            part = piece if len(piece) <= room else memoryview(piece)[:room]
            if part:
                taken += endpoint.write(bytes(part))
            room -= len(part)
            if len(part) < len(piece):
                self._starved = True
                break
        if not taken:
            raise BlockingIOError
        self._endpoints.schedule(self)
        return taken

    def recv_into(self, room: memoryview, octets: int) -> int:
        """Write at most so many octets into the room; return how many; 0: the peer has closed."""
        endpoint = self.endpoint
        size = min(octets, endpoint.readable)
        if not size:
            if endpoint.at_eof:
                return 0
            if endpoint.ended is not None:
                raise self._error(errno.ECONNRESET)
            raise BlockingIOError
        at = 0
        for piece in endpoint.pieces:
            part = min(len(piece), size - at)
            room[at : at + part] = memoryview(piece)[:part]
            at += part
            if at == size:
                break
        endpoint.skip(size)
        self._endpoints.schedule(self)
        return size

    def _room(self) -> int:
        """Return the octets that are taken now: a window of them may wait, the rest with the owner."""
        endpoint = self.endpoint
        waiting = endpoint.unsent
        window = max(endpoint.snd.cc.cwnd, _UNSENT_MIN)
        return min(endpoint.writable, max(window - waiting, 0))

    def _error(self, otherwise: int) -> OSError:
        code = _ERRORS.get(self.endpoint.ended or Ended.CLOSED, otherwise)
        return OSError(code, "the far connection has ended")

    def shutdown(self, how: int) -> None:
        """Close the sending side, behind the octets that wait in it."""
        if not self._closing:
            self._closing = True
            self.endpoint.close()
        self._endpoints.schedule(self)

    def setsockopt(self, level: int, option: int, value: bytes | int) -> None:
        """Take SO_LINGER, whatever its value: close() will reset the connection. Ignore other options."""
        self._resets |= (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)

    def close(self) -> None:
        """Let go of it: what was sent still goes to the peer, unless neither shutdown() nor the end came."""
        self.on_event = None
        is_begun = self.endpoint.state is not State.CLOSED or self.endpoint.ended is not None
        if is_begun and (self._resets or not self._closing or self.endpoint.readable):
            self.endpoint.abort()
        self._endpoints.orphan(self)

    # --- the side of ActiveEndpoints

    def tell(self, now: float) -> None:
        """Tell the owner of the events; of none also, since what is buffered may have changed."""
        endpoint = self.endpoint
        events = 0
        if endpoint.ended is not None:
            events = select.EPOLLIN | HUNG_UP | WRITABLE
        elif endpoint.state not in _OPENING:
            events = self._events()
        if self.on_event is not None:
            self.on_event(events, now)

    def _events(self) -> int:
        endpoint = self.endpoint
        rcv = endpoint.rcv
        events = select.EPOLLIN if rcv.readable else 0
        if rcv.fin is not None and rcv.nxt > rcv.fin:
            events = select.EPOLLIN | select.EPOLLRDHUP
        if self._starved and self._room() < min(_UNSENT_MIN, endpoint.config.send_buffer) // 2:
            return events
        self._starved = False
        return events | WRITABLE

    def deadline(self) -> float:
        """Return when its endpoint is to be woken."""
        due = self.endpoint.deadline()
        return NEVER if due is None else due

    def status(self) -> dict[str, object]:
        """Return the state of the connection, as --json prints it."""
        info, rate = self.endpoint.info(), self.endpoint.snd.cc.pacing_rate
        return {
            "state": info.state.value,
            "rtt_ms": None if info.rtt_s is None else round(info.rtt_s * 1000, 3),
            "cwnd": info.cwnd,
            "pacing_mbit": None if rate is None else round(rate * 8e-6, 3),
            "retransmits": info.retransmits,
            "held": self.endpoint.buffered,
        }


class ActiveConnector:
    """Opens the connection of a stream."""

    __slots__ = ("_endpoints", "stream")

    def __init__(self, endpoints: "ActiveEndpoints", stream: ActiveStream) -> None:
        self._endpoints, self.stream = endpoints, stream

    def step(self, events: int) -> bytes | Reason | None:
        """Send the SYN, then report the result.

        Raises BlockingIOError while an earlier connection of these addresses and ports still has data.
        """
        stream = self.stream
        endpoint = stream.endpoint
        if endpoint.ended is not None:
            return stream.refused or _REASONS.get(endpoint.ended, Reason.REFUSED)
        if endpoint.state is State.CLOSED:
            self._endpoints.open(stream)
            return None
        return b"" if stream.is_open else None


class ActiveEndpoints:
    """The active endpoints of one link. Sans-IO: frames and time go in, frames and a deadline come out.

    send: puts frames on the link. secret: up to 64 octets that nobody else knows. drops: counts frames that
    are dropped. is_full: tells whether so much is buffered that data in order only is taken. orphaned_max:
    octets of streams that were closed and still deliver.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Pieces], float], object],
        secret: bytes,
        *,
        config: Config = ACTIVE,
        drops: Counter[str] | None = None,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self._secret, self._is_full = config, secret, is_full
        self.drops: Counter[str] = Counter() if drops is None else drops
        self.streams: dict[bytes, ActiveStream] = {}
        self._orphans: dict[bytes, ActiveStream] = {}
        self._orphaned, self.orphaned_max = 0, _ORPHANED_MAX
        self._timers: FlowTimers[ActiveStream] = FlowTimers(self.streams)
        self._outbox = FrameQueue(send)
        self._scheduled: list[ActiveStream] = []
        self.opened = self.established = self.failed = self.evicted = 0

    def on_mtu(self, octets: int) -> None:
        """Send packets that the link carries, on connections that open from now on."""
        self.config = replace(self.config, mtu=max(octets, MTU_MIN))

    def connector(self, path: Path, now: float, config: Config | None = None) -> ActiveConnector:
        """Return what opens a connection. path.local: the address, port and MAC that we speak for.

        config: in place of the usual one. Raises ValueError for an address that is not of one host.
        """
        if not path.is_unicast:
            raise ValueError("not an address of a single host")
        endpoint = Endpoint(path, self._secret, now, config or self.config)
        return ActiveConnector(self, ActiveStream(self, endpoint))

    # --- what streams and connectors call

    def open(self, stream: ActiveStream) -> None:
        """Have settle() send the SYN. Raises BlockingIOError while its addresses and ports are in use."""
        past = self.streams.get(stream.key)
        if past is not None:
            if past.endpoint.state is not State.TIME_WAIT or past.orphaned < 0:
                raise BlockingIOError(errno.EADDRINUSE, "an earlier connection has not ended yet")
            self._remove(past)
        self.streams[stream.key] = stream
        stream.endpoint.connect()
        self.opened += 1
        self.schedule(stream)

    def schedule(self, stream: ActiveStream) -> None:
        """Have settle() send what the endpoint of a stream has to send."""
        if not stream.scheduled:
            stream.scheduled = True
            self._scheduled.append(stream)

    def orphan(self, stream: ActiveStream) -> None:
        """Keep a stream without an owner until its connection has ended."""
        if self.streams.get(stream.key) is stream:
            self._orphans[stream.key] = stream
            stream.orphaned = 0
            stream.endpoint.configure(fin_wait_2_s=_FIN_WAIT_2_S)
            self.schedule(stream)

    # --- frames

    def on_frame(self, segment: Segment, frame: memoryview, now: float) -> bool:
        """Take a segment that came in at the link; False: it belongs to none of these connections.

        So does a SYN that replaces TIME-WAIT. The frame is borrowed until settle().
        """
        stream = self.streams.get(segment.flow)
        if stream is None:
            return False
        if not frame[0] & 3 and not is_intact(frame):
            self._drop("checksum")
            return True
        endpoint = stream.endpoint
        if segment.length and stream.orphaned < 0 and self._is_full() and not _may_take(endpoint, segment):
            self._drop("memory")
            return True
        was_opening = endpoint.state in _OPENING
        endpoint.arrive(segment, now)
        if was_opening and endpoint.state not in _OPENING:
            self.established += 1
        if endpoint.ended is not None and segment.flags & (SYN | ACK | RST | FIN) == SYN:  # RFC 6191
            self._remove(stream)
            return False
        if stream.orphaned >= 0 and endpoint.readable:  # nobody will read it (RFC 1122 section 4.2.2.13)
            endpoint.abort()
        self.schedule(stream)
        stream.tell(now)
        return True

    def _drop(self, reason: str) -> None:
        self.drops[reason] += 1

    def on_error(self, error: SegmentError, now: float) -> bool:
        """Take an ICMP error that came in at the link, with a right checksum; False: it is not about ours."""
        stream = self.streams.get(error.flow)
        if stream is None:
            return False
        if apply_error(stream.endpoint, error):
            stream.refused = error.reason
            stream.tell(now)
        self.schedule(stream)
        return True

    # --- time

    @property
    def has_more(self) -> bool:
        """Whether settle() has something to do."""
        return bool(self._scheduled)

    def settle(self, now: float) -> None:
        """Send what can be sent. Frames that came before may become invalid after this."""
        scheduled, self._scheduled = self._scheduled, []
        for stream in scheduled:
            stream.scheduled = False
            endpoint = stream.endpoint
            self._outbox.transmit(endpoint, now)
            endpoint.own()
            if endpoint.ended is not None:
                self._remove(stream)
                continue
            if endpoint.paced_at < now + SOON_S and endpoint.paced_at < stream.armed_at:
                self._timers.arm(stream, endpoint.paced_at)
            else:
                self._timers.arm_soon(stream, now)
            if now >= endpoint.tune_at:
                tune(endpoint, now, may_grow=not self._is_full())
            if stream.orphaned >= 0:
                self._recount(stream)
        if self._orphaned > self.orphaned_max or len(self._orphans) > _ORPHANS_MAX:
            self._evict(now)
        self._outbox.flush(now)

    def _recount(self, stream: ActiveStream) -> None:
        buffered = stream.endpoint.buffered
        self._orphaned += buffered - stream.orphaned
        stream.orphaned = buffered

    def _evict(self, now: float) -> None:
        """Reset the oldest connections without an owner."""
        for stream in list(self._orphans.values()):
            if self._orphaned <= self.orphaned_max and len(self._orphans) <= _ORPHANS_MAX:
                return
            if stream.endpoint.state is not State.TIME_WAIT:
                self.evicted += 1
                stream.endpoint.abort()
                self._outbox.transmit(stream.endpoint, now)
            self._remove(stream)

    def _remove(self, stream: ActiveStream) -> None:
        """Forget a connection that has ended. Its owner may still read what came before."""
        if self.streams.get(stream.key) is not stream:
            return
        del self.streams[stream.key]
        self.failed += stream.endpoint.snd.una == 0
        if self._orphans.pop(stream.key, None) is not None:
            self._orphaned -= stream.orphaned
            stream.endpoint.forget()
        self._timers.prune()

    def deadline(self) -> float | None:
        """Return when the first timer is due."""
        return self._timers.deadline()

    def wake(self, now: float) -> None:
        """Wake the endpoints whose time has come; settle() is to follow."""
        for stream in self._timers.expired(now):
            stream.endpoint.wake(now)
            self.schedule(stream)
            if stream.endpoint.ended is not None:
                stream.tell(now)

    def on_stop(self, now: float) -> None:
        """Reset all connections, so that the peers know."""
        for stream in list(self.streams.values()):
            stream.endpoint.abort()
            self.schedule(stream)
            stream.tell(now)
        self.settle(now)

    def status(self) -> dict[str, object]:
        """Return the numbers of connections and of octets that are buffered for the peers."""
        return {
            "connections": dict(Counter(each.endpoint.state.value for each in self.streams.values())),
            "opened": self.opened,
            "established": self.established,
            "failed": self.failed,
            "evicted": self.evicted,
            "orphans": len(self._orphans),
            "orphaned": self._orphaned,
        }


def _may_take(endpoint: Endpoint, segment: Segment) -> bool:
    """Tell whether data is taken although the memory is full."""
    return not endpoint.buffered or endpoint.fills_gap(segment)
