"""Connections that carry sessions: one reliable, ordered stream of octets between two daemons.

Transport.connect() makes a connection, Listener.accept() returns one. A session over it is authenticated and
encrypted (secure_channel.py). No method blocks.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from vtl_tools.common.relay.connector import Stream

Address = tuple[str, int]
"""A numeric host and a port."""

HEARTBEAT_S: Final = 0.5
"""Silence after which a session says that it is alive."""
DEAD_AFTER_S: Final = 4.0
"""Silence after which the other module is taken for dead: the session ends."""
STALLED_AFTER_S: Final = 30.0
"""The same while packets come, but no octets: one is lost again and again, or the module hangs."""


@dataclass(frozen=True, slots=True)
class PathProfile:
    """The expected capacity of a path; windows, buffers and MSS of a transport follow from it.

    rate: octets a second. rtt_s: seconds, until it was measured. mtu: octets of the largest IP packet.
    """

    rate: float = 125e6
    rtt_s: float = 0.1
    mtu: int = 1500

    @property
    def bdp(self) -> int:
        """The bandwidth-delay product, in octets."""
        return int(self.rate * self.rtt_s)


class PacketCounts(NamedTuple):
    """Packets of a connection. counted, lost: of those, lost or sent again, in the directions that are known.

    heard: packets of any kind that came. It tells of a peer that is alive while octets wait for a lost one.
    """

    counted: int = 0
    lost: int = 0
    heard: int = 0


class Connection(Stream, Protocol):
    """One connection by a transport: a relay.Stream with a descriptor, for an edge-triggered poller."""

    remote: Address

    def connected(self, events: int) -> int | None:
        """Go on with connect(), after events of the descriptor; return 0, an errno, or None to wait."""
        ...

    def packets(self) -> "PacketCounts":
        """Return what the transport has counted so far."""
        ...

    def expect(self, rate: float) -> None:
        """Note the octets a second that it has sent lately, from which the size of a queue may follow."""
        ...


class Listener(Protocol):
    """Accepts connections."""

    address: Address
    """Where it listens, with the port that was chosen if 0 was asked for."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when accept() has something."""
        ...

    def accept(self) -> Connection:
        """Return the next connection. Raises BlockingIOError if none waits, OSError if one was lost."""
        ...

    def close(self) -> None:
        """Stop listening. Idempotent."""
        ...


class Transport(Protocol):
    """A kind of connections. udt.py, tcp.py and srt.py each have one."""

    name: str
    """As its users name it."""

    capabilities: frozenset[int]
    """Those that connect() makes use of while the service runs; for Stage.capabilities."""

    def check(self) -> None:
        """Raise VTLError, with a remedy, if the transport cannot be used on this host."""
        ...

    def start(self) -> None:
        """Prepare for connect(), while the service has its privileges. Idempotent. Raises VTLError."""
        ...

    def connect(self, address: Address, rtt_s: float | None) -> Connection:
        """Begin a connection. rtt_s: of the path; None: not known yet. Raises OSError."""
        ...

    def window(self, rtt_s: float | None) -> int:
        """Return the size of a window for a path, in any unit; 0 if it does not matter for the next one."""
        ...

    def listen(self, address: Address) -> Listener:
        """Listen, while the service has its privileges. Raises VTLError if that is impossible."""
        ...

    def close(self) -> None:
        """Release all resources. Idempotent."""
        ...
