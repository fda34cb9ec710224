"""Connections between a VM that is cut off and its peers, for the tests of vtl-freeze between real kernels.

A peer gives up after seconds, in the place of a quarter of an hour (tcp_retries2). A witness tells when: a
connection of the same peer to a host that has gone for good.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from lab.netns import Host
from lab.wait import PATIENCE_S, until

PATIENT, IMPATIENT = 15, 3
"""tcp_retries2, read by the kernel at each timeout. A peer is impatient only while the service answers it,
and not while the service starts, which takes seconds on a busy machine."""


def be(host: Host, retries: int) -> None:
    """Make the peers on a host PATIENT or IMPATIENT, all at once."""
    host.sysctl("net.ipv4.tcp_retries2", retries)


class Flow:
    """A connection between a socket in the VM and one of its peer; octets from source to sink."""

    def __init__(self, vm: Host, host: Host, address: str, *, download: bool) -> None:
        with vm.call(partial(socket.create_server, (address, 0), family=_family(address))) as server:
            port = server.getsockname()[1]
            self.peer = host.call(partial(socket.create_connection, (address, port)))
            self.vm, _ = server.accept()
        self.source, self.sink = (self.peer, self.vm) if download else (self.vm, self.peer)
        self.data, self.got = os.urandom(1 << 16), bytearray()
        self.sent = 0
        self.error: OSError | None = None
        self.ends = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        try:
            while not self.ends.is_set():
                at = self.sent % len(self.data)
                self.sent += self.source.send(self.data[at : at + 20_000])
                time.sleep(0.001)
            self.source.shutdown(socket.SHUT_WR)
        except OSError as e:
            self.error = e

    def _receive(self) -> None:
        try:
            while octets := self.sink.recv(1 << 16):
                self.got += octets
        except OSError as e:
            self.error = e

    def is_whole(self) -> bool:
        """Come to the end, and tell whether all that was sent was received, once and in order."""
        self.ends.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        whole = self.data * (len(self.got) // len(self.data) + 1)
        return len(self.got) == self.sent and whole.startswith(self.got)

    def close(self) -> None:
        self.ends.set()
        for end in self.vm, self.peer:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def idle(vm: Host, host: Host, address: str) -> tuple[socket.socket, socket.socket]:
    """Return the ends, the peer's first, of a connection without data. Its peer asks each second whether
    the VM is there."""
    with vm.call(partial(socket.create_server, (address, 0))) as server:
        peer = host.call(partial(socket.create_connection, server.getsockname()))
        end, _ = server.accept()
    for option, value in (
        (socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 100),
    ):  # fmt: skip
        peer.setsockopt(socket.IPPROTO_TCP, option, value)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return peer, end


def ask_five_times(peer: socket.socket) -> None:
    """Let an idle peer give up when five of its questions were not answered."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def state_of(peer: socket.socket) -> int:
    """The TCP state of a socket: 1 is ESTABLISHED."""
    return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


@contextmanager
def witness(peer: Host, gone: Host, address: str) -> Iterator[Callable[[], None]]:
    """Connect a peer to a host that then goes for good.

    Yields a function that returns once an IMPATIENT peer has given up what it sent there, and asking.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(gone.call(partial(socket.create_server, (address, 0))))
        ends = [
            stack.enter_context(peer.call(partial(socket.create_connection, listener.getsockname())))
            for _ in range(2)
        ]
        for _ in ends:
            stack.enter_context(listener.accept()[0])

        def outlast() -> None:
            sender, idler = ends
            gone.run("ip", "link", "set", "dev", "eth0", "down")
            for option in socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL:
                idler.setsockopt(socket.IPPROTO_TCP, option, 1)
            ask_five_times(idler)
            idler.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sender.sendall(b"?")
            until(lambda: all(state_of(end) != 1 for end in ends), "the witness to give up")

        yield outlast
