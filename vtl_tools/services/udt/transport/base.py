"""The interface of the transports: what the two modules of vtl-udt see of them.

Two layers. A *connection* is one reliable, ordered stream of octets between the modules, by one library
(common/session/base.py). A *session* is an authenticated, encrypted
connection that carries many *flows*, the guest's connections, each with its own opening, window, half-close
and reset (session.py). The stages use the second layer only:

    near = Dialer(TCPTransport(PathProfile()), address, key, SessionConfig())   # dialer.py; a Source
    connector = near.connector(FlowOpening.of(path))      # a relay.Connector; its stream is a FlowStream

    far = Answerer(transport, address, key, SessionConfig(), on_flow)           # answerer.py; a Source
    def on_flow(flow: IncomingFlow, now: float) -> None:  # flow.opening, flow.stream
        flow.accept(now)                                  # or flow.refuse(Reason.REFUSED, now)

Both have, like a stage, settle(now), deadline(), wake(now), on_stop(now), status(now), and has_more for the
relay. No method blocks. Transports whose library blocks run in a process beside the service (companion.py),
which starts before the service gives up its privileges: Transport.start(), Transport.listen().
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from vtl_tools.common.relay.connector import InternalStream
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.wire import Path


@dataclass(slots=True)
class Counters:
    """The state of a path, as measured. None: not known (yet).

    rtt_s: smoothed round-trip time of heartbeats; rtt_min_s: the least of them. loss: share of packets that
    were lost or sent again, 0 to 1, by the transport's own count; by TCP, of those sent. send_rate,
    receive_rate: octets a second, the highest of the last seconds. sent, received: octets of connections,
    with framing. up: whether the other module answers now. sessions, flows: at the moment.
    """

    rtt_s: float | None = None
    rtt_min_s: float | None = None
    loss: float | None = None
    send_rate: float | None = None
    receive_rate: float | None = None
    sent: int = 0
    received: int = 0
    up: bool = False
    sessions: int = 0
    flows: int = 0


# --- flows


class FlowOpening(NamedTuple):
    """The first message of a flow: whose connection it is and to where. Addresses are 4 or 16 octets."""

    client: bytes
    client_port: int
    destination: bytes
    destination_port: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the opening for a guest's connection that ends here (path.local is its destination)."""
        return cls(path.remote, path.remote_port, path.local, path.local_port)


class FlowStream(InternalStream):
    """One flow, at either end: a relay.Stream without a descriptor, for RelayFlow or a pump of one's own.

    on_event(events, now) is called for what is new: READABLE (octets, or the end: recv_into() returns 0),
    WRITABLE (there is room again after send() took less than all), HUNG_UP (reset, or the session ended: all
    calls raise ConnectionResetError). It may be set again at any time; events before it was set are lost, so
    try recv_into() first.

    send() and sendmsg() take what the other end's window and the connection have room for.
    shutdown(SHUT_WR) ends our direction behind the octets that were taken. close() resets the flow, unless
    both directions have ended.
    """

    def send(self, octets: bytes | bytearray | memoryview, /) -> int:
        """Take some of the octets; return how many. Raises BlockingIOError, ConnectionResetError."""
        raise NotImplementedError

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview], /) -> int:
        """Take some octets of several pieces."""
        raise NotImplementedError

    def recv_into(self, room: memoryview, octets: int, /) -> int:
        """Write at most so many octets into the room; return how many; 0: the flow's end."""
        raise NotImplementedError

    def shutdown(self, how: int, /) -> None:
        """End our direction."""
        raise NotImplementedError

    def close(self) -> None:
        """Release it; reset the flow unless both directions have ended. Idempotent."""
        raise NotImplementedError

    def fileno(self) -> int:
        """Return -1: it is within the process."""
        return -1


class IncomingFlow(Protocol):
    """A flow that the other module asks for, and that waits for our answer."""

    opening: FlowOpening
    stream: FlowStream
    """Usable from accept() on. Before that it hangs up if the client gave up meanwhile."""
    peer: str
    """The other end of the session, for the log: HOST:PORT."""

    def accept(self, now: float) -> None:
        """Tell that the destination is connected."""
        ...

    def refuse(self, reason: Reason, now: float) -> None:
        """Tell why it is not; the flow is gone."""
        ...
