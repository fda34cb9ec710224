"""The process beside a service in which a library's calls may block; see companion.py.

Two threads carry the octets of a connection between the library and a unix socket; the service has the other
end. The process has given up all rights. Its parent, which does nothing else, starts it again if it dies.
"""

import contextlib
import errno
import mmap
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.host import confinement, privilege
from vtl_tools.common.host.process import close_all_but
from vtl_tools.common.session.base import Address, PacketCounts, PathProfile

CONNECTIONS_MAX: Final = 512
"""Connections of a process at once; each takes two threads."""
REQUEST: Final = struct.Struct("!HHI")
"""A message between service and process, with a descriptor: slot, port, packets of a window; the host."""
MESSAGE_MAX: Final = 512
READY: Final = b"ready"
COUNTS: Final = struct.Struct("=QQQ")
"""A slot of the memory that both share: a connection's PacketCounts."""

_PIECE: Final = 1 << 18
_PAIR: Final = 1 << 20
"""Octets of each buffer between service and process."""
_STACK: Final = 1 << 18
_RESTART_S: Final = 1.0
_MEASURE_S: Final = 0.5
_GRACE_S: Final = 1.0
"""Time that last octets have to leave when the service has ended."""
_SEND_FORCE, _RECEIVE_FORCE = 32, 33  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
_HEADERS: Final = 44
"""Octets of IP, UDP and UDT headers in a packet of the MSS, which counts them all."""
_PACKETS_MIN: Final = 8192
_PACKETS_MAX: Final = 200_000
LISTENING: Final = 65_536
"""Packets that a listening end takes for any path: the end that connects knows the path, and limits both."""
LISTENING_SENDS: Final = 16_384
"""Packets that it buffers to send: 500 Mbit/s over 400 ms. Flows that share a connection wait behind them."""
_ACK_S: Final = 0.01
"""Time between two acknowledgements, which a window has to bridge besides the round trip."""


class BlockingConnection(Protocol):
    """A connection of a library; its methods block, and raise OSError."""

    def send(self, octets: memoryview) -> int:
        """Send some of the octets, at least one; return how many."""
        ...

    def recv_into(self, room: memoryview) -> int:
        """Receive at least one octet."""
        ...

    def packets(self) -> PacketCounts:
        """Return what the library has counted."""
        ...

    def close(self) -> None:
        """Deliver what was sent, then close; wakes a recv_into()."""
        ...


class BlockingLibrary(Protocol):
    """A library, as the process uses it. Made in the service, opened in the process."""

    name: str

    def open(self, udp: socket.socket) -> None:
        """Import it, and take over a UDP socket. Raises OSError or ImportError."""
        ...

    def connect(self, address: Address, packets: int) -> BlockingConnection:
        """Connect. packets: of a window."""
        ...

    def listen(self) -> None:
        """Listen on the UDP socket."""
        ...

    def accept(self) -> tuple[BlockingConnection, Address]:
        """Return the next connection."""
        ...


class LibrarySizes:
    """Sizes for UDT and SRT, from a path's bandwidth-delay product. mss: octets with all headers.

    A window must not be much larger: it is what ends slow start without loss. To send a packet again, libudt
    walks the list of all that are in flight: with 34,000 of them it sends 5,000 a second again.
    """

    def __init__(self, profile: PathProfile) -> None:
        self.mss, self._rate, self._rtt_s = profile.mtu, profile.rate, profile.rtt_s

    def packets(self, rtt_s: float | None) -> int:
        """Return the packets of a window: one and a half of the path's product."""
        octets = 1.5 * self._rate * ((self._rtt_s if rtt_s is None else rtt_s) + _ACK_S)
        return max(_PACKETS_MIN, min(round(octets / (self.mss - _HEADERS)), _PACKETS_MAX))

    def octets(self, packets: int) -> int:
        """Return the octets of a buffer for so many packets."""
        return packets * (self.mss - _HEADERS)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return a pair of unix sockets for the octets of a connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for sock in ours, theirs:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PAIR)
    return ours, theirs


def keep_running(process: "CompanionProcess") -> None:
    """Start the process again whenever it dies, until the service has ended."""
    signal.set_wakeup_fd(-1)
    os.setsid()
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:  # it ends after the service
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):  # a reader of our standard error learns of the end of the service
        os.dup2(nothing, fd)
    close_all_but(0, 1, 2, process.udp.fileno(), process.channel.fileno())
    _set_name(process.library.name)
    while True:
        pid = os.fork()
        if not pid:
            try:
                process.run()
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            os._exit(0)
        process.is_again = True
        time.sleep(_RESTART_S)


def _set_name(name: str) -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"vtl-udt-{name}")


class CompanionProcess:
    """The process: takes requests, accepts connections, and carries their octets."""

    def __init__(
        self,
        library: BlockingLibrary,
        udp: socket.socket,
        octets: int,
        channel: socket.socket,
        counts: mmap.mmap,
        *,
        listens: bool,
    ) -> None:
        self.library, self.udp, self.channel, self._counts = library, udp, channel, counts
        self._octets, self._listens = octets, listens
        self.is_again = False
        self._live: dict[int, BlockingConnection] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        """Serve until the service has ended, then end with status 0."""
        threading.stack_size(_STACK)
        try:
            ours = self.udp.dup()
            self.library.open(self.udp)
            _enlarge_buffers(ours, self._octets)  # last: the library sets its own sizes
            ours.close()
            if self._listens:
                self.library.listen()
        except Exception as e:  # of whatever kind: the service says it
            if not self.is_again:
                self.channel.send(str(e).encode()[:MESSAGE_MAX])
            os._exit(0)
        _give_up_rights()
        if not self.is_again:
            self.channel.send(READY)
        _start(self._measure)
        if self._listens:
            _start(self._accept)
        with contextlib.suppress(OSError):
            while self._take_request():
                pass
        deadline = time.monotonic() + _GRACE_S
        while self._live and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0)  # without the library's own clean-up, which waits for every connection

    def _take_request(self) -> bool:
        octets, fds, _, _ = socket.recv_fds(self.channel, MESSAGE_MAX, 1)
        if octets and fds:
            slot, port, packets = REQUEST.unpack_from(octets)
            address = octets[REQUEST.size :].decode(), port
            _start(self._connect, socket.socket(fileno=fds[0]), slot, address, packets)
        return bool(octets)

    def _connect(self, ours: socket.socket, slot: int, address: Address, packets: int) -> None:
        try:
            connection = self.library.connect(address, packets)
        except OSError as e:
            with contextlib.suppress(OSError):
                ours.send(bytes([(e.errno or errno.ETIMEDOUT) & 0xFF]))
            ours.close()
            return
        with contextlib.suppress(OSError):
            ours.send(b"\0")
        self._carry(ours, slot, connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self.library.accept()
            except OSError:
                os._exit(1)  # the library cannot go on; the parent starts another process
            with self._lock:
                slot = next((i for i in range(CONNECTIONS_MAX) if i not in self._live), None)
                if slot is not None:
                    self._live[slot] = connection
            if slot is None:
                _start(connection.close)
                continue
            service, ours = pair()  # as many descriptors as connections: they do not run out
            notice = REQUEST.pack(slot, address[1], 0) + address[0].encode()
            socket.send_fds(self.channel, [notice], [service.fileno()])
            service.close()
            _start(self._carry, ours, slot, connection)

    def _carry(self, ours: socket.socket, slot: int, connection: BlockingConnection) -> None:
        """Carry octets both ways until either end closes."""
        with self._lock:
            self._live[slot] = connection
        down = _start(self._carry_down, ours, connection)
        room = memoryview(bytearray(_PIECE))
        try:
            while size := ours.recv_into(room):
                at = 0
                while at < size:
                    at += connection.send(room[at:size])
        except OSError:
            pass
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            connection.close()
        down.join()
        ours.close()
        with self._lock:
            if self._live.get(slot) is connection:  # the service may have given the slot to another
                del self._live[slot]
                COUNTS.pack_into(self._counts, slot * COUNTS.size, 0, 0, 0)

    def _carry_down(self, ours: socket.socket, connection: BlockingConnection) -> None:
        room = memoryview(bytearray(_PIECE))
        try:
            while size := connection.recv_into(room):
                ours.sendall(room[:size])
        except OSError:
            pass
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)

    def _measure(self) -> None:
        while True:
            time.sleep(_MEASURE_S)
            with self._lock:
                live = list(self._live.items())
            for slot, connection in live:
                COUNTS.pack_into(self._counts, slot * COUNTS.size, *connection.packets())


def _enlarge_buffers(udp: socket.socket, octets: int) -> None:
    for force, option in (_SEND_FORCE, socket.SO_SNDBUF), (_RECEIVE_FORCE, socket.SO_RCVBUF):
        try:
            udp.setsockopt(socket.SOL_SOCKET, force, octets)
        except OSError:  # without CAP_NET_ADMIN: up to net.core.wmem_max and rmem_max
            udp.setsockopt(socket.SOL_SOCKET, option, octets)


def _start(function: Callable[..., object], *args: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def _give_up_rights() -> None:
    try:
        become = privilege.account(None)
    except SpecError:
        become = None  # a host without such a user
    try:
        privilege.drop_privileges((), become)
        confinement.keep_memory_private()
        confinement.deny_writing()
        confinement.deny_calls()
    except VTLError:
        pass  # an old kernel: the service says so
